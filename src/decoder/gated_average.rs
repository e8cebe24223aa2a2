//! A toy recurrence for tests: a gated moving average behind a short convolution.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::{
    Pass,
    linear::Linear,
    load::Loader,
    recurrence::{Recurrence, RecurrenceSpec},
};

/// Tokens that the convolution sees, the newest one among them.
const TAPS: usize = 3;

#[derive(Debug)]
pub struct GatedAverageSpec {
    pub width: usize,
}

/// `s = a s + (1 - a) c` in each channel, with the gate `a = sigmoid(g + decay)` and the convolution `c` of the inputs.
struct GatedAverage {
    width: usize,
    /// Inputs and gates, `[2 * width, hidden]`.
    project: Linear,
    /// `[TAPS, width]`, of the oldest token first.
    taps: Vec<f32>,
    decay: Vec<f32>,
    out: Linear,
}

impl RecurrenceSpec for GatedAverageSpec {
    /// The average and the inputs of the last tokens, for each channel, and a count of tokens.
    fn state_len(&self) -> usize {
        self.width * TAPS + 1
    }

    fn load(&self, load: &Loader<'_>, hidden_size: usize) -> crate::Result<Arc<dyn Recurrence>> {
        let width = self.width;
        Ok(Arc::new(GatedAverage {
            width,
            project: load.linear("average.in_proj", [2 * width, hidden_size], false)?,
            taps: load.values("average.taps", TAPS * width)?,
            decay: load.values("average.decay", width)?,
            out: load.linear("average.out_proj", [hidden_size, width], false)?,
        }))
    }
}

impl GatedAverage {
    fn gate(&self, row: &[f32], channel: usize) -> f32 {
        1.0 / (1.0 + (-(row[self.width + channel] + self.decay[channel])).exp())
    }

    /// The convolution of a channel; `earlier` are its inputs before this row's, the newest one last.
    fn convolution(&self, row: &[f32], earlier: [f32; TAPS - 1], channel: usize) -> f32 {
        let inputs = earlier.into_iter().chain([row[channel]]);
        inputs.enumerate().map(|(tap, input)| self.taps[tap * self.width + channel] * input).sum()
    }
}

impl Recurrence for GatedAverage {
    fn bytes(&self) -> usize {
        self.project.bytes() + self.out.bytes()
    }

    fn width(&self) -> usize {
        self.width
    }

    fn project(&self, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        self.project.adapted(x, &pass.adapted)
    }

    fn scan(&self, position: usize, inputs: &[f32], state: &mut [f32], outputs: &mut [f32]) {
        let width = self.width;
        let [state @ .., tokens] = state else { return };
        assert_eq!(*tokens as usize, position, "this is the state after other tokens");
        *tokens += (outputs.len() / width) as f32;
        for (row, outputs) in inputs.chunks_exact(2 * width).zip(outputs.chunks_exact_mut(width)) {
            for (channel, output) in outputs.iter_mut().enumerate() {
                let earlier = [state[width + channel], state[2 * width + channel]];
                let (gate, convolved) = (self.gate(row, channel), self.convolution(row, earlier, channel));
                state[channel] = gate * state[channel] + (1.0 - gate) * convolved;
                (state[width + channel], state[2 * width + channel]) = (earlier[1], row[channel]);
                *output = state[channel];
            }
        }
    }

    fn scan_gradient(&self, inputs: &[f32], grad_outputs: &[f32], grad_inputs: &mut [f32]) {
        let width = self.width;
        let rows: Vec<&[f32]> = inputs.chunks_exact(2 * width).collect();
        for channel in 0..width {
            let input = |row: usize, back: usize| row.checked_sub(back).map_or(0.0, |row| rows[row][channel]);
            let (mut averages, mut convolved, mut average) = (vec![0.0], Vec::new(), 0.0);
            for (at, row) in rows.iter().enumerate() {
                let gate = self.gate(row, channel);
                convolved.push(self.convolution(row, [input(at, 2), input(at, 1)], channel));
                average = gate * average + (1.0 - gate) * convolved[at];
                averages.push(average);
            }
            let mut grad_average = 0.0;
            for (at, row) in rows.iter().enumerate().rev() {
                grad_average += grad_outputs[at * width + channel];
                let gate = self.gate(row, channel);
                let grad_gate = grad_average * (averages[at] - convolved[at]);
                let grad_convolved = grad_average * (1.0 - gate);
                grad_inputs[at * 2 * width + width + channel] += grad_gate * gate * (1.0 - gate);
                for tap in (0..TAPS).filter(|tap| at + tap + 1 >= TAPS) {
                    let of_tap = grad_convolved * self.taps[tap * width + channel];
                    grad_inputs[(at + tap + 1 - TAPS) * 2 * width + channel] += of_tap;
                }
                grad_average *= gate;
            }
        }
    }

    fn finish(&self, outputs: &Tensor, pass: &Pass<'_>) -> Result<Tensor> {
        self.out.adapted(outputs, &pass.adapted)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::{decoder::ops::Ops, kernels::Isa, weights::WeightMatrix};

    #[test]
    fn gradients_are_those_of_small_changes() {
        let (width, rows) = (2, 5);
        let noise = |len: usize, seed: f32| -> Vec<f32> { (0..len).map(|i| (seed + 1.7 * i as f32).sin()).collect() };
        let none = || {
            let matrix = Tensor::zeros((1, 1), candle_core::DType::F32, &Device::Cpu).unwrap();
            Linear::new(WeightMatrix::Dense(matrix), None, false, &Ops::Cpu(Isa::detect()))
        };
        let (taps, decay) = (noise(TAPS * width, 1.0), noise(width, 2.0));
        let mixer = GatedAverage { width, project: none(), taps, decay, out: none() };
        let (inputs, weights) = (noise(rows * 2 * width, 3.0), noise(rows * width, 4.0));
        let loss = |inputs: &[f32]| -> f32 {
            let (mut state, mut outputs) = (vec![0.0; TAPS * width + 1], vec![0.0; rows * width]);
            mixer.scan(0, inputs, &mut state, &mut outputs);
            outputs.iter().zip(&weights).map(|(output, weight)| output * weight).sum()
        };
        let mut gradient = vec![0.0; inputs.len()];
        mixer.scan_gradient(&inputs, &weights, &mut gradient);
        for (i, gradient) in gradient.into_iter().enumerate() {
            let at = |change: f32| {
                let mut inputs = inputs.clone();
                inputs[i] += change;
                loss(&inputs)
            };
            let expected = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((gradient - expected).abs() < 1e-3, "{i}: {gradient} for {expected}");
        }
    }
}
