//! Mixtures of experts: rows are gathered once, and outputs summed once.

use candle_core::{Result, Tensor};

use crate::decoder::ops::rows_of_experts;

pub fn mix_experts(
    x: &Tensor,
    weights: &Tensor,
    mut run: impl FnMut(usize, &Tensor, &[u32]) -> Result<Tensor>,
) -> Result<Tensor> {
    let by_expert: Vec<Vec<f32>> = weights.t()?.to_vec2()?;
    let chosen = rows_of_experts(&by_expert);
    let (rows, all) = (x.dim(0)?, chosen.concat());
    // Of each row, the places of its outputs.
    let mut places: Vec<Vec<u32>> = vec![Vec::new(); rows];
    (0u32..).zip(&all).for_each(|(place, row)| places[*row as usize].push(place));
    let most = places.iter().map(Vec::len).max().unwrap_or(0);
    if most == 0 {
        return x.zeros_like();
    }
    let gathered = x.index_select(&Tensor::new(all.as_slice(), x.device())?, 0)?;
    let (mut outputs, mut factors, mut start) = (Vec::new(), Vec::with_capacity(all.len()), 0);
    for (expert, chosen) in chosen.iter().enumerate().filter(|(_, chosen)| !chosen.is_empty()) {
        outputs.push(run(expert, &gathered.narrow(0, start, chosen.len())?, chosen)?);
        factors.extend(chosen.iter().map(|row| by_expert[expert][*row as usize]));
        start += chosen.len();
    }
    let factors = Tensor::new(factors, x.device())?.to_dtype(x.dtype())?.unsqueeze(1)?;
    let weighted = Tensor::cat(&outputs, 0)?.broadcast_mul(&factors)?;
    // Rows with fewer experts than others take zeros, which follow the outputs.
    let weighted = Tensor::cat(&[&weighted, &weighted.narrow(0, 0, 1)?.zeros_like()?], 0)?;
    let zeros = all.len() as u32;
    let places = (0..most).flat_map(|nth| places.iter().map(move |places| places.get(nth).copied().unwrap_or(zeros)));
    let places = Tensor::from_iter(places, x.device())?;
    weighted.index_select(&places, 0)?.reshape((most, rows, x.dim(1)?))?.sum(0)
}
