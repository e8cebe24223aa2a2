use crate::{
    Result,
    decoder::spec::{RopeScaling, RopeSpec},
    kernels::rows::Pairs,
    weights::Config,
};

/// Reads `rope_parameters` as transformers 5 writes it, or `rope_theta` and `rope_scaling` as
/// earlier versions did. `kind` is that of the layers it is for, where kinds differ.
pub fn spec(config: &Config, kind: &str, max_positions: usize, head_dim: usize) -> Result<RopeSpec> {
    let parameters = match config.opt_object("rope_parameters")? {
        Some(parameters) => match parameters.opt_object(kind)? {
            Some(parameters) => Some(parameters),
            None => Some(parameters),
        },
        None => config.opt_object("rope_scaling")?,
    };
    let first = |keys: &[&str]| {
        let places = parameters.iter().chain([config]);
        let found = places.flat_map(|place| keys.iter().map(move |key| (place, *key)));
        found
            .into_iter()
            .find(|(place, key)| place.get(key).is_some())
            .map(|(place, key)| place.positive(key))
            .transpose()
    };
    let theta = first(&["rope_theta", "rotary_emb_base"])?.unwrap_or(10_000.0);
    let factor = first(&["partial_rotary_factor", "rotary_pct"])?.unwrap_or(1.0);
    let named = first(&["rotary_dim"])?.unwrap_or(head_dim as f64 * factor) as usize;
    // Of an odd number one more is turned, by the frequencies of the odd number.
    let dims = named.checked_next_multiple_of(2).unwrap_or(usize::MAX);
    if dims == 0 || dims > head_dim {
        return Err(config.bad("head_dim", &format!("{named} of {head_dim} numbers have no rotary pairs")));
    }
    let theta = theta.powf(dims as f64 / named as f64);
    let scaling =
        parameters.map_or(Ok(RopeScaling::None), |rope| read_scaling(config, &rope, max_positions, dims / 2))?;
    Ok(RopeSpec { theta, dims, pairs: Pairs::Halves, scaling })
}

fn read_scaling(config: &Config, rope: &Config, max_positions: usize, pairs: usize) -> Result<RopeScaling> {
    let key = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
    let original = || {
        let key = "original_max_position_embeddings";
        let place = if config.get(key).is_some() { config } else { rope };
        if place.get(key).is_some() { place.size(key) } else { Ok(max_positions) }
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

/// That of sliding layers where they have their own: in `rope_parameters`, or by `rope_local_base_freq`.
pub fn local(config: &Config, max_positions: usize, head_dim: usize) -> Result<RopeSpec> {
    if let Some(parameters) = config.opt_object("rope_parameters")?
        && parameters.get("sliding_attention").is_some()
    {
        return spec(config, "sliding_attention", max_positions, head_dim);
    }
    let theta = config.positive("rope_local_base_freq")?;
    Ok(RopeSpec { theta, dims: head_dim, pairs: Pairs::Halves, scaling: RopeScaling::None })
}
