//! Mixers that carry a state from token to token: what one has to provide, and how a pass runs it.

use std::{fmt, sync::Arc};

use candle_core::{DType, Device, Result, Tensor, bail};

use super::{Batch, Pass, Span, load::Loader, state_cache::StateCache};
use crate::{
    autograd::{rows_of, unary, with_f32},
    kernels::threads::parallel,
};

/// A recurrent mixer as an architecture describes it.
pub trait RecurrenceSpec: fmt::Debug + Send + Sync {
    /// f32 values of a sequence's state.
    fn state_len(&self) -> usize;

    /// Loads the mixer of one layer.
    fn load(&self, load: &Loader<'_>, hidden_size: usize) -> crate::Result<Arc<dyn Recurrence>>;
}

/// A mixer that carries a state from token to token, such as a gated delta rule, a short convolution or Mamba.
///
/// `project` and `finish` treat each row alone; `scan` is the recurrence between them.
pub trait Recurrence: Send + Sync {
    /// Bytes of the matrices.
    fn bytes(&self) -> usize;

    /// Values of an output row of `scan`.
    fn width(&self) -> usize;

    /// Inputs of the recurrence, `[rows, inputs]`, from the layer's, `[rows, hidden]`; differentiable.
    fn project(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor>;

    /// Takes rows of one sequence in order, `[rows, inputs]`, updates `state`, and fills `outputs`, `[rows, width]`.
    /// `position` is the first row's. The state of a sequence that begins is zeros.
    ///
    /// Results do not depend, to the bit, on where a sequence is cut into calls. So accumulate token by token, or in
    /// chunks that begin at multiples of positions, with the inputs of the last, unfinished chunk as part of the state.
    fn scan(&self, position: usize, inputs: &[f32], state: &mut [f32], outputs: &mut [f32]);

    /// Fills in the gradient with respect to the inputs of a whole sequence, from the one with respect to its outputs.
    fn scan_gradient(&self, inputs: &[f32], grad_outputs: &[f32], grad_inputs: &mut [f32]);

    /// The layer's output, `[rows, hidden]`, from some rows of outputs, `[rows, width]`; differentiable.
    fn finish(&self, outputs: &Tensor, pass: &Pass<'_>) -> Result<Tensor>;
}

/// A layer's recurrence and the size of its state.
pub struct RecurrentMixer {
    recurrence: Arc<dyn Recurrence>,
    state_len: usize,
}

impl RecurrentMixer {
    pub fn load(load: &Loader<'_>, spec: &dyn RecurrenceSpec, hidden_size: usize) -> crate::Result<Self> {
        Ok(Self { recurrence: spec.load(load, hidden_size)?, state_len: spec.state_len() })
    }

    pub fn bytes(&self) -> usize {
        self.recurrence.bytes()
    }

    pub fn project(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        self.recurrence.project(x, pass)
    }

    pub fn finish(&self, outputs: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        self.recurrence.finish(outputs, pass)
    }

    /// Scans the rows of all sequences of a batch, from and to their slots in `states`. Threads share the sequences.
    pub fn scan(&self, inputs: &Tensor, batch: &Batch, states: &StateCache) -> Result<Tensor> {
        let width = self.recurrence.width();
        let mut outputs = vec![0f32; batch.rows() * width];
        let on_cpu = inputs.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        with_f32(&on_cpu, |inputs| {
            let lens = batch.spans.iter().map(|span| span.len);
            let sequences = by_sequences(lens, inputs, &mut outputs).into_iter().zip(&batch.spans);
            let mut scans: Vec<_> = sequences.map(|(rows, span)| (rows, span, Ok(()))).collect();
            parallel::for_each_mut(&mut scans, |_, ((inputs, outputs), span, scanned)| {
                *scanned = self.scan_span(span, inputs, outputs, states);
            });
            scans.into_iter().try_for_each(|(.., scanned)| scanned)
        })??;
        rows_of(outputs, width)?.to_device(inputs.device())?.to_dtype(inputs.dtype())
    }

    /// Scans the rows of one sequence and saves the states that are asked for on the way.
    fn scan_span(&self, span: &Span, inputs: &[f32], outputs: &mut [f32], states: &StateCache) -> Result<()> {
        let (inputs_len, width) = (inputs.len() / span.len, self.recurrence.width());
        let Some(last) = span.states.saves.last() else { bail!("a sequence has no slot for its state") };
        let first = span.context_len - span.len;
        states.update(span.states.from, last.slot, |state| {
            let mut row = 0;
            for save in &span.states.saves {
                let end = save.tokens - first;
                let inputs = &inputs[row * inputs_len..end * inputs_len];
                if !inputs.is_empty() {
                    self.recurrence.scan(first + row, inputs, state, &mut outputs[row * width..end * width]);
                }
                if save.slot != last.slot {
                    states.save(save.slot, state)?;
                }
                row = end;
            }
            Ok(())
        })
    }

    /// Scans whole sequences; differentiable.
    pub fn scan_whole(&self, inputs: &Tensor, batch: &Batch) -> Result<Tensor> {
        let lens: Vec<usize> = batch.spans.iter().map(|span| span.len).collect();
        let (rows, width, state_len) = (batch.rows(), self.recurrence.width(), self.state_len);
        let forward = |inputs: &[f32]| {
            let mut outputs = vec![0f32; rows * width];
            let mut sequences = by_sequences(lens.iter().copied(), inputs, &mut outputs);
            parallel::for_each_mut(&mut sequences, |_, (inputs, outputs)| {
                self.recurrence.scan(0, inputs, &mut vec![0.0; state_len], outputs);
            });
            drop(sequences);
            Ok(outputs)
        };
        let (recurrence, lens) = (self.recurrence.clone(), lens.clone());
        unary(inputs, width, forward, move |inputs, gradient| {
            let mut grad_inputs = vec![0f32; inputs.len()];
            let sequences = by_sequences(lens.iter().copied(), gradient, &mut grad_inputs);
            let mut sequences: Vec<_> =
                by_sequences(lens.iter().copied(), inputs, &mut []).into_iter().zip(sequences).collect();
            parallel::for_each_mut(&mut sequences, |_, ((inputs, _), (gradient, grad_inputs))| {
                recurrence.scan_gradient(inputs, gradient, grad_inputs);
            });
            drop(sequences);
            Ok(grad_inputs)
        })
    }
}

/// Rows of `read` and of `written`, `[rows, …]` each, by sequences of these lengths.
fn by_sequences<'a>(
    lens: impl ExactSizeIterator<Item = usize> + Clone,
    mut read: &'a [f32],
    mut written: &'a mut [f32],
) -> Vec<(&'a [f32], &'a mut [f32])> {
    let rows = lens.clone().sum::<usize>().max(1);
    let (read_len, written_len) = (read.len() / rows, written.len() / rows);
    let split = |len: usize| {
        let read = read.split_off(..len * read_len).unwrap_or_default();
        (read, written.split_off_mut(..len * written_len).unwrap_or_default())
    };
    lens.map(split).collect()
}
