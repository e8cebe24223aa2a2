//! Qwen 2, 2.5 and 3, and what is distilled into them.

use super::{base, refuse_windows};
use crate::{Result, decoder::Spec, weights::Config};

pub fn qwen2(config: &Config) -> Result<Spec> {
    refuse_windows(config)?;
    Ok(Spec { qkv_bias: true, out_bias: false, ..base::spec(config, "qwen2", None)? })
}

pub fn qwen3(config: &Config) -> Result<Spec> {
    refuse_windows(config)?;
    Ok(Spec { qk_norm: true, ..base::spec(config, "qwen3", Some(128))? })
}
