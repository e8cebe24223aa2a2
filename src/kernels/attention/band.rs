//! Bands: the rows of a sequence that go through its keys and values together.

use super::{heads::Heads, paged_cache::PagedSequence};

/// Rows times query heads that go through a part of the keys and values together.
const TILE_QUERIES: usize = 24;
/// Rows of one sequence that go through its keys and values together.
#[derive(Clone, Copy)]
pub struct QueryBand<'a> {
    /// Where they begin among all rows.
    pub start: usize,
    pub rows: usize,
    /// Keys up to that of the first row; each row after it has one more.
    pub first_context: usize,
    /// Whether these are the first rows of the sequence in this pass: for them keys and values come from far, the others find
    /// them near.
    pub first: bool,
    /// Those that are read for the sequence.
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
