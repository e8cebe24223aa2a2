//! Routers of mixtures of experts.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::spec::{ExpertGroups, Gating, RoutingSpec};
use crate::autograd::unary;

/// Chooses the experts of each token and the weights of their outputs.
#[derive(Clone)]
pub struct Router {
    pub per_token: usize,
    /// Whether the weights of a token's experts add up to one.
    pub normalize: bool,
    pub routing: RoutingSpec,
    /// Added to the scores for the choice alone.
    pub biases: Option<Arc<[f32]>>,
}

impl Router {
    /// The weights, `[rows, experts]`, in the memory of the CPU: zero where an expert is not chosen. `logits` are of
    /// the same shape, on any device.
    pub fn weights(&self, logits: &Tensor) -> Result<Tensor> {
        let (experts, this, back) = (logits.dim(1)?, self.clone(), self.clone());
        let on_cpu = logits.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        let forward = move |logits: &[f32]| Ok(logits.chunks(experts).flat_map(|row| this.of_row(row)).collect());
        let backward = move |logits: &[f32], gradient: &[f32]| {
            let rows = logits.chunks(experts).zip(gradient.chunks(experts));
            Ok(rows.flat_map(|(logits, gradient)| back.gradient(logits, gradient)).collect())
        };
        unary(&on_cpu, experts, forward, backward)
    }

    fn of_row(&self, logits: &[f32]) -> Vec<f32> {
        let scores = self.scores(logits);
        let mut ranks = scores.clone();
        if let Some(biases) = &self.biases {
            ranks.iter_mut().zip(&**biases).for_each(|(rank, bias)| *rank += bias);
        }
        if let Some(ExpertGroups { count, per_token }) = self.routing.groups {
            leave_groups(&mut ranks, count, per_token);
        }
        let best = best(&ranks, self.per_token);
        let sum: f32 = match (self.normalize, self.routing.gating) {
            (true, _) => best.iter().map(|expert| scores[*expert]).sum(),
            (false, Gating::Softmax) => scores.iter().sum(),
            (false, Gating::Sigmoid) => 1.0,
        };
        let mut weights = vec![0.0; logits.len()];
        best.into_iter().for_each(|expert| weights[expert] = scores[expert] / sum * self.routing.weight_scale);
        weights
    }

    /// The gradient with respect to the logits: `w' = w (ln s)' - w (ln S)'` for weights `w = s / S` of scores `s`.
    fn gradient(&self, logits: &[f32], gradient: &[f32]) -> Vec<f32> {
        let (scores, weights) = (self.scores(logits), self.of_row(logits));
        let grad_logs: Vec<f32> =
            weights.iter().zip(gradient).map(|(weight, grad_weight)| weight * grad_weight).collect();
        let sum: f32 = grad_logs.iter().sum();
        let all = !self.normalize && self.routing.gating == Gating::Softmax;
        let divides = |expert: usize| match self.routing.gating {
            Gating::Sigmoid if !self.normalize => false,
            _ => all || weights[expert] != 0.0,
        };
        let divisor: f32 = (0..scores.len()).filter(|expert| divides(*expert)).map(|expert| scores[expert]).sum();
        let grad_log =
            |expert: usize| grad_logs[expert] - if divides(expert) { sum * scores[expert] / divisor } else { 0.0 };
        let grad_logit = |expert: usize| match self.routing.gating {
            Gating::Softmax => grad_log(expert),
            Gating::Sigmoid => grad_log(expert) * (1.0 - scores[expert]),
        };
        (0..scores.len()).map(grad_logit).collect()
    }

    /// Up to a factor that is the same for all experts.
    fn scores(&self, logits: &[f32]) -> Vec<f32> {
        match self.routing.gating {
            Gating::Softmax => {
                let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                logits.iter().map(|logit| (logit - max).exp()).collect()
            }
            Gating::Sigmoid => logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect(),
        }
    }
}

/// The greatest of some values, the first of equal ones first.
fn best(ranks: &[f32], count: usize) -> Vec<usize> {
    let mut best: Vec<usize> = (0..ranks.len()).collect();
    best.sort_by(|a, b| ranks[*b].total_cmp(&ranks[*a]));
    best.truncate(count);
    best
}

/// Leaves the groups whose two best together rank best.
fn leave_groups(ranks: &mut [f32], count: usize, per_token: usize) {
    let size = ranks.len() / count;
    let of_group = |group: &[f32]| best(group, 2).into_iter().map(|expert| group[expert]).sum();
    let groups: Vec<f32> = ranks.chunks_exact(size).map(of_group).collect();
    let left = best(&groups, per_token);
    for (group, ranks) in ranks.chunks_exact_mut(size).enumerate() {
        if !left.contains(&group) {
            ranks.fill(f32::NEG_INFINITY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{autograd::Tape, kernels::Isa};

    #[test]
    fn router_gradients_match_finite_differences() {
        let (experts, logits) = (6, [0.3f32, -0.8, 1.1, 0.2, -0.1, 0.7, 1.4, 0.0, -0.6, 0.9, 0.1, -1.2]);
        let wanted: Vec<f32> = (0..12).map(|i| (i * 5 % 7) as f32 - 3.0).collect();
        for (gating, normalize) in
            [(Gating::Softmax, true), (Gating::Softmax, false), (Gating::Sigmoid, true), (Gating::Sigmoid, false)]
        {
            let routing = RoutingSpec { gating, groups: None, weight_scale: 1.5, biases: false };
            let router = Router { per_token: 3, normalize, routing, biases: None };
            let x = Tensor::from_slice(&logits, (2, experts), &Device::Cpu).unwrap();
            let (weights, tape) = Tape::record([&x], || router.weights(&x)).unwrap();
            let found = tape.back(&weights, wanted.clone(), Isa::detect()).unwrap().take(&x).unwrap();
            let at = |logits: &[f32]| -> f64 {
                let weights = logits.chunks(experts).flat_map(|row| router.of_row(row));
                weights.zip(&wanted).map(|(weight, wanted)| f64::from(weight * wanted)).sum()
            };
            for (i, found) in found.into_iter().enumerate() {
                let moved = |by: f32| {
                    let mut logits = logits;
                    logits[i] += by;
                    at(&logits)
                };
                let expected = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                assert!((f64::from(found) - expected).abs() < 1e-3, "{gating:?} {normalize} {i}: {found} {expected}");
            }
        }
    }
}
