//! `TrainConfig`.

use std::path::PathBuf;

use crate::{Error, Result, config::setters};

/// The learning rate after the warmup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Schedule {
    /// Linear decay to zero.
    #[default]
    Linear,
    /// Cosine decay to zero.
    Cosine,
    /// No decay.
    Constant,
}

/// The treatment of a bad example: an empty one, a chat without an answer, a chat that the template refuses, a token id
/// outside the vocabulary, or an example with no token to learn among the first
/// [`max_tokens`](TrainConfig::max_tokens).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum OnBadExample {
    /// The training ends before its first step, with an error that names the example's index.
    #[default]
    Error,
    /// The example is skipped; [`TrainProgress::skipped_examples`](crate::TrainProgress::skipped_examples) counts them.
    Skip,
    /// An example that is too long loses its beginning instead of its end, so that the last answer is trained after as
    /// much of the conversation as fits. Other bad examples are skipped.
    Truncate,
}

/// The hyperparameters of a training. `TrainConfig::new()` and the builder methods.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct TrainConfig {
    /// Passes over the examples (3).
    pub epochs: usize,
    /// The number of optimizer steps; `None`: all epochs.
    pub max_steps: Option<usize>,
    /// Examples of a forward pass (4), packed without padding.
    pub batch_size: usize,
    /// Batches of an optimizer step (1).
    pub gradient_accumulation: usize,
    /// The longest example in tokens (1024), at most the model's context; longer ones are truncated.
    pub max_tokens: usize,
    /// The treatment of bad examples ([`OnBadExample::Error`]).
    pub on_bad_example: OnBadExample,
    /// Whether an end-of-text token is appended to texts, so that the model learns to stop there (`false`).
    pub end_of_text: bool,
    /// Whether each epoch shuffles the examples (`true`).
    pub shuffle: bool,
    /// The greatest learning rate (2e-4).
    pub learning_rate: f32,
    /// Steps of linear warmup (0).
    pub warmup_steps: usize,
    /// The learning rate after the warmup ([`Schedule::Linear`]).
    pub schedule: Schedule,
    /// Decoupled weight decay (0).
    pub weight_decay: f32,
    /// Clips gradients to this global norm (1); 0: no clipping.
    pub max_grad_norm: f32,
    /// The fraction of examples held out for evaluation (0); at least one example if set.
    pub eval_split: f32,
    /// Steps between evaluations; `None`: one after each epoch.
    pub eval_every: Option<usize>,
    /// Early stopping after that many consecutive evaluations without a lower loss; `None`: never.
    pub patience: Option<usize>,
    /// The folder of checkpoints, the last two of which are kept; `None`: no checkpoints. A training with the same
    /// examples, configuration and initial adapter resumes from the latest one, bit for bit.
    pub checkpoint_dir: Option<PathBuf>,
    /// Steps between checkpoints (100). The last step writes one, too.
    pub checkpoint_every: usize,
    /// Activation checkpointing: recomputes activations in the backward pass, for less memory and a third more work
    /// (`false`).
    pub checkpoint_activations: bool,
    /// The seed of the order of examples (0).
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

    /// Examples of an optimizer step.
    pub(crate) fn step_examples(&self) -> usize {
        self.batch_size.saturating_mul(self.gradient_accumulation)
    }

    /// The learning rate of a step (from 0) of `total`.
    pub(crate) fn rate(&self, step: usize, total: usize) -> f32 {
        let decayed = match self.warmup_steps {
            warmup if step < warmup => return self.learning_rate * step as f32 / warmup as f32,
            warmup => (step - warmup) as f32 / total.saturating_sub(warmup).max(1) as f32,
        };
        self.learning_rate
            * match self.schedule {
                Schedule::Linear => (1.0 - decayed).max(0.0),
                Schedule::Cosine => 0.5 * (1.0 + (std::f32::consts::PI * decayed.min(1.0)).cos()),
                Schedule::Constant => 1.0,
            }
    }

    /// The name of a field that needs held-out examples, if one is set.
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
            return Err(Error::config("max_tokens", "at least 2 are needed: a token, and the next one to predict"));
        }
        let rates = [
            ("learning_rate", self.learning_rate),
            ("weight_decay", self.weight_decay),
            ("max_grad_norm", self.max_grad_norm),
            ("eval_split", self.eval_split),
        ];
        if let Some((field, rate)) = rates.into_iter().find(|(_, rate)| !(rate.is_finite() && *rate >= 0.0)) {
            return Err(Error::config(field, format!("{rate} is not zero or above")));
        }
        if self.eval_split >= 1.0 {
            return Err(Error::config("eval_split", "no example is left to train on"));
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
        for (step, linear_rate, cosine_rate) in
            [(0, 0.0, 0.0), (1, 0.5, 0.5), (2, 1.0, 1.0), (4, 0.75, 0.853_553), (9, 0.125, 0.038_06)]
        {
            assert!((linear.rate(step, 10) - linear_rate).abs() < 1e-5, "{step}");
            assert!((cosine.rate(step, 10) - cosine_rate).abs() < 1e-5, "{step}");
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
