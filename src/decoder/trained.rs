use candle_core::{DType, Device, Result, Tensor, Var, backprop::GradStore};

use super::lora::{Site, Sites};
use crate::weights::{AdapterFile, LoraTensors};

/// An adapter that is being trained: its numbers are variables that gradients are found for.
pub struct Trained {
    modules: Vec<Module>,
    /// For each of the model's sites how it is changed.
    changes: Vec<Option<Change>>,
    first_layer: Option<usize>,
}

/// The variables of a module.
struct Module {
    /// `[rank, inputs]`
    a: Var,
    /// `[outputs, rank]`
    b: Var,
    /// `[outputs]`
    magnitude: Option<Var>,
    scale: f64,
}

/// How a site is changed.
struct Change {
    module: usize,
    /// The rows of the module's output that it makes, if not all in order.
    rows: Option<Tensor>,
    /// With a magnitude: the lengths of the weight's rows that it replaces, and the bias that it leaves alone. They count
    /// as constants ([DoRA](https://arxiv.org/abs/2402.09353), 4.3).
    norms: Option<Tensor>,
    bias: Option<Tensor>,
}

impl Trained {
    pub fn new(sites: &Sites, file: &AdapterFile) -> crate::Result<Self> {
        let mut changes: Vec<Option<Change>> = (0..sites.len()).map(|_| None).collect();
        let (mut modules, mut first_layer) = (Vec::new(), None::<usize>);
        for (tensors, indices) in sites.matched(file)? {
            for &index in indices {
                let site = sites.get(index);
                changes[index] = Some(Change::new(modules.len(), site, tensors)?);
                // The head is behind all layers.
                let layer = site.layer.unwrap_or(usize::MAX);
                first_layer = Some(first_layer.map_or(layer, |first| first.min(layer)));
            }
            modules.push(Module::new(tensors)?);
        }
        Ok(Self { modules, changes, first_layer })
    }

    /// The first layer, of `num_layers`, in which anything is trained.
    pub fn first_layer(&self, num_layers: usize) -> usize {
        self.first_layer.map_or(num_layers, |first| first.min(num_layers))
    }

    /// The output `y` that a site has for `x`, as the adapter changes it.
    pub fn apply(&self, site: usize, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let Some(Change { module, rows, norms, bias }) = &self.changes[site] else { return Ok(y) };
        let Module { a, b, magnitude, scale } = &self.modules[*module];
        let own = |all: &Tensor| match rows {
            Some(rows) => all.index_select(rows, 0),
            None => Ok(all.clone()),
        };
        let y = (y + (x.matmul(&a.t()?)?.matmul(&own(b)?.t()?)? * *scale)?)?;
        let (Some(magnitude), Some(norms)) = (magnitude, norms) else { return Ok(y) };
        let factors = (own(magnitude)? / norms)?;
        let y = y.broadcast_mul(&factors)?;
        match bias {
            Some(bias) => y.broadcast_add(&(bias - (&factors * bias)?)?),
            None => Ok(y),
        }
    }

    /// Adds the gradients that a backward pass found, in the order of the file's modules: A, B and the magnitude of each.
    pub fn collect(&self, found: &GradStore, gradients: &mut [Vec<f32>]) -> Result<()> {
        let variables =
            self.modules.iter().flat_map(|module| [&module.a, &module.b].into_iter().chain(&module.magnitude));
        for (variable, sum) in variables.zip(gradients) {
            if let Some(gradient) = found.get(variable) {
                let gradient = gradient.flatten_all()?.to_vec1::<f32>()?;
                sum.iter_mut().zip(gradient).for_each(|(sum, gradient)| *sum += gradient);
            }
        }
        Ok(())
    }
}

impl Module {
    fn new(tensors: &LoraTensors) -> Result<Self> {
        let LoraTensors { rank, scale, a, b, magnitude } = tensors;
        let vector = |values: &Vec<f32>| Var::from_slice(values, values.len(), &Device::Cpu);
        Ok(Self {
            a: Var::from_slice(a, (*rank, tensors.inputs()), &Device::Cpu)?,
            b: Var::from_slice(b, (tensors.outputs(), *rank), &Device::Cpu)?,
            magnitude: magnitude.as_ref().map(vector).transpose()?,
            scale: *scale,
        })
    }
}

impl Change {
    fn new(module: usize, site: &Site, tensors: &LoraTensors) -> crate::Result<Self> {
        let rows: Option<Vec<u32>> = site.rows.as_ref().map(|rows| rows.iter().map(|row| *row as u32).collect());
        let rows = rows.map(|rows| Tensor::new(rows, &Device::Cpu)).transpose()?;
        let norms = tensors.magnitude.as_ref().map(|_| site.norms(tensors)).transpose()?;
        let bias = site.bias.as_ref().map(|bias| bias.to_dtype(DType::F32)).transpose()?;
        Ok(Self { module, rows, norms: norms.map(|norms| Tensor::new(norms, &Device::Cpu)).transpose()?, bias })
    }
}
