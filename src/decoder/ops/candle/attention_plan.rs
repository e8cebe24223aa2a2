//! Which rows of a batch attend to which slots of the cache, in padded chunks of bounded memory.

use std::{
    ops::Range,
    sync::{Arc, Mutex, PoisonError},
};

use candle_core::{Device, Result, Tensor};

use crate::{
    decoder::{Batch, Span},
    kernels::attention::BLOCK_TOKENS,
};

/// The position of keys that pad a chunk: behind all queries, whose differences `f32` still tells apart.
const NO_POSITION: f32 = (1 << 24) as f32;

/// Plans of one pass, made at first use and shared by the layers with the same shape of attention.
#[derive(Default)]
pub struct AttentionPlans {
    plans: Mutex<Vec<(PlanKey, Arc<AttentionPlan>)>>,
}

/// The shape of a layer's attention, on which a plan depends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlanKey {
    pub window: Option<usize>,
    /// Elements of scores for one row and one key.
    pub num_heads: usize,
    /// Elements of one cached key.
    pub key_width: usize,
    /// Elements of scores, or of gathered keys, in one chunk. One row and one sequence may have more.
    pub max_elements: usize,
}

/// The attention of a batch.
pub struct AttentionPlan {
    pub chunks: Vec<AttentionChunk>,
    /// Where each row of the batch is among the rows of all chunks, `[rows]`; `None`: they are in order.
    pub order: Option<Tensor>,
}

/// Tiles of sequences' rows that are computed together, padded to the greatest number of rows and of keys.
pub struct AttentionChunk {
    pub tiles: usize,
    pub rows: usize,
    pub keys: usize,
    /// Rows of the batch, `[tiles * rows]`; `None`: all rows in order. The last row of a tile pads it.
    pub queries: Option<Tensor>,
    /// Slots of the cache, `[tiles * keys]`. The first slot of a tile pads it.
    pub slots: Tensor,
    /// Positions of queries, `[tiles, 1, rows, 1]`, and of keys, `[tiles, 1, 1, keys]`, from the tile's first key on.
    pub query_positions: Tensor,
    pub key_positions: Tensor,
}

/// Some rows of one sequence and the keys that they attend to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tile {
    span: usize,
    /// Rows of the batch.
    rows: Range<usize>,
    /// The position of the first row.
    position: usize,
    /// Positions.
    keys: Range<usize>,
}

impl AttentionPlans {
    /// The plan of a shape of attention.
    pub fn get(&self, key: PlanKey, batch: &Batch, device: &Device) -> Result<Arc<AttentionPlan>> {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, plan)) = plans.iter().find(|(other, _)| *other == key) {
            return Ok(plan.clone());
        }
        let plan = Arc::new(AttentionPlan::new(key, batch, device)?);
        plans.push((key, plan.clone()));
        Ok(plan)
    }
}

impl AttentionPlan {
    fn new(key: PlanKey, batch: &Batch, device: &Device) -> Result<Self> {
        let chunks = chunks(tiles(batch, key), key);
        let mut places = vec![0u32; batch.rows()];
        let mut padded_rows = 0;
        for chunk in &chunks {
            let height = height(chunk);
            for tile in chunk {
                tile.rows.clone().zip(padded_rows..).for_each(|(row, place)| places[row] = place as u32);
                padded_rows += height;
            }
        }
        let in_order = padded_rows == places.len() && places.iter().zip(0..).all(|(place, row)| *place == row);
        let order = if in_order { None } else { Some(Tensor::new(places, device)?) };
        let chunks = chunks.iter().map(|tiles| AttentionChunk::new(tiles, batch, device));
        Ok(Self { chunks: chunks.collect::<Result<_>>()?, order })
    }
}

impl AttentionChunk {
    fn new(tiles: &[Tile], batch: &Batch, device: &Device) -> Result<Self> {
        let (rows, keys) = (height(tiles), width(tiles));
        let padded = |tile: &Tile| {
            let len = tile.rows.len();
            (0..rows).map(move |row| row.min(len - 1))
        };
        let queries = tiles.iter().flat_map(|tile| padded(tile).map(|row| (tile.rows.start + row) as u32));
        let queries: Vec<u32> = queries.collect();
        let all = queries.len() == batch.rows() && queries.iter().zip(0..).all(|(query, row)| *query == row);
        let slots = tiles.iter().flat_map(|tile| {
            let span = &batch.spans[tile.span];
            let position =
                move |key: usize| if key < tile.keys.len() { tile.keys.start + key } else { tile.keys.start };
            (0..keys).map(move |key| span.slot(position(key), BLOCK_TOKENS) as u32)
        });
        let slots = Tensor::new(slots.collect::<Vec<_>>(), device)?;
        let query_positions = tiles.iter().flat_map(|tile| {
            let first = tile.position - tile.keys.start;
            padded(tile).map(move |row| (first + row) as f32)
        });
        let query_positions = Tensor::new(query_positions.collect::<Vec<_>>(), device)?;
        let key_positions = tiles.iter().flat_map(|tile| {
            let len = tile.keys.len();
            (0..keys).map(move |key| if key < len { key as f32 } else { NO_POSITION })
        });
        let key_positions = Tensor::new(key_positions.collect::<Vec<_>>(), device)?;
        Ok(Self {
            tiles: tiles.len(),
            rows,
            keys,
            queries: if all { None } else { Some(Tensor::new(queries, device)?) },
            slots,
            query_positions: query_positions.reshape((tiles.len(), 1, rows, 1))?,
            key_positions: key_positions.reshape((tiles.len(), 1, 1, keys))?,
        })
    }
}

/// Rows of a chunk's tiles, with padding.
fn height(tiles: &[Tile]) -> usize {
    tiles.iter().map(|tile| tile.rows.len()).max().unwrap_or(0)
}

/// Keys of a chunk's tiles, with padding.
fn width(tiles: &[Tile]) -> usize {
    tiles.iter().map(|tile| tile.keys.len()).max().unwrap_or(0)
}

/// Tiles of rows whose scores alone fit into a chunk.
fn tiles(batch: &Batch, key: PlanKey) -> Vec<Tile> {
    let of_span = |(index, span): (usize, &Span)| {
        let most = (key.max_elements / (key.num_heads * span.context_len).max(1)).max(1);
        let first = span.context_len - span.len;
        let tile = move |start: usize| {
            let len = most.min(span.len - start);
            let position = first + start;
            let seen = key.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let rows = span.start + start..span.start + start + len;
            Tile { span: index, rows, position, keys: seen..position + len }
        };
        (0..span.len).step_by(most).map(tile).collect::<Vec<_>>()
    };
    batch.spans.iter().enumerate().flat_map(of_span).collect()
}

/// Tiles of about as many rows and keys together, so that at most half of each dimension of a chunk is padding.
fn chunks(mut tiles: Vec<Tile>, key: PlanKey) -> Vec<Vec<Tile>> {
    let class = |len: usize| len.next_power_of_two().ilog2();
    // Sorting is stable: tiles of a kind stay in order.
    tiles.sort_by_key(|tile| (class(tile.rows.len()), class(tile.keys.len())));
    let mut chunks: Vec<Vec<Tile>> = Vec::new();
    for tile in tiles {
        let joins = chunks.last().is_some_and(|chunk| {
            let (rows, keys) = (height(chunk).max(tile.rows.len()), width(chunk).max(tile.keys.len()));
            let alike = |len: usize, most: usize| class(len) == class(most);
            let scores = (chunk.len() + 1) * key.num_heads * rows * keys;
            let gathered = (chunk.len() + 1) * key.key_width * keys;
            let first = &chunk[0];
            alike(first.rows.len(), rows) && alike(first.keys.len(), keys) && scores.max(gathered) <= key.max_elements
        });
        match chunks.last_mut() {
            Some(chunk) if joins => chunk.push(tile),
            _ => chunks.push(vec![tile]),
        }
    }
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::Span;

    fn batch(spans: &[(usize, usize)]) -> Batch {
        let mut start = 0;
        let spans = spans.iter().map(|(len, context_len)| {
            start += len;
            let blocks = (0..context_len.div_ceil(BLOCK_TOKENS) as u32).collect();
            Span { start: start - len, len: *len, context_len: *context_len, blocks, ..Span::default() }
        });
        let spans: Vec<Span> = spans.collect();
        Batch { tokens: vec![0; start], positions: vec![0; start], spans, ..Batch::default() }
    }

    fn key(max_elements: usize, window: Option<usize>) -> PlanKey {
        PlanKey { window, num_heads: 2, key_width: 8, max_elements }
    }

    #[test]
    fn decodes_with_similar_contexts_share_a_chunk() {
        let key = key(1 << 20, None);
        let chunks = chunks(tiles(&batch(&[(1, 50), (1, 64), (40, 40), (1, 200)]), key), key);
        let spans = |chunk: &Vec<Tile>| chunk.iter().map(|tile| tile.span).collect::<Vec<_>>();
        assert_eq!(chunks.iter().map(spans).collect::<Vec<_>>(), [vec![0, 1], vec![3], vec![2]]);
    }

    #[test]
    fn chunks_are_bounded_and_hold_every_row_once() {
        let batch = batch(&[(300, 300), (1, 900), (7, 450), (1, 901), (120, 400), (1, 3)]);
        for (max_elements, window) in [(1 << 9, None), (1 << 13, None), (1 << 13, Some(33)), (1 << 22, Some(5))] {
            let key = key(max_elements, window);
            let chunks = chunks(tiles(&batch, key), key);
            let mut rows: Vec<usize> = chunks.iter().flatten().flat_map(|tile| tile.rows.clone()).collect();
            rows.sort_unstable();
            assert_eq!(rows, (0..batch.rows()).collect::<Vec<_>>());
            for chunk in chunks.iter().filter(|chunk| chunk.len() > 1) {
                assert!(chunk.len() * key.num_heads * height(chunk) * width(chunk) <= max_elements);
                assert!(chunk.len() * key.key_width * width(chunk) <= max_elements);
            }
            for tile in chunks.iter().flatten() {
                let last = tile.position + tile.rows.len();
                assert_eq!(tile.keys.end, last);
                let seen = window.map_or(0, |window| (tile.position + 1).saturating_sub(window));
                assert_eq!(tile.keys.start, seen);
                assert!(tile.rows.len() == 1 || tile.rows.len() * key.num_heads * tile.keys.len() <= max_elements);
            }
        }
    }
}
