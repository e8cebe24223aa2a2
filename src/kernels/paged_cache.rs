//! The keys and values of a layer in blocks of [`BLOCK_TOKENS`] tokens that sequences hold.

#![allow(unsafe_code)]

use std::{collections::HashMap, marker::PhantomData, mem::take};

use bytemuck::allocation::try_zeroed_vec;
use half::{bf16, f16};

use super::{
    Isa,
    panels::{Element, ElementType, Elements, LANES, prefetch, with_elements},
    pieces::for_each_mut,
};

/// Tokens in one block of the cache: the scores of a block's keys are the lanes of a panel.
pub const BLOCK_TOKENS: usize = LANES;
/// Numbers below which a second thread costs more than it saves.
const PARALLEL_LEN: usize = 1 << 11;

/// The head layout of an attention layer.
#[derive(Debug, Clone, Copy)]
pub struct Heads {
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
}

impl Heads {
    /// Query heads that share a key/value head.
    pub fn group(self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    /// What a head's values take in whole panels.
    pub fn padded_dim(self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// The keys that one key/value head has in a block, or the values.
    fn len(self) -> usize {
        self.head_dim.saturating_mul(BLOCK_TOKENS)
    }

    /// The numbers in a block.
    pub fn block_len(self) -> usize {
        self.len().saturating_mul(2).saturating_mul(self.num_kv_heads)
    }
}

/// The rows that one sequence has in a pass, and where its keys and values are.
#[derive(Debug, Clone, Copy)]
pub struct Sequence<'a> {
    /// The last tokens of the sequence.
    pub rows: usize,
    /// Tokens there are with those.
    pub context_len: usize,
    /// The cache blocks that hold the keys and values of all tokens, in order.
    pub blocks: &'a [u32],
}

impl Sequence<'_> {
    /// Where the keys and values of each row are.
    fn slots(&self) -> impl Iterator<Item = Slot> {
        let slot =
            |position| Slot { block: self.blocks[position / BLOCK_TOKENS] as usize, token: position % BLOCK_TOKENS };
        (self.context_len - self.rows..self.context_len).map(slot)
    }
}

/// The place of a token.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    block: usize,
    /// In the block.
    token: usize,
}

/// The keys and values of a layer. In each block there are for each key/value head the values, `[BLOCK_TOKENS, head_dim]`,
/// beyond which their last panel may be read, and so after them the keys, a panel `[head_dim, BLOCK_TOKENS]`.
pub struct PagedCache {
    heads: Heads,
    elements: Elements,
}

impl PagedCache {
    /// A cache of zeros, if there is memory for it. It is resident once used.
    pub fn new(heads: Heads, blocks: usize, element_type: ElementType) -> Option<Self> {
        let len = blocks.checked_mul(heads.block_len())?;
        let elements = match element_type {
            ElementType::F32 => Elements::F32(try_zeroed_vec(len).ok()?),
            ElementType::F16 => Elements::F16(try_zeroed_vec(len).ok()?),
            ElementType::Bf16 => Elements::Bf16(try_zeroed_vec(len).ok()?),
        };
        Some(Self { heads, elements })
    }

    /// Stores `keys` and `values`, `[rows, num_kv_heads * head_dim]`, of the rows of these sequences.
    pub fn store(&mut self, sequences: &[Sequence<'_>], keys: &[f32], values: &[f32], isa: Isa) {
        with_elements!(&mut self.elements, elements => store(self.heads, elements, sequences, [keys, values], isa));
    }

    /// What these sequences hold.
    pub fn held<'a>(&'a self, sequences: &'a [Sequence<'a>]) -> Held<'a> {
        let blocks = match &self.elements {
            Elements::F32(elements) => Elements::F32(Blocks::of(self.heads, elements)),
            Elements::F16(elements) => Elements::F16(Blocks::of(self.heads, elements)),
            Elements::Bf16(elements) => Elements::Bf16(Blocks::of(self.heads, elements)),
        };
        Held { heads: self.heads, sequences, blocks }
    }

    /// What each group of sequences has of its own.
    pub fn apart<'a>(&'a mut self, groups: &'a Groups<'a>) -> Vec<Apart<'a>> {
        let heads = self.heads;
        let blocks = match &mut self.elements {
            Elements::F32(elements) => Elements::F32(BlocksMut::of(heads, elements)),
            Elements::F16(elements) => Elements::F16(BlocksMut::of(heads, elements)),
            Elements::Bf16(elements) => Elements::Bf16(BlocksMut::of(heads, elements)),
        };
        groups.0.iter().map(|sequences| Apart { heads, sequences, blocks }).collect()
    }
}

/// Some sequences with their keys and values.
#[derive(Clone, Copy)]
pub struct Held<'a> {
    pub heads: Heads,
    pub sequences: &'a [Sequence<'a>],
    pub blocks: Elements<Blocks<'a, f32>, Blocks<'a, f16>, Blocks<'a, bf16>>,
}

/// Blocks of which some are read: those of the sequences of a [`Held`].
#[derive(Clone, Copy)]
pub struct Blocks<'a, T> {
    heads: Heads,
    first: *const T,
    count: usize,
    borrowed: PhantomData<&'a [T]>,
}

// SAFETY: it is a slice of which nobody changes what is read.
unsafe impl<T: Sync> Sync for Blocks<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Send for Blocks<'_, T> {}

impl<'a, T> Blocks<'a, T> {
    fn of(heads: Heads, elements: &'a [T]) -> Self {
        let count = elements.len() / heads.block_len();
        Self { heads, first: elements.as_ptr(), count, borrowed: PhantomData }
    }

    /// The keys of a head in a block, and the values with what the last panel reads after them.
    pub fn get(&self, block: usize, kv_head: usize) -> (&'a [T], &'a [T]) {
        assert!(block < self.count && kv_head < self.heads.num_kv_heads);
        let len = self.heads.len();
        let at = block * self.heads.block_len() + 2 * kv_head * len;
        // SAFETY: it is inside what is borrowed, and nobody writes to the blocks that sequences hold here.
        let both = unsafe { std::slice::from_raw_parts(self.first.add(at), 2 * len) };
        (&both[len..], &both[..len + self.heads.padded_dim() - self.heads.head_dim])
    }
}

/// Blocks that several threads write to, each to others.
struct BlocksMut<'a, T> {
    first: *mut T,
    count: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

impl<T> Clone for BlocksMut<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for BlocksMut<'_, T> {}

impl<'a, T> BlocksMut<'a, T> {
    fn of(heads: Heads, elements: &'a mut [T]) -> Self {
        let count = elements.len() / heads.block_len();
        Self { first: elements.as_mut_ptr(), count, borrowed: PhantomData }
    }

    /// As they are read.
    fn read(&self, heads: Heads) -> Blocks<'_, T> {
        Blocks { heads, first: self.first, count: self.count, borrowed: PhantomData }
    }
}

/// Groups of sequences that have nothing to do with each other: what one of them writes no other one reads.
pub struct Groups<'a>(Vec<Vec<Sequence<'a>>>);

impl<'a> Groups<'a> {
    /// `None` if they are no such groups.
    pub fn new(groups: Vec<Vec<Sequence<'a>>>) -> Option<Self> {
        let mut writers = HashMap::new();
        for (group, sequences) in groups.iter().enumerate() {
            for Slot { block, .. } in sequences.iter().flat_map(Sequence::slots) {
                if *writers.entry(block as u32).or_insert(group) != group {
                    return None;
                }
            }
        }
        for (group, sequences) in groups.iter().enumerate() {
            let read = |one: &Sequence<'a>| &one.blocks[..one.context_len.div_ceil(BLOCK_TOKENS)];
            if sequences.iter().flat_map(read).any(|block| writers.get(block).is_some_and(|writer| *writer != group)) {
                return None;
            }
        }
        Some(Self(groups))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// What a group of sequences has in a cache, while other threads have what the other groups have.
pub struct Apart<'a> {
    heads: Heads,
    sequences: &'a [Sequence<'a>],
    blocks: Elements<BlocksMut<'a, f32>, BlocksMut<'a, f16>, BlocksMut<'a, bf16>>,
}

// SAFETY: `Groups` made sure that no other thread writes to the blocks of its sequences, nor reads those that are written.
unsafe impl Send for Apart<'_> {}
// SAFETY: without `&mut` it reads only.
unsafe impl Sync for Apart<'_> {}

impl Apart<'_> {
    /// As [`PagedCache::store`], of its own sequences.
    pub fn store(&mut self, keys: &[f32], values: &[f32], isa: Isa) {
        let (heads, width) = (self.heads, self.heads.num_kv_heads * self.heads.head_dim);
        let slots = || self.sequences.iter().flat_map(Sequence::slots);
        with_elements!(self.blocks, blocks => {
            let block = |index: usize| {
                assert!(index < blocks.count);
                let first = blocks.first.wrapping_add(index * heads.block_len());
                // SAFETY: it is inside what is borrowed; its own sequences write to it, so no other group has it, and
                // this one has but one at a time.
                unsafe { std::slice::from_raw_parts_mut(first, heads.block_len()) }
            };
            slots().for_each(|slot| prefetch_row(heads, block(slot.block), slot.token));
            for (slot, (keys, values)) in slots().zip(keys.chunks(width).zip(values.chunks(width))) {
                store_row(heads, block(slot.block), slot.token, [keys, values], isa);
            }
        });
    }

    /// What its sequences hold.
    pub fn held(&self) -> Held<'_> {
        let heads = self.heads;
        let blocks = match &self.blocks {
            Elements::F32(blocks) => Elements::F32(blocks.read(heads)),
            Elements::F16(blocks) => Elements::F16(blocks.read(heads)),
            Elements::Bf16(blocks) => Elements::Bf16(blocks.read(heads)),
        };
        Held { heads, sequences: self.sequences, blocks }
    }
}

fn store<T: Element>(
    heads: Heads,
    mut elements: &mut [T],
    sequences: &[Sequence<'_>],
    [keys, values]: [&[f32]; 2],
    isa: Isa,
) {
    let width = heads.num_kv_heads * heads.head_dim;
    let slots = sequences.iter().flat_map(Sequence::slots);
    let mut rows: Vec<(Slot, usize)> = slots.zip(0..keys.len() / width).collect();
    rows.sort_unstable();
    let (mut blocks, mut next) = (Vec::new(), 0);
    for rows in rows.chunk_by(|(slot, _), (other, _)| slot.block == other.block) {
        let (Slot { block, .. }, row) = rows[0];
        let (own, after) = take(&mut elements)[(block - next) * heads.block_len()..].split_at_mut(heads.block_len());
        (elements, next) = (after, block + 1);
        blocks.push((row, own, rows));
    }
    // In the order of the rows: a sequence is attended to by the thread that has its rows, and so finds them near.
    blocks.sort_unstable_by_key(|(row, ..)| *row);
    let store = |(_, block, rows): &mut (usize, &mut [T], &[(Slot, usize)])| {
        prefetch_row(heads, block, rows[0].0.token);
        for (Slot { token, .. }, row) in *rows {
            let of_row = row * width..(row + 1) * width;
            store_row(heads, block, *token, [&keys[of_row.clone()], &values[of_row]], isa);
        }
    };
    match keys.len() < PARALLEL_LEN {
        true => blocks.iter_mut().for_each(store),
        false => for_each_mut(&mut blocks, |_, block| store(block)),
    }
}

/// Asks for the lines that `store_row` writes to: they come from far, and stores wait for them one after another.
fn prefetch_row<T>(heads: Heads, block: &[T], token: usize) {
    for block in block.chunks_exact(2 * heads.len()) {
        let (values, keys) = block.split_at(heads.len());
        prefetch(keys);
        prefetch(&values[token * heads.head_dim..][..heads.head_dim]);
    }
}

/// Stores what one token has for each head.
fn store_row<T: Element>(heads: Heads, block: &mut [T], token: usize, [keys, values]: [&[f32]; 2], isa: Isa) {
    let head_dim = heads.head_dim;
    let block = block.chunks_exact_mut(2 * heads.len());
    for ((block, key), value) in block.zip(keys.chunks_exact(head_dim)).zip(values.chunks_exact(head_dim)) {
        let (stored_values, stored_keys) = block.split_at_mut(heads.len());
        let mut rounded = [T::zeroed(); 64];
        for (key, stored) in key.chunks(rounded.len()).zip(stored_keys.chunks_mut(rounded.len() * BLOCK_TOKENS)) {
            T::round(key, &mut rounded[..key.len()], isa);
            stored.chunks_exact_mut(BLOCK_TOKENS).zip(rounded).for_each(|(lanes, key)| lanes[token] = key);
        }
        T::round(value, &mut stored_values[token * head_dim..][..head_dim], isa);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::kernels::{
        attention::{Scoring, attend},
        noise,
    };

    const SCORING: Scoring<'static> = Scoring { scale: 0.3, softcap: None, window: None, sinks: None, alibi: None };

    #[test]
    fn groups_apart_find_what_they_would_find_together() {
        for (head_dim, element_type) in [(6, ElementType::F16), (16, ElementType::F32), (80, ElementType::Bf16)] {
            let heads = Heads { num_heads: 4, num_kv_heads: 2, head_dim };
            let cache = || {
                let mut cache = PagedCache::new(heads, 6, element_type).unwrap();
                let head = [Sequence { rows: 16, context_len: 16, blocks: &[4] }];
                let [keys, values] = [1, 2].map(|seed| noise(16 * 2 * head_dim, seed, 1.0));
                cache.store(&head, &keys, &values, Isa::detect());
                cache
            };
            // All have the same head.
            let sequences: [(usize, &[u32]); 3] = [(3, &[4, 0]), (1, &[4, 5]), (4, &[4, 2])];
            let sequences = sequences.map(|(rows, blocks)| Sequence { rows, context_len: 16 + rows, blocks });
            let [keys, values] = [3, 4].map(|seed| noise(8 * 2 * head_dim, seed, 1.0));
            let queries = noise(8 * 4 * head_dim, 5, 1.0);
            let mut whole = cache();
            whole.store(&sequences, &keys, &values, Isa::detect());
            let together = attend(whole.held(&sequences), &queries, SCORING, Isa::detect());

            let groups = Groups::new(vec![sequences[..2].to_vec(), sequences[2..].to_vec()]).unwrap();
            let mut shared = cache();
            let of = |own: &mut Apart<'_>, rows: std::ops::Range<usize>| {
                let kv = rows.start * 2 * head_dim..rows.end * 2 * head_dim;
                own.store(&keys[kv.clone()], &values[kv], Isa::detect());
                let queries = &queries[rows.start * 4 * head_dim..rows.end * 4 * head_dim];
                attend(own.held(), queries, SCORING, Isa::detect())
            };
            let mut own = shared.apart(&groups);
            let [first, second] = &mut own[..] else { panic!("two groups") };
            let apart = thread::scope(|scope| {
                let first = scope.spawn(|| of(first, 0..4));
                let second = of(second, 4..8);
                [first.join().unwrap(), second].concat()
            });
            assert_eq!(apart, together);
        }
    }

    #[test]
    fn groups_that_share_more_than_they_read_are_none() {
        let sequence = |rows, context_len, blocks| Sequence { rows, context_len, blocks };
        let are_apart = |one, other| Groups::new(vec![vec![one], vec![other]]).is_some();
        assert!(are_apart(sequence(1, 17, &[0, 1]), sequence(1, 17, &[0, 2])));
        // Blocks that are not needed yet are no matter.
        assert!(are_apart(sequence(1, 16, &[0, 1]), sequence(1, 16, &[2, 1])));
        assert!(!are_apart(sequence(1, 17, &[0, 1]), sequence(1, 17, &[2, 1])));
        assert!(!are_apart(sequence(2, 17, &[0, 1]), sequence(1, 17, &[0, 2])));
        assert!(!are_apart(sequence(1, 40, &[0, 1, 2]), sequence(1, 20, &[3, 0])));
    }
}
