//! What a forward pass is: one decoder that a per-architecture [`Spec`] configures. It knows
//! tokens, positions and cache slots, but no request, queue or channel.

mod arch;
mod attention;
mod batch;
mod kv_cache;
mod layer;
mod linear;
mod norm;
mod rope;
mod spec;

use candle_core::{DType, Device, Tensor};

pub use arch::spec;
pub use batch::{Batch, Span};
pub use kv_cache::BLOCK_TOKENS;
use kv_cache::KvCache;
use layer::Layer;
use linear::{Embedding, Linear};
use norm::RmsNorm;
use rope::Rope;
pub use spec::Spec;

use crate::{Error, Result, weights::Checkpoint};

/// What the engine runs: a forward pass over a packed batch.
pub trait Forward: Send {
    /// Computes a batch, stores its keys and values, and returns the logits of the rows that
    /// [`Batch::sampled`] names: `[sampled rows, vocab_size]`. It runs on the caller's rayon threads.
    fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>>;
}

/// A decoder-only transformer with its weights and its key/value cache.
pub struct Decoder {
    network: Network,
    cache: KvCache,
}

/// The weights and what is computed with them.
struct Network {
    spec: Spec,
    device: Device,
    dtype: DType,
    embedding: Embedding,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Linear,
    rope: Rope,
}

/// Where and how a decoder's weights are placed.
pub struct Placement {
    pub device: Device,
    /// The type of activations and of weights that are not quantised.
    pub dtype: DType,
    /// Blocks of [`BLOCK_TOKENS`] tokens that the key/value cache holds.
    pub cache_blocks: usize,
    /// The type of keys and values in the cache.
    pub cache_dtype: DType,
}

impl Decoder {
    pub fn load(checkpoint: &Checkpoint, spec: Spec, placement: &Placement) -> Result<Self> {
        let Placement { device, dtype, cache_blocks, cache_dtype } = placement;
        let load = Loader { checkpoint, device, dtype: *dtype };
        let vocabulary = [spec.vocab_size, spec.hidden_size];
        let embedding = checkpoint.matrix("model.embed_tokens.weight", vocabulary, *dtype, device)?;
        let embedding = Embedding::new(embedding, *dtype);
        let head =
            if spec.tie_word_embeddings { embedding.as_head()? } else { load.linear("lm_head", vocabulary, false)? };
        let layers = (0..spec.num_layers).map(|i| Layer::load(&load, &spec, i)).collect::<Result<_>>()?;
        let norm = load.norm("model.norm", spec.hidden_size, spec.norm_eps)?;
        let cache = KvCache::new(&spec, *cache_blocks, *cache_dtype, device)?;
        let rope = Rope::new(&spec.rope, spec.head_dim, device);
        let network = Network { spec, device: device.clone(), dtype: *dtype, embedding, layers, norm, head, rope };
        Ok(Self { network, cache })
    }

    /// The memory one block of the cache takes.
    pub fn block_bytes(spec: &Spec, cache_dtype: DType) -> usize {
        KvCache::block_bytes(spec, cache_dtype)
    }

    /// The memory the weights take.
    pub fn weight_bytes(&self) -> usize {
        let Network { spec, embedding, layers, head, .. } = &self.network;
        let head = if spec.tie_word_embeddings { 0 } else { head.bytes() };
        embedding.bytes() + head + layers.iter().map(Layer::bytes).sum::<usize>()
    }
}

impl Network {
    /// Stores the keys and values of a batch and gives what its last layer does, `[rows, hidden]`.
    fn hidden(&self, batch: &Batch, cache: &mut KvCache) -> candle_core::Result<Tensor> {
        let tokens = Tensor::new(batch.tokens.as_slice(), &self.device)?;
        let rotation = self.rope.at(&batch.positions, self.dtype)?;
        let mut x = self.embedding.forward(&tokens)?;
        for (layer, cache) in self.layers.iter().zip(cache.layers()) {
            x = layer.forward(&x, batch, &rotation, cache)?;
        }
        Ok(x)
    }

    /// The logits of some of the rows, `[rows, vocab_size]`.
    fn logits(&self, hidden: &Tensor, rows: &[u32]) -> candle_core::Result<Vec<f32>> {
        let rows = Tensor::new(rows, &self.device)?;
        let x = self.norm.forward(&hidden.index_select(&rows, 0)?)?;
        self.head.forward_to_vec(&x)
    }
}

impl Forward for Decoder {
    fn forward(&mut self, batch: &Batch) -> Result<Vec<f32>> {
        let Self { network, cache } = self;
        let vocab_size = network.spec.vocab_size;
        if let Some(token) = batch.tokens.iter().find(|token| **token as usize >= vocab_size) {
            return Err(Error::internal(format!("token {token} is not in a vocabulary of {vocab_size}")));
        }
        let hidden = network.hidden(batch, cache)?;
        if batch.sampled.is_empty() {
            return Ok(Vec::new());
        }
        Ok(network.logits(&hidden, &batch.sampled)?)
    }
}

/// Loads the parts of a decoder to where it runs.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    device: &'a Device,
    dtype: DType,
}

impl Loader<'_> {
    fn linear(&self, name: &str, [rows, columns]: [usize; 2], bias: bool) -> Result<Linear> {
        let weight = self.checkpoint.matrix(&format!("{name}.weight"), [rows, columns], self.dtype, self.device)?;
        let bias = match bias {
            true => Some(self.checkpoint.vector(&format!("{name}.bias"), rows, self.dtype, self.device)?),
            false => None,
        };
        Ok(Linear::new(weight, bias)?)
    }

    fn norm(&self, name: &str, size: usize, eps: f64) -> Result<RmsNorm> {
        let weight = self.checkpoint.vector(&format!("{name}.weight"), size, self.dtype, self.device)?;
        Ok(RmsNorm::new(weight, eps))
    }
}
