use std::path::PathBuf;

use crate::{Error, Result, config::setters};

/// How the learning rate goes on after it has risen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Schedule {
    /// Down to zero in a straight line.
    #[default]
    Linear,
    /// Down to zero along half a cosine.
    Cosine,
    /// It stays.
    Constant,
}

/// What becomes of an example that nothing can be learned from: an empty one, a chat without an answer or one that the
/// chat template refuses, a token that there is not, or one of which nothing that is to be learned is among the first
/// [`max_tokens`](TrainConfig::max_tokens).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnBadExample {
    /// Training ends before it begins, with an error that names the example's index.
    #[default]
    Error,
    /// It is left out; [`TrainProgress::skipped_examples`](crate::TrainProgress::skipped_examples) counts them.
    Skip,
    /// What is too long loses its beginning instead of its end, so that the last answer is learned after as much of the
    /// conversation as fits. What nothing can be learned from even so is left out.
    Truncate,
}

/// How an adapter is trained. `TrainConfig::new()` and the builder methods.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TrainConfig {
    /// How often each example is learned from (3).
    pub epochs: usize,
    /// Ends training after that many steps; `None`: after all epochs.
    pub max_steps: Option<usize>,
    /// Examples that go through the model together (4), side by side without padding: short ones cost no more than
    /// they are.
    pub batch_size: usize,
    /// Such batches that a step learns from (1).
    pub gradient_accumulation: usize,
    /// Tokens of an example (1024), as many as the model takes; what is longer is cut off.
    pub max_tokens: usize,
    /// What becomes of examples that nothing can be learned from ([`OnBadExample::Error`]).
    pub on_bad_example: OnBadExample,
    /// Whether texts end with the model's end of text, so that it learns to stop there (`false`).
    pub end_of_text: bool,
    /// Whether each epoch takes the examples in another order (`true`).
    pub shuffle: bool,
    /// The greatest learning rate (2e-4).
    pub learning_rate: f32,
    /// Steps in which the learning rate rises to it (0).
    pub warmup_steps: usize,
    /// How it goes on.
    pub schedule: Schedule,
    /// What parameters lose per step, times the learning rate (0).
    pub weight_decay: f32,
    /// The longest gradient a step follows (1); 0: any.
    pub max_grad_norm: f32,
    /// The part of the examples that is not learned but asked for (0). It has to be one example at least.
    pub eval_split: f32,
    /// Steps between two evaluations; `None`: one after each epoch.
    pub eval_every: Option<usize>,
    /// Ends training after that many evaluations in a row without a lower loss; `None`: never.
    pub patience: Option<usize>,
    /// Where checkpoints are kept, the last two; `None`: nowhere. If there is one of the same training, it goes on from
    /// there, to the bit.
    pub checkpoint_dir: Option<PathBuf>,
    /// Steps between two checkpoints (100). The last step makes one, too.
    pub checkpoint_every: usize,
    /// Computes what layers do anew on the way back instead of holding it: less memory, a third more work (`false`).
    pub checkpoint_activations: bool,
    /// What decides the order of the examples (0).
    pub seed: u64,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: 3,
            max_steps: None,
            batch_size: 4,
            gradient_accumulation: 1,
            max_tokens: 1024,
            on_bad_example: OnBadExample::default(),
            end_of_text: false,
            shuffle: true,
            learning_rate: 2e-4,
            warmup_steps: 0,
            schedule: Schedule::default(),
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            eval_split: 0.0,
            eval_every: None,
            patience: None,
            checkpoint_dir: None,
            checkpoint_every: 100,
            checkpoint_activations: false,
            seed: 0,
        }
    }
}

impl TrainConfig {
    /// Three epochs of batches of four.
    pub fn new() -> Self {
        Self::default()
    }

    setters! {
        /// Sets [`epochs`](Self::epochs).
        epochs: usize => epochs;
        /// Sets [`max_steps`](Self::max_steps).
        max_steps: usize => Some(max_steps);
        /// Sets [`batch_size`](Self::batch_size).
        batch_size: usize => batch_size;
        /// Sets [`gradient_accumulation`](Self::gradient_accumulation).
        gradient_accumulation: usize => gradient_accumulation;
        /// Sets [`max_tokens`](Self::max_tokens).
        max_tokens: usize => max_tokens;
        /// Sets [`on_bad_example`](Self::on_bad_example).
        on_bad_example: OnBadExample => on_bad_example;
        /// Sets [`end_of_text`](Self::end_of_text).
        end_of_text: bool => end_of_text;
        /// Sets [`shuffle`](Self::shuffle).
        shuffle: bool => shuffle;
        /// Sets [`learning_rate`](Self::learning_rate).
        learning_rate: f32 => learning_rate;
        /// Sets [`warmup_steps`](Self::warmup_steps).
        warmup_steps: usize => warmup_steps;
        /// Sets [`schedule`](Self::schedule).
        schedule: Schedule => schedule;
        /// Sets [`weight_decay`](Self::weight_decay).
        weight_decay: f32 => weight_decay;
        /// Sets [`max_grad_norm`](Self::max_grad_norm).
        max_grad_norm: f32 => max_grad_norm;
        /// Sets [`eval_split`](Self::eval_split).
        eval_split: f32 => eval_split;
        /// Sets [`eval_every`](Self::eval_every).
        eval_every: usize => Some(eval_every);
        /// Sets [`patience`](Self::patience).
        patience: usize => Some(patience);
        /// Sets [`checkpoint_dir`](Self::checkpoint_dir).
        checkpoint_dir: impl Into<PathBuf> => Some(checkpoint_dir.into());
        /// Sets [`checkpoint_every`](Self::checkpoint_every).
        checkpoint_every: usize => checkpoint_every;
        /// Sets [`checkpoint_activations`](Self::checkpoint_activations).
        checkpoint_activations: bool => checkpoint_activations;
        /// Sets [`seed`](Self::seed).
        seed: u64 => seed;
    }

    /// Examples that a step learns from.
    pub(crate) fn step_examples(&self) -> usize {
        self.batch_size.saturating_mul(self.gradient_accumulation)
    }

    /// The learning rate of a step, counted from 0, of `total`.
    pub(crate) fn rate(&self, step: usize, total: usize) -> f32 {
        let risen = match self.warmup_steps {
            warmup if step < warmup => return self.learning_rate * step as f32 / warmup as f32,
            warmup => (step - warmup) as f32 / total.saturating_sub(warmup).max(1) as f32,
        };
        self.learning_rate
            * match self.schedule {
                Schedule::Linear => (1.0 - risen).max(0.0),
                Schedule::Cosine => 0.5 * (1.0 + (std::f32::consts::PI * risen.min(1.0)).cos()),
                Schedule::Constant => 1.0,
            }
    }

    /// A field that makes sense only if examples are set aside, if one is set.
    pub(crate) fn evaluation(&self) -> Option<&'static str> {
        let fields = [
            ("eval_split", self.eval_split > 0.0),
            ("eval_every", self.eval_every.is_some()),
            ("patience", self.patience.is_some()),
        ];
        fields.into_iter().find_map(|(field, is_set)| is_set.then_some(field))
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let counts = [
            ("epochs", self.epochs),
            ("batch_size", self.batch_size),
            ("gradient_accumulation", self.gradient_accumulation),
            ("checkpoint_every", self.checkpoint_every),
            ("eval_every", self.eval_every.unwrap_or(1)),
            ("max_steps", self.max_steps.unwrap_or(1)),
            ("patience", self.patience.unwrap_or(1)),
        ];
        if let Some((field, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(Error::config(field, "at least 1 is needed"));
        }
        if self.max_tokens < 2 {
            return Err(Error::config("max_tokens", "at least 2 are needed, one to learn from the other"));
        }
        let numbers = [
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
            ("max_grad_norm", self.max_grad_norm),
            ("eval_split", self.eval_split),
        ];
        if let Some((field, number)) = numbers.into_iter().find(|(_, number)| !(number.is_finite() && *number >= 0.0)) {
            return Err(Error::config(field, format!("{number} is not zero or above")));
        }
        if self.eval_split >= 1.0 {
            return Err(Error::config("eval_split", "nothing is left to learn from"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn learning_rates_match_transformers() {
        // get_linear_schedule_with_warmup and get_cosine_schedule_with_warmup, 2 of 10 steps to warm up.
        let linear = TrainConfig::new().learning_rate(1.0).warmup_steps(2);
        let cosine = linear.clone().schedule(Schedule::Cosine);
        for (step, by_line, by_cosine) in
            [(0, 0.0, 0.0), (1, 0.5, 0.5), (2, 1.0, 1.0), (4, 0.75, 0.853_553), (9, 0.125, 0.038_06)]
        {
            assert!((linear.rate(step, 10) - by_line).abs() < 1e-5, "{step}");
            assert!((cosine.rate(step, 10) - by_cosine).abs() < 1e-5, "{step}");
        }
        assert_eq!(linear.schedule(Schedule::Constant).rate(9, 10), 1.0);
    }

    #[test]
    fn invalid_configurations_name_the_field() {
        let field = |config: TrainConfig| config.validate().unwrap_err().to_string();
        assert!(field(TrainConfig::new().batch_size(0)).contains("batch_size"));
        assert!(field(TrainConfig::new().learning_rate(f32::NAN)).contains("learning_rate"));
        assert!(field(TrainConfig::new().eval_split(1.0)).contains("eval_split"));
    }
}
