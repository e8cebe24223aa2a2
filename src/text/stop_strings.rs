//! Stop strings, and the Aho-Corasick automaton that finds them.

use std::sync::OnceLock;

/// Strings that end an answer, matched by an Aho-Corasick automaton: one step a byte, however many strings there are.
#[derive(Debug, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    automaton: OnceLock<Automaton>,
}

impl StopStrings {
    pub fn new(strings: Vec<String>) -> Self {
        Self { strings, automaton: OnceLock::new() }
    }

    /// The automaton, built at the first call: where many strings may take their time.
    pub fn automaton(&self) -> &Automaton {
        self.automaton.get_or_init(|| Automaton::new(self.strings.iter().map(String::as_bytes)))
    }
}

/// The prefixes of all strings, by length. Continuations of a prefix are adjacent and sorted by their last byte.
#[derive(Debug, Clone)]
pub struct Automaton(Vec<AutomatonState>);

#[derive(Debug, Clone, Default)]
struct AutomatonState {
    last_byte: u8,
    len: u32,
    /// Its first continuation; the last one is before the first of the next prefix.
    longer: u32,
    /// The longest prefix that it ends with, but itself.
    fallback: u32,
    /// The length of the longest string that it ends with; 0 if there is none.
    found: u32,
}

impl Automaton {
    pub fn new<'a>(strings: impl Iterator<Item = &'a [u8]>) -> Self {
        let mut strings: Vec<&[u8]> = strings.filter(|bytes| !bytes.is_empty()).collect();
        strings.sort_unstable();
        strings.dedup();
        let mut this = Self(vec![AutomatonState::default()]);
        // Which strings begin with a prefix.
        let mut ranges = vec![(0, strings.len())];
        let mut at = 0;
        while at < this.0.len() {
            let (mut from, end) = ranges[at];
            let len = this.0[at].len as usize;
            this.0[at].longer = this.0.len() as u32;
            let is_whole = len > 0 && strings[from].len() == len;
            this.0[at].found = if is_whole { len as u32 } else { this.0[this.0[at].fallback as usize].found };
            from += usize::from(is_whole);
            while from < end {
                let byte = strings[from][len];
                let same = strings[from..end].partition_point(|string| string[len] == byte);
                let fallback = if at == 0 { 0 } else { this.step(this.0[at].fallback, byte) };
                this.0.push(AutomatonState {
                    last_byte: byte,
                    len: len as u32 + 1,
                    fallback,
                    ..AutomatonState::default()
                });
                ranges.push((from, from + same));
                from += same;
            }
            at += 1;
        }
        this
    }

    /// The longest prefix that a text ends with, by that which it ended with before its last byte.
    pub fn step(&self, mut prefix: u32, byte: u8) -> u32 {
        loop {
            if let Some(longer) = self.longer(prefix, byte) {
                return longer;
            }
            if prefix == 0 {
                return 0;
            }
            prefix = self.0[prefix as usize].fallback;
        }
    }

    /// A prefix with one more byte.
    fn longer(&self, prefix: u32, byte: u8) -> Option<u32> {
        let from = self.0[prefix as usize].longer as usize;
        let end = self.0.get(prefix as usize + 1).map_or(self.0.len(), |next| next.longer as usize);
        let at = self.0[from..end].binary_search_by_key(&byte, |prefix| prefix.last_byte);
        at.ok().map(|at| (from + at) as u32)
    }

    /// The length of the longest string that a text begins with.
    pub fn longest_at_start(&self, text: &[u8]) -> Option<usize> {
        let (mut prefix, mut longest) = (0, None);
        for (len, byte) in (1..).zip(text) {
            let Some(longer) = self.longer(prefix, *byte) else { break };
            prefix = longer;
            longest = self.found(prefix).filter(|found| *found == len).or(longest);
        }
        longest
    }

    /// The length of the longest string that a text ends with which ends with this prefix.
    pub fn found(&self, prefix: u32) -> Option<usize> {
        let found = self.0[prefix as usize].found as usize;
        (found > 0).then_some(found)
    }

    pub fn len_of(&self, prefix: u32) -> usize {
        self.0[prefix as usize].len as usize
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn automaton_matches_naive_search(
            strings in prop::collection::vec("[ab]{1,5}|ä[ab]", 0..8),
            text in "[abcä]{0,40}",
        ) {
            let stops = StopStrings::new(strings.clone());
            let (automaton, mut prefix) = (stops.automaton(), 0);
            for (i, byte) in text.bytes().enumerate() {
                prefix = automaton.step(prefix, byte);
                let read = &text.as_bytes()[..=i];
                let found = strings.iter().filter(|string| read.ends_with(string.as_bytes())).map(String::len).max();
                prop_assert_eq!(automaton.found(prefix), found);
                let begun = |len: &usize| {
                    let tail = &read[read.len() - len..];
                    strings.iter().any(|string| string.as_bytes().starts_with(tail))
                };
                let longest = (1..=read.len()).rev().find(begun).unwrap_or(0);
                prop_assert_eq!(automaton.len_of(prefix), longest);
            }
        }
    }
}
