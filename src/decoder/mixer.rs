//! The mixer of a layer, which moves information between tokens: attention or a recurrence.

use candle_core::{Result, Tensor, bail};

use super::{
    Pass,
    attention::{Attention, Projected},
    kv_cache::{CacheReader, CacheWriter},
    load::Loader,
    recurrence::RecurrentMixer,
    spec::MixerSpec,
};

pub enum Mixer {
    Attention(Box<Attention>),
    Recurrent(RecurrentMixer),
}

/// Rows between the halves of a mixer.
pub enum Mixed {
    /// Queries, keys and values; the cache has the keys and values, too.
    Projected(Projected),
    /// Outputs of a recurrence, which has left its states in the cache.
    Scanned(Tensor),
}

impl Mixed {
    /// Some of the rows, for the second half: all keys and values are in the cache.
    pub fn select(&self, rows: &Tensor) -> Result<Self> {
        Ok(match self {
            Self::Projected(Projected { queries, keys, values }) => {
                let queries = queries.index_select(rows, 0)?;
                Self::Projected(Projected { queries, keys: keys.clone(), values: values.clone() })
            }
            Self::Scanned(outputs) => Self::Scanned(outputs.index_select(rows, 0)?),
        })
    }
}

impl Mixer {
    pub fn load(load: &Loader<'_>, spec: &MixerSpec, hidden_size: usize) -> crate::Result<Self> {
        Ok(match spec {
            MixerSpec::Attention(spec) => Self::Attention(Box::new(Attention::load(load, spec, hidden_size)?)),
            MixerSpec::Recurrent(spec) => Self::Recurrent(RecurrentMixer::load(load, &**spec, hidden_size)?),
        })
    }

    /// Bytes of the matrices.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Attention(attention) => attention.bytes(),
            Self::Recurrent(recurrent) => recurrent.bytes(),
        }
    }

    /// The first half, of `x`, `[rows, hidden]`: it leaves in the cache whatever later rows need of these. Without a
    /// cache sequences are whole, and the result is differentiable.
    pub fn begin(&self, x: &Tensor, pass: &Pass<'_>, cache: Option<CacheWriter<'_>>) -> Result<Mixed> {
        match self {
            Self::Attention(attention) => {
                let projected = attention.project(x, pass)?;
                if let Some(cache) = cache {
                    cache.store(pass.batch, &projected.keys, &projected.values, attention.isa())?;
                }
                Ok(Mixed::Projected(projected))
            }
            Self::Recurrent(recurrent) => {
                let inputs = recurrent.project(x, pass)?;
                Ok(Mixed::Scanned(match cache {
                    Some(cache) => recurrent.scan(&inputs, pass.batch, cache.states()?)?,
                    None => recurrent.scan_whole(&inputs, pass.batch)?,
                }))
            }
        }
    }

    /// The second half: the mixer's output, `[rows, hidden]`, for all rows of the first half or for some.
    pub fn finish(&self, mixed: &Mixed, pass: &Pass<'_>, cache: Option<CacheReader<'_>>) -> Result<Tensor> {
        match (self, mixed) {
            (Self::Attention(attention), Mixed::Projected(projected)) => attention.finish(projected, pass, cache),
            (Self::Recurrent(recurrent), Mixed::Scanned(outputs)) => recurrent.finish(outputs, pass),
            _ => bail!("a mixer was given the rows of another kind"),
        }
    }
}
