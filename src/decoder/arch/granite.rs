//! Granite: a llama with scales.

use crate::{Result, decoder::Spec, weights::Config};

use super::base;

pub fn granite(config: &Config) -> Result<Spec> {
    let mut spec = base::spec(config, "granite")?;
    let scale = |key| if config.get(key).is_some() { config.positive(key) } else { Ok(1.0) };
    spec.embedding_scale = scale("embedding_multiplier")?;
    spec.attention.scale = scale("attention_multiplier")?;
    spec.residual_scale = scale("residual_multiplier")? as f32;
    spec.head.scale = scale("logits_scaling")?.recip() as f32;
    Ok(spec)
}
