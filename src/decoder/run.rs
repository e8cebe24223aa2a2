//! The way of a batch through the layers, shared by threads.

use std::time::Instant;

use candle_core::{Result, Tensor};

use super::{
    Batch, Network, Pass,
    attention::Projected,
    differentiable::with_f32,
    kv_cache::{Cached, KvCache, LayerCache},
    layer::{Begun, Layer},
    lora::AdaptedRows,
    split::{self, Choices},
};
use crate::kernels::{
    Isa,
    attention::{MicroBatches, SharedCache},
    threads::{current_num_threads, parallel, pipeline},
};

impl Network {
    /// Stores the keys and values of a batch and gives what its last layer does to the rows that are sampled, if any are:
    /// `[rows, hidden]`.
    pub(super) fn hidden(&self, batch: &Batch, cache: &mut KvCache, choices: &mut Choices) -> Result<Option<Tensor>> {
        let threads = current_num_threads();
        let divisible = threads > 1 && self.is_on_cpu() && self.layers.iter().all(Layer::is_small);
        let groups = divisible.then(|| split::by_sequences(batch, threads)).flatten();
        let together = |cache: &mut KvCache| match divisible.then(|| split::in_tiles(batch, threads)).flatten() {
            Some(tiles) => self.in_tiles(batch, &tiles, cache),
            None => self.whole(batch, cache),
        };
        let hidden = match groups {
            Some(groups) => {
                let (choice, begun) = (choices.of(batch.rows()), Instant::now());
                let hidden = match choice.is_apart() {
                    true => self.apart(batch, &groups, cache)?,
                    false => together(cache)?,
                };
                choice.took(begun.elapsed() / batch.rows() as u32);
                hidden
            }
            None => together(cache)?,
        };
        Ok(match hidden.as_slice() {
            [] => None,
            [hidden] => Some(hidden.clone()),
            parts => Some(Tensor::cat(parts, 0)?),
        })
    }

    /// By threads that meet after each operation.
    fn whole(&self, batch: &Batch, cache: &mut KvCache) -> Result<Vec<Tensor>> {
        let pass = self.pass(batch, AdaptedRows::of(batch))?;
        let Some((last, others)) = self.layers.split_last() else { return Ok(Vec::new()) };
        let Some((cache_of_last, caches)) = cache.layers().split_last_mut() else { return Ok(Vec::new()) };
        let begin = |layer: &Layer, x: &Tensor, cache: &mut LayerCache| {
            let begun = layer.begin(x, &pass)?;
            cache.store(batch, &begun.projected.keys, &begun.projected.values, self.isa)?;
            Ok::<_, candle_core::Error>(begun)
        };
        let mut x = self.embed(batch)?;
        for (layer, cache) in others.iter().zip(caches) {
            let begun = begin(layer, &x, cache)?;
            x = layer.finish(&x, &begun, &pass, Some(Cached::Layer(cache)))?;
        }
        let begun = begin(last, &x, cache_of_last)?;
        let hidden = self.finish_sampled(last, &(x, begun), &pass, Cached::Layer(cache_of_last))?;
        Ok(hidden.into_iter().collect())
    }

    /// By threads that take groups of sequences, of which all rows are sampled, through all layers, and do not meet before
    /// the end.
    fn apart(&self, batch: &Batch, groups: &[Batch], cache: &mut KvCache) -> Result<Vec<Tensor>> {
        let parts = MicroBatches::new(groups.iter().map(Batch::sequences).collect()).filter(MicroBatches::are_apart);
        let caches = parts.as_ref().and_then(|parts| cache.shared(parts));
        let Some(caches) = caches else { return self.whole(batch, cache) };
        parallel::map(groups, |group, batch| self.alone(batch, &caches, group)).into_iter().collect()
    }

    /// Takes a group of sequences through all layers.
    fn alone(&self, batch: &Batch, caches: &[SharedCache<'_>], group: usize) -> Result<Tensor> {
        let pass = self.pass(batch, AdaptedRows::of(batch))?;
        let mut x = self.embed(batch)?;
        for (layer, cache) in self.layers.iter().zip(caches) {
            let begun = layer.begin(&x, &pass)?;
            store(&begun, cache, group, self.isa)?;
            x = layer.finish(&x, &begun, &pass, Some(Cached::Part(cache, group)))?;
        }
        Ok(x)
    }

    /// By threads that take tiles of the rows from layer to layer, one behind the other.
    fn in_tiles(&self, batch: &Batch, tiles: &[Batch], cache: &mut KvCache) -> Result<Vec<Tensor>> {
        let parts = MicroBatches::new(tiles.iter().map(Batch::sequences).collect());
        let caches = parts.as_ref().and_then(|parts| cache.shared(parts));
        let Some(caches) = caches else { return self.whole(batch, cache) };
        let tiles = tiles.iter().map(|tile| Ok((self.pass(tile, AdaptedRows::of(tile))?, None)));
        let mut tiles = tiles.collect::<Result<Vec<(Pass<'_>, Option<(Tensor, Begun)>)>>>()?;
        // A stage ends the layer before and begins one, so that keys and values of all rows before are there in the next.
        pipeline::run(&mut tiles, self.layers.len(), |index, tile, (pass, begun)| {
            let x = match begun.take() {
                None => self.embed(pass.batch)?,
                Some((x, begun)) => {
                    let cached = Cached::Part(&caches[index - 1], tile);
                    self.layers[index - 1].finish(&x, &begun, pass, Some(cached))?
                }
            };
            let next = self.layers[index].begin(&x, pass)?;
            store(&next, &caches[index], tile, self.isa)?;
            *begun = Some((x, next));
            Ok::<_, candle_core::Error>(())
        })?;
        drop(caches);
        let (Some(last), Some(cache)) = (self.layers.last(), cache.layers().last()) else { return Ok(Vec::new()) };
        let finish = |(pass, begun): &(Pass<'_>, Option<(Tensor, Begun)>)| match begun {
            Some(begun) => self.finish_sampled(last, begun, pass, Cached::Layer(cache)),
            None => Ok(None),
        };
        parallel::map(&tiles, |_, tile| finish(tile)).into_iter().filter_map(Result::transpose).collect()
    }

    /// What a layer does to the rows that are sampled, if any are.
    fn finish_sampled(
        &self,
        layer: &Layer,
        (x, begun): &(Tensor, Begun),
        pass: &Pass<'_>,
        cache: Cached<'_>,
    ) -> Result<Option<Tensor>> {
        let batch = pass.batch;
        if batch.sampled.is_empty() {
            return Ok(None);
        }
        if batch.sampled.len() == batch.rows() {
            return layer.finish(x, begun, pass, Some(cache)).map(Some);
        }
        let rows = Tensor::new(batch.sampled.as_slice(), &self.device)?;
        let sampled = batch.of_sampled();
        let pass = self.pass(&sampled, AdaptedRows::of(&sampled))?;
        layer.finish(&x.index_select(&rows, 0)?, &begun.select(&rows)?, &pass, Some(cache)).map(Some)
    }
}

/// Stores the keys and values of a part of a batch.
fn store(begun: &Begun, cache: &SharedCache<'_>, part: usize, isa: Isa) -> Result<()> {
    let Projected { keys, values, .. } = &begun.projected;
    with_f32(keys, |keys| with_f32(values, |values| cache.store(part, keys, values, isa)))?
}
