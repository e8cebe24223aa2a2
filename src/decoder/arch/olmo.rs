//! OLMo 1 to 3.

use serde_json::json;

use super::{base, rope};
use crate::{
    Result,
    decoder::{
        Spec,
        spec::{NormOver, NormSpec, Order, QkNorm},
    },
    weights::Config,
};

pub fn olmo(config: &Config) -> Result<Spec> {
    if config.get("clip_qkv").is_some() {
        return Err(config.bad("clip_qkv", "clipping is not supported"));
    }
    let mut spec = base::spec(&config.or(json!({"rms_norm_eps": 1e-5})), "olmo")?;
    spec.norm = NormSpec { centred: true, weight: false, bias: false, eps: 1e-5 };
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
    let mut spec = post_norm(config, "olmo3")?.slide(config, |layer| (layer + 1) % 4 != 0)?;
    let theta = config.or(json!({"rope_local_base_freq": spec.ropes[0].theta}));
    spec.ropes.push(rope::local(&theta, spec.max_positions, spec.attention.head_dim)?);
    for layer in &mut spec.layers {
        layer.rope = Some(usize::from(layer.window.is_some()));
    }
    Ok(spec)
}

fn post_norm(config: &Config, architecture: &'static str) -> Result<Spec> {
    let mut spec = base::spec(config, architecture)?;
    spec.order = Order::POST_NORM;
    spec.attention.qk_norm = Some(QkNorm { over: NormOver::All, norm: spec.norm });
    Ok(spec)
}
