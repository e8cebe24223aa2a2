//! Initial parameters of a new adapter.

use std::collections::BTreeMap;

use super::{LoraConfig, random::SplitMix64};
use crate::{
    AdapterFile, Error, LoraTensors, Result,
    adapters::{LoraTarget, LoraTargets},
    decoder::Network,
    engine::ModelLease,
};

/// Targets all linear layers of the transformer layers, as in PEFT.
const ALL_LINEAR: &str = "all-linear";

/// A module that a new adapter adapts.
pub struct ModulePlan {
    /// The stream of its random values.
    stream: u64,
    name: String,
    /// Indices of the targets that compute its output.
    targets: Vec<usize>,
    inputs: usize,
    outputs: usize,
}

impl ModulePlan {
    /// The number of trainable parameters.
    pub fn total_params(&self, config: &LoraConfig) -> usize {
        let magnitudes = if config.dora { self.outputs } else { 0 };
        config.rank * (self.inputs + self.outputs) + magnitudes
    }

    /// The norms of the weight's rows.
    fn norms(&self, targets: &LoraTargets, tensors: &LoraTensors) -> Result<Vec<f32>> {
        let mut norms = vec![0.0; self.outputs];
        for target in self.targets.iter().map(|target| targets.get(*target)) {
            let of_target = target.norms(tensors)?.into_iter().enumerate();
            of_target.for_each(|(row, norm)| norms[target.module_row(row)] = norm);
        }
        Ok(norms)
    }
}

/// The modules that a configuration targets.
pub fn plan(targets: &LoraTargets, config: &LoraConfig) -> Result<Vec<ModulePlan>> {
    let known = targets.short_names();
    let is_known = |key: &String| key == ALL_LINEAR || targets.modules().any(|(module, _)| is_called(module, key));
    if let Some(unknown) = config.target_keys.iter().find(|key| !is_known(key)) {
        let known = known.into_iter().collect::<Vec<_>>().join(", ");
        return Err(Error::config("target_keys", format!("{unknown:?} is none of {known}, {ALL_LINEAR}")));
    }
    let mut plan = Vec::new();
    for (stream, (module, indices)) in (0..).zip(targets.modules()) {
        let parts: Vec<&LoraTarget> = indices.iter().map(|target| targets.get(*target)).collect();
        let in_layer = parts.iter().all(|target| target.layer.is_some());
        let targeted = |key: &String| is_called(module, key) || (key == ALL_LINEAR && in_layer);
        let Some(first) = parts.first().filter(|_| config.target_keys.iter().any(targeted)) else { continue };
        let ([_, inputs], outputs) = (first.weight.shape()?, first.module_outputs);
        if config.rank > inputs.max(outputs) {
            let reason = format!("{} is more than {module} of [{outputs}, {inputs}] can have", config.rank);
            return Err(Error::config("rank", reason));
        }
        plan.push(ModulePlan { stream, name: targets.full_name(module), targets: indices.to_vec(), inputs, outputs });
    }
    Ok(plan)
}

/// A new adapter, initialized as in PEFT: random A, zero B, and the weights' own magnitudes.
pub fn random_adapter(lease: &ModelLease<Network>, plan: &[ModulePlan], config: &LoraConfig) -> Result<AdapterFile> {
    let mut modules = BTreeMap::new();
    for planned in plan {
        lease.check_open()?;
        let mut random = SplitMix64::new(config.seed, planned.stream);
        let bound = (planned.inputs as f32).sqrt().recip();
        let a = (0..config.rank * planned.inputs).map(|_| bound * random.uniform()).collect();
        let b = vec![0.0; planned.outputs * config.rank];
        let mut tensors = LoraTensors::new(config.rank, config.scale(), a, b)?;
        if config.dora {
            tensors.magnitude = Some(planned.norms(lease.network.targets(), &tensors)?);
        }
        modules.insert(planned.name.clone(), tensors);
    }
    Ok(AdapterFile { bfloat16: config.bfloat16, ..AdapterFile::new(modules) })
}

/// Whether a key is a module's name, or its last components.
fn is_called(module: &str, key: &str) -> bool {
    module.strip_suffix(key).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}
