//! SmolLM3: a llama of which some layers know no positions.

use super::{base, refuse_windows};
use crate::{Result, decoder::Spec, weights::Config};

pub fn spec(config: &Config) -> Result<Spec> {
    refuse_windows(config)?;
    let spec = base::spec(config, "smollm3", None)?;
    Ok(Spec { layers_without_rope: layers_without_rope(config, spec.num_layers)?, ..spec })
}

/// `no_rope_layers` has a 0 for each of them, else every fourth is one.
fn layers_without_rope(config: &Config, num_layers: usize) -> Result<Vec<usize>> {
    if config.get("no_rope_layers").is_none() {
        let interval = config.opt_usize("no_rope_layer_interval")?.unwrap_or(4).max(1);
        return Ok((0..num_layers).filter(|layer| (layer + 1) % interval == 0).collect());
    }
    let roped = config.ids("no_rope_layers")?;
    if roped.len() != num_layers {
        return Err(config.bad("no_rope_layers", &format!("{} entries for {num_layers} layers", roped.len())));
    }
    Ok((0..num_layers).filter(|layer| roped[*layer] == 0).collect())
}
