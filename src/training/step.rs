use candle_core::{Tensor, Var};

use super::data::Sample;
use crate::{
    Error, Result,
    decoder::{Batch, Network, Pass, Span, Trained, cross_entropy, with_gradient},
    engine::{Access, Turn},
};

/// Positions whose logits are there at once.
const LOGIT_ROWS: usize = 64;

/// What a network makes of samples side by side, and what would make it better.
pub struct Step<'a> {
    pub access: &'a Access,
    pub trained: &'a Trained,
    /// Asked before each piece of work.
    pub is_wanted: Box<dyn Fn() -> bool + 'a>,
    /// Whether layers are computed anew on the way back.
    pub checkpoint_activations: bool,
}

/// A layer on the way forth: what went in, and what came out unless it is computed anew.
struct Held {
    input: Tensor,
    output: Option<Tensor>,
}

impl Step<'_> {
    /// The sum of the losses of all targets.
    pub fn loss(&self, samples: &[&Sample]) -> Result<f64> {
        let (batch, rows, targets) = pack(&self.access.network, samples);
        let pass = &self.access.network.training_pass(&batch, self.trained)?;
        let mut x = self.access.network.embed(&batch)?;
        for layer in 0..self.access.network.num_layers() {
            let _turn = self.turn()?;
            x = self.access.network.layer(layer, &x, pass)?.detach();
        }
        let mut sum = 0.0;
        for (rows, targets) in rows.chunks(LOGIT_ROWS).zip(targets.chunks(LOGIT_ROWS)) {
            let _turn = self.turn()?;
            let x = x.index_select(&Tensor::new(rows, x.device())?, 0)?;
            sum += total(&cross_entropy(&self.access.network.head(&x, pass)?, targets)?)?;
        }
        Ok(sum)
    }

    /// As `loss`, and adds the gradients of that sum times `scale` by all parameters to `gradients`.
    pub fn learn(&self, samples: &[&Sample], scale: f64, gradients: &mut [Vec<f32>]) -> Result<f64> {
        let (batch, rows, targets) = pack(&self.access.network, samples);
        let pass = &self.access.network.training_pass(&batch, self.trained)?;
        let (held, last) = self.forth(&batch, pass)?;
        let mut sum = 0.0;
        let mut by_last = last.zeros_like()?;
        for (rows, targets) in rows.chunks(LOGIT_ROWS).zip(targets.chunks(LOGIT_ROWS)) {
            let _turn = self.turn()?;
            let rows = Tensor::new(rows, last.device())?;
            let x = Var::from_tensor(&last.index_select(&rows, 0)?)?;
            let losses = cross_entropy(&self.access.network.head(&x, pass)?, targets)?;
            sum += total(&losses)?;
            let found = (losses.sum_all()? * scale)?.backward()?;
            self.trained.collect(&found, gradients)?;
            if let Some(by_x) = found.get(&x) {
                by_last = by_last.index_add(&rows, by_x, 0)?;
            }
        }
        self.back(held, pass, by_last, gradients)?;
        Ok(sum)
    }

    fn first_layer(&self) -> usize {
        self.trained.first_layer(self.access.network.num_layers())
    }

    /// Waits for a turn of a piece of work.
    fn turn(&self) -> Result<Turn<'_>> {
        match (self.is_wanted)() {
            true => self.access.turn(),
            false => Err(Error::Cancelled),
        }
    }

    /// Through all layers, of which those are held that gradients go back through.
    fn forth(&self, batch: &Batch, pass: &Pass<'_>) -> Result<(Vec<Held>, Tensor)> {
        let (mut held, first) = (Vec::new(), self.first_layer());
        let mut x = self.access.network.embed(batch)?;
        for layer in 0..self.access.network.num_layers() {
            let _turn = self.turn()?;
            if layer < first {
                x = self.access.network.layer(layer, &x, pass)?;
                continue;
            }
            // Nothing is learned below the first one.
            let input = if layer == first { x } else { Var::from_tensor(&x)?.into_inner() };
            let output = self.access.network.layer(layer, &input, pass)?;
            x = output.detach();
            held.push(Held { input, output: (!self.checkpoint_activations).then_some(output) });
        }
        Ok((held, x))
    }

    /// Takes the gradient by the last layer's output back through all that is held.
    fn back(&self, held: Vec<Held>, pass: &Pass<'_>, mut gradient: Tensor, gradients: &mut [Vec<f32>]) -> Result<()> {
        for (layer, Held { input, output }) in (self.first_layer()..self.access.network.num_layers()).zip(held).rev() {
            let _turn = self.turn()?;
            let output = output.map_or_else(|| self.access.network.layer(layer, &input, pass), Ok)?;
            let found = with_gradient(&output, gradient)?.backward()?;
            self.trained.collect(&found, gradients)?;
            let Some(by_input) = found.get(&input) else { break };
            gradient = by_input.clone();
        }
        Ok(())
    }
}

/// Samples one after another, the rows that predict a target, and these targets.
fn pack(network: &Network, samples: &[&Sample]) -> (Batch, Vec<u32>, Vec<u32>) {
    let (mut batch, mut rows, mut targets) = (Batch::default(), Vec::new(), Vec::new());
    for Sample { tokens, learned } in samples {
        let (start, len) = (batch.tokens.len(), tokens.len());
        for (i, learned) in learned.iter().enumerate().skip(1) {
            if *learned {
                rows.push((start + i - 1) as u32);
                targets.push(tokens[i]);
            }
        }
        batch.tokens.extend(tokens);
        batch.positions.extend(0..len as u32);
        let regime = network.regime(len, len);
        batch.spans.push(Span { start, len, context_len: len, regime, blocks: Vec::new(), adapter: None });
    }
    (batch, rows, targets)
}

fn total(losses: &Tensor) -> Result<f64> {
    Ok(losses.flatten_all()?.to_vec1::<f32>()?.into_iter().map(f64::from).sum())
}
