//! Hunyuan's dense models.

use super::{base, rope_config};
use crate::{
    Result,
    decoder::{
        Spec,
        layout::Names,
        spec::{NormOver, QkNorm, RopeScaling},
    },
    weights::Config,
};

/// Queries and keys are normalized after their positions have turned them.
pub fn hunyuan_v1_dense(config: &Config) -> Result<Spec> {
    let mut spec = base::spec(config, "hunyuan_v1_dense")?;
    if let Some(scaling) = rope_config::parameters(config, rope_config::FULL)?
        && let RopeScaling::Dynamic { .. } = spec.ropes[0].scaling
        && scaling.get("alpha").is_some()
    {
        // For texts of every length.
        let dims = spec.ropes[0].dims as f64;
        spec.ropes[0].theta *= scaling.positive("alpha")?.powf(dims / (dims - 2.0).max(1.0));
        spec.ropes[0].scaling = RopeScaling::None;
    }
    let norm = spec.norm;
    spec.each_attention(|attention| {
        attention.qk_norm = Some(QkNorm { over: NormOver::Head, norm, after_rope: true });
    });
    spec.layout.names =
        Names { query_norm: "self_attn.query_layernorm", key_norm: "self_attn.key_layernorm", ..Names::LLAMA };
    Ok(spec)
}
