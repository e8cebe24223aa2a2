//! Rope parameters of a configuration, as transformers 5 and earlier versions write them.

use crate::{
    Result,
    decoder::spec::{RopeScaling, RopeSpec},
    kernels::elementwise::RopeStyle,
    weights::Config,
};

/// Reads `rope_parameters` as transformers 5 writes it, or `rope_theta` and `rope_scaling` as
/// earlier versions did. `kind` is that of the layers it is for, where kinds differ.
pub fn spec(config: &Config, kind: &str, max_positions: usize, head_dim: usize) -> Result<RopeSpec> {
    let parameters = parameters(config, kind)?;
    let first = |key: &str| {
        let place = parameters.iter().chain([config]).find(|place| place.get(key).is_some());
        place.map(|place| place.positive(key)).transpose()
    };
    let theta = first("rope_theta")?.unwrap_or(10_000.0);
    let factor = first("partial_rotary_factor")?.unwrap_or(1.0);
    let named = first("rotary_dim")?.unwrap_or(head_dim as f64 * factor) as usize;
    // An odd number of elements is rounded up, and keeps the frequencies of the odd number.
    let dims = named.checked_next_multiple_of(2).unwrap_or(usize::MAX);
    if dims == 0 || dims > head_dim {
        return Err(config.bad("head_dim", &format!("{named} of {head_dim} numbers have no rotary pairs")));
    }
    let theta = theta.powf(dims as f64 / named as f64);
    let scaling =
        parameters.map_or(Ok(RopeScaling::None), |rope| read_scaling(config, &rope, max_positions, dims / 2))?;
    Ok(RopeSpec { theta, dims, style: RopeStyle::NeoX, scaling })
}

/// The rotary parameters of the layers of a kind. If both keys are present, the older one takes the place of the
/// other, but for the kinds of layers, to whose parameters it is added: as transformers resolves it.
pub fn parameters(config: &Config, kind: &str) -> Result<Option<Config>> {
    let older = config.opt_object("rope_scaling")?.filter(|older| older.entries().next().is_some());
    let newer = config.opt_object("rope_parameters")?;
    let of_kind = newer.as_ref().map_or(Ok(None), |newer| newer.opt_object(kind))?;
    Ok(match (of_kind, older) {
        (Some(of_kind), Some(older)) if kind == FULL => Some(older.or_of(&of_kind)),
        (Some(of_kind), _) => Some(of_kind),
        (None, older) => older.or(newer),
    })
}

/// The layers that attend to everything.
pub const FULL: &str = "full_attention";
const ORIGINAL: &str = "original_max_position_embeddings";

/// The tokens that a sequence may have: as many as the scaling is for, where it goes beyond those of the
/// configuration. The factors of Llama 3 and LongRoPE are in those already.
pub fn context(config: &Config, rope: &RopeSpec, max_positions: usize) -> Result<usize> {
    let stretched = match rope.scaling {
        RopeScaling::Linear { factor } => {
            let parameters = parameters(config, FULL)?;
            let original = parameters.map_or(Ok(None), |parameters| parameters.opt_usize(ORIGINAL))?;
            original.unwrap_or(max_positions) as f64 * factor
        }
        RopeScaling::Dynamic { factor, original_positions } => original_positions as f64 * factor,
        RopeScaling::Yarn { factor, original_positions, .. } => original_positions * factor,
        _ => 0.0,
    };
    Ok(max_positions.max(stretched as usize))
}

fn read_scaling(config: &Config, rope: &Config, max_positions: usize, pairs: usize) -> Result<RopeScaling> {
    let key = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
    let original = || {
        let place = [rope, config].into_iter().find(|place| place.get(ORIGINAL).is_some());
        place.map_or(Ok(max_positions), |place| place.size(ORIGINAL))
    };
    let factors = |key| match rope.opt_f32s(key)? {
        Some(factors) if factors.len() == pairs => Ok(factors),
        factors => Err(rope.bad(key, &format!("{} factors for {pairs} pairs", factors.unwrap_or_default().len()))),
    };
    match rope.opt_str(key)?.unwrap_or("default") {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: rope.positive("factor")? }),
        "dynamic" => Ok(RopeScaling::Dynamic { factor: rope.positive("factor")?, original_positions: max_positions }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: rope.positive("factor")?,
            low_freq_factor: rope.positive("low_freq_factor")?,
            high_freq_factor: rope.positive("high_freq_factor")?,
            original_positions: original()? as f64,
        }),
        "yarn" => {
            let factor = rope.positive("factor")?;
            Ok(RopeScaling::Yarn {
                factor,
                beta_fast: rope.opt_f64("beta_fast")?.unwrap_or(32.0),
                beta_slow: rope.opt_f64("beta_slow")?.unwrap_or(1.0),
                original_positions: original()? as f64,
                attention_factor: yarn_attention_factor(rope, factor)?,
                truncate: rope.bool_or("truncate", true)?,
            })
        }
        "longrope" | "su" => {
            let original_positions = original()?;
            let stretch = rope.opt_f64("factor")?.unwrap_or(max_positions as f64 / original_positions as f64);
            let scale = || match stretch > 1.0 {
                true => (1.0 + stretch.ln() / (original_positions as f64).ln()).sqrt(),
                false => 1.0,
            };
            Ok(RopeScaling::Long {
                short: factors("short_factor")?,
                long: factors("long_factor")?,
                original_positions,
                attention_factor: rope.opt_f64("attention_factor")?.unwrap_or_else(scale),
            })
        }
        "factors" => Ok(RopeScaling::Factors(factors("factors")?)),
        _ => Err(rope.bad(key, "not a rope type of this version: default, linear, dynamic, llama3, yarn, longrope")),
    }
}

/// YaRN's scale of queries and keys: given, or `0.1 ln(factor) + 1`, where `mscale` and
/// `mscale_all_dim` refine it (DeepSeek).
fn yarn_attention_factor(rope: &Config, factor: f64) -> Result<f64> {
    if let Some(given) = rope.opt_f64("attention_factor")? {
        return Ok(given);
    }
    let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    match (rope.opt_f64("mscale")?, rope.opt_f64("mscale_all_dim")?) {
        (Some(m), Some(all)) if m != 0.0 && all != 0.0 => Ok(scale(m) / scale(all)),
        _ => Ok(scale(1.0)),
    }
}

/// The rope of sliding layers, where it differs: in `rope_parameters`, or by `rope_local_base_freq`.
pub fn local(config: &Config, max_positions: usize, head_dim: usize) -> Result<RopeSpec> {
    if let Some(parameters) = config.opt_object("rope_parameters")?
        && parameters.get("sliding_attention").is_some()
    {
        return spec(config, "sliding_attention", max_positions, head_dim);
    }
    let theta = config.positive("rope_local_base_freq")?;
    Ok(RopeSpec { theta, dims: head_dim, style: RopeStyle::NeoX, scaling: RopeScaling::None })
}
