//! Validation of configs against the abilities of a model.

use crate::{Error, GenerateConfig, Result};

/// The kinds of calls, for the validation of their configs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskKind {
    Generate,
    Classify,
    Score,
}

/// The part of a model's abilities that decides which configs it can honor.
#[derive(Debug, Clone, Copy)]
pub struct RequestLimits {
    /// Tokens in the vocabulary; `None` if the backend does not know.
    pub vocab_size: Option<usize>,
}

impl RequestLimits {
    /// Refuses a valid config that this call to this model cannot honor.
    pub fn check(&self, config: &GenerateConfig, kind: TaskKind) -> Result<()> {
        if config.return_logits && kind != TaskKind::Classify {
            return Err(Error::config("return_logits", "true; only classify returns logits"));
        }
        if kind != TaskKind::Generate {
            check_no_stops(config)?;
        }
        self.check_ids(config)
    }

    /// Whether `id` is in the vocabulary, as far as the backend knows.
    pub fn knows(&self, id: u32) -> bool {
        self.vocab_size.is_none_or(|vocab_size| (id as usize) < vocab_size)
    }

    fn check_ids(&self, config: &GenerateConfig) -> Result<()> {
        let unknown = |id: &&u32| !self.knows(**id);
        let stop_token = config.stop_tokens.iter().find(unknown).map(|id| ("stop_tokens", id));
        let biased = config.logit_bias.keys().find(unknown).map(|id| ("logit_bias", id));
        match (stop_token.or(biased), self.vocab_size) {
            (Some((field, id)), Some(vocab_size)) => {
                Err(Error::config(field, format!("{id} is not in a vocabulary of {vocab_size}")))
            }
            _ => Ok(()),
        }
    }
}

/// Refuses settings of the end of an answer.
fn check_no_stops(config: &GenerateConfig) -> Result<()> {
    let (field, value) = if !config.stop.is_empty() {
        ("stop", format!("{:?}", config.stop))
    } else if !config.stop_tokens.is_empty() {
        ("stop_tokens", format!("{:?}", config.stop_tokens))
    } else if config.min_tokens > 0 {
        ("min_tokens", config.min_tokens.to_string())
    } else if config.ignore_eos {
        ("ignore_eos", "true".into())
    } else {
        return Ok(());
    };
    Err(Error::config(field, format!("{value}; nothing is generated that could be stopped")))
}
