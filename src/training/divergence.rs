//! Detection of diverging training.

use super::dataset::Sample;

/// Samples whose loss is probed.
const PROBES: usize = 4;
/// Consecutive steps with an exploded loss before training is given up.
const PATIENCE: usize = 16;
/// The decay of the running mean of losses.
const DECAY: f32 = 0.9;

/// Detects diverging training by its losses. A suspicious loss of a step, whose samples may be hard ones, is confirmed
/// on fixed samples, the probes.
pub struct DivergenceDetector<'a> {
    /// Short samples, so that a probe costs little.
    pub probes: Vec<&'a Sample>,
    /// The lowest loss of the probes, including the baseline.
    lowest: f32,
    /// The running mean of the losses of good steps.
    mean: f32,
    /// The lowest value of `mean`.
    lowest_mean: f32,
    /// Consecutive bad steps.
    bad_steps: usize,
}

impl<'a> DivergenceDetector<'a> {
    pub fn new(probes: Vec<&'a Sample>, base_loss: f32) -> Self {
        Self { probes, lowest: base_loss, mean: base_loss, lowest_mean: base_loss, bad_steps: 0 }
    }

    /// Chooses samples from the shorter half, of different lengths.
    pub fn choose_probes(samples: &[Sample]) -> Vec<&Sample> {
        let mut by_length: Vec<&Sample> = samples.iter().collect();
        by_length.sort_by_key(|sample| sample.tokens.len());
        by_length.truncate(samples.len().div_ceil(2).max(PROBES));
        let stride = by_length.len().div_ceil(PROBES).max(1);
        by_length.into_iter().step_by(stride).collect()
    }

    /// Whether the loss of a step has to be confirmed on the probes.
    pub fn is_suspicious(&self, loss: f32) -> bool {
        self.bad_steps > 0 || has_exploded(loss, self.lowest_mean)
    }

    /// Whether a loss of the probes is fine by itself.
    pub fn is_low(&self, probed: f32) -> bool {
        !has_exploded(probed, self.lowest.min(self.lowest_mean))
    }

    /// Whether a loss of the probes is fine beside their loss with an earlier, good adapter.
    pub fn is_acceptable(&mut self, probed: f32, earlier: f32) -> bool {
        self.lowest = self.lowest.min(earlier);
        !has_exploded(probed, self.lowest)
    }

    /// Whether the last step was good.
    pub fn is_healthy(&self) -> bool {
        self.bad_steps == 0
    }

    /// Records a good step.
    pub fn record_good_step(&mut self, loss: f32) {
        self.mean = DECAY * self.mean + (1.0 - DECAY) * loss;
        self.lowest_mean = self.lowest_mean.min(self.mean);
        self.bad_steps = 0;
    }

    /// Records a bad step. Returns whether training is to be given up.
    pub fn record_bad_step(&mut self) -> bool {
        self.bad_steps += 1;
        self.bad_steps >= PATIENCE
    }
}

/// Whether a loss is NaN, or more than 2 nats above twice another loss.
fn has_exploded(loss: f32, before: f32) -> bool {
    loss.is_nan() || loss > 2.0 * before + 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_explodes_far_above_baseline_or_when_not_finite() {
        let mut guard = DivergenceDetector::new(Vec::new(), 2.5);
        assert!([f32::NAN, f32::INFINITY, 30.0, 7.5].into_iter().all(|loss| guard.is_suspicious(loss)));
        assert!(![0.0, 2.5, 6.5].into_iter().any(|loss| guard.is_suspicious(loss)));
        // Progress lowers the threshold.
        (0..100).for_each(|_| guard.record_good_step(0.5));
        assert!(guard.is_suspicious(3.5) && !guard.is_low(3.5) && guard.is_low(2.9));
        (0..100).for_each(|_| guard.record_good_step(2.0));
        assert!(guard.is_suspicious(3.5), "a slow rise is a rise");
        assert!(guard.is_acceptable(3.5, 2.0) && !guard.is_acceptable(3.5, 0.5) && !guard.is_acceptable(3.5, 2.0));
        assert!(!(1..PATIENCE).any(|_| guard.record_bad_step()) && guard.record_bad_step());
        assert!(guard.is_suspicious(0.5), "recovery is confirmed on the probes");
        guard.record_good_step(0.5);
        assert!(!guard.is_suspicious(0.5));
    }

    #[test]
    fn probes_are_few_and_from_the_shorter_half() {
        let sample = |len: usize| Sample::without_targets(vec![0; len]);
        let lengths = |samples: Vec<Sample>| -> Vec<usize> {
            DivergenceDetector::choose_probes(&samples).iter().map(|sample| sample.tokens.len()).collect()
        };
        assert_eq!(lengths((1..=100).rev().map(sample).collect()), [1, 14, 27, 40]);
        assert_eq!(lengths((1..=3).map(sample).collect()), [1, 2, 3]);
    }
}
