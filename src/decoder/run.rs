//! The way of a batch through the layers, shared by threads.

use std::time::Instant;

use candle_core::{Result, Tensor};

use super::{
    Batch, Network, Pass,
    kv_cache::{CacheReader, CacheWriter, KvCache, SharedLayerCache},
    layer::{Begun, Layer},
    split::{self, Choices},
};
use crate::kernels::{
    attention::MicroBatches,
    threads::{current_num_threads, parallel, pipeline},
};

impl Network {
    /// Stores the keys and values of a batch and gives what its last layer does to the rows that are sampled, if any
    /// are: `[rows, hidden]`.
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
        let pass = self.pass(batch, batch.adapted_rows())?;
        let Some((last, others)) = self.layers.split_last() else { return Ok(Vec::new()) };
        let Some((cache_of_last, caches)) = cache.layers().split_last_mut() else { return Ok(Vec::new()) };
        let mut x = self.embed(batch)?;
        for (layer, cache) in others.iter().zip(caches) {
            let begun = layer.begin(&x, &pass, Some(CacheWriter::Layer(cache)))?;
            x = layer.finish(&x, &begun, &pass, Some(CacheReader::Layer(cache)))?;
        }
        let begun = last.begin(&x, &pass, Some(CacheWriter::Layer(cache_of_last)))?;
        let hidden = self.finish_sampled(last, &(x, begun), &pass, CacheReader::Layer(cache_of_last))?;
        Ok(hidden.into_iter().collect())
    }

    /// By threads that take groups of sequences, of which all rows are sampled, through all layers, and do not meet
    /// before the end.
    fn apart(&self, batch: &Batch, groups: &[Batch], cache: &mut KvCache) -> Result<Vec<Tensor>> {
        let parts = MicroBatches::new(groups.iter().map(Batch::sequences).collect()).filter(MicroBatches::are_apart);
        let caches = parts.as_ref().and_then(|parts| cache.shared(parts));
        let Some(caches) = caches else { return self.whole(batch, cache) };
        parallel::map(groups, |group, batch| self.alone(batch, &caches, group)).into_iter().collect()
    }

    /// Takes a group of sequences through all layers.
    fn alone(&self, batch: &Batch, caches: &[SharedLayerCache<'_>], group: usize) -> Result<Tensor> {
        let pass = self.pass(batch, batch.adapted_rows())?;
        let mut x = self.embed(batch)?;
        for (layer, cache) in self.layers.iter().zip(caches) {
            // No group waits for another one: sequences are whole.
            let writer = CacheWriter::Part { cache, part: group, wait: &|| true };
            let begun = layer.begin(&x, &pass, Some(writer))?;
            x = layer.finish(&x, &begun, &pass, Some(CacheReader::Part(cache, group)))?;
        }
        Ok(x)
    }

    /// By threads that take tiles of the rows from layer to layer, one behind the other.
    fn in_tiles(&self, batch: &Batch, tiles: &[Batch], cache: &mut KvCache) -> Result<Vec<Tensor>> {
        let parts = MicroBatches::new(tiles.iter().map(Batch::sequences).collect());
        let caches = parts.as_ref().and_then(|parts| cache.shared(parts));
        let Some(caches) = caches else { return self.whole(batch, cache) };
        let tiles = tiles.iter().map(|tile| Ok((self.pass(tile, tile.adapted_rows())?, None)));
        let mut tiles = tiles.collect::<Result<Vec<(Pass<'_>, Option<(Tensor, Begun)>)>>>()?;
        // A stage ends the layer before and begins one, so that keys and values of all rows before are there in the
        // next. A recurrence at its end waits for the tiles before to end theirs.
        pipeline::run(&mut tiles, self.layers.len(), |index, tile, (pass, begun), earlier| {
            let x = match begun.take() {
                None => self.embed(pass.batch)?,
                Some((x, begun)) => {
                    let reader = CacheReader::Part(&caches[index - 1], tile);
                    self.layers[index - 1].finish(&x, &begun, pass, Some(reader))?
                }
            };
            let writer = CacheWriter::Part { cache: &caches[index], part: tile, wait: &|| earlier.wait() };
            let next = self.layers[index].begin(&x, pass, Some(writer))?;
            *begun = Some((x, next));
            Ok::<_, candle_core::Error>(())
        })?;
        drop(caches);
        let (Some(last), Some(cache)) = (self.layers.last(), cache.layers().last()) else { return Ok(Vec::new()) };
        let finish = |(pass, begun): &(Pass<'_>, Option<(Tensor, Begun)>)| match begun {
            Some(begun) => self.finish_sampled(last, begun, pass, CacheReader::Layer(cache)),
            None => Ok(None),
        };
        parallel::map(&tiles, |_, tile| finish(tile)).into_iter().filter_map(Result::transpose).collect()
    }

    /// The output of the last layer for the sampled rows, if there are any.
    fn finish_sampled(
        &self,
        layer: &Layer,
        (x, begun): &(Tensor, Begun),
        pass: &Pass<'_>,
        cache: CacheReader<'_>,
    ) -> Result<Option<Tensor>> {
        let batch = pass.batch;
        if batch.sampled.is_empty() {
            return Ok(None);
        }
        if batch.sampled.len() == batch.rows() {
            return layer.finish(x, begun, pass, Some(cache)).map(Some);
        }
        let rows = Tensor::new(batch.sampled.as_slice(), self.ops.device())?;
        let sampled = batch.of_sampled();
        let pass = self.pass(&sampled, sampled.adapted_rows())?;
        layer.finish(&x.index_select(&rows, 0)?, &begun.select(&rows)?, &pass, Some(cache)).map(Some)
    }
}
