use std::mem::take;

use super::{
    panels::{Element, ElementType, Elements, LANES, with_elements},
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
    pub fn elements_per_block(self) -> usize {
        BLOCK_TOKENS * self.head_dim
    }
}

/// The keys and values of a layer in blocks of [`BLOCK_TOKENS`] tokens. In each block there is for
/// each key/value head a panel of the keys, `[head_dim, BLOCK_TOKENS]`, and the values,
/// `[BLOCK_TOKENS, head_dim]`.
pub struct PagedCache {
    pub heads: Heads,
    /// After the last block comes a panel of nothing, since the last panel of values reads beyond them.
    pub elements: Elements,
}

impl PagedCache {
    /// A cache of zeros, if there is memory for it. It is resident once used.
    pub fn new(heads: Heads, blocks: usize, element_type: ElementType) -> Option<Self> {
        let len = blocks.checked_mul(2 * heads.num_kv_heads * heads.elements_per_block())?.checked_add(LANES)?;
        let elements = match element_type {
            ElementType::F32 => Elements::F32(bytemuck::allocation::try_zeroed_vec(len).ok()?),
            ElementType::F16 => Elements::F16(bytemuck::allocation::try_zeroed_vec(len).ok()?),
            ElementType::Bf16 => Elements::Bf16(bytemuck::allocation::try_zeroed_vec(len).ok()?),
        };
        Some(Self { heads, elements })
    }

    /// Stores `keys` and `values`, `[slots, num_kv_heads * head_dim]`, in these slots.
    pub fn store(&mut self, slots: impl Iterator<Item = usize>, keys: &[f32], values: &[f32]) {
        with_elements!(&mut self.elements, elements => store(self.heads, elements, slots, keys, values));
    }
}

fn store<T: Element>(
    heads: Heads,
    mut elements: &mut [T],
    slots: impl Iterator<Item = usize>,
    keys: &[f32],
    values: &[f32],
) {
    let width = heads.num_kv_heads * heads.head_dim;
    let mut rows: Vec<(usize, usize)> = slots.zip(0..keys.len() / width).collect();
    rows.sort_unstable();
    let block_len = 2 * heads.num_kv_heads * heads.elements_per_block();
    let (mut blocks, mut next) = (Vec::new(), 0);
    for rows in rows.chunk_by(|(slot, _), (next, _)| slot / BLOCK_TOKENS == next / BLOCK_TOKENS) {
        let block = rows[0].0 / BLOCK_TOKENS;
        let (own, after) = take(&mut elements)[(block - next) * block_len..].split_at_mut(block_len);
        (elements, next) = (after, block + 1);
        blocks.push((own, rows));
    }
    // In the order of the rows: a sequence is attended to by the thread that has its rows, and so finds them near.
    blocks.sort_unstable_by_key(|(_, rows)| rows[0].1);
    let store = |(block, rows): &mut (&mut [T], &[(usize, usize)])| {
        for (slot, row) in *rows {
            let of_row = |numbers: &[f32]| T::from_f32s(&numbers[row * width..][..width]);
            store_row(heads, block, slot % BLOCK_TOKENS, &of_row(keys), &of_row(values));
        }
    };
    match keys.len() < PARALLEL_LEN {
        true => blocks.iter_mut().for_each(store),
        false => for_each_mut(&mut blocks, |_, block| store(block)),
    }
}

/// Stores what one token has for each head.
fn store_row<T: Element>(heads: Heads, block: &mut [T], token: usize, keys: &[T], values: &[T]) {
    let head_dim = heads.head_dim;
    let block = block.chunks_exact_mut(2 * heads.elements_per_block());
    for ((block, key), value) in block.zip(keys.chunks_exact(head_dim)).zip(values.chunks_exact(head_dim)) {
        let (stored_keys, stored_values) = block.split_at_mut(heads.elements_per_block());
        for (lanes, key) in stored_keys.chunks_exact_mut(BLOCK_TOKENS).zip(key) {
            lanes[token] = *key;
        }
        stored_values[token * head_dim..][..head_dim].copy_from_slice(value);
    }
}
