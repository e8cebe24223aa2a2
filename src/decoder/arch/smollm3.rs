//! SmolLM3: a llama of which some layers know no positions.

use serde_json::json;

use super::base;
use crate::{Result, decoder::Spec, weights::Config};

pub fn smollm3(config: &Config) -> Result<Spec> {
    let config = &config.or(json!({"rope_theta": 2e6}));
    let mut spec = base::spec(config, "smollm3")?;
    if config.bool_or("use_sliding_window", false)? {
        spec = spec.slide(config, |_| true)?;
    }
    // `no_rope_layers` has a 0 for each of them, else every fourth is one.
    let interval = config.opt_usize("no_rope_layer_interval")?.unwrap_or(4).max(1);
    let turned = config.get("no_rope_layers").map(|_| config.ids("no_rope_layers")).transpose()?;
    if let Some(turned) = turned.as_ref().filter(|turned| turned.len() != spec.layers.len()) {
        let reason = format!("{} entries for {} layers", turned.len(), spec.layers.len());
        return Err(config.bad("no_rope_layers", &reason));
    }
    for (index, layer) in spec.layers.iter_mut().enumerate() {
        let turns = turned.as_ref().map_or((index + 1) % interval != 0, |turned| turned[index] != 0);
        layer.mixer.attention_mut().into_iter().for_each(|attention| attention.rope = turns.then_some(0));
    }
    Ok(spec)
}
