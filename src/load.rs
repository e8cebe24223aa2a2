//! Loading of models: choice of the backend.

use std::path::Path;

use crate::{LoadConfig, Result, TextModel, TrainableModel, backend};

/// Loads the model at `path`: a Hugging Face directory (`config.json` and `*.safetensors`), also with MLX quantization,
/// or a `.gguf` file.
///
/// Uses the backend that [`LoadConfig::backend`] names, else the best available one. Loading runs on a thread of its
/// own.
///
/// # Errors
/// [`Error::InvalidModel`] names the file and the field at fault; [`Error::UnsupportedArchitecture`] lists the
/// supported architectures; [`Error::InvalidConfig`] names the field of `config` that cannot be honored;
/// [`Error::BackendNotFound`], [`Error::BackendUnavailable`] and [`Error::NoBackend`] come from the choice of a
/// backend.
///
/// [`Error::InvalidModel`]: crate::Error::InvalidModel
/// [`Error::UnsupportedArchitecture`]: crate::Error::UnsupportedArchitecture
/// [`Error::InvalidConfig`]: crate::Error::InvalidConfig
/// [`Error::BackendNotFound`]: crate::Error::BackendNotFound
/// [`Error::BackendUnavailable`]: crate::Error::BackendUnavailable
/// [`Error::NoBackend`]: crate::Error::NoBackend
///
/// # Cancel safety
/// Dropping the future discards the model; the thread that loads it runs to its end.
///
/// # Examples
/// ```no_run
/// # async fn run() -> tokenflow::Result<()> {
/// use tokenflow::{GenerateConfig, LoadConfig, load_model};
///
/// let model = load_model("SmolLM2-135M-Instruct.gguf", LoadConfig::new()).await?;
/// println!("{}", model.generate("Once upon a time", GenerateConfig::new()).text().await?);
/// # Ok(()) }
/// ```
pub async fn load_model(path: impl AsRef<Path>, config: LoadConfig) -> Result<Box<dyn TextModel>> {
    let (path, config) = (path.as_ref(), &config);
    backend::load_with(config.backend.as_deref(), |backend| async move { backend.load_model(path, config).await }).await
}

/// Loads the model at `path` for training.
///
/// # Errors
/// As [`load_model`], and [`Error::NotTrainable`](crate::Error::NotTrainable) if the backend cannot
/// train. The backend "cpu" can.
///
/// # Examples
/// See [`TrainableModel`].
pub async fn load_trainable(path: impl AsRef<Path>, config: LoadConfig) -> Result<Box<dyn TrainableModel>> {
    let (path, config) = (path.as_ref(), &config);
    backend::load_with(config.backend.as_deref(), |backend| async move { backend.load_trainable(path, config).await })
        .await
}
