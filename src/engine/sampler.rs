//! Sampling of tokens from logits.

use std::borrow::Cow;

use super::{penalties::Penalties, token_mask::TokenSet};
use crate::{
    Error, GenerateConfig, Result, TokenLogprobs,
    kernels::{
        Isa,
        elementwise::logits::{self, CHUNK},
    },
};

/// Samples the tokens of one sequence. The random numbers are a function of seed and step, so that they do not depend
/// on other sequences, and a recomputed step repeats them.
pub struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
    seed: u64,
    step: u64,
    logprobs: Option<usize>,
    penalties: Penalties,
    /// Tokens that end an answer, which are not sampled in the first `min_tokens` steps.
    ends: Vec<u32>,
    min_tokens: u64,
    isa: Isa,
}

/// A weight or logit, and the token it belongs to.
type Candidate = (f32, u32);

impl Sampler {
    /// `end_ids` end an answer of the model, besides the stop tokens of `config`.
    pub fn new(config: &GenerateConfig, prompt: &[u32], end_ids: &[u32], entropy: u64, isa: Isa) -> Self {
        Self {
            temperature: config.temperature,
            top_k: config.top_k,
            top_p: unless_off(config.top_p),
            min_p: config.min_p,
            seed: config.seed.unwrap_or(entropy),
            step: 0,
            logprobs: config.logprobs,
            penalties: Penalties::new(config, prompt),
            ends: if config.min_tokens > 0 { [end_ids, &config.stop_tokens].concat() } else { Vec::new() },
            min_tokens: config.min_tokens as u64,
            isa,
        }
    }

    /// Chooses the next token from the logits, `[vocab_size]`, among the tokens of the mask if there is one.
    pub fn sample(&mut self, logits: &[f32], mask: Option<&TokenSet>) -> Result<(u32, Option<TokenLogprobs>)> {
        let greatest = self.greatest(logits)?;
        let banned = if self.step < self.min_tokens { self.ends.as_slice() } else { &[] };
        let adjusted = self.penalties.apply(logits, banned);
        let adjusted = match mask {
            Some(mask) => Cow::Owned(masked(adjusted.into_owned(), mask)),
            None => adjusted,
        };
        let chosen = match adjusted {
            Cow::Borrowed(logits) => self.choose(logits, greatest),
            Cow::Owned(adjusted) => {
                let greatest = self.greatest(&adjusted)?;
                if greatest == f32::NEG_INFINITY {
                    let field = mask.map(|_| "constraint").or(self.penalties.banning_field()).unwrap_or("min_tokens");
                    return Err(Error::config(field, "it leaves no token to choose"));
                }
                self.choose(&adjusted, greatest)
            }
        };
        self.step += 1;
        self.penalties.note(chosen);
        Ok((chosen, self.logprobs.map(|alternatives| self.logprobs(logits, greatest, chosen, alternatives))))
    }

    /// The log-probability of a token under the logits, `[vocab_size]`.
    pub fn score(&self, logits: &[f32], id: u32) -> Result<TokenLogprobs> {
        Ok(self.logprobs(logits, self.greatest(logits)?, id, self.logprobs.unwrap_or(0)))
    }

    fn greatest(&self, logits: &[f32]) -> Result<f32> {
        logits::greatest(logits, self.isa).ok_or_else(|| {
            let unusable = logits.iter().zip(0u32..).find(|(logit, _)| logit.is_nan() || **logit == f32::INFINITY);
            let (logit, id) = unusable.unwrap_or((&f32::NAN, 0));
            Error::internal(format!("the model's logit of token {id} is {logit}"))
        })
    }

    fn choose(&self, logits: &[f32], greatest: f32) -> u32 {
        if self.temperature == 0.0 {
            return first_of(logits, greatest);
        }
        let weights = TokenWeights { logits, greatest, temperature: self.temperature, isa: self.isa };
        let random = uniform(self.seed, self.step);
        if self.top_k > 0 && self.top_k < logits.len() {
            let best = best(logits, self.top_k).into_iter();
            let candidates: Vec<Candidate> = best.map(|(logit, id)| (weights.of(logit), id)).collect();
            let total = total(&candidates);
            return draw(&self.truncate(candidates, total), random);
        }
        if self.top_p == 1.0 && self.min_p == 0.0 {
            return weights.draw(random);
        }
        let (mut total, mut least) = (0.0, self.min_p);
        if self.top_p < 1.0 {
            total = weights.total();
            // All tokens below this weight together have less than 1 - top_p, so none of them is in the nucleus.
            least = least.max(((1.0 - f64::from(self.top_p)) * total / logits.len() as f64) as f32);
        }
        draw(&self.truncate(weights.at_least(least), total), random)
    }

    /// Truncates candidates by top-p and min-p. `total` is the sum of all weights, with tokens that are no candidates.
    fn truncate(&self, mut candidates: Vec<Candidate>, total: f64) -> Vec<Candidate> {
        if self.top_p < 1.0 {
            keep_nucleus(&mut candidates, f64::from(self.top_p) * total);
        }
        candidates.retain(|(weight, _)| *weight >= self.min_p);
        candidates
    }

    /// Log-probabilities under the model's own distribution.
    fn logprobs(&self, logits: &[f32], greatest: f32, chosen: u32, alternatives: usize) -> TokenLogprobs {
        let weights = TokenWeights { logits, greatest, temperature: 1.0, isa: self.isa };
        let norm = f64::from(greatest) + weights.total().ln();
        let logprob = |logit: f32| (f64::from(logit) - norm) as f32;
        TokenLogprobs {
            logprob: logprob(logits[chosen as usize]),
            top: best(logits, alternatives).into_iter().map(|(logit, id)| (id, logprob(logit))).collect(),
        }
    }
}

/// The weights of tokens in a draw, 1 for the most likely token. Computed chunk by chunk, if needed twice: that is
/// cheaper than to hold them all.
struct TokenWeights<'a> {
    logits: &'a [f32],
    greatest: f32,
    temperature: f32,
    isa: Isa,
}

impl TokenWeights<'_> {
    fn of(&self, logit: f32) -> f32 {
        let mut weight = [0.0];
        self.weigh(&[logit], &mut weight)
    }

    fn weigh(&self, logits: &[f32], weights: &mut [f32]) -> f32 {
        logits::weigh(logits, self.greatest, self.temperature, &mut weights[..logits.len()], self.isa)
    }

    /// The sum of each chunk.
    fn sums(&self) -> impl Iterator<Item = f64> {
        let mut weights = [0.0; CHUNK];
        self.logits.chunks(CHUNK).map(move |chunk| f64::from(self.weigh(chunk, &mut weights)))
    }

    fn total(&self) -> f64 {
        self.sums().sum()
    }

    /// The candidates with a weight of at least `least`.
    fn at_least(&self, least: f32) -> Vec<Candidate> {
        let mut candidates = Vec::new();
        let (mut weights, mut heavy) = ([0.0; CHUNK], [(0.0, 0); CHUNK]);
        for (logits, ids) in self.logits.chunks(CHUNK).zip((0..).step_by(CHUNK)) {
            // No weight is greater than their sum.
            if self.weigh(logits, &mut weights) >= least {
                // Branch-free: written in any case, kept if heavy enough.
                let mut kept = 0;
                for (weight, id) in weights[..logits.len()].iter().zip(ids..) {
                    heavy[kept] = (*weight, id);
                    kept += usize::from(*weight >= least);
                }
                candidates.extend_from_slice(&heavy[..kept]);
            }
        }
        candidates
    }

    /// Draws a token: first its chunk, then itself.
    fn draw(&self, random: f64) -> u32 {
        let sums: Vec<f64> = self.sums().collect();
        let mut left = random * sums.iter().sum::<f64>();
        let mut chosen = 0;
        for (index, sum) in sums.into_iter().enumerate().filter(|(_, sum)| *sum > 0.0) {
            chosen = index;
            if left < sum {
                break;
            }
            left -= sum;
        }
        let first = chosen * CHUNK;
        let logits = &self.logits[first..self.logits.len().min(first + CHUNK)];
        let mut weights = [0.0; CHUNK];
        self.weigh(logits, &mut weights);
        pick(weights.into_iter().take(logits.len()).zip(first as u32..), left)
    }
}

/// Logits with negative infinity for tokens that the mask excludes.
fn masked(mut logits: Vec<f32>, mask: &TokenSet) -> Vec<f32> {
    for (logit, id) in logits.iter_mut().zip(0..) {
        if !mask.has(id) {
            *logit = f32::NEG_INFINITY;
        }
    }
    logits
}

/// The first token with that logit.
fn first_of(logits: &[f32], logit: f32) -> u32 {
    // Looking at all of a chunk before deciding lets compilers compare many at once.
    let has = |chunk: &[f32]| chunk.iter().fold(false, |found, other| found | (*other == logit));
    let first = logits.chunks(CHUNK).position(has).unwrap_or(0) * CHUNK;
    logits[first..].iter().position(|other| *other == logit).map_or(0, |at| (first + at) as u32)
}

fn total(candidates: &[Candidate]) -> f64 {
    candidates.iter().map(|(weight, _)| f64::from(*weight)).sum()
}

/// Draws a candidate with the probability of its weight; `random` is in `[0, 1)`.
fn draw(candidates: &[Candidate], random: f64) -> u32 {
    pick(candidates.iter().copied(), random * total(candidates))
}

/// The candidate at whose weight a walk over the weights passes `left`.
fn pick(candidates: impl Iterator<Item = Candidate>, mut left: f64) -> u32 {
    let mut last = 0;
    for (weight, id) in candidates.filter(|(weight, _)| *weight > 0.0) {
        left -= f64::from(weight);
        last = id;
        if left < 0.0 {
            break;
        }
    }
    // Rounding may leave a rest; it belongs to the last candidate that can be drawn at all.
    last
}

/// 0 and 1 both mean that nothing is changed.
pub fn unless_off(value: f32) -> f32 {
    if value == 0.0 { 1.0 } else { value }
}

fn more_likely(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

/// Logits that `best` looks at together.
const FEW: usize = 64;

/// The `count` greatest logits, greatest first, in one walk that looks twice at few of them only.
fn best(logits: &[f32], count: usize) -> Vec<Candidate> {
    let mut best: Vec<Candidate> = Vec::with_capacity(2 * count + 1);
    let mut enough = f32::NEG_INFINITY;
    for (logits, ids) in logits.chunks(FEW).zip((0..).step_by(FEW)) {
        // Of equal logits the first ones count, and they are in `best` already.
        if best.len() >= count && !logits.iter().fold(false, |found, logit| found | (*logit > enough)) {
            continue;
        }
        for (logit, id) in logits.iter().zip(ids..) {
            if *logit > enough || best.len() < count {
                best.push((*logit, id));
                if best.len() > 2 * count {
                    best.select_nth_unstable_by(count, more_likely);
                    best.truncate(count);
                    enough = best.iter().fold(f32::INFINITY, |least, (logit, _)| least.min(*logit));
                }
            }
        }
    }
    best.sort_unstable_by(more_likely);
    best.truncate(count);
    best
}

/// Keeps the fewest most likely candidates that weigh `share` together, in the order they have. None weighs
/// more than 1.
fn keep_nucleus(candidates: &mut Vec<Candidate>, share: f64) {
    // The bits of positive floats have their order; the upper ones make bins of an eighth of an octave.
    const BINS: usize = bin(1.0) + 1;
    const fn bin(weight: f32) -> usize {
        (weight.to_bits() >> 20) as usize
    }
    let mut bins = [0f64; BINS];
    for (weight, _) in candidates.iter() {
        bins[bin(*weight).min(BINS - 1)] += f64::from(*weight);
    }
    let mut sum = 0.0;
    let last_bin = bins.iter().rposition(|bin| {
        sum += bin;
        sum >= share
    });
    let Some(last_bin) = last_bin else { return };
    // Only where it ends they must be put in order.
    sum -= bins[last_bin];
    let mut ranked: Vec<Candidate> =
        candidates.iter().copied().filter(|(weight, _)| bin(*weight) == last_bin).collect();
    ranked.sort_unstable_by(more_likely);
    let last = ranked.iter().find(|(weight, _)| {
        sum += f64::from(*weight);
        sum >= share
    });
    if let Some(last) = last.or(ranked.last()) {
        candidates.retain(|candidate| more_likely(candidate, last).is_le());
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

    fn sampler_of(config: &GenerateConfig, prompt: &[u32]) -> Sampler {
        Sampler::new(config, prompt, &[], 0, Isa::detect())
    }

    fn counts(config: GenerateConfig, logits: &[f32], draws: u64) -> Vec<f64> {
        let mut counts = vec![0.0; logits.len()];
        let mut sampler = sampler_of(&config.seed(7), &[]);
        for _ in 0..draws {
            counts[sampler.sample(logits, None).unwrap().0 as usize] += 1.0 / draws as f64;
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
        near(&counts(GenerateConfig::new().temperature(1e-42), &logits(), 10), &[0.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_penalty_turns_to_tokens_that_have_not_been() {
        let mut sampler = sampler_of(&GenerateConfig::new().repeat_penalty(2.0), &[1]);
        assert_eq!(sampler.sample(&[1.0, 1.5, -0.1], None).unwrap().0, 0);
        assert_eq!(sampler.sample(&[1.0, 1.5, 0.7], None).unwrap().0, 1, "both 0 and 1 are halved now");
    }

    #[test]
    fn frequency_and_presence_penalties_count_the_answer_only() {
        let mut sampler = sampler_of(&GenerateConfig::new().frequency_penalty(0.4), &[0, 0]);
        let chosen: Vec<u32> = (0..5).map(|_| sampler.sample(&[1.0, 0.5], None).unwrap().0).collect();
        assert_eq!(chosen, [0, 0, 1, 0, 1]);
        let mut sampler = sampler_of(&GenerateConfig::new().presence_penalty(0.6), &[0]);
        let chosen: Vec<u32> = (0..4).map(|_| sampler.sample(&[1.0, 0.5], None).unwrap().0).collect();
        assert_eq!(chosen, [0, 1, 0, 0]);
    }

    #[test]
    fn a_window_bounds_how_far_penalties_look_back() {
        let config = || GenerateConfig::new().repeat_penalty(2.0);
        let first = |config: &GenerateConfig, prompt: &[u32]| {
            sampler_of(config, prompt).sample(&[1.0, 0.9, 0.8], None).unwrap().0
        };
        assert_eq!(first(&config(), &[0, 1, 1]), 2);
        assert_eq!(first(&config().penalty_window(3), &[0, 1, 1]), 2);
        assert_eq!(first(&config().penalty_window(2), &[0, 1, 1]), 0);
        assert_eq!(first(&config().penalty_window(1), &[1, 1, 0]), 1);
        let answer = |config: GenerateConfig, prompt: &[u32]| {
            let mut sampler = sampler_of(&config, prompt);
            (0..6).map(|_| sampler.sample(&[1.0, 0.9, 0.8], None).unwrap().0).collect::<Vec<_>>()
        };
        // Of one token the last one only: the best two take turns.
        assert_eq!(answer(config().penalty_window(1), &[]), [0, 1, 0, 1, 0, 1]);
        assert_eq!(answer(config().penalty_window(2), &[]), [0, 1, 2, 0, 1, 2]);
        // The tokens of the prompt leave the window and count for repetition only.
        let counted = || GenerateConfig::new().presence_penalty(0.5);
        assert_eq!(answer(counted().penalty_window(2), &[0, 0, 0]), [0, 1, 2, 0, 1, 2]);
        assert_eq!(answer(counted().penalty_window(1), &[0, 0, 0]), [0, 1, 0, 1, 0, 1]);
        let frequent = GenerateConfig::new().frequency_penalty(0.06).penalty_window(3);
        assert_eq!(answer(frequent, &[1, 1, 1]), [0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn a_window_that_holds_everything_changes_nothing() {
        let config =
            || GenerateConfig::new().repeat_penalty(1.3).frequency_penalty(0.1).presence_penalty(0.2).temperature(0.8);
        let prompt = [3, 1, 4, 1, 5];
        let logits: Vec<f32> = (0..8).map(|i| (i % 3) as f32 * 0.4).collect();
        let run = |config: GenerateConfig| {
            let mut sampler = sampler_of(&config.seed(11), &prompt);
            (0..200).map(|_| sampler.sample(&logits, None).unwrap().0).collect::<Vec<_>>()
        };
        assert_eq!(run(config()), run(config().penalty_window(205)));
        assert_eq!(run(config()), run(config().penalty_window(usize::MAX)));
        assert_ne!(run(config()), run(config().penalty_window(4)));
    }

    #[test]
    fn no_end_is_chosen_before_enough_tokens() {
        let logits = [0.5, 9.0, 8.0, 0.4];
        for config in [GenerateConfig::new(), GenerateConfig::new().temperature(1.0).seed(3)] {
            for wanted in [0, 1, 7] {
                let config = config.clone().stop_tokens(vec![2]).min_tokens(wanted);
                let mut sampler = Sampler::new(&config, &[], &[1], 0, Isa::detect());
                let ids: Vec<u32> = (0..30).map(|_| sampler.sample(&logits, None).unwrap().0).collect();
                assert!(ids[..wanted].iter().all(|id| [0, 3].contains(id)), "{ids:?}");
                assert!([1, 2].contains(&ids[wanted]), "{ids:?}");
            }
        }
        let nothing_else = GenerateConfig::new().stop_tokens(vec![0]).min_tokens(1);
        let sampled = Sampler::new(&nothing_else, &[], &[1], 0, Isa::detect()).sample(&[1.0, 2.0], None);
        assert!(matches!(sampled, Err(Error::InvalidConfig { field: "min_tokens", .. })), "{sampled:?}");
    }

    #[test]
    fn a_bias_favors_and_bans() {
        let sample = |bias: &[(u32, f32)]| {
            let config = GenerateConfig::new().logit_bias(bias.iter().copied().collect());
            sampler_of(&config, &[]).sample(&[1.0, 0.5, 0.0], None).map(|(id, _)| id)
        };
        assert_eq!(sample(&[(2, 1.5)]).unwrap(), 2);
        assert_eq!(sample(&[(0, f32::NEG_INFINITY)]).unwrap(), 1);
        let all = [(0, f32::NEG_INFINITY), (1, f32::NEG_INFINITY), (2, f32::NEG_INFINITY)];
        assert!(matches!(sample(&all), Err(Error::InvalidConfig { field: "logit_bias", .. })));
    }

    proptest::proptest! {
        #[test]
        fn the_best_are_those_a_sort_puts_first(
            logits in proptest::collection::vec(-3i8..3, 1..200),
            count in 0usize..20,
        ) {
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let mut sorted: Vec<Candidate> = logits.iter().copied().zip(0..).collect();
            sorted.sort_by(more_likely);
            sorted.truncate(count);
            proptest::prop_assert_eq!(best(&logits, count), sorted);
        }

        #[test]
        fn the_nucleus_is_the_shortest_head_with_the_share(
            weights in proptest::collection::vec(0.0f32..1.0, 1..60),
            top_p in 0.01f32..0.99,
        ) {
            let mut sorted: Vec<Candidate> = weights.iter().copied().zip(0..).collect();
            let mut nucleus = sorted.clone();
            sorted.sort_by(more_likely);
            let share = f64::from(top_p) * total(&sorted);
            keep_nucleus(&mut nucleus, share);
            proptest::prop_assert!(nucleus.is_sorted_by_key(|(_, id)| *id));
            nucleus.sort_by(more_likely);
            proptest::prop_assert_eq!(&nucleus[..], &sorted[..nucleus.len()]);
            proptest::prop_assert!(total(&nucleus) >= share - 1e-9);
            proptest::prop_assert!(total(&nucleus[..nucleus.len() - 1]) < share);
        }

        /// In vocabularies of more than a chunk, by all the ways to sample that leave the distribution as it is.
        #[test]
        fn draws_equal_a_walk_over_all_weights(len in 1usize..3 * CHUNK, random in 0.0f64..1.0, step in 0u64..99) {
            let logits: Vec<f32> = (0..len).map(|i| (uniform(i as u64, step) * 8.0) as f32).collect();
            let greatest = logits::greatest(&logits, Isa::detect()).unwrap();
            let weights = TokenWeights { logits: &logits, greatest, temperature: 0.8, isa: Isa::detect() };
            let exact = |logit: f32| (f64::from(logit - greatest) / f64::from(0.8f32)).exp();
            let total: f64 = logits.iter().map(|logit| exact(*logit)).sum();
            for drawn in [weights.draw(random), draw(&weights.at_least(0.0), random)] {
                let before: f64 = logits[..drawn as usize].iter().map(|logit| exact(*logit)).sum();
                let with = before + exact(logits[drawn as usize]);
                let (wanted, slack) = (random * total, 1e-5 * total);
                proptest::prop_assert!(before - slack <= wanted && wanted <= with + slack, "{before} {wanted} {with}");
            }
        }

        #[test]
        fn the_first_of_equals_is_greedy(
            len in 1usize..3 * CHUNK,
            at in proptest::collection::vec(0usize..3 * CHUNK, 1..4),
        ) {
            let mut logits = vec![0.0; len];
            at.iter().for_each(|at| logits[at % len] = 1.0);
            let first = at.iter().map(|at| at % len).min().unwrap();
            proptest::prop_assert_eq!(first_of(&logits, 1.0) as usize, first);
        }
    }

    #[test]
    fn logprobs_are_of_the_models_own_distribution() {
        let mut sampler = sampler_of(&GenerateConfig::new().logprobs(2), &[]);
        let logprobs = sampler.sample(&logits(), None).unwrap().1.unwrap();
        assert!((logprobs.logprob - 0.5f32.ln()).abs() < 1e-6);
        assert_eq!(logprobs.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 0]);
    }

    #[test]
    fn any_numbers_that_are_allowed_can_be_sampled_with() {
        let extremes = [f32::MIN, -1e38, -1e-45, 0.0, 1e-45, 1e-39, 0.1, 1.0, 1e38, f32::MAX];
        let positive = &extremes[3..];
        let mut configs: Vec<GenerateConfig> = Vec::new();
        for &a in &extremes {
            for &b in &extremes {
                let config = GenerateConfig::new().frequency_penalty(a).presence_penalty(b);
                configs.push(config.clone().logit_bias([(0, a), (1, f32::NEG_INFINITY), (2, b)].into()));
                configs.push(config);
            }
        }
        for &a in positive {
            configs.extend(configs.clone().into_iter().step_by(7).map(|config| config.repeat_penalty(a)));
            configs.extend(positive.iter().map(|b| GenerateConfig::new().temperature(a).repeat_penalty(*b)));
        }
        for &a in &[0.0, 1e-45, 0.5, 1.0 - f32::EPSILON, 1.0] {
            configs.extend(positive.iter().map(|b| GenerateConfig::new().temperature(*b).top_p(a).min_p(1.0 - a)));
        }
        for (index, config) in configs.into_iter().enumerate() {
            let config = config.top_k(if index % 2 == 0 { usize::MAX } else { index % 5 });
            config.validate().unwrap();
            let mut sampler = sampler_of(&config, &[0, 2]);
            for _ in 0..4 {
                let sampled = sampler.sample(&[2.5, 10.0, -3.0, 1e-3], None).map(|(id, _)| id);
                let banned = config.logit_bias.contains_key(&1).then_some(1);
                assert!(sampled.as_ref().is_ok_and(|id| Some(*id) != banned), "{sampled:?} of {config:?}");
            }
        }
    }

    #[test]
    fn logits_that_are_no_numbers_are_an_error() {
        let mut sampler = sampler_of(&GenerateConfig::new(), &[]);
        assert!(matches!(sampler.sample(&[0.0, f32::NAN], None), Err(Error::Internal { .. })));
        // All impossible is no reason to panic.
        let mut sampler = sampler_of(&GenerateConfig::new().temperature(1.0).top_p(0.5), &[]);
        assert_eq!(sampler.sample(&[f32::NEG_INFINITY; 3], None).unwrap().0, 0);
    }
}
