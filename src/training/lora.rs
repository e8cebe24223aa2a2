use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, PoisonError, atomic::AtomicBool},
};

use super::{Adapter, LoraConfig, checkpoint::Hash, random::Random};
use crate::{AdapterFile, Error, LoraTensors, Result, decoder::Sites};

/// Stands for all linear maps of the layers, as in PEFT.
const ALL_LINEAR: &str = "all-linear";

/// An adapter between the steps of its training.
pub struct Learned {
    file: Mutex<AdapterFile>,
    /// A hash of what it began with.
    pub origin: u64,
    /// Whether requests are to use one that was applied later.
    pub is_replaced: AtomicBool,
}

impl Learned {
    pub fn begin(sites: &Sites, config: &LoraConfig) -> Result<Self> {
        let file = begin(sites, config)?;
        Ok(Self { origin: origin(sites, &file)?, file: Mutex::new(file), is_replaced: AtomicBool::new(false) })
    }

    pub fn get(&self) -> AdapterFile {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set(&self, file: &AdapterFile) {
        self.file.lock().unwrap_or_else(PoisonError::into_inner).clone_from(file);
    }
}

impl Adapter for std::sync::Arc<Learned> {
    fn total_params(&self) -> usize {
        parameters(&mut self.get()).iter().map(|values| values.len()).sum()
    }

    fn save(&self, path: &Path) -> Result<()> {
        self.get().write(path)
    }
}

/// The numbers of an adapter that are learned: A, B and, if there is one, the magnitude of each module.
pub fn parameters(file: &mut AdapterFile) -> Vec<&mut Vec<f32>> {
    let tensors = file.modules.values_mut();
    tensors.flat_map(|LoraTensors { a, b, magnitude, .. }| [a, b].into_iter().chain(magnitude)).collect()
}

/// A hash of an adapter as it is, and of a row of each matrix that it changes: other models have others.
fn origin(sites: &Sites, file: &AdapterFile) -> Result<u64> {
    let mut hash = Hash::default();
    hash.add([u8::from(file.bfloat16)].into_iter());
    for (module, LoraTensors { rank, scale, a, b, magnitude }) in &file.modules {
        hash.add(format!("{module} {rank} {scale}").bytes());
        [a, b].into_iter().chain(magnitude).for_each(|values| hash.add(bits(values)));
    }
    for index in sites.matched(file)?.into_iter().flat_map(|(_, sites)| sites) {
        hash.add(bits(&sites.get(*index).weight.row(0)?));
    }
    Ok(hash.0)
}

fn bits(values: &[f32]) -> impl Iterator<Item = u32> {
    values.iter().map(|value| value.to_bits())
}

/// An adapter to begin with.
fn begin(sites: &Sites, config: &LoraConfig) -> Result<AdapterFile> {
    config.validate()?;
    let mut file = match &config.initial {
        Some(path) => AdapterFile::read(path)?,
        None => random(sites, config)?,
    };
    // Whether it fits.
    sites.matched(&file)?;
    file.bfloat16 = config.bfloat16;
    Ok(file)
}

/// A new adapter as PEFT begins one: A is random, B is zero, magnitudes are those of the weights.
fn random(sites: &Sites, config: &LoraConfig) -> Result<AdapterFile> {
    let known = sites.short_names();
    let is_known = |key: &String| key == ALL_LINEAR || sites.modules().any(|(module, _)| is_called(module, key));
    if let Some(unknown) = config.target_keys.iter().find(|key| !is_known(key)) {
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        return Err(Error::config("target_keys", format!("{unknown:?} is none of {known}, {ALL_LINEAR}")));
    }
    let mut modules = BTreeMap::new();
    for (stream, (module, parts)) in sites.modules().enumerate() {
        let parts: Vec<_> = parts.collect();
        let in_layer = parts.iter().all(|site| site.layer.is_some());
        let targeted = |key: &String| is_called(module, key) || (key == ALL_LINEAR && in_layer);
        let Some(first) = parts.first().filter(|_| config.target_keys.iter().any(targeted)) else { continue };
        let ([_, inputs], outputs) = (first.weight.shape()?, first.module_outputs);
        if config.rank > inputs.max(outputs) {
            let reason = format!("{} is more than {module} of [{outputs}, {inputs}] can have", config.rank);
            return Err(Error::config("rank", reason));
        }
        let mut random = Random::new(config.seed, stream as u64);
        let bound = (inputs as f32).sqrt().recip();
        let a = (0..config.rank * inputs).map(|_| bound * random.uniform()).collect();
        let mut tensors = LoraTensors::new(config.rank, config.scale(), a, vec![0.0; outputs * config.rank])?;
        if config.dora {
            let mut magnitude = vec![0.0; outputs];
            for site in &parts {
                let norms = site.norms(&tensors)?.into_iter().enumerate();
                norms.for_each(|(row, norm)| magnitude[site.module_row(row)] = norm);
            }
            tensors.magnitude = Some(magnitude);
        }
        modules.insert(sites.full_name(module), tensors);
    }
    Ok(AdapterFile::new(modules))
}

/// Whether a key is a module's name, or what it ends with.
fn is_called(module: &str, key: &str) -> bool {
    module.strip_suffix(key).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}
