use std::sync::Arc;

use candle_core::{DType, Result, Tensor};

use super::{
    differentiable::{binary, composed, unary},
    layout::MlpNames,
    linear::Linear,
    load::{Loader, MlpLinears},
    lora::AdaptedRows,
    router::Router,
    spec::{DenseSpec, ExpertsSpec, MlpSpec},
};
use crate::kernels::{
    Isa,
    elementwise::{Activation, activate, activate_gradient},
};

/// A feed-forward network.
pub enum Mlp {
    Dense(DenseMlp),
    Experts(Box<MoeMlp>),
}

impl Mlp {
    pub fn load(load: &Loader<'_>, spec: &MlpSpec, hidden_size: usize) -> crate::Result<Self> {
        match spec {
            MlpSpec::Dense(spec) => {
                let matrices = load.mlp(&load.layout.names.mlp, spec, hidden_size)?;
                Ok(Self::Dense(DenseMlp::new(matrices, spec, load.isa)))
            }
            MlpSpec::Experts(spec) => MoeMlp::load(load, spec, hidden_size).map(Box::new).map(Self::Experts),
        }
    }

    /// The memory the matrices take.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(dense) => dense.bytes(),
            Self::Experts(experts) => experts.bytes(),
        }
    }

    /// Whether all rows go through the same matrices.
    pub fn is_dense(&self) -> bool {
        matches!(self, Self::Dense(_))
    }

    /// Maps `[rows, hidden]` to as much.
    pub fn forward(&self, x: &Tensor, adapted: &AdaptedRows<'_>) -> Result<Tensor> {
        match self {
            Self::Dense(dense) => dense.forward(x, adapted),
            Self::Experts(experts) => experts.forward(x, adapted),
        }
    }
}

/// `down(activation(gate(x)) * up(x))`, or `down(activation(up(x)))` without a gate.
pub struct DenseMlp {
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
    activation: Activation,
    isa: Isa,
}

impl DenseMlp {
    fn new((gate, up, down): MlpLinears, spec: &DenseSpec, isa: Isa) -> Self {
        Self { gate, up, down, activation: spec.activation, isa }
    }

    fn bytes(&self) -> usize {
        self.gate.as_ref().map_or(0, Linear::bytes) + self.up.bytes() + self.down.bytes()
    }

    fn forward(&self, x: &Tensor, adapted: &AdaptedRows<'_>) -> Result<Tensor> {
        let inner = match &self.gate {
            Some(gate) => match Linear::gated(gate, &self.up, x, adapted, self.activation)? {
                Some(inner) => inner,
                None => {
                    let [gate, up] = Linear::all_adapted([gate, &self.up], x, adapted)?;
                    self.activate(&gate, Some(&up))?
                }
            },
            None => self.activate(&self.up.adapted(x, adapted)?, None)?,
        };
        self.down.adapted(&inner, adapted)
    }

    fn activate(&self, x: &Tensor, up: Option<&Tensor>) -> Result<Tensor> {
        let (activation, isa) = (self.activation, self.isa);
        if x.device().is_cpu() {
            let columns = x.dim(1)?;
            return match up {
                Some(up) => binary(
                    [x, up],
                    columns,
                    move |[x, up]| Ok(activate(x, Some(up), activation, isa)),
                    move |[x, up], gradient| {
                        let (grad_x, grad_up) = activate_gradient(x, Some(up), gradient, activation, isa);
                        Ok([grad_x, grad_up.unwrap_or_default()])
                    },
                ),
                None => unary(
                    x,
                    columns,
                    move |x| Ok(activate(x, None, activation, isa)),
                    move |x, gradient| Ok(activate_gradient(x, None, gradient, activation, isa).0),
                ),
            };
        }
        let activated = match activation {
            Activation::Silu => x.silu()?,
            Activation::Gelu => x.gelu_erf()?,
            Activation::GeluTanh => x.gelu()?,
            Activation::Relu => x.relu()?,
            Activation::ReluSquared => x.relu()?.sqr()?,
            Activation::ClampedSilu { slope, limit } => {
                let x = x.minimum(f64::from(limit))?;
                (&x * candle_nn::ops::sigmoid(&(&x * f64::from(slope))?)?)?
            }
        };
        match (up, activation) {
            (Some(up), Activation::ClampedSilu { limit, .. }) => activated * (up.clamp(-limit, limit)? + 1.0)?,
            (Some(up), _) => activated * up,
            (None, _) => Ok(activated),
        }
    }
}

/// Many networks, of which each token goes through a few.
pub struct MoeMlp {
    router: Linear,
    experts: Vec<DenseMlp>,
    choice: Router,
    shared: Option<SharedExpert>,
}

/// A network that all tokens go through.
struct SharedExpert {
    network: DenseMlp,
    /// The sigmoid of this multiplies its output.
    gate: Option<Linear>,
}

impl MoeMlp {
    fn load(load: &Loader<'_>, spec: &ExpertsSpec, hidden_size: usize) -> crate::Result<Self> {
        let names = &load.layout.names;
        let networks = if load.contains(names.experts.down) {
            load.experts(spec, hidden_size)?
        } else {
            let network = |expert: usize| {
                let numbered = [names.expert.gate, names.expert.up, names.expert.gate_up, names.expert.down]
                    .map(|name| name.replace("{}", &expert.to_string()));
                let [gate, up, gate_up, down] = numbered.each_ref().map(String::as_str);
                load.mlp(&MlpNames { gate, up, gate_up, down }, &spec.expert, hidden_size)
            };
            (0..spec.num_experts).map(network).collect::<crate::Result<_>>()?
        };
        let shared = match &spec.shared {
            Some(shared) => Some(SharedExpert {
                network: DenseMlp::new(
                    load.mlp(&names.shared, &shared.network, hidden_size)?,
                    &shared.network,
                    load.isa,
                ),
                gate: match shared.gated {
                    true => Some(load.linear(names.shared_gate, [1, hidden_size], false)?),
                    false => None,
                },
            }),
            None => None,
        };
        Ok(Self {
            // It is small, and a rounded choice would be another one.
            router: load.as_stored().linear(names.router, [spec.num_experts, hidden_size], spec.router_bias)?,
            experts: networks.into_iter().map(|network| DenseMlp::new(network, &spec.expert, load.isa)).collect(),
            choice: Router {
                per_token: spec.per_token,
                normalize: spec.normalize,
                routing: spec.routing,
                biases: spec.routing.biases.then(|| load.router_biases(spec.num_experts)).transpose()?.map(Arc::from),
            },
            shared,
        })
    }

    fn bytes(&self) -> usize {
        let shared = self.shared.as_ref().map_or(0, |shared| shared.network.bytes());
        self.router.bytes() + shared + self.experts.iter().map(DenseMlp::bytes).sum::<usize>()
    }

    fn forward(&self, x: &Tensor, adapted: &AdaptedRows<'_>) -> Result<Tensor> {
        // Experts add to a row in their order, whichever other rows there are.
        let mut sum = x.zeros_like()?;
        // By expert, `[experts, rows]`.
        let weights = self.choice.weights(&self.router.forward(x)?)?;
        let weights = composed([&weights], |[weights]| weights.t()?.contiguous())?;
        let chosen = weights.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        for (index, (expert, chosen)) in self.experts.iter().zip(chosen).enumerate() {
            let rows: Vec<u32> =
                (0u32..).zip(chosen).filter(|(_, weight)| *weight != 0.0).map(|(row, _)| row).collect();
            if rows.is_empty() {
                continue;
            }
            let adapted = adapted.select(&rows);
            let rows = Tensor::new(rows, x.device())?;
            let own = rows.clone();
            let y = expert.forward(&composed([x], move |[x]| x.index_select(&own, 0))?, &adapted)?;
            sum = composed([&sum, &y, &weights], move |[sum, y, weights]| {
                let weights = weights.get(index)?.index_select(&rows, 0)?.unsqueeze(1)?;
                sum.index_add(&rows, &y.broadcast_mul(&weights)?, 0)
            })?;
        }
        match &self.shared {
            Some(SharedExpert { network, gate }) => {
                let mut y = network.forward(x, adapted)?;
                if let Some(gate) = gate {
                    let gate = gate.adapted(x, adapted)?;
                    y = composed([&y, &gate], |[y, gate]| y.broadcast_mul(&candle_nn::ops::sigmoid(gate)?))?;
                }
                composed([&sum, &y], |[sum, y]| sum + y)
            }
            None => Ok(sum),
        }
    }
}
