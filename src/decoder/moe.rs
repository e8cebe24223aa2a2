//! Mixtures of experts.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::{
    layout::MlpNames, linear::Linear, load::Loader, mlp::DenseMlp, ops::Ops, router::Router, spec::ExpertsSpec,
};
use crate::{adapters::AdaptedRows, autograd::composed};

/// Many networks, of which each token goes through a few.
pub struct MoeMlp {
    router: Linear,
    experts: Vec<DenseMlp>,
    choice: Router,
    shared: Option<SharedExpert>,
    ops: Ops,
}

/// A network that all tokens go through.
struct SharedExpert {
    network: DenseMlp,
    /// The sigmoid of this multiplies its output.
    gate: Option<Linear>,
}

impl MoeMlp {
    pub fn load(load: &Loader<'_>, spec: &ExpertsSpec, hidden_size: usize) -> crate::Result<Self> {
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
                    &load.ops,
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
            experts: networks.into_iter().map(|network| DenseMlp::new(network, &spec.expert, &load.ops)).collect(),
            choice: Router {
                per_token: spec.per_token,
                normalize: spec.normalize,
                routing: spec.routing,
                biases: spec.routing.biases.then(|| load.router_biases(spec.num_experts)).transpose()?.map(Arc::from),
            },
            shared,
            ops: load.ops.clone(),
        })
    }

    pub fn bytes(&self) -> usize {
        let shared = self.shared.as_ref().map_or(0, |shared| shared.network.bytes());
        self.router.bytes() + shared + self.experts.iter().map(DenseMlp::bytes).sum::<usize>()
    }

    pub fn forward(&self, x: &Tensor, adapted: &AdaptedRows<'_>) -> Result<Tensor> {
        let weights = self.choice.weights(&self.router.forward(x)?)?;
        let sum = self
            .ops
            .mix_experts(x, &weights, |expert, x, rows| self.experts[expert].forward(x, &adapted.select(rows)))?;
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
