//! The crate's own engine on candle's devices: cpu, cuda, metal.

mod load;

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use candle_core::Device;

use super::{Backend, local::LocalModel};
use crate::{Error, LoadConfig, Result, TextModel, TrainableModel, blocking};

/// The backends of this module.
pub fn backends() -> [Arc<dyn Backend>; 3] {
    [Arc::new(CandleBackend::Cpu), Arc::new(CandleBackend::Cuda), Arc::new(CandleBackend::Metal)]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CandleBackend {
    Cpu,
    Cuda,
    Metal,
}

impl CandleBackend {
    /// The device, if it is compiled in and there.
    fn device(self) -> candle_core::Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda => Device::new_cuda(0),
            Self::Metal => Device::new_metal(0),
        }
    }

    async fn load(self, path: &Path, config: &LoadConfig) -> Result<LocalModel> {
        config.validate()?;
        let device = self
            .device()
            .map_err(|error| Error::BackendUnavailable { name: self.name().to_owned(), reason: error.to_string() })?;
        let (path, config) = (path.to_owned(), config.clone());
        blocking::run("load", move || load::load(&path, &config, device)).await
    }
}

#[async_trait]
impl Backend for CandleBackend {
    fn name(&self) -> &str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        }
    }

    fn available(&self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Cuda => candle_core::utils::cuda_is_available() && self.device().is_ok(),
            Self::Metal => candle_core::utils::metal_is_available() && self.device().is_ok(),
        }
    }

    async fn load_model(&self, path: &Path, config: &LoadConfig) -> Result<Box<dyn TextModel>> {
        Ok(Box::new(self.load(path, config).await?))
    }

    async fn load_trainable(&self, path: &Path, config: &LoadConfig) -> Result<Box<dyn TrainableModel>> {
        let model = self.load(path, config).await?;
        match model.as_trainable() {
            Some(_) => Ok(Box::new(model)),
            None => {
                Err(Error::NotTrainable { reason: format!("models are trained on the CPU, not on {}", self.name()) })
            }
        }
    }
}
