//! Mistral from 7B v0.2 on: those that attend to everything.

use super::base;
use crate::{Result, decoder::Spec, weights::Config};

/// What transformers takes where a configuration does not say it.
const DEFAULT_WINDOW: usize = 4096;

pub fn spec(config: &Config) -> Result<Spec> {
    let spec = base::spec(config, "mistral", None)?;
    let window = match config.mentions("sliding_window") {
        true => config.opt_usize("sliding_window")?,
        false => Some(DEFAULT_WINDOW),
    };
    match window.filter(|window| *window < spec.max_positions) {
        Some(window) => Err(config.bad("sliding_window", &format!("a window of {window} tokens is not supported"))),
        None => Ok(spec),
    }
}
