//! Adapters in training.

use candle_core::{DType, Device, Result, Tensor};

use super::{AdapterFile, LoraTarget, LoraTargets, LoraTensors};
use crate::{
    Error,
    autograd::{Gradients, note, rows_of, values_of, with_f32},
    kernels::{
        Isa,
        dense::{product, transpose},
    },
    weights::ComputeTarget,
};

/// An adapter that is being trained: gradients are computed with respect to its values.
pub struct TrainableLora {
    modules: Vec<TrainableModule>,
    /// For each of the model's targets how it is changed.
    targets: Vec<Option<TrainableTarget>>,
    first_layer: Option<usize>,
    /// Whether products with the weights are in bfloat16.
    is_rounded: bool,
}

/// The values of a module.
#[derive(Clone)]
struct TrainableModule {
    /// `[rank, inputs]`
    a: Tensor,
    /// `[outputs, rank]`
    b: Tensor,
    /// `[outputs]`
    magnitude: Option<Tensor>,
    scale: f64,
}

/// How a target is changed.
#[derive(Clone)]
struct TrainableTarget {
    module: usize,
    /// The rows of the module's output that it makes, if not all in order.
    rows: Option<Tensor>,
    /// With a magnitude: the lengths of the weight's rows that it replaces, and the bias that it leaves alone. They
    /// count as constants ([DoRA](https://arxiv.org/abs/2402.09353), 4.3).
    norms: Option<Tensor>,
    bias: Option<Tensor>,
    isa: Isa,
}

impl TrainableLora {
    pub fn new(model: &LoraTargets, file: &AdapterFile) -> crate::Result<Self> {
        let mut targets: Vec<Option<TrainableTarget>> = (0..model.len()).map(|_| None).collect();
        let (mut modules, mut first_layer) = (Vec::new(), None::<usize>);
        for (tensors, indices) in model.matched(file)? {
            for &index in indices {
                let target = model.get(index);
                targets[index] = Some(TrainableTarget::new(modules.len(), target, tensors)?);
                // The head is behind all layers.
                let layer = target.layer.unwrap_or(usize::MAX);
                first_layer = Some(first_layer.map_or(layer, |first| first.min(layer)));
            }
            modules.push(TrainableModule::new(tensors)?);
        }
        Ok(Self { modules, targets, first_layer, is_rounded: file.bfloat16 })
    }

    /// The first layer, of `num_layers`, in which anything is trained.
    pub fn first_layer(&self, num_layers: usize) -> usize {
        self.first_layer.map_or(num_layers, |first| first.min(num_layers))
    }

    pub fn is_rounded(&self) -> bool {
        self.is_rounded
    }

    /// The tensors that gradients are computed for.
    pub fn leaves(&self) -> impl Iterator<Item = &Tensor> {
        self.modules.iter().flat_map(|module| [&module.a, &module.b].into_iter().chain(&module.magnitude))
    }

    /// The output `y` that a target has for `x`, as the adapter changes it.
    pub fn apply(&self, target: usize, x: &Tensor, y: Tensor) -> Result<Tensor> {
        let Some(target) = &self.targets[target] else { return Ok(y) };
        let module = &self.modules[target.module];
        let (inner, sum) = target.low_rank(module, x, &y)?;
        let out = target.sized(module, &sum)?;
        let inputs = [x, &y, &module.a, &module.b].into_iter().chain(&module.magnitude).collect::<Vec<_>>();
        note(&inputs, &out, || {
            let (target, module, x) = (target.clone(), module.clone(), x.clone());
            // Without a magnitude the sum is the output, whose memory later operations may take.
            let sum = module.magnitude.is_some().then_some(sum);
            move |gradient| target.back(&module, &x, (&inner, sum.as_ref()), gradient)
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

impl TrainableModule {
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

impl TrainableTarget {
    fn new(module: usize, target: &LoraTarget, tensors: &LoraTensors) -> crate::Result<Self> {
        let rows: Option<Vec<u32>> = target.rows.as_ref().map(|rows| rows.iter().map(|row| *row as u32).collect());
        let rows = rows.map(|rows| Tensor::new(rows, &Device::Cpu)).transpose()?;
        let norms = tensors.magnitude.as_ref().map(|_| target.norms(tensors)).transpose()?;
        let bias = target.bias.as_ref().map(|bias| bias.to_dtype(DType::F32)).transpose()?;
        let norms = norms.map(|norms| Tensor::new(norms, &Device::Cpu)).transpose()?;
        let ComputeTarget::Kernels(isa) = target.compute else {
            return Err(Error::NotTrainable { reason: "models are trained on the CPU".into() });
        };
        Ok(Self { module, rows, norms, bias, isa })
    }

    /// The target's rows among all rows of the module's output.
    fn own(&self, all: &Tensor) -> Result<Tensor> {
        self.rows.as_ref().map_or_else(|| Ok(all.clone()), |rows| all.index_select(rows, 0))
    }

    /// The reverse of `own`, with zeros elsewhere.
    fn among(&self, all: &Tensor, own: Tensor) -> Result<Vec<f32>> {
        let all = match &self.rows {
            Some(rows) => all.zeros_like()?.index_add(rows, &own, 0)?,
            None => own,
        };
        values_of(&all)
    }

    /// The rows of B that are the target's, times the scale, `[outputs, rank]`.
    fn scaled_b(&self, module: &TrainableModule) -> Result<Vec<f32>> {
        values_of(&(self.own(&module.b)? * module.scale)?)
    }

    /// `A x`, `[rows, rank]`, and `y + scale B A x`.
    fn low_rank(&self, module: &TrainableModule, x: &Tensor, y: &Tensor) -> Result<(Vec<f32>, Tensor)> {
        let (rank, outputs, isa) = (module.rank()?, y.dim(1)?, self.isa);
        let a = transpose(&values_of(&module.a)?, x.dim(1)?);
        let inner = with_f32(x, |x| product(x, (&a, rank), None, isa))?;
        let b = transpose(&self.scaled_b(module)?, rank);
        let sum = with_f32(y, |y| product(&inner, (&b, outputs), Some(y), isa))?;
        Ok((inner, rows_of(sum, outputs)?))
    }

    /// Scales a sum to the lengths that the magnitude sets: `factors * (sum - bias) + bias`.
    fn sized(&self, module: &TrainableModule, sum: &Tensor) -> Result<Tensor> {
        let Some(factors) = self.factors(module)? else { return Ok(sum.clone()) };
        let sized = sum.broadcast_mul(&factors)?;
        match &self.bias {
            Some(bias) => sized.broadcast_add(&(bias - (&factors * bias)?)?),
            None => Ok(sized),
        }
    }

    fn factors(&self, module: &TrainableModule) -> Result<Option<Tensor>> {
        let parts = module.magnitude.as_ref().zip(self.norms.as_ref());
        parts.map(|(magnitude, norms)| self.own(magnitude)? / norms).transpose()
    }

    /// The gradients by `x`, by the output it is added to, by A, B and the magnitude. `inner` is that of `low_rank`,
    /// and so is `sum`, for a magnitude.
    fn back(
        &self,
        module: &TrainableModule,
        x: &Tensor,
        (inner, sum): (&[f32], Option<&Tensor>),
        gradient: Vec<f32>,
    ) -> Result<Vec<Vec<f32>>> {
        let (rank, inputs, isa) = (module.rank()?, x.dim(1)?, self.isa);
        let outputs = gradient.len() / x.dim(0)?;
        let (grad_sum, grad_magnitude) = match self.factors(module)?.zip(sum) {
            Some((factors, sum)) => {
                let grad_out = rows_of(gradient, outputs)?;
                let grad_magnitude = self.grad_magnitude(module, sum, &grad_out)?;
                (values_of(&grad_out.broadcast_mul(&factors)?)?, Some(grad_magnitude))
            }
            None => (gradient, None),
        };
        let grad_inner = product(&grad_sum, (&self.scaled_b(module)?, rank), None, isa);
        let grad_x = product(&grad_inner, (&values_of(&module.a)?, inputs), None, isa);
        let grad_a = with_f32(x, |x| product(&transpose(&grad_inner, rank), (x, inputs), None, isa))?;
        let grad_b = product(&transpose(inner, rank), (&grad_sum, outputs), None, isa);
        let grad_b = (rows_of(transpose(&grad_b, outputs), rank)? * module.scale)?;
        let all = [grad_x, grad_sum, grad_a, self.among(&module.b, grad_b)?];
        Ok(all.into_iter().chain(grad_magnitude).collect())
    }

    fn grad_magnitude(&self, module: &TrainableModule, sum: &Tensor, grad_out: &Tensor) -> Result<Vec<f32>> {
        let Some((magnitude, norms)) = module.magnitude.as_ref().zip(self.norms.as_ref()) else {
            return Ok(Vec::new());
        };
        let unbiased = self.bias.as_ref().map_or_else(|| Ok(sum.clone()), |bias| sum.broadcast_sub(bias))?;
        self.among(magnitude, ((grad_out * unbiased)?.sum(0)? / norms)?)
    }
}
