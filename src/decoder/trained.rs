use candle_core::{DType, Device, Result, Tensor};

use super::{
    lora::{Site, Sites},
    op::{numbers_of, rows_of, with_f32},
    tape::{Gradients, note},
};
use crate::{
    kernels::{
        Isa,
        matmul::{product, transposed},
    },
    weights::{AdapterFile, LoraTensors},
};

/// An adapter that is being trained: its numbers are what gradients are found for.
pub struct Trained {
    modules: Vec<Module>,
    /// For each of the model's sites how it is changed.
    changes: Vec<Option<Change>>,
    first_layer: Option<usize>,
    /// Whether products with the weights are in bfloat16.
    is_rounded: bool,
}

/// The numbers of a module.
#[derive(Clone)]
struct Module {
    /// `[rank, inputs]`
    a: Tensor,
    /// `[outputs, rank]`
    b: Tensor,
    /// `[outputs]`
    magnitude: Option<Tensor>,
    scale: f64,
}

/// How a site is changed.
#[derive(Clone)]
struct Change {
    module: usize,
    /// The rows of the module's output that it makes, if not all in order.
    rows: Option<Tensor>,
    /// With a magnitude: the lengths of the weight's rows that it replaces, and the bias that it leaves alone. They count
    /// as constants ([DoRA](https://arxiv.org/abs/2402.09353), 4.3).
    norms: Option<Tensor>,
    bias: Option<Tensor>,
    isa: Isa,
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
        Ok(Self { modules, changes, first_layer, is_rounded: file.bfloat16 })
    }

    /// The first layer, of `num_layers`, in which anything is trained.
    pub fn first_layer(&self, num_layers: usize) -> usize {
        self.first_layer.map_or(num_layers, |first| first.min(num_layers))
    }

    pub fn is_rounded(&self) -> bool {
        self.is_rounded
    }

    /// What gradients are found by.
    pub fn leaves(&self) -> impl Iterator<Item = &Tensor> {
        self.modules.iter().flat_map(|module| [&module.a, &module.b].into_iter().chain(&module.magnitude))
    }

    /// The output `y` that a site has for `x`, as the adapter changes it.
    pub fn apply(&self, site: usize, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let Some(change) = &self.changes[site] else { return Ok(y) };
        let module = &self.modules[change.module];
        let (inner, sum) = change.low_rank(module, x, &y)?;
        let out = change.sized(module, &sum)?;
        let inputs = [x, &y, &module.a, &module.b].into_iter().chain(&module.magnitude).collect::<Vec<_>>();
        note(&inputs, &out, || {
            let (change, module, x) = (change.clone(), module.clone(), x.clone());
            // Without a magnitude the sum is the output, which others may take the memory of.
            let sum = module.magnitude.is_some().then_some(sum);
            move |gradient| change.back(&module, &x, (&inner, sum.as_ref()), gradient)
        });
        Ok(out)
    }

    /// Adds the gradients that were found, in the order of the file's modules: A, B and the magnitude of each.
    pub fn collect(&self, found: &mut Gradients, gradients: &mut [Vec<f32>]) {
        for (leaf, sum) in self.leaves().zip(gradients) {
            if let Some(gradient) = found.take(leaf) {
                sum.iter_mut().zip(gradient).for_each(|(sum, gradient)| *sum += gradient);
            }
        }
    }
}

impl Module {
    fn new(tensors: &LoraTensors) -> Result<Self> {
        let LoraTensors { rank, scale, a, b, magnitude } = tensors;
        let vector = |values: &Vec<f32>| Tensor::from_slice(values, values.len(), &Device::Cpu);
        Ok(Self {
            a: Tensor::from_slice(a, (*rank, tensors.inputs()), &Device::Cpu)?,
            b: Tensor::from_slice(b, (tensors.outputs(), *rank), &Device::Cpu)?,
            magnitude: magnitude.as_ref().map(vector).transpose()?,
            scale: *scale,
        })
    }

    fn rank(&self) -> Result<usize> {
        self.a.dim(0)
    }
}

impl Change {
    fn new(module: usize, site: &Site, tensors: &LoraTensors) -> crate::Result<Self> {
        let rows: Option<Vec<u32>> = site.rows.as_ref().map(|rows| rows.iter().map(|row| *row as u32).collect());
        let rows = rows.map(|rows| Tensor::new(rows, &Device::Cpu)).transpose()?;
        let norms = tensors.magnitude.as_ref().map(|_| site.norms(tensors)).transpose()?;
        let bias = site.bias.as_ref().map(|bias| bias.to_dtype(DType::F32)).transpose()?;
        let norms = norms.map(|norms| Tensor::new(norms, &Device::Cpu)).transpose()?;
        Ok(Self { module, rows, norms, bias, isa: site.isa })
    }

    /// Of all rows of the module's output those that the site makes.
    fn own(&self, all: &Tensor) -> Result<Tensor> {
        self.rows.as_ref().map_or_else(|| Ok(all.clone()), |rows| all.index_select(rows, 0))
    }

    /// The reverse of `own`, with zeros elsewhere.
    fn among(&self, all: &Tensor, own: Tensor) -> Result<Vec<f32>> {
        let all = match &self.rows {
            Some(rows) => all.zeros_like()?.index_add(rows, &own, 0)?,
            None => own,
        };
        numbers_of(&all)
    }

    /// The rows of B that are the site's, times the scale, `[outputs, rank]`.
    fn scaled_b(&self, module: &Module) -> Result<Vec<f32>> {
        numbers_of(&(self.own(&module.b)? * module.scale)?)
    }

    /// `A x`, `[rows, rank]`, and `y + scale B A x`.
    fn low_rank(&self, module: &Module, x: &Tensor, y: &Tensor) -> Result<(Vec<f32>, Tensor)> {
        let (rank, outputs, isa) = (module.rank()?, y.dim(1)?, self.isa);
        let a = transposed(&numbers_of(&module.a)?, x.dim(1)?);
        let inner = with_f32(x, |x| product(x, (&a, rank), None, isa))?;
        let b = transposed(&self.scaled_b(module)?, rank);
        let sum = with_f32(y, |y| product(&inner, (&b, outputs), Some(y), isa))?;
        Ok((inner, rows_of(sum, outputs)?))
    }

    /// What becomes of a sum where a magnitude sets the lengths of its rows: `factors * (sum - bias) + bias`.
    fn sized(&self, module: &Module, sum: &Tensor) -> Result<Tensor> {
        let Some(factors) = self.factors(module)? else { return Ok(sum.clone()) };
        let sized = sum.broadcast_mul(&factors)?;
        match &self.bias {
            Some(bias) => sized.broadcast_add(&(bias - (&factors * bias)?)?),
            None => Ok(sized),
        }
    }

    fn factors(&self, module: &Module) -> Result<Option<Tensor>> {
        let parts = module.magnitude.as_ref().zip(self.norms.as_ref());
        parts.map(|(magnitude, norms)| self.own(magnitude)? / norms).transpose()
    }

    /// The gradients by `x`, by the output it is added to, by A, B and the magnitude. `inner` is that of `low_rank`, and so
    /// is `sum`, for a magnitude.
    fn back(
        &self,
        module: &Module,
        x: &Tensor,
        (inner, sum): (&[f32], Option<&Tensor>),
        gradient: Vec<f32>,
    ) -> Result<Vec<Vec<f32>>> {
        let (rank, inputs, isa) = (module.rank()?, x.dim(1)?, self.isa);
        let outputs = gradient.len() / x.dim(0)?;
        let (by_sum, by_magnitude) = match self.factors(module)?.zip(sum) {
            Some((factors, sum)) => {
                let by_out = rows_of(gradient, outputs)?;
                let by_magnitude = self.by_magnitude(module, sum, &by_out)?;
                (numbers_of(&by_out.broadcast_mul(&factors)?)?, Some(by_magnitude))
            }
            None => (gradient, None),
        };
        let by_inner = product(&by_sum, (&self.scaled_b(module)?, rank), None, isa);
        let by_x = product(&by_inner, (&numbers_of(&module.a)?, inputs), None, isa);
        let by_a = with_f32(x, |x| product(&transposed(&by_inner, rank), (x, inputs), None, isa))?;
        let by_b = product(&transposed(inner, rank), (&by_sum, outputs), None, isa);
        let by_b = (rows_of(transposed(&by_b, outputs), rank)? * module.scale)?;
        let all = [by_x, by_sum, by_a, self.among(&module.b, by_b)?];
        Ok(all.into_iter().chain(by_magnitude).collect())
    }

    fn by_magnitude(&self, module: &Module, sum: &Tensor, by_out: &Tensor) -> Result<Vec<f32>> {
        let Some((magnitude, norms)) = module.magnitude.as_ref().zip(self.norms.as_ref()) else {
            return Ok(Vec::new());
        };
        let unbiased = self.bias.as_ref().map_or_else(|| Ok(sum.clone()), |bias| sum.broadcast_sub(bias))?;
        self.among(magnitude, ((by_out * unbiased)?.sum(0)? / norms)?)
    }
}
