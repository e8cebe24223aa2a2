//! The number of prompt tokens in a pass, by measured latencies.

use std::time::Duration;

use super::scheduler::DecodeLoad;

/// The added time of a pass with prompt tokens, relative to its streams alone, at most.
const MAX_STRETCH: f64 = 0.9;
/// As above, if the prompt arrived before all of the streams began: throughput then counts more than their latency.
const MAX_STRETCH_OF_NEWER: f64 = 3.0;
/// The weight of the newest measurement of a prompt token, which costs more in deeper positions.
const NEWEST_TOKEN: f64 = 1.0 / 4.0;
/// Passes with prompts after which a pass without them measures the streams alone again.
const PASSES_BETWEEN_STEPS: usize = 32;
/// Measurements that are remembered.
const RECENT_STEPS: usize = 8;
/// The assumed cost of a draft token before there are measurements, in tokens.
const UNKNOWN_PRICE: f64 = 0.25;
/// Prompt tokens in a pass, at least, however slow they are.
const MIN_TOKENS: usize = 4;
/// Prompt tokens in a pass before there are measurements.
const UNKNOWN_TOKENS: usize = 16;

/// Chunked prefill: measures how long passes take, and so finds how many prompt tokens may share a pass with running
/// streams. A prompt about doubles their inter-token latency at most, or quadruples it if the prompt arrived first.
/// Also finds how likely a draft token must be accepted to be worth its time.
#[derive(Debug, Default)]
pub struct PrefillBudget {
    /// Seconds of a pass of up to 1, 2, 4, 8 … streams without prompts.
    steps: [Recent; 16],
    /// Seconds that a prompt token adds.
    prompt_token: Option<f64>,
    /// Seconds that a draft token adds.
    draft_token: Recent,
    /// Passes with streams and prompts since the last pass with streams alone.
    mixed_passes: usize,
}

impl PrefillBudget {
    /// Learns from a pass.
    pub fn note(&mut self, streams: usize, prompt_tokens: usize, took: Duration) {
        let took = took.as_secs_f64();
        if prompt_tokens == 0 {
            self.steps[size_class(streams)].note(took);
            self.mixed_passes = 0;
            return;
        }
        self.mixed_passes += usize::from(streams > 0);
        if let Some(step) = if streams == 0 { Some(0.0) } else { self.step(streams) } {
            let measured = (took - step).max(0.0) / prompt_tokens as f64;
            let known = self.prompt_token.get_or_insert(measured);
            *known += NEWEST_TOKEN * (measured - *known);
        }
    }

    /// Learns from a pass of streams and drafts.
    pub fn note_drafts(&mut self, streams: usize, drafted: usize, took: Duration) {
        self.mixed_passes += 1;
        if let Some(step) = self.step(streams) {
            self.draft_token.note((took.as_secs_f64() - step).max(0.0) / drafted as f64);
        }
    }

    /// The cost of a draft token beside `streams` streams, in tokens that the streams would get in its time: the
    /// probability of acceptance from which a draft token is worth it.
    pub fn draft_price(&self, streams: usize) -> f64 {
        // One measurement that is far too high would end all drafts, and with them the measurements.
        let token = self.draft_token.median().filter(|_| self.draft_token.count >= RECENT_STEPS);
        self.step(streams).zip(token).map_or(UNKNOWN_PRICE, |(step, token)| streams as f64 * token / step)
    }

    /// Prompt tokens that may share the next pass with these streams; 0 to measure the streams alone again.
    pub fn prompt_tokens(&self, DecodeLoad { count, newer }: DecodeLoad) -> usize {
        if self.mixed_passes >= PASSES_BETWEEN_STEPS {
            return 0;
        }
        let stretch = if newer { MAX_STRETCH_OF_NEWER } else { MAX_STRETCH };
        match (self.step(count), self.prompt_token) {
            (Some(step), Some(token)) => ((stretch * step / token) as usize).max(MIN_TOKENS),
            _ => UNKNOWN_TOKENS,
        }
    }

    /// Seconds of a pass of streams alone. Without a measurement of this size, the next smaller size is a lower bound,
    /// and so is the share of the next greater size.
    fn step(&self, streams: usize) -> Option<f64> {
        let class = size_class(streams);
        let smaller = self.steps[..=class].iter().rev().find_map(Recent::median);
        let greater = || {
            let (above, step) =
                self.steps.iter().enumerate().skip(class).find_map(|(i, step)| Some((i, step.median()?)))?;
            Some(step / f64::from(1u32 << (above - class)))
        };
        smaller.or_else(greater)
    }
}

fn size_class(streams: usize) -> usize {
    (streams.max(1).next_power_of_two().ilog2() as usize).min(15)
}

/// The latest measurements of a quantity.
#[derive(Debug, Clone, Copy, Default)]
struct Recent {
    measured: [f64; RECENT_STEPS],
    count: usize,
}

impl Recent {
    fn note(&mut self, measured: f64) {
        self.measured[self.count % RECENT_STEPS] = measured;
        self.count += 1;
    }

    /// A single slow measurement changes it little.
    fn median(&self) -> Option<f64> {
        let mut sorted = self.measured;
        let sorted = &mut sorted[..self.count.min(RECENT_STEPS)];
        sorted.sort_by(f64::total_cmp);
        sorted.get(sorted.len().saturating_sub(1) / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine where a pass costs 9 ms, each stream 1 ms and each prompt token 0.5 ms.
    fn took(streams: usize, prompt_tokens: usize) -> Duration {
        Duration::from_micros(9000 + 1000 * streams as u64 + 500 * prompt_tokens as u64)
    }

    /// The budget of a prompt that arrives after the streams have begun.
    fn prompt_tokens(budget: &PrefillBudget, count: usize) -> usize {
        budget.prompt_tokens(DecodeLoad { count, newer: false })
    }

    #[test]
    fn prompts_stretch_steps_to_less_than_two() {
        let mut budget = PrefillBudget::default();
        budget.note(0, 512, took(0, 512));
        budget.note(1, 0, took(1, 0));
        for _ in 0..20 {
            let tokens = prompt_tokens(&budget, 1);
            budget.note(1, tokens, took(1, tokens));
        }
        let tokens = prompt_tokens(&budget, 1);
        assert!((15..=20).contains(&tokens), "{tokens}");
        let tokens = prompt_tokens(&budget, 64);
        assert!((15..=200).contains(&tokens), "what is not known yet is not overestimated: {tokens}");
    }

    #[test]
    fn streams_that_are_newer_than_a_prompt_wait_for_it_longer() {
        let mut budget = PrefillBudget::default();
        budget.note(0, 512, took(0, 512));
        budget.note(4, 0, took(4, 0));
        let tokens = budget.prompt_tokens(DecodeLoad { count: 4, newer: true });
        let stretched = took(4, tokens).as_secs_f64() / took(4, 0).as_secs_f64();
        assert!((3.8..4.0).contains(&stretched), "{stretched}");
    }

    #[test]
    fn one_slow_step_changes_little() {
        let mut budget = PrefillBudget::default();
        (0..50).for_each(|_| budget.note(1, 0, took(1, 0)));
        budget.note(1, 16, took(1, 16));
        let before = prompt_tokens(&budget, 1);
        budget.note(1, 0, 3 * took(1, 0));
        assert!(prompt_tokens(&budget, 1) <= before + before / 5);
    }

    #[test]
    fn slower_tokens_in_deeper_positions_come_in_smaller_chunks() {
        let mut budget = PrefillBudget::default();
        budget.note(1, 0, took(1, 0));
        budget.note(1, 16, took(1, 16));
        let before = prompt_tokens(&budget, 1);
        (0..20).for_each(|_| budget.note(1, 16, took(1, 16 * 4)));
        assert!(prompt_tokens(&budget, 1) < before / 2);
    }

    #[test]
    fn streams_that_become_slower_may_be_stretched_further() {
        let mut budget = PrefillBudget::default();
        let mut depth = 1;
        let mut passes_without_prompts = 0;
        for _ in 0..1000 {
            let tokens = prompt_tokens(&budget, 1);
            passes_without_prompts += usize::from(tokens == 0);
            budget.note(1, tokens, depth * took(1, 0) + Duration::from_micros(500) * tokens as u32);
            depth = 4;
        }
        assert_eq!(passes_without_prompts, 1000 / (PASSES_BETWEEN_STEPS + 1));
        let tokens = prompt_tokens(&budget, 1);
        assert!((60..=80).contains(&tokens), "{tokens}");
    }

    #[test]
    fn a_draft_token_costs_the_time_of_all_streams() {
        let mut budget = PrefillBudget::default();
        budget.note(1, 0, took(1, 0));
        assert_eq!(budget.draft_price(1), UNKNOWN_PRICE);
        budget.note_drafts(1, 4, 100 * took(1, 4));
        assert_eq!(budget.draft_price(1), UNKNOWN_PRICE, "one slow pass says little");
        (0..RECENT_STEPS).for_each(|_| budget.note_drafts(1, 4, took(1, 4)));
        budget.note(8, 0, took(8, 0));
        for (streams, price) in [(1, 0.5 / 10.0), (8, 8.0 * 0.5 / 17.0)] {
            assert!((budget.draft_price(streams) - price).abs() < 1e-9, "{streams}");
        }
    }

    #[test]
    fn no_prompt_starves() {
        let mut budget = PrefillBudget::default();
        budget.note(1, 0, Duration::from_millis(1));
        budget.note(1, 4, Duration::from_secs(1));
        assert_eq!(prompt_tokens(&budget, 1), MIN_TOKENS);
    }
}
