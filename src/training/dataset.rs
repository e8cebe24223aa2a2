//! Samples: tokenized examples, truncated, split and shuffled.

use super::{OnBadExample, TrainConfig, TrainExample, chat_samples, random::SplitMix64};
use crate::{Error, Result, decoder::Network, text::TextProcessor};

/// A token sequence with targets.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub tokens: Vec<u32>,
    /// The token to predict at each position, if any; as long as `tokens`.
    pub targets: Vec<Option<u32>>,
}

impl Sample {
    pub fn without_targets(tokens: Vec<u32>) -> Self {
        Self { targets: vec![None; tokens.len()], tokens }
    }

    /// A sequence with its next token as the target of every position.
    fn next_tokens(tokens: Vec<u32>) -> Self {
        let next = tokens.iter().skip(1).map(|id| Some(*id));
        Self { targets: next.chain([None]).take(tokens.len()).collect(), tokens }
    }

    /// The number of positions with a target.
    pub fn num_targets(&self) -> usize {
        self.targets.iter().flatten().count()
    }

    /// Keeps the first `longest` tokens.
    fn truncate_end(&self, longest: usize) -> Self {
        let mut cut = Self { tokens: self.tokens[..longest].to_vec(), targets: self.targets[..longest].to_vec() };
        if let Some(last) = cut.targets.last_mut() {
            *last = None;
        }
        cut
    }

    /// Keeps the last `longest` tokens up to the last target.
    fn truncate_start(&self, longest: usize) -> Self {
        let end = self.targets.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        let kept = end.saturating_sub(longest)..end;
        Self { tokens: self.tokens[kept.clone()].to_vec(), targets: self.targets[kept].to_vec() }
    }
}

/// Turns examples into samples.
pub struct ExampleReader<'a> {
    pub text: &'a TextProcessor,
    pub network: &'a Network,
    pub config: &'a TrainConfig,
    /// Examples that were skipped.
    pub skipped: usize,
    /// Examples that were truncated.
    pub cut: usize,
    /// The error of the first skipped example.
    pub first_skipped: Option<Error>,
}

impl<'a> ExampleReader<'a> {
    pub fn new(text: &'a TextProcessor, network: &'a Network, config: &'a TrainConfig) -> Self {
        Self { text, network, config, skipped: 0, cut: 0, first_skipped: None }
    }

    /// The samples of the example at `index`; none if it is skipped.
    pub fn read(&mut self, index: usize, example: &TrainExample) -> Result<Vec<Sample>> {
        match self.samples(example).map_err(|error| with_index(index, error)) {
            Err(error @ (Error::InvalidConfig { .. } | Error::ChatTemplate { .. }))
                if self.config.on_bad_example != OnBadExample::Error =>
            {
                self.skipped += 1;
                self.first_skipped.get_or_insert(error);
                Ok(Vec::new())
            }
            samples => samples,
        }
    }

    fn samples(&mut self, example: &TrainExample) -> Result<Vec<Sample>> {
        let whole = match example {
            TrainExample::Text(written) => {
                let mut tokens = self.text.tokenizer.encode(written, true)?;
                tokens.extend(self.text.end_of_text.filter(|_| self.config.end_of_text));
                vec![Sample::next_tokens(tokens)]
            }
            TrainExample::Tokens(tokens) => vec![Sample::next_tokens(tokens.clone())],
            TrainExample::Chat(messages) => chat_samples::samples(messages, self.text)?,
        };
        for id in whole.iter().flat_map(|sample| sample.tokens.iter().chain(sample.targets.iter().flatten())) {
            if *id as usize >= self.network.vocab_size() {
                let reason = format!("token {id} is not in a vocabulary of {}", self.network.vocab_size());
                return Err(Error::config("examples", reason));
            }
        }
        let longest = self.config.max_tokens.min(self.network.max_positions());
        let longest_found = whole.iter().map(|sample| sample.tokens.len()).max().unwrap_or_default();
        let targets: usize = whole.iter().map(Sample::num_targets).sum();
        let mut samples: Vec<Sample> = whole.into_iter().map(|sample| self.truncate(sample, longest)).collect();
        samples.retain(|sample| sample.num_targets() > 0);
        if samples.is_empty() {
            let reason = match targets {
                0 => "it has no token to learn: it is empty, one token, or a chat without an answer".to_owned(),
                _ => format!("it has no token to learn among the first {longest} of its {longest_found} tokens"),
            };
            return Err(Error::config("examples", reason));
        }
        self.cut += usize::from(longest_found > longest);
        Ok(samples)
    }

    /// Truncates a sample to the longest length.
    fn truncate(&self, sample: Sample, longest: usize) -> Sample {
        if sample.tokens.len() <= longest {
            return sample;
        }
        let cut = sample.truncate_end(longest);
        match self.config.on_bad_example {
            OnBadExample::Truncate if cut.num_targets() == 0 => sample.truncate_start(longest),
            _ => cut,
        }
    }
}

/// Adds the index of the example to its error. The text of an example stays out of errors.
fn with_index(index: usize, error: Error) -> Error {
    match error {
        Error::InvalidConfig { field: "examples", reason } => {
            Error::config("examples", format!("example {index}: {reason}"))
        }
        Error::InvalidConfig { field, reason } => {
            Error::config("examples", format!("example {index}: {field}: {reason}"))
        }
        Error::ChatTemplate { reason } => Error::ChatTemplate { reason: format!("example {index}: {reason}") },
        other => other,
    }
}

/// Samples for training and for evaluation.
pub struct Dataset {
    pub train: Vec<Sample>,
    pub eval: Vec<Sample>,
}

/// Holds a random part of the examples out for evaluation; all stay in order.
pub fn split(examples: Vec<Vec<Sample>>, config: &TrainConfig) -> Dataset {
    let held_out = (examples.len() as f32 * config.eval_split).round() as usize;
    let mut is_held_out: Vec<bool> = (0..examples.len()).map(|i| i < held_out.min(examples.len() - 1)).collect();
    SplitMix64::new(config.seed, u64::MAX).shuffle(&mut is_held_out);
    let (eval, train): (Vec<_>, Vec<_>) =
        examples.into_iter().zip(is_held_out).partition(|(_, is_held_out)| *is_held_out);
    let samples = |of: Vec<(Vec<Sample>, bool)>| of.into_iter().flat_map(|(samples, _)| samples).collect();
    Dataset { train: samples(train), eval: samples(eval) }
}

/// The sample indices of each step of an epoch, shuffled with the seed and the epoch.
pub fn step_indices(count: usize, epoch: usize, config: &TrainConfig) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..count).collect();
    if config.shuffle {
        SplitMix64::new(config.seed, epoch as u64).shuffle(&mut order);
    }
    order.chunks(config.step_examples()).map(<[_]>::to_vec).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_in_one_step_per_epoch() {
        let config = TrainConfig::new().batch_size(3).gradient_accumulation(2).seed(7);
        let all = |epoch| {
            let mut order = step_indices(20, epoch, &config).concat();
            order.sort_unstable();
            order
        };
        assert_eq!(all(0), (0..20).collect::<Vec<_>>());
        assert_eq!(step_indices(20, 1, &config).iter().map(Vec::len).collect::<Vec<_>>(), [6, 6, 6, 2]);
        assert_eq!(step_indices(20, 1, &config), step_indices(20, 1, &config));
        assert_ne!(step_indices(20, 1, &config), step_indices(20, 2, &config));
        assert_eq!(step_indices(20, 1, &config.batch_size(1 << 63)).len(), 1);
    }

    #[test]
    fn truncation_keeps_targets() {
        let sample = Sample { tokens: vec![1, 2, 3, 4, 5], targets: vec![None, Some(3), Some(4), Some(9), None] };
        assert_eq!(sample.truncate_end(3), Sample { tokens: vec![1, 2, 3], targets: vec![None, Some(3), None] });
        assert_eq!(sample.truncate_start(2), Sample { tokens: vec![3, 4], targets: vec![Some(4), Some(9)] });
        assert_eq!(sample.truncate_start(9).tokens, [1, 2, 3, 4]);
        assert_eq!(Sample::next_tokens(vec![7, 8]).targets, [Some(8), None]);
        assert_eq!(Sample::next_tokens(Vec::new()).targets, []);
    }

    #[test]
    fn split_keeps_training_samples() {
        let sample = |id| vec![Sample::next_tokens(vec![id, id])];
        let config = TrainConfig::new().eval_split(0.25);
        let Dataset { train, eval } = split((0..8).map(sample).collect(), &config);
        assert_eq!((train.len(), eval.len()), (6, 2));
        for all in [&train, &eval] {
            assert!(all.is_sorted_by_key(|sample| sample.tokens[0]), "{all:?}");
        }
        let Dataset { train, eval } = split(vec![[sample(0), sample(1)].concat()], &config.eval_split(0.9));
        assert_eq!((train.len(), eval.len()), (2, 0), "an example stays in one piece");
    }
}
