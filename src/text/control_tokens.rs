//! Control tokens, which no text of a message may become.

use std::{
    collections::{HashMap, HashSet},
    sync::OnceLock,
};

use tokenizers::{AddedToken, Model as _, ModelWrapper};

use super::{control_names, stop_strings::Automaton, tokenizer::guarded};

/// Turn markers that look like the tags that are text, such as `<think>`.
const TURN_TAGS: [&str; 12] = [
    "start_of_turn",
    "end_of_turn",
    "turn",
    "system",
    "user",
    "human",
    "assistant",
    "bot",
    "s",
    "bos",
    "eos",
    "end_of_utterance",
];
/// Parts of names of tokens that people and models write of their own accord, and that are no turn markers.
const OWN_WORDS: [&str; 3] = ["think", "reason", "tool_call"];

/// Longer texts are searched one by one: an automaton takes a multiple of their size.
pub const MAX_TEXT_BYTES: usize = 4096;

/// Control tokens: tokens that are flagged as special or end an answer, and turn markers that are not flagged.
#[derive(Default)]
pub struct ControlTokens {
    ids: HashSet<u32>,
    by_text: HashMap<String, ControlToken>,
    long_texts: Vec<String>,
    texts: OnceLock<Automaton>,
    /// Ids that begin or end a text, or end an answer.
    bounds: HashSet<u32>,
    /// The token of unknown text.
    unknown: OnceLock<Option<u32>>,
}

/// A control token with its flags.
#[derive(Clone)]
pub struct ControlToken {
    pub id: u32,
    pub token: AddedToken,
}

impl ControlTokens {
    pub fn add(&mut self, id: u32, token: AddedToken) {
        self.ids.insert(id);
        if token.content.len() > MAX_TEXT_BYTES {
            self.long_texts.push(token.content.clone());
        }
        if !token.content.is_empty() {
            self.by_text.insert(token.content.clone(), ControlToken { id, token });
        }
        (self.texts, self.unknown) = (OnceLock::new(), OnceLock::new());
    }

    /// Takes note of ids that begin or end a text, or end an answer.
    pub fn bound(&mut self, ids: &[u32]) {
        self.bounds.extend(ids);
        self.unknown = OnceLock::new();
    }

    /// The token of unknown text, unless it has another meaning, such as ending an answer.
    pub fn unknown(&self, model: &ModelWrapper) -> Option<u32> {
        *self.unknown.get_or_init(|| {
            let tokens = guarded(|| model.tokenize("\u{FDEF}")).ok()?;
            let unknown = tokens.into_iter().find(|token| self.contains(token.id))?;
            let is_bound = self.bounds.contains(&unknown.id) || control_names::is_control(&unknown.value);
            (!is_bound).then_some(unknown.id)
        })
    }

    /// Whether a token that came of this text is a control token. The unknown token is none.
    pub fn is_control(&self, model: &ModelWrapper, id: u32, text: &str) -> bool {
        let is_itself = || model.id_to_token(id).is_some_and(|token| token == text.trim());
        self.contains(id) && (self.unknown(model) != Some(id) || is_itself())
    }

    /// Whether a control token could be among these, which came of a word.
    pub fn may_be_in(&self, model: &ModelWrapper, ids: &[u32], word: &str) -> bool {
        let mut controls = ids.iter().filter(|id| self.contains(**id)).peekable();
        if controls.peek().is_none() {
            return false;
        }
        let unknown = self.unknown(model);
        let is_written = unknown.and_then(|id| model.id_to_token(id)).is_some_and(|token| word.contains(&token));
        controls.any(|id| is_written || unknown != Some(*id))
    }

    pub fn contains(&self, id: u32) -> bool {
        self.ids.contains(&id)
    }

    /// The longest one that a text begins with.
    pub fn at_start_of(&self, text: &str) -> Option<&ControlToken> {
        let long = self.long_texts.iter().filter(|long| text.starts_with(long.as_str())).map(String::len).max();
        let len = long.or_else(|| self.texts().longest_at_start(text.as_bytes()))?;
        self.by_text.get(&text[..len])
    }

    fn short_texts(&self) -> impl Iterator<Item = &String> {
        self.by_text.keys().filter(|text| text.len() <= MAX_TEXT_BYTES)
    }

    fn texts(&self) -> &Automaton {
        self.texts.get_or_init(|| Automaton::new(self.short_texts().map(String::as_bytes)))
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether an added token that is not flagged as special is a turn marker if a template writes it: a tag such as
/// `<tool_response>` is text.
pub fn is_turn_marker(text: &str) -> bool {
    if OWN_WORDS.iter().any(|word| text.to_lowercase().contains(word)) {
        return false;
    }
    let tag = text.strip_prefix('<').and_then(|rest| rest.strip_suffix('>'));
    let name =
        tag.map(|tag| tag.trim_matches('/')).filter(|name| name.chars().all(|c| is_word(c) || "-.:".contains(c)));
    name.map_or_else(|| looks_like_control(text), |name| TURN_TAGS.contains(&name))
}

/// Whether a token that a file calls a beginning or an end is one that people and models write of their own accord,
/// such as a line break.
pub fn is_ordinary(text: &str) -> bool {
    text.trim().chars().count() <= 2
}

fn looks_like_control(text: &str) -> bool {
    text.chars().count() > 2 && text.contains(['<', '>', '[', ']', '|', '｜'])
}
