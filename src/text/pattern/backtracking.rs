//! Patterns that need backtracking: lookaround and backreferences beyond those of common models.

use std::panic::{AssertUnwindSafe, catch_unwind};

use fancy_regex::{Error, Regex, RegexBuilder, RuntimeError};

use super::BoxError;

/// Bytes that such a pattern may have.
const MAX_BYTES: usize = 1 << 10;
/// Memory for each of its parts that an automaton runs.
const MAX_PART_BYTES: usize = 256 << 10;
/// Bytes of a text that it is run on.
const MAX_TEXT_BYTES: usize = 64 << 10;
/// Steps back for a match: of most, and of as many as there may be in a text.
const STEPS: (usize, usize) = (1 << 10, 1 << 19);
const MAX_LONG: usize = 4;

pub struct BacktrackingPattern {
    quick: Regex,
    thorough: Regex,
}

impl BacktrackingPattern {
    pub fn new(pattern: &str) -> Result<Self, BoxError> {
        if pattern.len() > MAX_BYTES {
            return Err(
                format!("the pattern looks around and has {} bytes, more than {MAX_BYTES}", pattern.len()).into()
            );
        }
        let build = |steps| {
            let mut builder = RegexBuilder::new(pattern);
            builder.oniguruma_mode(true).multi_line(true).backtrack_limit(steps);
            builder.delegate_size_limit(MAX_PART_BYTES).delegate_dfa_size_limit(MAX_PART_BYTES);
            // The compiler panics for some invalid patterns.
            catch_unwind(AssertUnwindSafe(|| builder.build())).map_err(|_| "the pattern cannot be compiled")
        };
        Ok(Self { quick: build(STEPS.0)??, thorough: build(STEPS.1)?? })
    }

    /// The first match at or after `from`.
    pub fn find(&self, text: &str, from: usize, spent: &mut usize) -> Result<Option<(usize, usize)>, BoxError> {
        if text.len() > MAX_TEXT_BYTES {
            return Err(format!("the pattern looks around, and the text has more than {MAX_TEXT_BYTES} bytes").into());
        }
        let mut found = self.quick.find_from_pos(text, from);
        if matches!(&found, Err(Error::RuntimeError(RuntimeError::BacktrackLimitExceeded))) && *spent < MAX_LONG {
            *spent += 1;
            found = self.thorough.find_from_pos(text, from);
        }
        Ok(found?.map(|found| (found.start(), found.end())))
    }
}
