//! Merging of adapters into weights.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, File},
    io,
    path::Path,
    sync::OnceLock,
};

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::{Dtype, View};

use crate::{
    AdapterFile, Error, LoraTensors, Result, blocking,
    decoder::{self, Spec},
    files,
    weights::{Checkpoint, RawTensor, SafetensorsDir, TensorStore},
};

/// Files of a model's directory beside its weights.
const COMPANIONS: [&str; 16] = [
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE",
];

/// Writes a Hugging Face directory to `out_dir`: the model of `model_dir` with the adapter of `adapter_dir` merged
/// into its weights, in the types and files they are stored in.
///
/// Peak memory is a few of the largest matrices. `out_dir` appears once it is complete. The work runs on a thread of
/// its own.
///
/// # Errors
/// [`Error::InvalidModel`] names the file and tensor at fault. Quantized weights are refused: their rounding error
/// mostly exceeds the changes of an adapter. [`Error::InvalidConfig`] if `out_dir` exists.
///
/// # Cancel safety
/// Dropping the future does not stop the work.
///
/// # Examples
/// ```no_run
/// # async fn run() -> tokenflow::Result<()> {
/// tokenflow::merge_adapter("SmolLM2-135M-Instruct", "adapter", "SmolLM2-135M-tuned").await?;
/// # Ok(()) }
/// ```
pub async fn merge_adapter(
    model_dir: impl AsRef<Path>,
    adapter_dir: impl AsRef<Path>,
    out_dir: impl AsRef<Path>,
) -> Result<()> {
    let [model, adapter, out] = [model_dir.as_ref(), adapter_dir.as_ref(), out_dir.as_ref()].map(Path::to_owned);
    blocking::run("merge", move || merge(&model, &adapter, &out)).await
}

fn merge(model: &Path, adapter: &Path, out: &Path) -> Result<()> {
    if out.exists() {
        return Err(Error::config("out_dir", format!("{} is there already", out.display())));
    }
    let checkpoint = Checkpoint::open(model)?;
    let spec = decoder::spec(&checkpoint)?;
    let TensorStore::Safetensors(dir) = &checkpoint.store else {
        return Err(Error::model(model, "is a GGUF file; adapters are merged into Hugging Face directories"));
    };
    if checkpoint.quantization() != (0, 0) {
        return Err(Error::model(model, "is quantized, so no adapter can be merged into it"));
    }
    let adapter = AdapterFile::read(adapter)?;
    let changes = changes(dir, &spec, &adapter)?;
    let begun = files::temp_sibling(out);
    let written = write(dir, &changes, model, &begun).and_then(|()| fs::rename(&begun, out).map_err(cannot(out)));
    if written.is_err() {
        // The first error matters.
        let _ = fs::remove_dir_all(&begun);
    }
    written
}

fn cannot(path: &Path) -> impl Fn(std::io::Error) -> Error {
    let path = path.to_owned();
    move |error| Error::model_because(&path, "cannot be written", error)
}

/// The change of a weight.
#[derive(Clone, Copy)]
struct WeightChange<'a> {
    tensors: &'a LoraTensors,
    /// Whether the weight is stored as `[inputs, outputs]`.
    transposed: bool,
}

/// The changes by the names of their tensors.
fn changes<'a>(
    dir: &SafetensorsDir,
    spec: &Spec,
    adapter: &'a AdapterFile,
) -> Result<BTreeMap<String, WeightChange<'a>>> {
    let change = |(module, tensors): (&String, &'a LoraTensors)| {
        let bad = |reason: String| Error::model(&adapter.path, format!("module {module} {reason}"));
        let head = module == spec.layout.names.head;
        if head && spec.head.tied {
            return Err(bad("is the embedding, too, so it cannot be merged".into()));
        }
        let name = tensor_name(dir, spec, module);
        let name = name.ok_or_else(|| bad("has no weight in the model that it could be merged into".into()))?;
        let tensor = dir.raw(&name)?;
        if !matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
            return Err(bad(format!("is quantized ({:?}), so it cannot be merged", tensor.dtype)));
        }
        let transposed = spec.layout.transposed && !head;
        let (outputs, inputs) = (tensors.outputs(), tensors.inputs());
        let shape = if transposed { [inputs, outputs] } else { [outputs, inputs] };
        if tensor.shape != shape {
            return Err(bad(format!("changes a weight of {shape:?}; the model's is of {:?}", tensor.shape)));
        }
        Ok((name, WeightChange { tensors, transposed }))
    };
    let changes = adapter.modules.iter().map(change).collect::<Result<BTreeMap<_, _>>>()?;
    match changes.len() == adapter.modules.len() {
        true => Ok(changes),
        false => Err(Error::model(&adapter.path, "changes a weight under two names")),
    }
}

/// The name of a module's weight. Adapter and checkpoint may use different names of the model.
fn tensor_name(dir: &SafetensorsDir, spec: &Spec, module: &str) -> Option<String> {
    let modules = spec.layout.module_names().usual_names(module);
    let mut names = modules.iter().map(|module| format!("{}.weight", spec.layout.stored_name(module)));
    names.find(|name| dir.contains(name))
}

/// Writes all files of the new directory.
fn write(dir: &SafetensorsDir, changes: &BTreeMap<String, WeightChange<'_>>, model: &Path, out: &Path) -> Result<()> {
    fs::create_dir_all(out).map_err(cannot(out))?;
    for name in COMPANIONS.into_iter().filter(|name| files::exists(&model.join(name))) {
        let to = out.join(name);
        to.parent().map_or(Ok(()), fs::create_dir_all).map_err(cannot(&to))?;
        let (mut from, _) = files::open(&model.join(name))?;
        File::create(&to).and_then(|mut to| io::copy(&mut from, &mut to)).map_err(cannot(&to))?;
    }
    let mut files: BTreeMap<&Path, BTreeSet<&str>> = BTreeMap::new();
    for name in dir.names() {
        files.entry(dir.raw(name)?.path).or_default().insert(name);
    }
    for (path, names) in files {
        let failed = OnceLock::new();
        let mut tensors = Vec::new();
        for name in &names {
            let (tensor, change) = (dir.raw(name)?, changes.get(*name).copied());
            tensors.push((*name, Merged { tensor, change, failed: &failed }));
        }
        let to = out.join(path.file_name().unwrap_or_default());
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        safetensors::serialize_to_file(tensors, Some(metadata), &to)
            .map_err(|error| Error::model_because(&to, "cannot be written", error))?;
        failed.into_inner().map_or(Ok(()), Err)?;
    }
    Ok(())
}

/// A tensor and its change, computed while it is written.
struct Merged<'a> {
    tensor: RawTensor<'a>,
    change: Option<WeightChange<'a>>,
    /// The error of a read: the writer takes none.
    failed: &'a OnceLock<Error>,
}

impl View for Merged<'_> {
    fn dtype(&self) -> Dtype {
        self.tensor.dtype
    }

    fn shape(&self) -> &[usize] {
        self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let stored = match self.tensor.bytes.read() {
            Ok(stored) => stored,
            Err(error) => {
                let _ = self.failed.set(error);
                return Cow::Owned(vec![0; self.data_len()]);
            }
        };
        let Some(change) = self.change else { return Cow::Owned(stored) };
        Cow::Owned(match self.dtype() {
            Dtype::F16 => change.merge(&stored, |b| f16::from_le_bytes(b).to_f32(), |x| f16::from_f32(x).to_le_bytes()),
            Dtype::BF16 => {
                change.merge(&stored, |b| bf16::from_le_bytes(b).to_f32(), |x| bf16::from_f32(x).to_le_bytes())
            }
            _ => change.merge(&stored, f32::from_le_bytes, f32::to_le_bytes),
        })
    }

    fn data_len(&self) -> usize {
        self.tensor.bytes.len()
    }
}

impl WeightChange<'_> {
    /// The changed weight, of elements of `N` bytes.
    fn merge<const N: usize>(
        self,
        stored: &[u8],
        read: impl Fn([u8; N]) -> f32 + Sync,
        write: impl Fn(f32) -> [u8; N] + Sync,
    ) -> Vec<u8> {
        let (outputs, inputs) = (self.tensors.outputs(), self.tensors.inputs());
        let (numbers, _) = stored.as_chunks::<N>();
        let at =
            |row: usize, column: usize| if self.transposed { column * outputs + row } else { row * inputs + column };
        let row = |row: usize| {
            let mut weights: Vec<f32> = (0..inputs).map(|column| read(numbers[at(row, column)])).collect();
            self.tensors.apply(row, &mut weights);
            weights
        };
        let rows: Vec<Vec<f32>> = (0..outputs).into_par_iter().map(row).collect();
        let merged: Vec<f32> = match self.transposed {
            true => (0..inputs).flat_map(|column| rows.iter().map(move |row| row[column])).collect(),
            false => rows.concat(),
        };
        merged.into_iter().flat_map(write).collect()
    }
}
