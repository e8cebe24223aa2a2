use super::dataset::Sample;

/// Examples that are asked for whether training goes well.
const PROBES: usize = 4;
/// Steps in a row with an exploded loss that training takes to recover.
const PATIENCE: usize = 16;
/// What the mean of losses keeps of itself at each step.
const DECAY: f32 = 0.9;

/// Tells training that goes well from training that diverges, by its losses.
pub struct DivergenceDetector<'a> {
    /// Short ones, so that asking for them costs little.
    pub probes: Vec<&'a Sample>,
    /// Their lowest loss so far, that before the first step among them.
    lowest: f32,
    /// The running mean of the losses of steps that went well, and its lowest value.
    mean: f32,
    lowest_mean: f32,
    /// Steps in a row that did not.
    bad_steps: usize,
}

impl<'a> DivergenceDetector<'a> {
    pub fn new(probes: Vec<&'a Sample>, base_loss: f32) -> Self {
        Self { probes, lowest: base_loss, mean: base_loss, lowest_mean: base_loss, bad_steps: 0 }
    }

    /// Some of the shorter samples, not the shortest only.
    pub fn probes(samples: &[Sample]) -> Vec<&Sample> {
        let mut by_length: Vec<&Sample> = samples.iter().collect();
        by_length.sort_by_key(|sample| sample.tokens.len());
        by_length.truncate(samples.len().div_ceil(2).max(PROBES));
        let stride = by_length.len().div_ceil(PROBES).max(1);
        by_length.into_iter().step_by(stride).collect()
    }

    /// Whether the loss of a step, whose examples may be harder than those before, is reason to ask the probes.
    pub fn is_suspicious(&self, loss: f32) -> bool {
        self.bad_steps > 0 || has_exploded(loss, self.lowest_mean)
    }

    /// Whether a loss of the probes is so low that theirs before cannot have been much lower.
    pub fn is_low(&self, probed: f32) -> bool {
        !has_exploded(probed, self.lowest.min(self.lowest_mean))
    }

    /// Whether the probes have a loss that is fine, given what it was with an earlier adapter.
    pub fn is_fine(&mut self, probed: f32, earlier: f32) -> bool {
        self.lowest = self.lowest.min(earlier);
        !has_exploded(probed, self.lowest)
    }

    /// Whether the last step did not come to be suspected.
    pub fn goes_well(&self) -> bool {
        self.bad_steps == 0
    }

    /// Takes note of a step that went well.
    pub fn good_step(&mut self, loss: f32) {
        self.mean = DECAY * self.mean + (1.0 - DECAY) * loss;
        self.lowest_mean = self.lowest_mean.min(self.mean);
        self.bad_steps = 0;
    }

    /// Takes note of one that did not, and gives whether that has been so for too long.
    pub fn bad_step(&mut self) -> bool {
        self.bad_steps += 1;
        self.bad_steps >= PATIENCE
    }
}

/// Whether a loss is no number or far above another one.
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
        // What has been learned counts.
        (0..100).for_each(|_| guard.good_step(0.5));
        assert!(guard.is_suspicious(3.5) && !guard.is_low(3.5) && guard.is_low(2.9));
        (0..100).for_each(|_| guard.good_step(2.0));
        assert!(guard.is_suspicious(3.5), "a slow rise is none the less a rise");
        assert!(guard.is_fine(3.5, 2.0) && !guard.is_fine(3.5, 0.5) && !guard.is_fine(3.5, 2.0));
        assert!(!(1..PATIENCE).any(|_| guard.bad_step()) && guard.bad_step());
        assert!(guard.is_suspicious(0.5), "the probes have to say that it has recovered");
        guard.good_step(0.5);
        assert!(!guard.is_suspicious(0.5));
    }

    #[test]
    fn probes_are_few_and_from_the_shorter_half() {
        let sample = |len: usize| Sample::unlearned(vec![0; len]);
        let lengths = |samples: Vec<Sample>| -> Vec<usize> {
            DivergenceDetector::probes(&samples).iter().map(|sample| sample.tokens.len()).collect()
        };
        assert_eq!(lengths((1..=100).rev().map(sample).collect()), [1, 14, 27, 40]);
        assert_eq!(lengths((1..=3).map(sample).collect()), [1, 2, 3]);
    }
}
