use std::collections::HashSet;

use crate::{Error, GenerateConfig, Result, TokenLogprobs};

/// Chooses one sequence's tokens. Its randomness is a function of seed and step, so neighbours
/// cannot shift it and a recomputed step repeats it.
pub struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    repeat_penalty: f32,
    seed: u64,
    step: u64,
    logprobs: Option<usize>,
    /// Tokens in the prompt or the answer, if they are penalised.
    seen: HashSet<u32>,
}

type Candidate = (f32, u32);

impl Sampler {
    pub fn new(config: &GenerateConfig, prompt: &[u32], entropy: u64) -> Self {
        let off = |value: f32| if value == 0.0 { 1.0 } else { value };
        let repeat_penalty = off(config.repeat_penalty);
        Self {
            temperature: config.temperature,
            top_k: config.top_k,
            top_p: off(config.top_p),
            min_p: config.min_p,
            repeat_penalty,
            seed: config.seed.unwrap_or(entropy),
            step: 0,
            logprobs: config.logprobs,
            seen: if repeat_penalty == 1.0 { HashSet::new() } else { prompt.iter().copied().collect() },
        }
    }

    /// Chooses the next token from the logits, `[vocab_size]`.
    pub fn sample(&mut self, logits: &[f32]) -> Result<(u32, Option<TokenLogprobs>)> {
        if let Some(bad) = logits.iter().position(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            return Err(Error::internal(format!("the model's logit of token {bad} is {}", logits[bad])));
        }
        let chosen = if self.repeat_penalty == 1.0 {
            self.choose(logits)
        } else {
            let mut penalised = logits.to_vec();
            for id in &self.seen {
                if let Some(logit) = penalised.get_mut(*id as usize) {
                    *logit = if *logit > 0.0 { *logit / self.repeat_penalty } else { *logit * self.repeat_penalty };
                }
            }
            self.choose(&penalised)
        };
        self.step += 1;
        if self.repeat_penalty != 1.0 {
            self.seen.insert(chosen);
        }
        Ok((chosen, self.logprobs.map(|alternatives| logprobs(logits, chosen, alternatives))))
    }

    fn choose(&self, logits: &[f32]) -> u32 {
        if self.temperature == 0.0 {
            return best(logits);
        }
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        // Weights are relative to the most likely token, so nothing overflows.
        let weight = |logit: f32| ((logit - max) / self.temperature).exp();
        let mut candidates: Vec<Candidate> = logits.iter().map(|logit| weight(*logit)).zip(0..).collect();
        if self.top_k > 0 && self.top_k < candidates.len() {
            keep_best(&mut candidates, self.top_k);
        }
        if self.top_p < 1.0 {
            keep_nucleus(&mut candidates, self.top_p);
        }
        if self.min_p > 0.0 {
            candidates.retain(|(weight, _)| *weight >= self.min_p);
        }
        self.draw(&candidates)
    }

    /// Draws a candidate with the probability of its weight.
    fn draw(&self, candidates: &[Candidate]) -> u32 {
        let total: f64 = candidates.iter().map(|(weight, _)| f64::from(*weight)).sum();
        let mut left = uniform(self.seed, self.step) * total;
        for (weight, id) in candidates {
            left -= f64::from(*weight);
            if left < 0.0 {
                return *id;
            }
        }
        // Rounding may leave a rest; it belongs to the last candidate that can be drawn at all.
        candidates.iter().rev().find(|(weight, _)| *weight > 0.0).map_or(0, |(_, id)| *id)
    }
}

/// The most likely token, the first of equals.
fn best(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

fn more_likely(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Keeps the `count` most likely candidates, best first, without sorting the others.
fn keep_best(candidates: &mut Vec<Candidate>, count: usize) {
    if count < candidates.len() {
        candidates.select_nth_unstable_by(count, more_likely);
        candidates.truncate(count);
    }
    candidates.sort_unstable_by(more_likely);
}

/// Keeps the fewest most likely candidates that have the share `top_p` of all weights.
fn keep_nucleus(candidates: &mut Vec<Candidate>, top_p: f32) {
    let total: f64 = candidates.iter().map(|(weight, _)| f64::from(*weight)).sum();
    let mut count = 64;
    loop {
        let mut head = candidates.clone();
        keep_best(&mut head, count);
        let mut sum = 0.0;
        let enough = head.iter().position(|(weight, _)| {
            sum += f64::from(*weight);
            sum >= f64::from(top_p) * total
        });
        if enough.is_some() || count >= candidates.len() {
            head.truncate(enough.map_or(head.len(), |last| last + 1));
            *candidates = head;
            return;
        }
        count *= 8;
    }
}

fn logprobs(logits: &[f32], chosen: u32, alternatives: usize) -> TokenLogprobs {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|logit| f64::from(logit - max).exp()).sum();
    let norm = max + sum.ln() as f32;
    let mut top: Vec<Candidate> = logits.iter().copied().zip(0..).collect();
    keep_best(&mut top, alternatives);
    TokenLogprobs {
        logprob: logits[chosen as usize] - norm,
        top: top.into_iter().map(|(logit, id)| (id, logit - norm)).collect(),
    }
}

/// A number in `[0, 1)` for a step: [SplitMix64](https://doi.org/10.1145/2714064.2660195).
fn uniform(seed: u64, step: u64) -> f64 {
    let mut z = seed.wrapping_add((step.wrapping_add(1)).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(config: GenerateConfig, logits: &[f32], draws: u64) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        let mut sampler = Sampler::new(&config.seed(7), &[], 0);
        for _ in 0..draws {
            counts[sampler.sample(logits).unwrap().0 as usize] += 1.0 / draws as f64;
        }
        counts
    }

    fn near(counts: &[f64], expected: &[f64]) {
        for (count, expected) in counts.iter().zip(expected) {
            assert!((count - expected).abs() < 0.015, "{counts:?} for {expected}");
        }
    }

    /// The logarithms of 0.5, 0.3, 0.15 and 0.05.
    fn logits() -> Vec<f32> {
        [0.3f32, 0.5, 0.05, 0.15].iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn draws_follow_the_distribution() {
        let config = || GenerateConfig::new().temperature(1.0);
        near(&counts(config(), &logits(), 20_000), &[0.3, 0.5, 0.05, 0.15]);
        near(&counts(config().top_k(2), &logits(), 20_000), &[0.375, 0.625, 0.0, 0.0]);
        near(&counts(config().top_p(0.7), &logits(), 20_000), &[0.375, 0.625, 0.0, 0.0]);
        near(&counts(config().min_p(0.2), &logits(), 20_000), &[0.3158, 0.5263, 0.0, 0.1579]);
        near(&counts(GenerateConfig::new().temperature(0.5), &logits(), 20_000), &[0.2466, 0.6849, 0.0068, 0.0616]);
        near(&counts(GenerateConfig::new(), &logits(), 10), &[0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_penalty_turns_to_tokens_that_have_not_been() {
        let mut sampler = Sampler::new(&GenerateConfig::new().repeat_penalty(2.0), &[1], 0);
        assert_eq!(sampler.sample(&[1.0, 1.5, -0.1]).unwrap().0, 0);
        assert_eq!(sampler.sample(&[1.0, 1.5, 0.7]).unwrap().0, 1, "both 0 and 1 are halved now");
    }

    #[test]
    fn logprobs_are_of_the_models_own_distribution() {
        let mut sampler = Sampler::new(&GenerateConfig::new().logprobs(2), &[], 0);
        let logprobs = sampler.sample(&logits()).unwrap().1.unwrap();
        assert!((logprobs.logprob - 0.5f32.ln()).abs() < 1e-6);
        assert_eq!(logprobs.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 0]);
    }

    #[test]
    fn logits_that_are_no_numbers_are_an_error() {
        let mut sampler = Sampler::new(&GenerateConfig::new(), &[], 0);
        assert!(matches!(sampler.sample(&[0.0, f32::NAN]), Err(Error::Internal { .. })));
    }
}
