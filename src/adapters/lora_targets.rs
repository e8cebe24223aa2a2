//! The linear maps of a model that adapters may change.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, PoisonError},
};

use candle_core::Tensor;
use rayon::prelude::*;

use super::{AdapterFile, LoraAdapter, LoraTensors, lora_adapter::LoraDelta};
use crate::{
    Error, Result,
    weights::{ComputeTarget, WeightMatrix},
};

/// How modules are called in the files of a family of models.
#[derive(Debug, Clone)]
pub struct ModuleNames {
    /// Prefixes of names, each with an alternative that some files use.
    pub prefixes: &'static [(&'static str, &'static str)],
    /// The prefix of names, and the prefix in the larger model that this one is a part of, if it is.
    pub inside: Option<(&'static str, &'static str)>,
}

impl ModuleNames {
    /// A module's name, and its names with the usual prefixes in place of alternative ones.
    pub fn usual_names(&self, module: &str) -> Vec<String> {
        let others = self.prefixes.iter();
        let others = others.filter_map(|(usual, other)| Some(format!("{usual}{}", module.strip_prefix(other)?)));
        std::iter::once(module.to_owned()).chain(others).collect()
    }

    /// The name of a module in the model that this one is a part of, if it is.
    pub fn full_name(&self, module: &str) -> String {
        match self.inside.and_then(|(ours, theirs)| Some((theirs, module.strip_prefix(ours)?))) {
            Some((theirs, rest)) => format!("{theirs}{rest}"),
            None => module.to_owned(),
        }
    }
}

/// A linear map that adapters may change.
pub struct LoraTarget {
    /// The layer it is in, if any.
    pub layer: Option<usize>,
    /// The name of its module in the Hugging Face model.
    pub module: String,
    /// Which rows of the module's output it makes, if not all in order.
    pub rows: Option<Vec<usize>>,
    /// Rows of the module's output.
    pub module_outputs: usize,
    pub weight: WeightMatrix,
    pub bias: Option<Tensor>,
    /// The engine that computes it.
    pub compute: ComputeTarget,
}

impl LoraTarget {
    /// The lengths of the weight's rows with B and A of an adapter in them.
    pub fn norms(&self, tensors: &LoraTensors) -> Result<Vec<f32>> {
        let [outputs, _] = self.weight.shape()?;
        let norm = |row: usize| Ok(tensors.row_norm(self.module_row(row), self.weight.row(row)?));
        (0..outputs).into_par_iter().map(norm).collect()
    }

    /// Which row of the module's output a row is.
    pub fn module_row(&self, row: usize) -> usize {
        self.rows.as_ref().map_or(row, |rows| rows[row])
    }
}

/// Where a model's linear maps are noted as they are loaded.
#[derive(Default)]
pub struct LoraTargetsBuilder(Mutex<Vec<LoraTarget>>);

impl LoraTargetsBuilder {
    /// Notes a target and gives its index.
    pub fn add(&self, target: LoraTarget) -> usize {
        let mut targets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        targets.push(target);
        targets.len() - 1
    }

    /// All of them, of a model that calls modules as `names` says.
    pub fn finish(self, names: ModuleNames) -> LoraTargets {
        let targets = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut modules: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, target) in targets.iter().enumerate() {
            modules.entry(target.module.clone()).or_default().push(index);
        }
        LoraTargets { targets, modules, names }
    }
}

/// The linear maps of a model that adapters may change.
pub struct LoraTargets {
    targets: Vec<LoraTarget>,
    /// The targets of each module.
    modules: BTreeMap<String, Vec<usize>>,
    names: ModuleNames,
}

impl LoraTargets {
    /// Resolves an adapter's file for this model.
    pub fn resolve(&self, file: &AdapterFile) -> Result<LoraAdapter> {
        let mut deltas: Vec<Option<LoraDelta>> = self.targets.iter().map(|_| None).collect();
        for (tensors, indices) in self.matched(file)? {
            let mut shared = None;
            for &index in indices {
                deltas[index] = Some(LoraDelta::new(&self.targets[index], tensors, &mut shared)?);
            }
        }
        Ok(LoraAdapter::new(deltas))
    }

    /// The modules of a file, in order, with the targets that each of them changes.
    pub fn matched<'a>(&self, file: &'a AdapterFile) -> Result<Vec<(&'a LoraTensors, &[usize])>> {
        let mut seen = BTreeSet::new();
        let matched = |(module, tensors): (&String, &'a LoraTensors)| {
            let bad = |reason: String| Error::model(&file.path, format!("module {module} {reason}"));
            let indices = self.find(module).ok_or_else(|| {
                let known = self.short_names().into_iter().collect::<Vec<_>>().join(", ");
                bad(format!("is no linear map of this model that can be changed; they are called {known}"))
            })?;
            for &index in indices {
                let target = &self.targets[index];
                let [_, inputs] = target.weight.shape()?;
                let (theirs, ours) = ([tensors.outputs(), tensors.inputs()], [target.module_outputs, inputs]);
                if theirs != ours {
                    return Err(bad(format!("is of {theirs:?} in the adapter and of {ours:?} in the model")));
                }
                if !seen.insert(index) {
                    return Err(bad("is there under two names".into()));
                }
            }
            Ok((tensors, indices))
        };
        file.modules.iter().map(matched).collect()
    }

    /// The targets of a module, whichever of the model's names it has.
    fn find(&self, module: &str) -> Option<&[usize]> {
        self.names.usual_names(module).iter().find_map(|name| self.modules.get(name)).map(Vec::as_slice)
    }

    /// The name of a module in adapters' files.
    pub fn full_name(&self, module: &str) -> String {
        self.names.full_name(module)
    }

    pub fn get(&self, index: usize) -> &LoraTarget {
        &self.targets[index]
    }

    pub fn len(&self) -> usize {
        self.targets.len()
    }

    /// The modules, each with the indices of its targets.
    pub fn modules(&self) -> impl Iterator<Item = (&str, &[usize])> {
        self.modules.iter().map(|(module, targets)| (module.as_str(), targets.as_slice()))
    }

    /// The last parts of the modules' names.
    pub fn short_names(&self) -> BTreeSet<&str> {
        self.modules.keys().filter_map(|module| module.rsplit('.').next()).collect()
    }
}
