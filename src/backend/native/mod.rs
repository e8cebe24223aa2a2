//! The crate's own engine: backends "cpu", "cuda" and "metal".

mod cache_budget;
mod inspect;
mod load;
mod model;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::Arc,
};

use async_trait::async_trait;
use candle_core::Device;

pub use cache_budget::{CacheBudget, CacheCosts};
pub use model::NativeModel;

use super::Backend;
use crate::{Error, LoadConfig, Result, TextModel, TrainableModel, blocking};

/// The backends of this module.
pub fn backends() -> [Arc<dyn Backend>; 3] {
    [Arc::new(NativeBackend::Cpu), Arc::new(NativeBackend::Cuda), Arc::new(NativeBackend::Metal)]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NativeBackend {
    Cpu,
    Cuda,
    Metal,
}

/// Files of NVIDIA's driver on Linux, WSL, Tegra and Windows; one of them exists where the driver is installed.
const CUDA_FILES: [&str; 5] =
    ["/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg", "/dev/nvhost-gpu", "C:\\Windows\\System32\\nvcuda.dll"];

impl NativeBackend {
    /// Opens the device, which may take long.
    fn device(self) -> candle_core::Result<Device> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Cuda => Device::new_cuda(0),
            Self::Metal => Device::new_metal(0),
        }
    }

    /// As `device`. A missing driver library makes some of candle's devices panic.
    fn open(self) -> Result<Device> {
        let unavailable = |reason| Error::BackendUnavailable { name: self.name().to_owned(), reason };
        let opened = catch_unwind(AssertUnwindSafe(|| self.device()));
        let opened = opened.map_err(|panic| unavailable(Error::panicked("its driver", panic.as_ref()).to_string()))?;
        opened.map_err(|error| unavailable(error.to_string()))
    }

    /// Whether there seems to be a device, by the files that exist.
    fn seems_there(self, is_there: impl Fn(&Path) -> bool) -> bool {
        match self {
            Self::Cpu => true,
            Self::Cuda => CUDA_FILES.iter().any(|file| is_there(Path::new(file))),
            // Every current Mac has one.
            Self::Metal => cfg!(any(target_os = "macos", target_os = "ios")),
        }
    }

    fn is_compiled_in(self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Cuda => candle_core::utils::cuda_is_available(),
            Self::Metal => candle_core::utils::metal_is_available(),
        }
    }

    async fn load(self, path: &Path, config: &LoadConfig) -> Result<NativeModel> {
        config.validate()?;
        let (path, config) = (path.to_owned(), config.clone());
        blocking::run("load", move || load::load(&path, &config, self.open()?)).await
    }
}

#[async_trait]
impl Backend for NativeBackend {
    fn name(&self) -> &str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda => "cuda",
            Self::Metal => "metal",
        }
    }

    fn available(&self) -> bool {
        self.is_compiled_in() && self.seems_there(Path::exists)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_seems_there_by_files_alone() {
        assert!(NativeBackend::Cpu.seems_there(|_| false));
        assert!(!NativeBackend::Cuda.seems_there(|_| false));
        for file in CUDA_FILES {
            assert!(NativeBackend::Cuda.seems_there(|path| path == Path::new(file)), "{file}");
        }
    }

    #[test]
    fn a_device_that_cannot_be_opened_is_told_from_a_model_that_cannot_be_loaded() {
        for backend in [NativeBackend::Cuda, NativeBackend::Metal] {
            if !backend.is_compiled_in() {
                let refused = backend.open().unwrap_err();
                assert!(matches!(&refused, Error::BackendUnavailable { name, .. } if name == backend.name()));
            }
        }
    }
}
