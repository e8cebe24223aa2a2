//! How the rows of a batch are cut for threads.

use std::time::Duration;

use super::Batch;

/// Rows that make the way through a layer worthwhile for a thread of its own.
const TILE_ROWS: usize = 16;
/// Tiles for each thread, so that it seldom waits for one that another thread has in a layer before.
const TILES_EACH: usize = 4;
/// Rows of a group, at least: with fewer it takes longer to read weights than to multiply them.
const GROUP_ROWS: usize = 4;

/// A batch in tiles that threads take through the layers one behind the other, if there are so many rows that this is
/// faster than to share each operation. No two of them have rows in one block of the cache.
pub fn in_tiles(batch: &Batch, threads: usize) -> Option<Vec<Batch>> {
    let rows = batch.rows();
    if rows < 2 * threads * TILE_ROWS {
        return None;
    }
    let len = rows.div_ceil(threads * TILES_EACH).next_multiple_of(TILE_ROWS);
    let (mut tiles, mut start) = (Vec::new(), 0);
    while start < rows {
        let end = batch.end_of_block(rows.min(start + len));
        // For a few rows more, weights are not to be read once more.
        let end = if rows - end < TILE_ROWS / 2 { rows } else { end };
        tiles.push(batch.part(start..end));
        start = end;
    }
    Some(tiles)
}

/// A batch whose rows are all sampled in groups of whole sequences, one for each thread and none with much more than
/// its share of the rows.
pub fn by_sequences(batch: &Batch, threads: usize) -> Option<Vec<Batch>> {
    let rows = batch.rows();
    if batch.sampled.len() < rows || rows < threads * GROUP_ROWS {
        return None;
    }
    let (mut groups, mut start) = (Vec::with_capacity(threads), 0);
    let mut ends = batch.spans.iter().map(|span| span.start + span.len);
    for group in 1..=threads {
        // Where a sequence ends that has the last row of the share.
        let end = ends.find(|end| *end >= rows * group / threads)?;
        groups.push(batch.part(start..end));
        start = end;
    }
    let greatest = groups.iter().map(Batch::rows).max()?;
    (greatest * threads * 7 <= rows * 8).then_some(groups)
}

/// Whether groups of sequences are better computed apart than by all threads together, as it was lately. Together
/// threads read weights once, but wait for each other and for what the other ones have computed. How long that takes
/// depends on how far their cores are from each other, which on a virtual machine changes at any time.
#[derive(Debug)]
pub struct Choice {
    apart: bool,
    /// Passes since the last trial.
    passes: usize,
    /// What a row has taken in the last passes the chosen way.
    usual: [Duration; COUNTED],
    /// In those of a trial the other way.
    tried: [Duration; COUNTED],
}

/// Passes between trials, and those of a trial. Its first one finds nothing in its caches, and does not count.
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
    /// Whether the next pass is to be computed apart.
    pub fn is_apart(&self) -> bool {
        self.apart != (self.passes >= BETWEEN)
    }

    /// Takes note of what a row of the pass has taken.
    pub fn took(&mut self, row: Duration) {
        self.passes += 1;
        match self.passes.checked_sub(BETWEEN + 1) {
            None => self.usual[self.passes % COUNTED] = row,
            Some(0) => {}
            Some(tried) => {
                self.tried[tried - 1] = row;
                if tried == COUNTED {
                    // What else the machine does makes passes longer, never shorter.
                    if self.tried.iter().min() < self.usual.iter().min() {
                        (self.apart, self.usual) = (!self.apart, self.tried);
                    }
                    self.passes = 0;
                }
            }
        }
    }
}

/// A choice for each number of rows, or about as many: what is better for few may be worse for more.
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
    fn groups_are_whole_sequences_of_about_as_many_rows() {
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
    fn tiles_are_cut_between_blocks_of_the_cache() {
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
    fn what_is_faster_is_chosen_and_again_when_that_changes() {
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
    fn what_is_faster_for_few_rows_says_nothing_of_many() {
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
    fn what_is_long_once_changes_nothing() {
        let mut choice = Choice::default();
        for pass in 0..10 * BETWEEN {
            let (apart, hiccup) = (choice.is_apart(), pass % 5 == 0);
            choice.took(Duration::from_micros(if hiccup { 900 } else { 100 + 10 * u64::from(!apart) }));
            assert!(choice.apart);
        }
    }
}
