//! An adapter as files hold it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{mlx_lm, peft};
use crate::{Error, Result, weights::Config};

pub(super) const CONFIG_FILE: &str = "adapter_config.json";

/// An adapter: the low-rank changes of a model's linear maps ([LoRA](https://arxiv.org/abs/2106.09685)).
///
/// Models load the directories themselves; this is for programs that make, convert or inspect them.
///
/// ```no_run
/// # fn main() -> tokenflow::Result<()> {
/// // From MLX-LM to PEFT.
/// let adapter = tokenflow::AdapterFile::read("adapters")?;
/// println!("{} modules", adapter.modules.len());
/// adapter.write("adapters-peft")?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct AdapterFile {
    /// The model it was trained on, as its trainer called it.
    pub base_model: Option<String>,
    /// The change of each module, by the module's name in the Hugging Face model: `model.layers.0.self_attn.q_proj`.
    pub modules: BTreeMap<String, LoraTensors>,
    /// Whether [`write`](Self::write) rounds to bfloat16, half as many bytes.
    pub bfloat16: bool,
    /// Where it was read from.
    pub(crate) path: PathBuf,
}

/// The change of a module's weight `W`, `[outputs, inputs]`: it becomes `W + scale * B A`.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct LoraTensors {
    /// Rows of A and columns of B.
    pub rank: usize,
    /// Multiplies the product: alpha divided by the rank, or by its root.
    pub scale: f64,
    /// `[rank, inputs]`
    pub a: Vec<f32>,
    /// `[outputs, rank]`
    pub b: Vec<f32>,
    /// The lengths, `[outputs]`, that the rows of the changed weight are brought to
    /// ([DoRA](https://arxiv.org/abs/2402.09353)).
    pub magnitude: Option<Vec<f32>>,
}

impl LoraTensors {
    /// A change of `rank`.
    ///
    /// # Errors
    /// [`Error::InvalidConfig`] if a length is no multiple of `rank`.
    pub fn new(rank: usize, scale: f64, a: Vec<f32>, b: Vec<f32>) -> Result<Self> {
        for (name, len) in [("A", a.len()), ("B", b.len())] {
            if rank == 0 || len == 0 || !len.is_multiple_of(rank) {
                return Err(Error::config("rank", format!("{rank} with {len} values in {name}")));
            }
        }
        Ok(Self { rank, scale, a, b, magnitude: None })
    }

    /// Columns of the weight.
    pub fn inputs(&self) -> usize {
        self.a.len() / self.rank
    }

    /// Rows of the weight.
    pub fn outputs(&self) -> usize {
        self.b.len() / self.rank
    }

    /// Applies the adapter to a row of the weight.
    pub(crate) fn apply(&self, row: usize, weights: &mut [f32]) {
        self.add_to(row, weights);
        if let Some(magnitude) = &self.magnitude {
            let factor = magnitude[row] / norm(weights);
            weights.iter_mut().for_each(|weight| *weight *= factor);
        }
    }

    /// The length of a row of the weight, changed by B and A.
    pub(crate) fn row_norm(&self, row: usize, mut weights: Vec<f32>) -> f32 {
        // A new adapter changes nothing.
        if self.b[row * self.rank..][..self.rank].iter().any(|b| *b != 0.0) {
            self.add_to(row, &mut weights);
        }
        norm(&weights)
    }

    fn add_to(&self, row: usize, weights: &mut [f32]) {
        let b = &self.b[row * self.rank..][..self.rank];
        let mut change = vec![0f32; weights.len()];
        for (b, a) in b.iter().zip(self.a.chunks_exact(weights.len())) {
            change.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
        }
        let scale = self.scale as f32;
        weights.iter_mut().zip(change).for_each(|(weight, change)| *weight += scale * change);
    }
}

/// The length of a vector, at least the least positive number, so that it can be divided by.
fn norm(weights: &[f32]) -> f32 {
    let squares: f64 = weights.iter().map(|weight| f64::from(*weight).powi(2)).sum();
    (squares.sqrt() as f32).max(f32::MIN_POSITIVE)
}

impl AdapterFile {
    /// An adapter that changes these modules.
    pub fn new(modules: BTreeMap<String, LoraTensors>) -> Self {
        Self { modules, ..Self::default() }
    }

    /// Reads a directory of PEFT (`adapter_config.json` and `adapter_model.safetensors`) or of MLX-LM
    /// (`adapter_config.json` and `adapters.safetensors`).
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the file and the field or tensor at fault: damaged files, and kinds of adapters
    /// that this version does not support.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let config = Config::read(&path.join(CONFIG_FILE))?;
        let mlx = ["fine_tune_type", "lora_parameters"].iter().any(|key| config.get(key).is_some());
        match mlx && config.get("peft_type").is_none() {
            true => mlx_lm::read(path, &config),
            false => peft::read(path, &config),
        }
    }

    /// Writes a PEFT directory. A concurrent reader finds whole files, the old ones or the new ones.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] with the file that cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        peft::write(self, path.as_ref())
    }
}
