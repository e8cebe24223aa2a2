//! Checkpoints of a training: directories such as `step-000100/` with a PEFT adapter and the state to resume from.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use super::{
    TrainConfig,
    adamw::{AdamW, Moments},
    dataset::Sample,
    fnv::Fnv1a,
    trained_adapter::parameters,
};
use crate::{AdapterFile, Error, Result, files};

const STATE: &str = "training.json";
const TENSORS: &str = "training.safetensors";
/// The number of checkpoints to keep.
const KEPT: usize = 2;

/// The progress of a training, as a checkpoint stores it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct CheckpointState {
    /// Steps taken.
    pub step: usize,
    /// Steps taken before the last evaluation.
    pub evaluated: usize,
    /// Consecutive evaluations without a lower loss.
    pub without_improvement: usize,
    /// The lowest evaluation loss.
    pub best_loss: Option<f32>,
    /// The loss of the divergence probes before the first step.
    #[serde(default)]
    pub base_loss: Option<f32>,
    /// A hash of examples, configuration and initial adapter: another training does not resume from here.
    pub fingerprint: String,
}

impl CheckpointState {
    /// Records an evaluation.
    pub fn record_evaluation(&mut self, loss: f32) {
        self.evaluated = self.step;
        if self.best_loss.is_none_or(|best| loss < best) {
            (self.best_loss, self.without_improvement) = (Some(loss), 0);
        } else {
            self.without_improvement += 1;
        }
    }

    /// Whether early stopping ends the training.
    pub fn is_out_of_patience(&self, patience: Option<usize>) -> bool {
        patience.is_some_and(|patience| self.without_improvement >= patience)
    }
}

/// Writes a checkpoint atomically, and then removes old ones.
pub fn write(dir: &Path, state: &CheckpointState, file: &mut AdapterFile, adamw: &AdamW) -> Result<()> {
    let name = format!("step-{:06}", state.step);
    let part = dir.join(format!("{name}.part"));
    let failed = |error: io::Error| Error::model(&part, format!("the checkpoint could not be written: {error}"));
    if part.exists() {
        fs::remove_dir_all(&part).map_err(failed)?;
    }
    fs::create_dir_all(&part).map_err(failed)?;
    file.write(&part)?;
    let mut tensors = Vec::new();
    for (i, values) in parameters(file).into_iter().enumerate() {
        tensors.push((format!("value.{i}"), &*values));
    }
    for (i, moments) in adamw.moments.iter().enumerate() {
        tensors.push((format!("first.{i}"), &moments.first));
        tensors.push((format!("second.{i}"), &moments.second));
    }
    let views = tensors.iter().map(|(name, values)| {
        let view = TensorView::new(Dtype::F32, vec![values.len()], bytemuck::cast_slice(values));
        Ok((name, view.map_err(|error| Error::internal(error.to_string()))?))
    });
    let bytes = safetensors::serialize(views.collect::<Result<Vec<_>>>()?, None)
        .map_err(|error| Error::internal(error.to_string()))?;
    synced(&part.join(TENSORS), &bytes).map_err(failed)?;
    let state_json = serde_json::to_vec_pretty(state).map_err(|error| Error::internal(error.to_string()))?;
    synced(&part.join(STATE), &state_json).map_err(failed)?;
    let whole = dir.join(&name);
    if whole.exists() {
        fs::remove_dir_all(&whole).map_err(failed)?;
    }
    fs::rename(&part, &whole).map_err(failed)?;
    for (_, old) in found(dir)?.into_iter().rev().skip(KEPT) {
        fs::remove_dir_all(&old).map_err(failed)?;
    }
    Ok(())
}

/// Restores the latest whole checkpoint, if there is one.
///
/// # Errors
/// If it belongs to another training, or is damaged.
pub fn read(dir: &Path, state: &mut CheckpointState, file: &mut AdapterFile, adamw: &mut AdamW) -> Result<()> {
    let Some((_, latest)) = found(dir)?.pop() else { return Ok(()) };
    let path = latest.join(STATE);
    let found: CheckpointState =
        serde_json::from_slice(&bytes(&path)?).map_err(|error| Error::model(&path, error.to_string()))?;
    if found.fingerprint != state.fingerprint {
        return Err(Error::config("checkpoint_dir", format!("{} has checkpoints of another training", dir.display())));
    }
    let path = latest.join(TENSORS);
    let stored = bytes(&path)?;
    let tensors = SafeTensors::deserialize(&stored).map_err(|error| Error::model(&path, error.to_string()))?;
    let values_of = |name: String, len: usize| {
        let bad = |reason: String| Error::model(&path, format!("tensor {name}: {reason}"));
        let tensor = tensors.tensor(&name).map_err(|error| bad(error.to_string()))?;
        if tensor.dtype() != Dtype::F32 || tensor.shape() != [len] {
            return Err(bad(format!("{:?} of {:?} and not {len} of F32", tensor.shape(), tensor.dtype())));
        }
        Ok(tensor
            .data()
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect())
    };
    let mut moments = Vec::new();
    for (i, values) in parameters(file).into_iter().enumerate() {
        *values = values_of(format!("value.{i}"), values.len())?;
        moments.push(Moments {
            first: values_of(format!("first.{i}"), values.len())?,
            second: values_of(format!("second.{i}"), values.len())?,
        });
    }
    *adamw = AdamW { steps: found.step as u32, moments };
    *state = found;
    Ok(())
}

/// Whole checkpoints, in order of their steps.
fn found(dir: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::model(dir, error.to_string())),
    };
    let step = |path: &Path| path.file_name()?.to_str()?.strip_prefix("step-")?.parse::<usize>().ok();
    let mut found: Vec<_> =
        entries.flatten().map(|entry| entry.path()).filter_map(|path| Some((step(&path)?, path))).collect();
    found.sort();
    Ok(found)
}

fn bytes(path: &Path) -> Result<Vec<u8>> {
    files::read_limited(path, u64::MAX)
}

/// Writes a file and waits until it is on disk.
fn synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::File::create(path)?;
    io::Write::write_all(&mut file, bytes)?;
    file.sync_all()
}

/// A hash of everything that decides how an example changes the adapter. `origin` is a hash of the initial adapter.
pub fn fingerprint(config: &TrainConfig, origin: u64, samples: &[Vec<Sample>]) -> String {
    // The length of the training and its checkpoints may change.
    let fresh = TrainConfig::default();
    let config = TrainConfig {
        epochs: fresh.epochs,
        max_steps: fresh.max_steps,
        patience: fresh.patience,
        eval_every: fresh.eval_every,
        checkpoint_dir: fresh.checkpoint_dir,
        checkpoint_every: fresh.checkpoint_every,
        checkpoint_activations: fresh.checkpoint_activations,
        on_bad_example: fresh.on_bad_example,
        ..config.clone()
    };
    let mut hash = Fnv1a::default();
    hash.add(format!("{origin} {config:?}").bytes());
    samples.iter().flatten().for_each(|sample| hash.add(format!("{sample:?}").bytes()));
    format!("{:016x}", hash.0)
}
