//! Patterns that a finite automaton can run.

use std::{
    error::Error,
    panic::{RefUnwindSafe, UnwindSafe},
    sync::Arc,
};

use regex_automata::{
    Anchored, Input,
    hybrid::{
        BuildError, dfa,
        regex::{Builder, Cache, Regex},
    },
    nfa::thompson,
    util::{pool::Pool, syntax::Config as Syntax},
};

use super::{BoxError, syntax};

/// Memory for the compiled automaton of a pattern.
const MAX_COMPILED_BYTES: usize = 4 << 20;
/// Memory for the states that texts have reached, a cache that is cleared when it is full.
const STATES_BYTES: usize = 4 << 20;
/// Bytes that may be looked at in vain, for each byte of a text and besides.
const MAX_SPENT: (usize, usize) = (64, 1 << 20);

type Caches = Pool<Cache, Box<dyn Fn() -> Cache + Send + Sync + UnwindSafe + RefUnwindSafe>>;

pub struct LinearPattern {
    regex: Arc<Regex>,
    caches: Caches,
    /// By pattern: whether its last character is only looked at.
    looks_ahead: Vec<bool>,
}

impl LinearPattern {
    /// `None` if it takes more than an automaton.
    pub fn new(pattern: &str) -> Option<Result<Self, BoxError>> {
        let alternatives = syntax::alternatives(pattern)?;
        let mut parts: Vec<(String, bool)> = Vec::new();
        for alternative in &alternatives {
            match syntax::before_no_text(alternative) {
                Some(spaces) => parts.extend(spaces),
                // One pattern out of neighbors.
                None => match parts.last_mut().filter(|(_, looks_ahead)| !looks_ahead) {
                    Some((part, _)) => *part = format!("{part}|{alternative}"),
                    None => parts.push((alternative.clone(), false)),
                },
            }
        }
        let (patterns, looks_ahead): (Vec<_>, Vec<_>) = parts.into_iter().unzip();
        let states = dfa::Config::new()
            .cache_capacity(STATES_BYTES)
            .minimum_cache_clear_count(Some(16))
            .minimum_bytes_per_state(Some(8));
        let built = Builder::new()
            .syntax(Syntax::new().multi_line(true).nest_limit(2 * super::MAX_DEPTH as u32))
            .thompson(thompson::Config::new().nfa_size_limit(Some(MAX_COMPILED_BYTES)))
            .dfa(states)
            .build_many(&patterns);
        let regex = match built {
            Ok(regex) => regex,
            Err(error) if is_of_size(&error) => {
                return Some(Err(format!("the pattern takes more than {MAX_COMPILED_BYTES} bytes").into()));
            }
            Err(_) => return None,
        };
        let regex = Arc::new(regex);
        let of = regex.clone();
        let create: Box<dyn Fn() -> Cache + Send + Sync + UnwindSafe + RefUnwindSafe> =
            Box::new(move || of.create_cache());
        Some(Ok(Self { regex, caches: Pool::new(create), looks_ahead }))
    }

    /// The first match at or after `from`.
    pub fn find(&self, text: &str, from: usize, spent: &mut usize) -> Result<Option<(usize, usize)>, BoxError> {
        let mut cache = self.caches.get();
        let (forward, reverse) = cache.as_parts_mut();
        let mut walk = DfaWalk { dfa: self.regex.forward(), cache: forward, text, scanned: from };
        // Most patterns match all of a text, piece by piece.
        let mut start = Some(from);
        let mut found = walk.find(from, Anchored::Yes)?;
        if found.is_none() {
            *spent += walk.scanned - from;
            start = None;
            found = walk.find(from, Anchored::No)?;
        }
        let Some((pattern, end)) = found else { return Ok(None) };
        *spent += walk.scanned - end;
        let (each, besides) = MAX_SPENT;
        if *spent > text.len().saturating_mul(each).saturating_add(besides) {
            return Err("the pattern looks too far ahead for this text".into());
        }
        let start = match start {
            Some(start) => start,
            None => {
                let input = Input::new(text).range(from..end).anchored(Anchored::Yes);
                let begun = self.regex.reverse().try_search_rev(reverse, &input)?;
                begun.ok_or("a match has no beginning")?.offset()
            }
        };
        let looked_at = match self.looks_ahead[pattern] {
            true => text[start..end].chars().next_back().map_or(0, char::len_utf8),
            false => 0,
        };
        Ok(Some((start, end - looked_at)))
    }
}

/// Ways through a text.
struct DfaWalk<'a> {
    dfa: &'a dfa::DFA,
    cache: &'a mut dfa::Cache,
    text: &'a str,
    /// How far it has looked.
    scanned: usize,
}

impl DfaWalk<'_> {
    /// The pattern that matches first, and where its match ends.
    fn find(&mut self, from: usize, anchored: Anchored) -> Result<Option<(usize, usize)>, BoxError> {
        let Self { dfa, cache, text, scanned } = self;
        cache.search_start(from);
        let mut state = dfa.start_state_forward(cache, &Input::new(*text).range(from..).anchored(anchored))?;
        let mut found = None;
        for (at, byte) in text.bytes().enumerate().skip(from) {
            let next = dfa.next_state(cache, state, byte);
            state = match next {
                Ok(state) => state,
                Err(_) => return Err("the pattern takes too many states for this text".into()),
            };
            if state.is_tagged() {
                if state.is_match() {
                    // A state tells a byte late that it matches.
                    found = Some((dfa.match_pattern(cache, state, 0).as_usize(), at));
                } else if state.is_dead() {
                    *scanned = at;
                    cache.search_finish(at);
                    return Ok(found);
                } else if state.is_quit() {
                    return Err("the pattern cannot be run on this text".into());
                }
            }
            if at & 0xfff == 0xfff {
                cache.search_update(at);
            }
        }
        *scanned = text.len();
        let end = dfa.next_eoi_state(cache, state).map_err(|_| "the pattern takes too many states for this text")?;
        if end.is_match() {
            found = Some((dfa.match_pattern(cache, end, 0).as_usize(), text.len()));
        }
        cache.search_finish(text.len());
        Ok(found)
    }
}

fn is_of_size(error: &BuildError) -> bool {
    let cause = error.source().and_then(|cause| cause.downcast_ref::<thompson::BuildError>());
    cause.is_some_and(|cause| cause.size_limit().is_some())
}
