//! The names of a model's tensors in its checkpoint, and of its modules in the Hugging Face model.

use crate::{decoder::layout::Layout, weights::Checkpoint};

/// Resolves names of modules.
#[derive(Clone, Copy)]
pub struct TensorNames<'a> {
    pub checkpoint: &'a Checkpoint,
    pub layout: &'a Layout,
    /// The layout of the Hugging Face model, whose modules adapters name.
    pub hub_layout: &'a Layout,
    /// The layer that modules are in, if any.
    pub layer: Option<usize>,
}

impl TensorNames<'_> {
    /// The tensor of a module's parameter: `module.parameter`, or without such a tensor `module` for a weight and
    /// `module_parameter` for others.
    pub fn tensor(&self, module: &str, parameter: &str) -> String {
        let path = match self.layer {
            Some(layer) => format!("{}.{layer}.{module}", self.layout.names.layers),
            None => module.to_owned(),
        };
        let path = self.layout.stored_name(&path);
        let name = format!("{path}.{parameter}");
        if self.checkpoint.contains(&name) {
            return name;
        }
        let alone = if parameter == "weight" { path } else { format!("{path}_{parameter}") };
        if self.checkpoint.contains(&alone) { alone } else { name }
    }

    /// Whether a module has a weight.
    pub fn has_weight(&self, module: &str) -> bool {
        self.checkpoint.contains(&self.tensor(module, "weight"))
    }

    /// The Hugging Face model's name of a module that holds several linear maps, or one.
    pub fn in_hub(&self, module: &str, several: bool) -> Option<String> {
        let (ours, theirs) = (&self.layout.names, &self.hub_layout.names);
        let module = match std::ptr::eq(ours, theirs) {
            true => module,
            false => ours.translate(module, several, theirs)?,
        };
        Some(match self.layer {
            Some(layer) => format!("{}.{layer}.{module}", theirs.layers),
            None => module.to_owned(),
        })
    }
}
