//! Inspection of a prompt, layer by layer, between the passes of requests.

use crate::{
    AttentionSnapshot, Error, InspectConfig, Inspection, Result,
    config::check_adapter,
    decoder::{AttentionCapture, Batch, Network, Span},
    engine::{BackgroundJobs, ModelLease},
    text::Prompt,
};

/// Runs a prompt through the model layer by layer, between the passes of requests. An error of `goes_on`, which is
/// asked before each layer, ends the work.
pub fn inspect(
    background: &BackgroundJobs<Network>,
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
    let batch = Batch { positions: (0..len as u32).collect(), tokens, spans: vec![span], ..Batch::default() };
    let seen = lease.on_threads("inspection", || layers(&lease, &batch, config, goes_on))?;
    Ok(Inspection { tokens: batch.tokens, ..seen })
}

fn layers(
    lease: &ModelLease<Network>,
    batch: &Batch,
    config: &InspectConfig,
    goes_on: impl Fn() -> Result<()>,
) -> Result<Inspection> {
    let (network, seq_len) = (&*lease.network, batch.tokens.len());
    let heads = network.attention_heads().next();
    let mut seen = Inspection {
        snapshot: AttentionSnapshot {
            num_layers: network.num_layers(),
            num_heads: heads.map_or(0, |heads| heads.num_kv_heads),
            num_query_heads: heads.map_or(0, |heads| heads.num_heads),
            seq_len,
            head_dim: heads.map_or(0, |heads| heads.head_dim),
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
        let found = capture.take().unwrap_or_default();
        seen.snapshot.keys.push(found.keys);
        seen.snapshot.queries.push(found.queries);
        if config.attention {
            seen.attention.push(found.weights.unwrap_or_default());
        }
    }
    if config.hidden_states {
        seen.hidden_states.push(network.before_head(&x)?.flatten_all()?.to_vec1()?);
    }
    Ok(seen)
}

/// The longest prompt, of `most` tokens at most, whose inspection fits into [`InspectConfig::max_bytes`].
fn longest(network: &Network, config: &InspectConfig, most: usize) -> usize {
    let of_layers = network.attention_heads().map(|heads| (heads.num_heads + heads.num_kv_heads) * heads.head_dim);
    let keys_and_queries: usize = of_layers.sum();
    let query_heads: usize = network.attention_heads().map(|heads| heads.num_heads).sum();
    let bytes = |tokens: usize| {
        let hidden_states = if config.hidden_states { (network.num_layers() + 1) * network.hidden_size() } else { 0 };
        let attention = if config.attention { query_heads } else { 0 };
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
