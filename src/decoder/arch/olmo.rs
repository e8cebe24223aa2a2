//! OLMo 1 to 3, OLMoE, and EXAONE 4, which is of OLMo 2's shape.

use serde_json::json;

use super::{base, experts, rope_config};
use crate::{
    Result,
    decoder::{
        Spec,
        spec::{NormOver, NormPlacement, NormSpec},
    },
    kernels::elementwise::NormKind,
    weights::Config,
};

pub fn olmo(config: &Config) -> Result<Spec> {
    let mut spec = base::spec(&config.or(json!({"rms_norm_eps": 1e-5})), "olmo")?;
    let clip = clip(config)?;
    spec.each_attention(|attention| attention.clip = clip);
    spec.norm = NormSpec { kind: NormKind::LayerNorm, weight: false, bias: false, eps: 1e-5 };
    Ok(spec)
}

pub fn olmo2(config: &Config) -> Result<Spec> {
    // GGUF calls OLMo 3 so, too.
    match config.get("sliding_window") {
        Some(_) => olmo3(config),
        None => post_norm(config, "olmo2"),
    }
}

pub fn olmo3(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({"sliding_window": 4096, "rope_theta": 5e5}));
    let spec = post_norm(config, "olmo3")?.slide(config, |layer| (layer + 1) % 4 != 0)?;
    let theta = config.or(json!({"rope_local_base_freq": spec.ropes[0].theta}));
    let local = rope_config::local(&theta, spec.max_positions, spec.head_dim())?;
    Ok(spec.local_rope(local))
}

/// OLMoE: experts, and norms before.
pub fn olmoe(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({"num_experts_per_tok": 8, "num_experts": 64}));
    let mut spec = base::spec(config, "olmoe")?;
    let clip = clip(config)?;
    spec.each_attention(|attention| attention.clip = clip);
    spec.normalize_queries_and_keys(NormOver::All);
    let normalize = config.bool_or("norm_topk_prob", false)?;
    Ok(spec.experts(experts::spec(config, "intermediate_size", normalize)?))
}

/// EXAONE 4: norms after, those of queries and keys over heads. Where there are windows, layers without know no
/// positions.
pub fn exaone4(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({"sliding_window": 4096}));
    let mut spec = post_norm(config, "exaone4")?;
    spec.normalize_queries_and_keys(NormOver::Head);
    if config.get("sliding_window").is_none() {
        return Ok(spec);
    }
    // It may also be a text such as "LLLG", which is the usual pattern.
    let period = config.get("sliding_window_pattern").and_then(|period| period.as_u64()).unwrap_or(4).max(1) as usize;
    Ok(spec.slide(config, |layer| (layer + 1) % period != 0)?.rope_in_windows())
}

fn post_norm(config: &Config, architecture: &'static str) -> Result<Spec> {
    let mut spec = base::spec(config, architecture)?;
    spec.norm_placement = NormPlacement::POST_NORM;
    spec.normalize_queries_and_keys(NormOver::All);
    Ok(spec)
}

/// The bound of queries, keys and values. GGUF's 0 is none.
fn clip(config: &Config) -> Result<Option<f64>> {
    match config.opt_f64("clip_qkv")? {
        None | Some(0.0) => Ok(None),
        Some(_) => config.positive("clip_qkv").map(Some),
    }
}
