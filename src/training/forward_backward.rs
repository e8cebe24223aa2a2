use candle_core::Tensor;

use super::dataset::Sample;
use crate::{
    Error, Result,
    decoder::{Batch, Network, Pass, Span, Tape, TrainableLora},
    engine::{ComputeSlot, ModelLease},
};

/// Logits that are there at once: few enough for allocators to keep their memory for the next ones.
const LOGITS: usize = 7 << 20;

/// What a network makes of samples side by side, and what would make it better.
pub struct ForwardBackward<'a> {
    pub lease: &'a ModelLease,
    pub trained: &'a TrainableLora,
    /// Asked before each piece of work.
    pub is_wanted: Box<dyn Fn() -> bool + 'a>,
    /// Whether layers are computed anew on the way back.
    pub checkpoint_activations: bool,
}

/// A layer on the way forth: what went in, and unless it is computed anew what came out and how.
struct LayerActivations {
    input: Tensor,
    output: Option<(Tensor, Tape)>,
}

impl ForwardBackward<'_> {
    /// The sum of the losses of all targets.
    pub fn loss(&self, samples: &[&Sample]) -> Result<f64> {
        let (batch, rows, targets) = pack(&self.lease.network, samples);
        let pass = &self.lease.network.training_pass(&batch, self.trained)?;
        let mut x = self.lease.network.embed(&batch)?;
        for layer in 0..self.lease.network.num_layers() {
            let _turn = self.turn()?;
            x = self.lease.network.layer(layer, &x, pass)?;
        }
        let mut sum = 0.0;
        let logit_rows = self.logit_rows();
        for (rows, targets) in rows.chunks(logit_rows).zip(targets.chunks(logit_rows)) {
            let _turn = self.turn()?;
            let x = x.index_select(&Tensor::new(rows, x.device())?, 0)?;
            sum += total(&self.lease.network.losses(&x, targets, pass)?)?;
        }
        Ok(sum)
    }

    /// As `loss`, and adds the gradients of that sum times `scale` by all parameters to `gradients`.
    pub fn learn(&self, samples: &[&Sample], scale: f64, gradients: &mut [Vec<f32>]) -> Result<f64> {
        let (batch, rows, targets) = pack(&self.lease.network, samples);
        let pass = &self.lease.network.training_pass(&batch, self.trained)?;
        let (held, last) = self.forth(&batch, pass)?;
        let mut sum = 0.0;
        let hidden = self.lease.network.hidden_size();
        let mut by_last = vec![0f32; batch.tokens.len() * hidden];
        let logit_rows = self.logit_rows();
        for (rows, targets) in rows.chunks(logit_rows).zip(targets.chunks(logit_rows)) {
            let _turn = self.turn()?;
            let x = last.index_select(&Tensor::new(rows, last.device())?, 0)?;
            let losses = || self.lease.network.losses(&x, targets, pass);
            let (losses, tape) = Tape::record(self.trained.leaves().chain([&x]), losses)?;
            sum += total(&losses)?;
            let mut found = tape.back(&losses, vec![scale as f32; rows.len()], self.lease.network.isa())?;
            self.trained.collect(&mut found, gradients);
            for (row, by_x) in rows.iter().zip(found.take(&x).unwrap_or_default().chunks(hidden)) {
                by_last[*row as usize * hidden..][..hidden].copy_from_slice(by_x);
            }
        }
        self.back(held, pass, by_last, gradients)?;
        Ok(sum)
    }

    fn first_layer(&self) -> usize {
        self.trained.first_layer(self.lease.network.num_layers())
    }

    /// Waits for a turn of a piece of work.
    fn turn(&self) -> Result<ComputeSlot<'_>> {
        match (self.is_wanted)() {
            true => self.lease.slot(),
            false => Err(Error::Cancelled),
        }
    }

    /// Through all layers, of which those are held that gradients go back through.
    fn forth(&self, batch: &Batch, pass: &Pass<'_>) -> Result<(Vec<LayerActivations>, Tensor)> {
        let (mut held, first) = (Vec::new(), self.first_layer());
        let mut x = self.lease.network.embed(batch)?;
        for layer in 0..self.lease.network.num_layers() {
            let _turn = self.turn()?;
            if layer < first {
                x = self.lease.network.layer(layer, &x, pass)?;
                continue;
            }
            let (output, tape) = self.layer(layer, &x, pass)?;
            let input = std::mem::replace(&mut x, output.clone());
            held.push(LayerActivations { input, output: (!self.checkpoint_activations).then_some((output, tape)) });
        }
        Ok((held, x))
    }

    /// Through a layer, and how to get back. Nothing is learned below the first one.
    fn layer(&self, layer: usize, input: &Tensor, pass: &Pass<'_>) -> Result<(Tensor, Tape)> {
        let input_too = (layer > self.first_layer()).then_some(input);
        let compute = || self.lease.network.layer(layer, input, pass);
        Ok(Tape::record(self.trained.leaves().chain(input_too), compute)?)
    }

    /// Takes the gradient by the last layer's output back through all that is held.
    fn back(
        &self,
        held: Vec<LayerActivations>,
        pass: &Pass<'_>,
        mut gradient: Vec<f32>,
        gradients: &mut [Vec<f32>],
    ) -> Result<()> {
        for (layer, LayerActivations { input, output }) in
            (self.first_layer()..self.lease.network.num_layers()).zip(held).rev()
        {
            let _turn = self.turn()?;
            let (output, tape) = output.map_or_else(|| self.layer(layer, &input, pass), Ok)?;
            let mut found = tape.back(&output, gradient, self.lease.network.isa())?;
            self.trained.collect(&mut found, gradients);
            let Some(by_input) = found.take(&input) else { break };
            gradient = by_input;
        }
        Ok(())
    }

    /// Positions whose logits are there at once.
    fn logit_rows(&self) -> usize {
        (LOGITS / self.lease.network.vocab_size()).max(1)
    }
}

/// Dataset one after another, the rows that predict a target, and these targets.
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

fn total(losses: &Tensor) -> Result<f64> {
    Ok(losses.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).sum())
}
