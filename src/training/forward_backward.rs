//! Forward and backward passes of training.

use candle_core::Tensor;

use super::dataset::Sample;
use crate::{
    Error, Result,
    adapters::TrainableLora,
    autograd::Tape,
    decoder::{Batch, Network, Pass, Span},
    engine::{ComputeSlot, ModelLease},
};

/// Logits in memory at once: few enough for allocators to reuse the memory.
const MAX_LOGITS: usize = 7 << 20;

/// Forward and backward passes over samples packed without padding, one layer at a time, so that requests wait for no
/// longer than a layer.
pub struct ForwardBackward<'a> {
    pub lease: &'a ModelLease<Network>,
    pub lora: &'a TrainableLora,
    /// Checked before each layer; `false` cancels the pass.
    pub is_wanted: Box<dyn Fn() -> bool + 'a>,
    /// Whether layers are recomputed in the backward pass.
    pub checkpoint_activations: bool,
}

/// The activations of a layer: its input and, unless the layer is recomputed, its output with the tape.
struct LayerActivations {
    input: Tensor,
    output: Option<(Tensor, Tape)>,
}

impl ForwardBackward<'_> {
    /// The sum of the losses of all targets.
    pub fn loss_sum(&self, samples: &[&Sample]) -> Result<f64> {
        let (batch, rows, targets) = pack(&self.lease.network, samples);
        let pass = &self.lease.network.training_pass(&batch, self.lora)?;
        let mut x = self.lease.network.embed(&batch)?;
        for layer in 0..self.lease.network.num_layers() {
            let _slot = self.compute_slot()?;
            x = self.lease.network.layer(layer, &x, pass)?;
        }
        let mut sum = 0.0;
        let logit_rows = self.logit_rows();
        for (rows, targets) in rows.chunks(logit_rows).zip(targets.chunks(logit_rows)) {
            let _slot = self.compute_slot()?;
            let x = x.index_select(&Tensor::new(rows, x.device())?, 0)?;
            sum += total(&self.lease.network.losses(&x, targets, pass)?)?;
        }
        Ok(sum)
    }

    /// Like `loss_sum`; also adds the gradients of `scale` times that sum to `gradients`.
    pub fn accumulate_gradients(&self, samples: &[&Sample], scale: f64, gradients: &mut [Vec<f32>]) -> Result<f64> {
        let (batch, rows, targets) = pack(&self.lease.network, samples);
        let pass = &self.lease.network.training_pass(&batch, self.lora)?;
        let (activations, last) = self.forward(&batch, pass)?;
        let mut sum = 0.0;
        let hidden = self.lease.network.hidden_size();
        let mut grad_last = vec![0f32; batch.tokens.len() * hidden];
        let logit_rows = self.logit_rows();
        for (rows, targets) in rows.chunks(logit_rows).zip(targets.chunks(logit_rows)) {
            let _slot = self.compute_slot()?;
            let x = last.index_select(&Tensor::new(rows, last.device())?, 0)?;
            let losses = || self.lease.network.losses(&x, targets, pass);
            let (losses, tape) = Tape::record(self.lora.leaves().chain([&x]), losses)?;
            sum += total(&losses)?;
            let mut found = tape.back(&losses, vec![scale as f32; rows.len()], self.lease.network.isa())?;
            self.lora.collect(&mut found, gradients);
            for (row, grad_x) in rows.iter().zip(found.take(&x).unwrap_or_default().chunks(hidden)) {
                grad_last[*row as usize * hidden..][..hidden].copy_from_slice(grad_x);
            }
        }
        self.backward(activations, pass, grad_last, gradients)?;
        Ok(sum)
    }

    /// The lowest layer with a trained parameter.
    fn first_layer(&self) -> usize {
        self.lora.first_layer(self.lease.network.num_layers())
    }

    /// Waits until no request computes.
    fn compute_slot(&self) -> Result<ComputeSlot<'_>> {
        match (self.is_wanted)() {
            true => self.lease.slot(),
            false => Err(Error::Cancelled),
        }
    }

    /// Runs all layers, and keeps the activations that the backward pass needs.
    fn forward(&self, batch: &Batch, pass: &Pass<'_>) -> Result<(Vec<LayerActivations>, Tensor)> {
        let (mut activations, first) = (Vec::new(), self.first_layer());
        let mut x = self.lease.network.embed(batch)?;
        for layer in 0..self.lease.network.num_layers() {
            let _slot = self.compute_slot()?;
            if layer < first {
                x = self.lease.network.layer(layer, &x, pass)?;
                continue;
            }
            let (output, tape) = self.record_layer(layer, &x, pass)?;
            let input = std::mem::replace(&mut x, output.clone());
            activations
                .push(LayerActivations { input, output: (!self.checkpoint_activations).then_some((output, tape)) });
        }
        Ok((activations, x))
    }

    /// Runs a layer and records it. No gradient flows below the first trained layer.
    fn record_layer(&self, layer: usize, input: &Tensor, pass: &Pass<'_>) -> Result<(Tensor, Tape)> {
        let input_too = (layer > self.first_layer()).then_some(input);
        let compute = || self.lease.network.layer(layer, input, pass);
        Ok(Tape::record(self.lora.leaves().chain(input_too), compute)?)
    }

    /// Propagates the gradient of the last layer's output through all recorded layers.
    fn backward(
        &self,
        activations: Vec<LayerActivations>,
        pass: &Pass<'_>,
        mut gradient: Vec<f32>,
        gradients: &mut [Vec<f32>],
    ) -> Result<()> {
        for (layer, LayerActivations { input, output }) in
            (self.first_layer()..self.lease.network.num_layers()).zip(activations).rev()
        {
            let _slot = self.compute_slot()?;
            let (output, tape) = output.map_or_else(|| self.record_layer(layer, &input, pass), Ok)?;
            let mut found = tape.back(&output, gradient, self.lease.network.isa())?;
            self.lora.collect(&mut found, gradients);
            let Some(grad_input) = found.take(&input) else { break };
            gradient = grad_input;
        }
        Ok(())
    }

    /// Rows whose logits are in memory at once.
    fn logit_rows(&self) -> usize {
        (MAX_LOGITS / self.lease.network.vocab_size()).max(1)
    }
}

/// Packs samples into a batch. Returns the rows that predict a target, and the targets.
fn pack(network: &Network, samples: &[&Sample]) -> (Batch, Vec<u32>, Vec<u32>) {
    let (mut batch, mut rows, mut targets) = (Batch::default(), Vec::new(), Vec::new());
    for sample in samples {
        let (start, len) = (batch.tokens.len(), sample.tokens.len());
        for (row, target) in (start as u32..).zip(&sample.targets) {
            if let Some(target) = target {
                rows.push(row);
                targets.push(*target);
            }
        }
        batch.tokens.extend(&sample.tokens);
        batch.positions.extend(0..len as u32);
        let rope_variant = network.rope_variant(len, len);
        batch.spans.push(Span { start, len, context_len: len, rope_variant, ..Span::default() });
    }
    (batch, rows, targets)
}

/// The sum of a tensor.
fn total(losses: &Tensor) -> Result<f64> {
    Ok(losses.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).sum())
}
