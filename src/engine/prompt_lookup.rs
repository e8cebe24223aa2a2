//! Prompt lookup: drafts from earlier tokens of the sequence.

use std::{collections::HashMap, iter};

use super::drafter::Drafter;

/// The most earlier places that are compared, so that a step costs the same in long sequences.
const MAX_PLACES: usize = 16;
/// The most tokens of a place that are compared.
const MAX_ALIKE: usize = 16;
/// The initial acceptance rate.
const FIRST_CHANCE: f64 = 0.8;
/// The weight of the newest draft token in the acceptance rate.
const NEWEST: f64 = 1.0 / 8.0;
/// Drafts left out for their price after which a token is drafted nevertheless, to learn whether drafts have improved.
const GUESSES_BETWEEN_TRIALS: usize = 32;

/// Drafts the tokens that followed an earlier occurrence of the last tokens, two at least ([prompt
/// lookup](https://github.com/apoorvumang/prompt-lookup-decoding)). Of several places the one with the longest match is
/// followed, and of equal matches the latest.
#[derive(Debug)]
pub struct PromptLookup {
    max_len: usize,
    /// The acceptance rate: how often a draft token is right if all before it in the draft are.
    chance: f64,
    /// Drafts left out since the last one.
    left_out: usize,
    tokens: Vec<u32>,
    /// The position where each pair of tokens ended last.
    last: HashMap<[u32; 2], u32>,
    /// For each position, the earlier position where the same pair ended; 0 if there is none.
    before: Vec<u32>,
}

impl PromptLookup {
    /// Drafts at most `max_len` tokens at a time.
    pub fn new(max_len: usize, prompt: &[u32]) -> Self {
        let (tokens, before) = (Vec::with_capacity(prompt.len()), Vec::with_capacity(prompt.len()));
        let last = HashMap::with_capacity(prompt.len());
        let mut lookup = Self { max_len, chance: FIRST_CHANCE, left_out: 0, tokens, last, before };
        prompt.iter().for_each(|token| lookup.push(*token));
        lookup
    }

    /// Adds the next token.
    fn push(&mut self, token: u32) {
        let pair = self.tokens.last().map(|last| [*last, token]);
        let position = self.tokens.len() as u32;
        self.before.push(pair.and_then(|pair| self.last.insert(pair, position)).unwrap_or(0));
        self.tokens.push(token);
    }

    /// Learns how many tokens of a draft were accepted. Tokens after the first wrong one tell nothing.
    fn note(&mut self, drafted: usize, accepted: usize) {
        (0..accepted).for_each(|_| self.chance += NEWEST * (1.0 - self.chance));
        if accepted < drafted {
            self.chance -= NEWEST * self.chance;
        }
    }

    /// At most `limit` tokens that may come next, as long as the probability that all are accepted exceeds `price`.
    fn guess(&mut self, limit: usize, price: f64) -> Vec<u32> {
        let Some(place) = self.place() else { return Vec::new() };
        let most = self.max_len.min(limit);
        let chances = iter::successors(Some(self.chance), |all| Some(all * self.chance));
        let worth = chances.take(most).take_while(|chance| *chance > price).count();
        let trial = worth == 0 && self.left_out == GUESSES_BETWEEN_TRIALS;
        self.left_out = if worth == 0 && !trial { self.left_out + 1 } else { 0 };
        // A match that reaches the end of the sequence repeats.
        let then = self.tokens[place + 1..].iter().cycle();
        then.take(if trial { most.min(1) } else { worth }).copied().collect()
    }

    /// The earlier position with the longest match.
    fn place(&self) -> Option<usize> {
        let earlier = |position: usize| Some(self.before[position] as usize).filter(|before| *before > 0);
        let end = self.tokens.len().checked_sub(1)?;
        let places = iter::successors(earlier(end), |place| earlier(*place)).take(MAX_PLACES);
        let ranked = places.map(|place| (self.alike(place, end), place));
        ranked.reduce(|best, other| if other.0 > best.0 { other } else { best }).map(|(_, place)| place)
    }

    /// The number of equal tokens up to two positions.
    fn alike(&self, a: usize, b: usize) -> usize {
        let backwards = |end: usize| self.tokens[..=end].iter().rev().take(MAX_ALIKE);
        backwards(a).zip(backwards(b)).take_while(|(a, b)| a == b).count()
    }
}

impl Drafter for PromptLookup {
    fn draft(&mut self, limit: usize, price: f64) -> Vec<u32> {
        self.guess(limit, price)
    }

    fn observe(&mut self, tokens: &[u32], drafted: usize, accepted: usize) {
        self.note(drafted, accepted);
        tokens.iter().for_each(|token| self.push(*token));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_repeated_beginning_is_continued() {
        let mut lookup = PromptLookup::new(4, &[1, 2, 3, 4, 5, 6, 7, 1, 2]);
        assert_eq!(lookup.guess(9, 0.0), [3, 4, 5, 6]);
        assert_eq!(lookup.guess(2, 0.0), [3, 4]);
        for unheard in [&[][..], &[1], &[1, 2], &[1, 2, 3, 2], &[3, 1, 2, 4, 1]] {
            assert!(PromptLookup::new(4, unheard).guess(9, 0.0).is_empty(), "{unheard:?}");
        }
    }

    #[test]
    fn the_longest_match_is_followed_and_of_equals_the_latest() {
        assert_eq!(PromptLookup::new(1, &[7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2]).guess(9, 0.0), [3]);
        assert_eq!(PromptLookup::new(1, &[6, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2]).guess(9, 0.0), [4]);
    }

    #[test]
    fn a_loop_goes_on() {
        assert_eq!(PromptLookup::new(5, &[9, 1, 2, 1, 2]).guess(9, 0.0), [1, 2, 1, 2, 1]);
        assert_eq!(PromptLookup::new(3, &[5, 5, 5]).guess(9, 0.0), [5, 5, 5]);
    }

    #[test]
    fn drafts_are_as_long_as_is_worth_their_price() {
        let mut lookup = PromptLookup::new(8, &[5; 9]);
        let lens = |lookup: &mut PromptLookup| [0.0, 0.1, 0.5, 0.7, 1.0].map(|price| lookup.guess(9, price).len());
        assert_eq!(lens(&mut lookup), [8, 8, 3, 1, 0]);
        (0..4).for_each(|_| lookup.note(8, 8));
        assert_eq!(lens(&mut lookup), [8, 8, 8, 8, 0]);
        (0..10).for_each(|_| lookup.note(8, 0));
        assert_eq!(lens(&mut lookup), [8, 1, 0, 0, 0]);
    }

    #[test]
    fn bad_drafts_are_tried_again_now_and_then() {
        let mut lookup = PromptLookup::new(8, &[5; 9]);
        let mut guess = || lookup.guess(9, 1.0).len();
        assert_eq!((0..330).map(|_| guess()).sum::<usize>(), 330 / (GUESSES_BETWEEN_TRIALS + 1));
        assert!(PromptLookup::new(0, &[5; 9]).guess(9, 0.0).is_empty());
    }

    /// `guess` by a search over all places.
    fn naive(tokens: &[u32], len: usize) -> Vec<u32> {
        let alike = |end: usize| {
            (0..MAX_ALIKE.min(end)).take_while(|i| tokens[end - 1 - i] == tokens[tokens.len() - 1 - i]).count()
        };
        let places = (1..tokens.len()).rev().filter(|end| alike(*end) >= 2).take(MAX_PLACES);
        let Some(place) = places.max_by_key(|end| (alike(*end), *end)) else { return Vec::new() };
        tokens[place..].iter().cycle().take(len).copied().collect()
    }

    proptest! {
        #[test]
        fn the_index_finds_what_a_search_finds(
            tokens in prop::collection::vec(0u32..4, 0..200),
            prompt_len in 0usize..200,
            len in 0usize..20,
        ) {
            let prompt_len = prompt_len.min(tokens.len());
            let mut lookup = PromptLookup::new(len, &tokens[..prompt_len]);
            for i in prompt_len..tokens.len() {
                prop_assert_eq!(lookup.guess(usize::MAX, 0.0), naive(&tokens[..i], len));
                lookup.push(tokens[i]);
            }
            prop_assert_eq!(lookup.guess(usize::MAX, 0.0), naive(&tokens, len));
        }
    }
}
