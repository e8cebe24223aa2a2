//! Models whose attention can be read.

use async_trait::async_trait;

use super::TextModel;
use crate::{AttentionSnapshot, Error, GenerateConfig, InspectConfig, Inspection, Result};

/// A model whose attention can be read: every model of the cpu backend.
///
/// # Examples
/// ```no_run
/// # async fn run(model: Box<dyn tokenflow::TextModel>) -> tokenflow::Result<()> {
/// use tokenflow::{GenerateConfig, InspectConfig};
///
/// let inspector = model.as_attention_inspector().expect("a model of the cpu backend");
/// let snapshot = inspector.inspect_attention("The cat sat", GenerateConfig::new()).await?;
/// println!("{} layers, {} key heads", snapshot.num_layers, snapshot.num_heads);
///
/// let seen = inspector.inspect("The cat sat", InspectConfig::new().attention(true)).await?;
/// let from_last_to_first = seen.attention[0][0][(seen.tokens.len() - 1) * seen.tokens.len()];
/// println!("the last token gives the first {from_last_to_first:.3} of its attention");
/// # Ok(()) }
/// ```
#[async_trait]
pub trait AttentionInspector: TextModel {
    /// Reads the keys and queries of a prompt.
    ///
    /// Reads [`adapter`](GenerateConfig::adapter), [`base_model`](GenerateConfig::base_model),
    /// [`cancellation`](GenerateConfig::cancellation) and [`deadline`](GenerateConfig::deadline) of `config`. Requests
    /// go first, layer by layer, and neither their answers nor the KV cache change.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`] if the prompt exceeds the context or [`InspectConfig::max_bytes`]; [`Error::Closed`],
    /// [`Error::Cancelled`], [`Error::DeadlineExceeded`].
    ///
    /// # Cancel safety
    /// Dropping the future ends the work within a layer.
    async fn inspect_attention(&self, prompt: &str, config: GenerateConfig) -> Result<AttentionSnapshot>;

    /// Reads keys and queries, and attention weights and hidden states if `config` asks for them.
    ///
    /// # Errors
    /// As [`inspect_attention`](Self::inspect_attention), and [`Error::InvalidConfig`] if this model has only that
    /// method.
    ///
    /// # Cancel safety
    /// As [`inspect_attention`](Self::inspect_attention).
    async fn inspect(&self, prompt: &str, config: InspectConfig) -> Result<Inspection> {
        let _ = (prompt, config);
        Err(Error::config("config", "of this model keys and queries can be read, by inspect_attention"))
    }
}
