use crate::{
    Result,
    decoder::spec::{RopeScaling, RopeSpec},
    weights::Config,
};

/// Reads `rope_parameters` as transformers 5 writes it, or `rope_theta` and `rope_scaling` as
/// earlier versions did.
pub fn spec(config: &Config, max_positions: usize, head_dim: usize) -> Result<RopeSpec> {
    let scaling = match config.opt_object("rope_parameters")? {
        Some(parameters) => Some(parameters),
        None => config.opt_object("rope_scaling")?,
    };
    let theta_of = |config: &Config| match config.get("rope_theta") {
        Some(_) => config.positive("rope_theta").map(Some),
        None => Ok(None),
    };
    let inner = scaling.as_ref().map_or(Ok(None), theta_of)?;
    let theta = match inner {
        Some(theta) => theta,
        None => theta_of(config)?.unwrap_or(10_000.0),
    };
    let scaling = scaling.map_or(Ok(RopeScaling::None), |rope| read_scaling(config, &rope, max_positions))?;
    if let RopeScaling::Factors(factors) = &scaling
        && factors.len() != head_dim / 2
    {
        return Err(config.bad("rope_parameters", &format!("{} factors for heads of {head_dim}", factors.len())));
    }
    Ok(RopeSpec { theta, scaling })
}

fn read_scaling(config: &Config, rope: &Config, max_positions: usize) -> Result<RopeScaling> {
    let key = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
    let original = || match rope.opt_usize("original_max_position_embeddings")? {
        Some(positions) if positions > 0 => Ok(positions as f64),
        Some(_) => Err(rope.bad("original_max_position_embeddings", "at least 1 is needed")),
        None => Ok(config.opt_usize("original_max_position_embeddings")?.unwrap_or(max_positions) as f64),
    };
    match rope.opt_str(key)?.unwrap_or("default") {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: rope.positive("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: rope.positive("factor")?,
            low_freq_factor: rope.positive("low_freq_factor")?,
            high_freq_factor: rope.positive("high_freq_factor")?,
            original_positions: original()?,
        }),
        "yarn" => {
            let factor = rope.positive("factor")?;
            Ok(RopeScaling::Yarn {
                factor,
                beta_fast: rope.opt_f64("beta_fast")?.unwrap_or(32.0),
                beta_slow: rope.opt_f64("beta_slow")?.unwrap_or(1.0),
                original_positions: original()?,
                attention_factor: attention_factor(rope, factor)?,
                truncate: rope.bool_or("truncate", true)?,
            })
        }
        "factors" => Ok(RopeScaling::Factors(rope.opt_f32s("factors")?.unwrap_or_default())),
        _ => Err(rope.bad(key, "not a rope type of this version: default, linear, llama3, yarn")),
    }
}

/// YaRN's scale of queries and keys: given, or `0.1 ln(factor) + 1`, where `mscale` and
/// `mscale_all_dim` refine it (DeepSeek).
fn attention_factor(rope: &Config, factor: f64) -> Result<f64> {
    if let Some(given) = rope.opt_f64("attention_factor")? {
        return Ok(given);
    }
    let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    match (rope.opt_f64("mscale")?, rope.opt_f64("mscale_all_dim")?) {
        (Some(m), Some(all)) if m != 0.0 && all != 0.0 => Ok(scale(m) / scale(all)),
        _ => Ok(scale(1.0)),
    }
}
