//! The common part of mixtures of experts.

use super::base;
use crate::{
    Result,
    decoder::spec::{DenseSpec, ExpertsSpec, RoutingSpec},
    weights::Config,
};

/// Experts without a shared one; `size` is the key of their inner size.
pub fn spec(config: &Config, size: &str, normalize: bool) -> Result<ExpertsSpec> {
    let key = if config.get("num_local_experts").is_some() { "num_local_experts" } else { "num_experts" };
    let (num_experts, per_token) = (config.size(key)?, config.size("num_experts_per_tok")?);
    if per_token > num_experts {
        return Err(config.bad("num_experts_per_tok", &format!("more than the {num_experts} experts")));
    }
    let expert = DenseSpec { bias: false, ..base::dense(config, size)? };
    let routing = RoutingSpec::SOFTMAX;
    Ok(ExpertsSpec { num_experts, per_token, router_bias: false, expert, normalize, routing, shared: None })
}
