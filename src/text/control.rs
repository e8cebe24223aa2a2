//! Which tokens no text of a message may become.

use std::{
    collections::{HashMap, HashSet},
    sync::OnceLock,
};

use tokenizers::AddedToken;

use super::stop_strings::Automaton;

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
/// What people and models write of their own accord: parts of names of tokens that are no turn markers.
const OWN_WORDS: [&str; 3] = ["think", "reason", "tool_call"];

/// Control tokens: those that are flagged as special, those that end an answer, and turn markers that are not flagged.
#[derive(Default)]
pub struct ControlTokens {
    ids: HashSet<u32>,
    by_text: HashMap<String, ControlToken>,
    texts: OnceLock<Automaton>,
}

/// What the tokenizer does where it finds one.
#[derive(Clone)]
pub struct ControlToken {
    pub id: u32,
    pub token: AddedToken,
}

impl ControlTokens {
    pub fn add(&mut self, id: u32, token: AddedToken) {
        self.ids.insert(id);
        if !token.content.is_empty() {
            self.by_text.insert(token.content.clone(), ControlToken { id, token });
        }
        self.texts = OnceLock::new();
    }

    pub fn contains(&self, id: u32) -> bool {
        self.ids.contains(&id)
    }

    pub fn tokens(&self) -> impl Iterator<Item = &ControlToken> {
        self.by_text.values()
    }

    /// The longest one that a text begins with.
    pub fn at_start_of(&self, text: &str) -> Option<&ControlToken> {
        let len = self.texts().longest_at_start(text.as_bytes())?;
        self.by_text.get(&text[..len])
    }

    fn texts(&self) -> &Automaton {
        self.texts.get_or_init(|| Automaton::new(self.by_text.keys().map(String::as_bytes)))
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

/// Whether a token that a file calls an end, say, is no ordinary text.
pub fn looks_like_control(text: &str) -> bool {
    text.chars().count() > 2 && text.contains(['<', '>', '[', ']', '|', '｜'])
}
