//! What a model computes on the way to its answer: keys and queries, attention weights, hidden states.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    Error, GenerateConfig, Result, TextModel,
    config::{check_adapter, setters},
    decoder::{AttentionCapture, Batch, Network, Span},
    engine::{BackgroundJobs, ModelLease},
    text::Prompt,
};

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
    /// Of `config` it heeds the [`adapter`](GenerateConfig::adapter) or its
    /// [absence](GenerateConfig::base_model), the [`cancellation`](GenerateConfig::cancellation) and
    /// the [`deadline`](GenerateConfig::deadline); the others are about answers. Requests are answered meanwhile: they
    /// go first, layer by layer, and neither their answers nor the cache of keys and values change.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`] beyond what the model takes or what the memory of [`InspectConfig::default`] holds;
    /// [`Error::Closed`], [`Error::Cancelled`], [`Error::DeadlineExceeded`].
    ///
    /// # Cancel safety
    /// Dropping the future ends the work within a layer.
    async fn inspect_attention(&self, prompt: &str, config: GenerateConfig) -> Result<AttentionSnapshot>;

    /// Reads what `config` asks for.
    ///
    /// # Errors
    /// As [`inspect_attention`](Self::inspect_attention), and [`Error::InvalidConfig`] if this model has only that.
    ///
    /// # Cancel safety
    /// As [`inspect_attention`](Self::inspect_attention).
    async fn inspect(&self, prompt: &str, config: InspectConfig) -> Result<Inspection> {
        let _ = (prompt, config);
        Err(Error::config("config", "of this model keys and queries can be read, by inspect_attention"))
    }
}

/// Keys and queries of a prompt, as attention takes them: after norms and rotary embedding, in the order of the Hugging
/// Face model's dimensions.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AttentionSnapshot {
    /// Transformer layers.
    pub num_layers: usize,
    /// Heads of keys.
    pub num_heads: usize,
    /// Heads of queries, a multiple of `num_heads`: as many in a row share a head of keys.
    pub num_query_heads: usize,
    /// Tokens of the prompt.
    pub seq_len: usize,
    /// Numbers of a head.
    pub head_dim: usize,
    /// The architecture's name: "llama", "qwen3", …
    pub architecture: String,
    /// `[layer][key head][seq_len * head_dim]`
    pub keys: Vec<Vec<Vec<f32>>>,
    /// `[layer][query head][seq_len * head_dim]`
    pub queries: Vec<Vec<Vec<f32>>>,
}

/// What is read of a prompt. `InspectConfig::new()` and the builder methods.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct InspectConfig {
    /// The adapter, as [`GenerateConfig::adapter`].
    pub adapter: Option<String>,
    /// Whether no adapter changes the model, as [`GenerateConfig::base_model`] (`false`).
    pub base_model: bool,
    /// Whether attention weights are read (`false`).
    pub attention: bool,
    /// Whether hidden states are read (`false`).
    pub hidden_states: bool,
    /// Bytes that what is read may take (256 MiB).
    pub max_bytes: usize,
}

impl Default for InspectConfig {
    fn default() -> Self {
        Self { adapter: None, base_model: false, attention: false, hidden_states: false, max_bytes: 256 << 20 }
    }
}

impl InspectConfig {
    /// Keys and queries only.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// Sets [`adapter`](Self::adapter).
        adapter: impl Into<String> => Some(adapter.into());
        /// Sets [`base_model`](Self::base_model).
        base_model: bool => base_model;
        /// Sets [`attention`](Self::attention).
        attention: bool => attention;
        /// Sets [`hidden_states`](Self::hidden_states).
        hidden_states: bool => hidden_states;
        /// Sets [`max_bytes`](Self::max_bytes).
        max_bytes: usize => max_bytes;
    }
}

/// What was read of a prompt.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The prompt's tokens, `[seq_len]`.
    pub tokens: Vec<u32>,
    /// Keys and queries.
    pub snapshot: AttentionSnapshot,
    /// If it was asked for, what part of its attention each token gives to each: `[layer][query head][seq_len *
    /// seq_len]`, a row for each token. A row adds up to 1, or to less where the model has attention sinks.
    pub attention: Vec<Vec<Vec<f32>>>,
    /// If it was asked for, what the first layer takes, what each but the last gives, and what the head takes:
    /// `[num_layers + 1][seq_len * hidden_size]`.
    pub hidden_states: Vec<Vec<f32>>,
}

/// Reads what a prompt makes the model compute. `goes_on` is asked before each layer.
pub fn inspect(
    background: &BackgroundJobs,
    prompt: String,
    context_len: usize,
    config: &InspectConfig,
    goes_on: impl Fn() -> Result<()> + Send,
) -> Result<Inspection> {
    check_adapter(config.adapter.as_deref(), config.base_model)?;
    let adapter = match config.base_model {
        true => None,
        false => background.adapters.get(config.adapter.as_deref())?,
    };
    let tokens = background.text.encode(&Prompt::Text(prompt), &Default::default())?;
    let lease = background.lease()?;
    let network = &*lease.network;
    let (len, limit) = (tokens.len(), context_len.min(longest(network, config, context_len)));
    if len > limit {
        return Err(Error::PromptTooLong { tokens: len, limit, prompt: None });
    }
    if let Some(id) = tokens.iter().find(|id| **id as usize >= network.vocab_size()) {
        return Err(Error::config("prompt", format!("token {id} is not in the model's vocabulary")));
    }
    let rope_variant = network.rope_variant(len, len);
    let adapter = adapter.map(|loaded| loaded.adapter);
    let span = Span { len, context_len: len, rope_variant, adapter, ..Span::default() };
    let batch = Batch { positions: (0..len as u32).collect(), tokens, spans: vec![span], sampled: Vec::new() };
    let seen = lease.on_threads("inspection", || layers(&lease, &batch, config, goes_on))?;
    Ok(Inspection { tokens: batch.tokens, ..seen })
}

fn layers(
    lease: &ModelLease,
    batch: &Batch,
    config: &InspectConfig,
    goes_on: impl Fn() -> Result<()>,
) -> Result<Inspection> {
    let (network, seq_len) = (&*lease.network, batch.tokens.len());
    let heads = network.heads();
    let mut seen = Inspection {
        snapshot: AttentionSnapshot {
            num_layers: network.num_layers(),
            num_heads: heads.num_kv_heads,
            num_query_heads: heads.num_heads,
            seq_len,
            head_dim: heads.head_dim,
            architecture: network.architecture().to_owned(),
            ..AttentionSnapshot::default()
        },
        ..Inspection::default()
    };
    let capture = AttentionCapture::new(config.attention);
    let pass = network.capturing_pass(batch, &capture)?;
    let mut x = network.embed(batch)?;
    for layer in 0..network.num_layers() {
        goes_on()?;
        let _slot = lease.slot()?;
        if config.hidden_states {
            seen.hidden_states.push(x.flatten_all()?.to_vec1()?);
        }
        x = network.layer(layer, &x, &pass)?;
        let found = capture.take()?;
        seen.snapshot.keys.push(found.keys);
        seen.snapshot.queries.push(found.queries);
        seen.attention.extend(found.weights);
    }
    if config.hidden_states {
        seen.hidden_states.push(network.before_head(&x)?.flatten_all()?.to_vec1()?);
    }
    Ok(seen)
}

/// The greatest number of tokens, up to `most`, of which what is read fits into the memory.
fn longest(network: &Network, config: &InspectConfig, most: usize) -> usize {
    let (heads, layers) = (network.heads(), network.num_layers());
    let bytes = |tokens: usize| {
        let keys_and_queries = layers * (heads.num_heads + heads.num_kv_heads) * heads.head_dim;
        let hidden_states = if config.hidden_states { (layers + 1) * network.hidden_size() } else { 0 };
        let attention = if config.attention { layers * heads.num_heads } else { 0 };
        let per_token = attention.saturating_mul(tokens).saturating_add(keys_and_queries + hidden_states);
        tokens.saturating_mul(per_token).saturating_mul(size_of::<f32>())
    };
    let (mut fits, mut beyond) = (0, most.saturating_add(1));
    while beyond - fits > 1 {
        let middle = fits + (beyond - fits) / 2;
        if bytes(middle) <= config.max_bytes { fits = middle } else { beyond = middle }
    }
    fits
}

impl From<GenerateConfig> for InspectConfig {
    /// With its adapter, or none.
    fn from(config: GenerateConfig) -> Self {
        Self { adapter: config.adapter, base_model: config.base_model, ..Self::default() }
    }
}
