//! Adapters in files: the low-rank changes of a model's linear maps, in the layouts of PEFT and of MLX-LM.

mod mlx;
mod peft;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{Config, StoredTensor, safetensors::SafetensorsDir};
use crate::{Error, Result};

const CONFIG_FILE: &str = "adapter_config.json";

/// An adapter: what [LoRA](https://arxiv.org/abs/2106.09685) adds to the weights of a model's linear maps.
///
/// Models load the directories themselves; this is for programs that make, convert or inspect them.
///
/// ```no_run
/// # fn main() -> tokenflow::Result<()> {
/// // What MLX-LM wrote, for PEFT.
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
    /// What changes each module, by the module's name in the Hugging Face model: `model.layers.0.self_attn.q_proj`.
    pub modules: BTreeMap<String, LoraTensors>,
    /// Whether [`write`](Self::write) rounds to bfloat16, half as many bytes.
    pub bfloat16: bool,
    /// Where it was read from.
    pub(crate) path: PathBuf,
}

/// What changes the weight `W`, `[outputs, inputs]`, of a module: it becomes `W + scale * B A`.
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

    /// Makes of a row of the weight what it is with the adapter.
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

/// The length of a vector. That of zeros is none that could be divided by.
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
    /// [`Error::InvalidModel`] names the file and the field or tensor at fault: what is damaged, and kinds of adapters
    /// that this version does not know.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let config = Config::read(&path.join(CONFIG_FILE))?;
        let mlx = ["fine_tune_type", "lora_parameters"].iter().any(|key| config.get(key).is_some());
        match mlx && config.get("peft_type").is_none() {
            true => mlx::read(path, &config),
            false => peft::read(path, &config),
        }
    }

    /// Writes a PEFT directory. Whoever reads it meanwhile finds whole files, the old ones or the new ones.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] with the file that cannot be written.
    pub fn write(&self, path: impl AsRef<Path>) -> Result<()> {
        peft::write(self, path.as_ref())
    }
}

/// A tensor of a module.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LoraPart {
    A,
    B,
    Magnitude,
}

/// How a file stores modules.
struct AdapterTensors<'a, P, S> {
    /// Which part of which module a tensor is; `None`: it is of no use.
    part: P,
    /// What a module's change is multiplied by, given its rank.
    scale: S,
    /// Whether A is `[inputs, rank]` and B is `[rank, outputs]`.
    transposed: bool,
    /// Whether there are magnitudes.
    dora: bool,
    file: &'a SafetensorsDir,
}

impl<P, S> AdapterTensors<'_, P, S>
where
    P: Fn(&str) -> Result<Option<(String, LoraPart)>>,
    S: Fn(&str, usize) -> Result<f64>,
{
    fn read(&self) -> Result<BTreeMap<String, LoraTensors>> {
        let mut parts: BTreeMap<String, Vec<(LoraPart, &str)>> = BTreeMap::new();
        for name in self.file.names() {
            if let Some((module, part)) = (self.part)(name)? {
                parts.entry(module).or_default().push((part, name));
            }
        }
        if parts.is_empty() {
            return Err(Error::model(self.file.path(), "holds no tensor of an adapter"));
        }
        parts.into_iter().map(|(module, parts)| Ok((module.clone(), self.module(&module, &parts)?))).collect()
    }

    fn module(&self, module: &str, parts: &[(LoraPart, &str)]) -> Result<LoraTensors> {
        let bad = |reason: String| Error::model(self.file.path(), format!("module {module} {reason}"));
        let name = |part: LoraPart| parts.iter().find(|(found, _)| *found == part).map(|(_, name)| *name);
        let required = |part: LoraPart| name(part).ok_or_else(|| bad(format!("has no {part:?}")));
        let a = self.matrix(required(LoraPart::A)?)?;
        let b = self.matrix(required(LoraPart::B)?)?;
        if a.rows != b.columns {
            return Err(bad(format!("has A of rank {} and B of rank {}", a.rows, b.columns)));
        }
        if name(LoraPart::Magnitude).is_some() != self.dora {
            return Err(bad("is of DoRA where the configuration is not, or the other way round".into()));
        }
        let magnitude = name(LoraPart::Magnitude).map(|name| self.values(name, &self.file.get(name)?)).transpose()?;
        if let Some(magnitude) = magnitude.as_ref().filter(|magnitude| magnitude.len() != b.rows) {
            return Err(bad(format!("has {} magnitudes for {} rows", magnitude.len(), b.rows)));
        }
        let scale = (self.scale)(module, a.rows)?;
        if !(scale as f32).is_finite() {
            return Err(bad(format!("is multiplied by {scale}")));
        }
        Ok(LoraTensors { rank: a.rows, scale, a: a.values, b: b.values, magnitude })
    }

    fn matrix(&self, name: &str) -> Result<LoraMatrix> {
        let tensor = self.file.get(name)?;
        let [rows, columns] = *tensor.shape else {
            return Err(Error::model(tensor.path, format!("tensor {name} has the shape {:?}", tensor.shape)));
        };
        if rows == 0 || columns == 0 {
            return Err(Error::model(tensor.path, format!("tensor {name} is empty")));
        }
        let values = self.values(name, &tensor)?;
        if !self.transposed {
            return Ok(LoraMatrix { rows, columns, values });
        }
        let values = (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect();
        Ok(LoraMatrix { rows: columns, columns: rows, values })
    }

    fn values(&self, name: &str, tensor: &StoredTensor<'_>) -> Result<Vec<f32>> {
        let values = tensor.values(name)?;
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(Error::model(tensor.path, format!("tensor {name} holds {value}"))),
            None => Ok(values),
        }
    }
}

/// One of two matrices that are multiplied.
struct LoraMatrix {
    rows: usize,
    columns: usize,
    values: Vec<f32>,
}
