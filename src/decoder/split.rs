//! Splitting the rows of a batch between threads.

use std::time::Duration;

use super::Batch;

/// Rows that are worth a thread's way through a layer.
const TILE_ROWS: usize = 16;
/// Tiles for each thread: enough that it seldom waits for a tile in an earlier layer.
const TILES_EACH: usize = 4;
/// Fewest rows of a group: below, reading weights takes longer than multiplying them.
const GROUP_ROWS: usize = 4;

/// Tiles of a batch that threads take through the layers one behind the other, if there are so many rows that this is
/// faster than sharing each operation. No two tiles have rows in one block of the cache.
pub fn in_tiles(batch: &Batch, threads: usize) -> Option<Vec<Batch>> {
    let rows = batch.rows();
    if rows < 2 * threads * TILE_ROWS {
        return None;
    }
    let len = rows.div_ceil(threads * TILES_EACH).next_multiple_of(TILE_ROWS);
    let (mut tiles, mut start) = (Vec::new(), 0);
    while start < rows {
        let end = batch.end_of_block(rows.min(start + len));
        // A tile of a few rows would read the weights once more.
        let end = if rows - end < TILE_ROWS / 2 { rows } else { end };
        tiles.push(batch.part(start..end));
        start = end;
    }
    Some(tiles)
}

/// Groups of whole sequences, one for each thread and none with much more than its share of the rows, for a batch whose
/// rows are all sampled.
pub fn by_sequences(batch: &Batch, threads: usize) -> Option<Vec<Batch>> {
    let rows = batch.rows();
    if batch.sampled.len() < rows || rows < threads * GROUP_ROWS {
        return None;
    }
    let (mut groups, mut start) = (Vec::with_capacity(threads), 0);
    let mut ends = batch.spans.iter().map(|span| span.start + span.len);
    for group in 1..=threads {
        // The end of the sequence that has the last row of the share.
        let end = ends.find(|end| *end >= rows * group / threads)?;
        groups.push(batch.part(start..end));
        start = end;
    }
    let greatest = groups.iter().map(Batch::rows).max()?;
    (greatest * threads * 7 <= rows * 8).then_some(groups)
}

/// A running choice between groups of sequences apart, one for each thread, and all threads together, by recent times.
/// Together, threads read weights once but wait for each other. How long that takes depends on the distance of their
/// cores, which on a virtual machine changes at any time.
#[derive(Debug)]
pub struct Choice {
    apart: bool,
    /// Passes since the last trial.
    passes: usize,
    /// Time per row in the last passes of the chosen way.
    usual: [Duration; COUNTED],
    /// Time per row in a trial of the other way.
    tried: [Duration; COUNTED],
}

/// Passes between trials, and passes of a trial. The first one runs with cold caches and does not count.
const BETWEEN: usize = 60;
const TRIAL: usize = COUNTED + 1;
const COUNTED: usize = 3;

impl Default for Choice {
    fn default() -> Self {
        let unknown = [Duration::MAX; COUNTED];
        Self { apart: true, passes: BETWEEN - TRIAL, usual: unknown, tried: unknown }
    }
}

impl Choice {
    /// Whether the next pass runs apart.
    pub fn is_apart(&self) -> bool {
        self.apart != (self.passes >= BETWEEN)
    }

    /// Records the time per row of a pass.
    pub fn took(&mut self, row: Duration) {
        self.passes += 1;
        match self.passes.checked_sub(BETWEEN + 1) {
            None => self.usual[self.passes % COUNTED] = row,
            Some(0) => {}
            Some(tried) => {
                self.tried[tried - 1] = row;
                if tried == COUNTED {
                    // Other load on the machine makes passes longer, never shorter.
                    if self.tried.iter().min() < self.usual.iter().min() {
                        (self.apart, self.usual) = (!self.apart, self.tried);
                    }
                    self.passes = 0;
                }
            }
        }
    }
}

/// A choice for each magnitude of rows: the better way for few may be the worse one for many.
#[derive(Debug, Default)]
pub struct Choices([Choice; 8]);

impl Choices {
    pub fn of(&mut self, rows: usize) -> &mut Choice {
        let class = (rows.max(1).ilog2() as usize).min(self.0.len() - 1);
        &mut self.0[class]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::Span;

    fn batch(lens: &[usize]) -> Batch {
        let rows: usize = lens.iter().sum();
        let mut start = 0;
        let spans = lens.iter().map(|len| {
            start += len;
            Span { start: start - len, len: *len, context_len: *len, blocks: vec![0], ..Span::default() }
        });
        let spans = spans.collect();
        let ids: Vec<u32> = (0..rows as u32).collect();
        Batch { tokens: ids.clone(), positions: ids.clone(), spans, sampled: ids, hidden: Vec::new() }
    }

    #[test]
    fn groups_are_whole_sequences_of_similar_row_counts() {
        let rows = |lens: &[usize], threads| {
            by_sequences(&batch(lens), threads).map(|groups| groups.iter().map(Batch::rows).collect::<Vec<_>>())
        };
        assert_eq!(rows(&[1; 16], 2), Some(vec![8, 8]));
        assert_eq!(rows(&[1; 17], 2), Some(vec![8, 9]));
        assert_eq!(rows(&[4; 12], 3), Some(vec![16; 3]));
        assert_eq!(rows(&[1; 8], 2), Some(vec![4, 4]));
        assert_eq!(rows(&[1; 7], 2), None);
        assert_eq!(rows(&[1, 1, 1, 1, 20], 2), None);
        let mut unsampled = batch(&[1; 16]);
        unsampled.sampled.pop();
        assert!(by_sequences(&unsampled, 2).is_none());
        let parts = by_sequences(&batch(&[3; 8]), 2).unwrap();
        assert_eq!(parts.iter().flat_map(|part| part.tokens.clone()).collect::<Vec<_>>(), batch(&[3; 8]).tokens);
    }

    #[test]
    fn tiles_are_cut_at_block_borders() {
        let tiled = |starts: &[(usize, usize)]| {
            let mut batch = batch(&starts.iter().map(|(_, len)| *len).collect::<Vec<_>>());
            batch.positions = starts.iter().flat_map(|(start, len)| *start as u32..(start + len) as u32).collect();
            batch.spans.iter_mut().zip(starts).for_each(|(span, (start, _))| span.context_len += start);
            let tiles = in_tiles(&batch, 2)?;
            assert_eq!(tiles.iter().flat_map(|tile| tile.tokens.clone()).collect::<Vec<_>>(), batch.tokens);
            Some(tiles.iter().map(Batch::rows).collect::<Vec<_>>())
        };
        assert_eq!(tiled(&[(0, 63)]), None);
        assert_eq!(tiled(&[(0, 200)]), Some(vec![32, 32, 32, 32, 32, 32, 8]));
        assert_eq!(tiled(&[(5, 64)]), Some(vec![27, 16, 21]));
        assert_eq!(tiled(&[(40, 1), (0, 20), (0, 43)]), Some(vec![17, 20, 16, 11]));
        assert_eq!(tiled(&[(0, 20); 4]), Some(vec![16, 20, 20, 24]));
    }

    #[test]
    fn faster_way_is_chosen_and_again_when_it_changes() {
        let mut choice = Choice::default();
        let mut run = |apart, together| {
            let passes = 3 * (BETWEEN + TRIAL);
            let chosen = (0..passes).filter(|_| {
                let chosen = choice.is_apart();
                choice.took(Duration::from_micros(if chosen { apart } else { together }));
                chosen
            });
            (chosen.count() * 100).div_ceil(passes)
        };
        assert!(run(90, 100) > 90);
        assert!(run(110, 100) < 50);
        assert!(run(110, 100) < 10);
        assert!(run(50, 100) > 50);
    }

    #[test]
    fn choices_are_separate_by_row_count() {
        let mut choices = Choices::default();
        for _ in 0..3 * BETWEEN {
            for rows in [8, 9, 16, 500] {
                let choice = choices.of(rows);
                choice.took(Duration::from_micros(if choice.is_apart() == (rows < 16) { 90 } else { 100 }));
            }
        }
        assert_eq!([8, 9, 16, 500].map(|rows| choices.of(rows).apart), [true, true, false, false]);
    }

    #[test]
    fn single_slow_passes_change_nothing() {
        let mut choice = Choice::default();
        for pass in 0..10 * BETWEEN {
            let (apart, hiccup) = (choice.is_apart(), pass % 5 == 0);
            choice.took(Duration::from_micros(if hiccup { 900 } else { 100 + 10 * u64::from(!apart) }));
            assert!(choice.apart);
        }
    }
}
