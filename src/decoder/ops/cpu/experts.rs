//! Mixtures of experts, row by row in the order of the experts.

use candle_core::{Result, Tensor};

use crate::{autograd::composed, decoder::ops::rows_of_experts};

/// Experts add to a row in their order, whichever other rows there are.
pub fn mix_experts(
    x: &Tensor,
    weights: &Tensor,
    mut run: impl FnMut(usize, &Tensor, &[u32]) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut sum = x.zeros_like()?;
    let weights = composed([weights], |[weights]| weights.t()?.contiguous())?;
    for (expert, chosen) in rows_of_experts(&weights.to_vec2()?).into_iter().enumerate() {
        if chosen.is_empty() {
            continue;
        }
        let rows = Tensor::new(chosen.as_slice(), x.device())?;
        let own = rows.clone();
        let y = run(expert, &composed([x], move |[x]| x.index_select(&own, 0))?, &chosen)?;
        sum = composed([&sum, &y, &weights], move |[sum, y, weights]| {
            let weights = weights.get(expert)?.index_select(&rows, 0)?.unsqueeze(1)?;
            sum.index_add(&rows, &y.broadcast_mul(&weights)?, 0)
        })?;
    }
    Ok(sum)
}
