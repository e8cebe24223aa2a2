//! The forward pass as the engine sees it.

use std::sync::Arc;

use super::{Batch, CacheSize, Network, Ops, Outputs, Spec, kv_cache::KvCache, split::Choices};
use crate::{Error, Quantize, Result, kernels::attention::KvDtype, weights::Checkpoint};

/// A forward pass over a packed batch, as the engine runs it.
pub trait Forward: Send {
    /// Computes a batch, stores its keys and values, and returns the outputs of the rows that [`Batch::sampled`] names:
    /// logits, or hidden states for the rows of [`Batch::hidden`]. The work is shared by the threads of the caller's
    /// [thread pool](crate::kernels::threads::ThreadPool).
    fn forward(&mut self, batch: &Batch) -> Result<Outputs>;

    /// How positions are encoded in a sequence of `len` tokens, of which `prompt_len` were its prompt. What was
    /// computed with one variant is of no use with another: a sequence whose variant changes is computed anew.
    fn rope_variant(&self, prompt_len: usize, len: usize) -> usize {
        let _ = (prompt_len, len);
        0
    }

    /// Drops the state of a sequence that has ended.
    fn forget(&mut self, sequence: u64) {
        let _ = sequence;
    }
}

/// A decoder-only transformer with its weights and its key/value cache.
pub struct Decoder {
    network: Arc<Network>,
    cache: KvCache,
    choices: Choices,
}

/// Where and how a decoder's weights are placed.
pub struct Placement {
    pub ops: Ops,
    /// Bits to quantize matrices to that are not quantized yet.
    pub quantize: Option<Quantize>,
    /// Whether activations are rounded to bfloat16 where they meet weights of bfloat16.
    pub rounded: bool,
    pub cache_size: CacheSize,
    /// The type of cached keys and values.
    pub kv_dtype: KvDtype,
}

impl Decoder {
    /// Loads the weights, and calls `progress` with the count of loaded layers and of all layers.
    pub fn load(
        checkpoint: &Checkpoint,
        spec: Spec,
        placement: &Placement,
        progress: impl Fn(usize, usize),
    ) -> Result<Self> {
        let network = Network::load(checkpoint, spec, placement, progress)?;
        let Placement { ops, cache_size, kv_dtype, .. } = placement;
        let cache = KvCache::new(&network.spec, *cache_size, *kv_dtype, ops)?;
        Ok(Self { network: Arc::new(network), cache, choices: Choices::default() })
    }

    /// The weights, which do not change.
    pub fn network(&self) -> &Arc<Network> {
        &self.network
    }

    /// Bytes of the weights.
    pub fn weight_bytes(&self) -> usize {
        self.network.weight_bytes()
    }
}

impl Forward for Decoder {
    fn forward(&mut self, batch: &Batch) -> Result<Outputs> {
        let Self { network, cache, choices } = self;
        let vocab_size = network.spec.vocab_size;
        if let Some(token) = batch.tokens.iter().find(|token| **token as usize >= vocab_size) {
            return Err(Error::internal(format!("token {token} is not in a vocabulary of {vocab_size}")));
        }
        match network.hidden(batch, cache, choices)? {
            Some(x) => Ok(network.outputs(&x, batch)?),
            None => Ok(Outputs::default()),
        }
    }

    fn rope_variant(&self, prompt_len: usize, len: usize) -> usize {
        self.network.rope_variant(prompt_len, len)
    }
}
