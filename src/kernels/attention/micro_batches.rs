//! Micro-batches: parts of a batch that threads compute side by side, or one layer behind the other.

use std::collections::HashMap;

use super::sequence::PagedSequence;

/// The parts of a batch, in an order: each block is written by one of them only, and read by that one and later ones.
pub struct MicroBatches<'a>(Vec<MicroBatch<'a>>);

/// One part of a batch.
pub struct MicroBatch<'a> {
    pub sequences: Vec<PagedSequence<'a>>,
    /// Index of the first micro-batch that writes a block which this one reads.
    pub reads_from: usize,
}

impl<'a> MicroBatches<'a> {
    /// `None` if two micro-batches write the same block, or one reads what a later one writes.
    pub fn new(micro_batches: Vec<Vec<PagedSequence<'a>>>) -> Option<Self> {
        let mut writers = HashMap::new();
        for (micro_batch, sequences) in micro_batches.iter().enumerate() {
            for block in sequences.iter().flat_map(PagedSequence::written) {
                if *writers.entry(*block).or_insert(micro_batch) != micro_batch {
                    return None;
                }
            }
        }
        let micro_batch = |(index, sequences): (usize, Vec<PagedSequence<'a>>)| {
            let read_from =
                sequences.iter().flat_map(PagedSequence::read).filter_map(|block| writers.get(block)).copied();
            let (first, last) =
                read_from.fold((index, index), |(first, last), writer| (first.min(writer), last.max(writer)));
            (last == index).then_some(MicroBatch { sequences, reads_from: first })
        };
        micro_batches.into_iter().enumerate().map(micro_batch).collect::<Option<_>>().map(Self)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn get(&self, index: usize) -> &MicroBatch<'a> {
        &self.0[index]
    }

    /// Whether no micro-batch reads what another one writes.
    pub fn are_apart(&self) -> bool {
        self.0.iter().enumerate().all(|(index, micro_batch)| micro_batch.reads_from == index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_write_blocks_of_their_own_and_read_none_of_later_ones() {
        let sequence = |rows, context_len, blocks| PagedSequence { rows, context_len, blocks };
        let are_apart = |one, other| MicroBatches::new(vec![vec![one], vec![other]]).map(|batches| batches.are_apart());
        assert_eq!(are_apart(sequence(1, 17, &[0, 1]), sequence(1, 17, &[0, 2])), Some(true));
        // Blocks that are not needed yet do not matter.
        assert_eq!(are_apart(sequence(1, 16, &[0, 1]), sequence(1, 16, &[2, 1])), Some(true));
        assert_eq!(are_apart(sequence(1, 17, &[0, 1]), sequence(1, 17, &[2, 1])), None);
        assert_eq!(are_apart(sequence(2, 17, &[0, 1]), sequence(1, 17, &[0, 2])), Some(false));
        assert_eq!(are_apart(sequence(1, 17, &[0, 2]), sequence(2, 17, &[0, 1])), None);
        assert_eq!(are_apart(sequence(1, 40, &[0, 1, 2]), sequence(1, 20, &[3, 0])), None);
        assert_eq!(are_apart(sequence(1, 20, &[3, 0]), sequence(1, 40, &[0, 1, 2])), Some(false));
        assert_eq!(are_apart(sequence(16, 32, &[0, 1]), sequence(8, 40, &[0, 1, 2])), Some(false));
        assert_eq!(are_apart(sequence(16, 28, &[0, 1]), sequence(8, 36, &[0, 1, 2])), None);
    }
}
