//! Gemma 1 to 3, and the text part of multimodal Gemma 3.

use serde_json::json;

use super::{base, rope_config, unread};
use crate::{
    Result,
    decoder::{
        Spec,
        layout::Names,
        spec::{NormOver, NormPlacement},
    },
    kernels::elementwise::Activation,
    weights::Config,
};

pub fn gemma(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({
        "head_dim": 256, "hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": true, "rms_norm_eps": 1e-6,
        "max_position_embeddings": 8192,
    }));
    let mut spec = base::spec(config, "gemma")?.dense(|mlp| {
        // The first configurations said "gelu" for it.
        if mlp.activation == Activation::Gelu {
            mlp.activation = Activation::GeluTanh;
        }
    });
    spec.embedding_scale = (spec.hidden_size as f64).sqrt();
    spec.layout.norm_less_one = true;
    Ok(spec)
}

pub fn gemma2(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({
        "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        "query_pre_attn_scalar": 256,
    }));
    let mut spec = sandwich(config)?;
    spec.architecture = "gemma2";
    spec.slide(config, |layer| layer % 2 == 0)
}

pub fn gemma3(config: &Config) -> Result<Spec> {
    let text = unread::text_config(config, "gemma3_text")?;
    let config = &text.as_ref().unwrap_or(config).or(json!({
        "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 131_072,
        "query_pre_attn_scalar": 256, "sliding_window": 4096, "rope_theta": 1e6, "rope_local_base_freq": 1e4,
    }));
    let mut spec = sandwich(config)?;
    spec.architecture = "gemma3";
    // The factor of its scaling is in it already.
    spec.max_positions = config.size("max_position_embeddings")?;
    spec.normalize_queries_and_keys(NormOver::Head);
    spec.layout.prefixes = &[("model.", "model.language_model."), ("", "language_model."), ("model.", "")];
    spec.layout.inside = text.as_ref().map(|_| spec.layout.prefixes[0]);
    let period = config.opt_usize("sliding_window_pattern")?.unwrap_or(6).max(1);
    let local = rope_config::local(config, spec.max_positions, spec.head_dim())?;
    Ok(spec.slide(config, |layer| (layer + 1) % period != 0)?.local_rope(local))
}

/// The common part of Gemma 2 and 3.
fn sandwich(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({"hidden_activation": "gelu_pytorch_tanh"}));
    let mut spec = gemma(&config.renamed(&[("hidden_activation", "hidden_act")]))?;
    spec.norm_placement = NormPlacement::SANDWICH;
    let scale = config.positive("query_pre_attn_scalar")?.sqrt().recip();
    let softcap = config.opt_f64("attn_logit_softcapping")?.map(|cap| cap as f32);
    spec.each_attention(|attention| (attention.scale, attention.softcap) = (scale, softcap));
    spec.head.softcap = config.opt_f64("final_logit_softcapping")?.map(|cap| cap as f32);
    spec.layout.names = Names { mlp_norm: "pre_feedforward_layernorm", ..Names::LLAMA };
    Ok(spec)
}
