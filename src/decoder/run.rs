//! The way of a batch through the layers, shared by threads.

use std::time::Instant;

use candle_core::{Result, Tensor};

use super::{
    Batch, Network, Pass,
    attention::Projected,
    kv_cache::{Cached, KvCache},
    layer::{Begun, Layer},
    lora::AdaptedRows,
    op::with_f32,
    split::{self, Choices},
};
use crate::kernels::{
    paged_cache::{Apart, Groups},
    pieces, team,
};

impl Network {
    /// Stores the keys and values of a batch and gives what its last layer does to the rows that are sampled, if any are:
    /// `[rows, hidden]`.
    pub(super) fn hidden(&self, batch: &Batch, cache: &mut KvCache, choices: &mut Choices) -> Result<Option<Tensor>> {
        let threads = team::threads();
        let divisible = threads > 1 && self.is_on_cpu() && self.layers.iter().all(Layer::is_small);
        let groups = divisible.then(|| split::by_sequences(batch, threads)).flatten();
        let hidden = match groups {
            Some(groups) => {
                let (choice, begun) = (choices.of(batch.rows()), Instant::now());
                let hidden = match choice.is_apart() {
                    true => self.apart(&groups, cache)?,
                    false => self.together(batch, threads, cache)?,
                };
                choice.took(begun.elapsed() / batch.rows() as u32);
                hidden
            }
            None if divisible => self.together(batch, threads, cache)?,
            None => self.through(std::slice::from_ref(batch), cache)?,
        };
        Ok(match hidden.as_slice() {
            [] => None,
            [hidden] => Some(hidden.clone()),
            parts => Some(Tensor::cat(parts, 0)?),
        })
    }

    /// By threads that meet after each operation, or after each layer if there are many rows.
    fn together(&self, batch: &Batch, threads: usize, cache: &mut KvCache) -> Result<Vec<Tensor>> {
        match split::in_tiles(batch, threads) {
            Some(tiles) => self.through(&tiles, cache),
            None => self.through(std::slice::from_ref(batch), cache),
        }
    }

    /// By threads that take groups of sequences, of which all rows are sampled, through all layers, and do not meet before
    /// the last one.
    fn apart(&self, batches: &[Batch], cache: &mut KvCache) -> Result<Vec<Tensor>> {
        let groups = Groups::new(batches.iter().map(Batch::sequences).collect());
        let Some(groups) = groups else { return self.through(batches, cache) };
        let Some(caches) = cache.apart(&groups) else { return self.through(batches, cache) };
        let mut hidden: Vec<_> = batches.iter().zip(caches).map(|(batch, cache)| (batch, cache, None)).collect();
        pieces::for_each_mut(&mut hidden, |_, (batch, caches, hidden)| *hidden = Some(self.alone(batch, caches)));
        hidden.into_iter().filter_map(|(.., hidden)| hidden).collect()
    }

    /// Takes a group of sequences through all layers.
    fn alone(&self, batch: &Batch, caches: &mut [Apart<'_>]) -> Result<Tensor> {
        let pass = self.pass(batch, AdaptedRows::of(batch))?;
        let mut x = self.embed(batch)?;
        for (layer, cache) in self.layers.iter().zip(caches) {
            let begun = layer.begin(&x, &pass)?;
            let Projected { keys, values, .. } = &begun.projected;
            with_f32(keys, |keys| with_f32(values, |values| cache.store(keys, values, self.isa)))??;
            x = layer.finish(&x, &begun, &pass, Some(Cached::Apart(cache)))?;
        }
        Ok(x)
    }

    /// Takes batches, which are parts of one, through all layers, the last one only with rows that are sampled.
    fn through(&self, batches: &[Batch], cache: &mut KvCache) -> Result<Vec<Tensor>> {
        let passes = batches.iter().map(|batch| self.pass(batch, AdaptedRows::of(batch)));
        let passes = passes.collect::<Result<Vec<_>>>()?;
        let begin = |x: Tensor, layer: usize, pass: &Pass<'_>| {
            let begun = self.layers[layer].begin(&x, pass)?;
            Ok::<_, candle_core::Error>((x, begun))
        };
        let begun = pieces::map(&passes, |_, pass| begin(self.embed(pass.batch)?, 0, pass));
        let mut begun = begun.into_iter().collect::<Result<Vec<_>>>()?;
        for (index, (layer, cache)) in self.layers.iter().zip(cache.layers()).enumerate() {
            for (pass, (_, Begun { projected, .. })) in passes.iter().zip(&begun) {
                cache.store(pass.batch, &projected.keys, &projected.values, self.isa)?;
            }
            let cache = Cached::Layer(cache);
            if index + 1 == self.layers.len() {
                let hidden = pieces::map(&passes, |i, pass| self.finish_sampled(layer, &begun[i], pass, cache));
                return hidden.into_iter().filter_map(Result::transpose).collect();
            }
            let next = pieces::map(&passes, |i, pass| {
                let (x, begun) = &begun[i];
                begin(layer.finish(x, begun, pass, Some(cache))?, index + 1, pass)
            });
            begun = next.into_iter().collect::<Result<_>>()?;
        }
        Ok(Vec::new())
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
