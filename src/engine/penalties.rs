//! Penalties and biases of logits.

use std::{
    borrow::Cow,
    collections::{HashMap, VecDeque},
};

use crate::GenerateConfig;

/// Changes logits before a token is chosen.
pub struct Penalties {
    repeat: f32,
    frequency: f32,
    presence: f32,
    bias: Vec<(u32, f32)>,
    /// How often the prompt and the answer have each token.
    seen: HashMap<u32, u32>,
    /// How often the answer has each token.
    counts: HashMap<u32, u32>,
    /// `None` if penalties look back on everything.
    window: Option<Window>,
}

/// The latest tokens of prompt and answer.
struct Window {
    len: usize,
    tokens: VecDeque<u32>,
    /// How many of them, the first ones, are the prompt's.
    of_prompt: usize,
}

impl Window {
    fn new(len: usize, prompt: &[u32]) -> Self {
        let tokens: VecDeque<u32> = prompt[prompt.len().saturating_sub(len)..].iter().copied().collect();
        Self { len, of_prompt: tokens.len(), tokens }
    }

    /// Adds a token of the answer, and gives the one that is too old now and whether it was the prompt's.
    fn push(&mut self, token: u32) -> Option<(u32, bool)> {
        self.tokens.push_back(token);
        let oldest = if self.tokens.len() > self.len { self.tokens.pop_front() } else { None }?;
        let was_prompt = self.of_prompt > 0;
        self.of_prompt = self.of_prompt.saturating_sub(1);
        Some((oldest, was_prompt))
    }
}

impl Penalties {
    pub fn new(config: &GenerateConfig, prompt: &[u32]) -> Self {
        let repeat = super::sampler::unless_off(config.repeat_penalty);
        let (frequency, presence) = (config.frequency_penalty, config.presence_penalty);
        let bias = config.logit_bias.iter().map(|(id, bias)| (*id, *bias)).collect();
        let window = (config.penalty_window > 0).then(|| Window::new(config.penalty_window, prompt));
        let mut penalties =
            Self { repeat, frequency, presence, bias, seen: HashMap::new(), counts: HashMap::new(), window };
        if repeat != 1.0 {
            let visible = penalties.window.as_ref().map_or(prompt.len(), |window| window.tokens.len());
            for id in prompt.iter().rev().take(visible) {
                *penalties.seen.entry(*id).or_default() += 1;
            }
        }
        penalties
    }

    /// The field of the config that bans tokens beside `banned`, if one does.
    pub fn banning_field(&self) -> Option<&'static str> {
        self.bias.iter().any(|(_, bias)| *bias == f32::NEG_INFINITY).then_some("logit_bias")
    }

    /// The logits as they are sampled from. None of the `banned` tokens can be chosen.
    pub fn apply<'a>(&self, logits: &'a [f32], banned: &[u32]) -> Cow<'a, [f32]> {
        let mut logits = Cow::Borrowed(logits);
        let mut change = |id: u32, change: &dyn Fn(f32) -> f32| {
            if let Some(logit) = logits.to_mut().get_mut(id as usize) {
                *logit = change(*logit);
            }
        };
        for id in self.seen.keys() {
            change(*id, &|logit| finite(if logit > 0.0 { logit / self.repeat } else { logit * self.repeat }));
        }
        for (id, count) in &self.counts {
            change(*id, &|logit| finite(logit - self.frequency * *count as f32 - self.presence));
        }
        for (id, bias) in &self.bias {
            change(*id, &|logit| if *bias == f32::NEG_INFINITY { *bias } else { finite(logit + bias) });
        }
        for id in banned {
            change(*id, &|_| f32::NEG_INFINITY);
        }
        logits
    }

    /// Takes note of a token of the answer.
    pub fn note(&mut self, chosen: u32) {
        let (repeats, counts) = (self.repeat != 1.0, self.frequency != 0.0 || self.presence != 0.0);
        if repeats {
            *self.seen.entry(chosen).or_default() += 1;
        }
        if counts {
            *self.counts.entry(chosen).or_default() += 1;
        }
        let window = self.window.as_mut().filter(|_| repeats || counts);
        if let Some((oldest, was_prompt)) = window.and_then(|window| window.push(chosen)) {
            forget(&mut self.seen, oldest);
            if !was_prompt {
                forget(&mut self.counts, oldest);
            }
        }
    }
}

/// Counts a token once less.
fn forget(counts: &mut HashMap<u32, u32>, id: u32) {
    if let Some(count) = counts.get_mut(&id) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&id);
        }
    }
}

/// Logits stay numbers however much they are changed; only a ban bans.
fn finite(logit: f32) -> f32 {
    logit.clamp(f32::MIN, f32::MAX)
}
