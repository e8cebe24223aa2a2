//! A toy for tests: recurrent layers between attention layers of two head shapes.

use std::sync::Arc;

use super::base;
use crate::{
    Result,
    decoder::{
        Spec,
        gated_average::GatedAverageSpec,
        spec::{AttentionSpec, MixerSpec, RopeSpec},
    },
    weights::Config,
};

/// `layer_types` names the mixer of each layer: `average`, `full_attention`, or `narrow_attention`, with one key head
/// for two query heads of another size and a window.
pub fn toy_hybrid(config: &Config) -> Result<Spec> {
    let mut spec = base::spec(config, "toy_hybrid")?;
    let narrow_rope = RopeSpec { theta: 100.0, dims: 12, ..spec.ropes[0].clone() };
    spec.ropes.push(narrow_rope);
    let width = config.size("average_width")?;
    let kinds = config.opt_strs("layer_types")?.unwrap_or_default();
    for (layer, kind) in spec.layers.iter_mut().zip(kinds) {
        match (kind, &mut layer.mixer) {
            ("average", mixer) => *mixer = MixerSpec::Recurrent(Arc::new(GatedAverageSpec { width })),
            ("narrow_attention", MixerSpec::Attention(attention)) => {
                let heads = AttentionSpec { num_heads: 2, num_kv_heads: 1, head_dim: 24, ..attention.clone() };
                *attention = AttentionSpec { window: Some(20), rope: Some(1), scale: 0.3, ..heads };
            }
            _ => {}
        }
    }
    Ok(spec)
}
