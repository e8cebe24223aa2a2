//! Bands: the rows of a sequence that go through its keys and values together.

use super::{heads::Heads, sequence::PagedSequence};

/// Rows times query heads of a tile.
const TILE_QUERIES: usize = 24;
/// Rows of one sequence that attend together.
#[derive(Clone, Copy)]
pub struct QueryBand<'a> {
    /// Index of the first row in the batch.
    pub start: usize,
    pub rows: usize,
    /// Keys up to the one of the first row. Each further row has one more.
    pub first_context: usize,
    /// Whether these are the sequence's first rows in the batch. They read keys and values from memory, and later rows
    /// from the cache.
    pub first: bool,
    /// The blocks of the sequence that are read.
    pub blocks: &'a [u32],
}

/// The bands of a batch, in the order of its rows.
pub fn bands<'a>(heads: Heads, sequences: &[PagedSequence<'a>]) -> Vec<QueryBand<'a>> {
    let band_rows = (TILE_QUERIES / heads.group()).max(1);
    let (mut bands, mut start) = (Vec::with_capacity(sequences.len()), 0);
    for sequence in sequences {
        for row in (0..sequence.rows).step_by(band_rows) {
            let rows = band_rows.min(sequence.rows - row);
            let first_context = sequence.context_len - sequence.rows + row + 1;
            bands.push(QueryBand { start, rows, first_context, first: row == 0, blocks: sequence.read() });
            start += rows;
        }
    }
    bands
}
