//! Storing the keys and values of rows.

use std::mem::take;

use super::{
    heads::Heads,
    kv_dtype::KvElement,
    sequence::{PagedSequence, TokenSlot},
};
use crate::kernels::{Isa, threads::parallel::for_each_mut};

/// Values below which a second thread costs more than it saves.
const PARALLEL_LEN: usize = 1 << 11;

/// Stores `keys` and `values`, `[rows, num_kv_heads * head_dim]`, in the blocks of the sequences that have these rows.
pub fn store<T: KvElement>(
    heads: Heads,
    mut stored: &mut [T],
    sequences: &[PagedSequence<'_>],
    [keys, values]: [&[f32]; 2],
    isa: Isa,
) {
    let (width, block_len) = (heads.num_kv_heads * heads.head_dim, T::block_len(heads));
    let slots = sequences.iter().flat_map(PagedSequence::slots);
    let mut rows: Vec<(TokenSlot, usize)> = slots.zip(0..keys.len() / width).collect();
    rows.sort_unstable();
    let (mut blocks, mut next) = (Vec::new(), 0);
    for rows in rows.chunk_by(|(slot, _), (other, _)| slot.block == other.block) {
        let (TokenSlot { block, .. }, row) = rows[0];
        let (own, after) = take(&mut stored)[(block - next) * block_len..].split_at_mut(block_len);
        (stored, next) = (after, block + 1);
        blocks.push((row, own, rows));
    }
    // In the order of the rows, since the thread that stores a sequence's rows is likely to attend to them: they are in
    // its cache.
    blocks.sort_unstable_by_key(|(row, ..)| *row);
    let store = |(_, block, rows): &mut (usize, &mut [T], &[(TokenSlot, usize)])| {
        prefetch_row(heads, block, rows[0].0.token);
        for (TokenSlot { token, .. }, row) in *rows {
            let of_row = row * width..(row + 1) * width;
            store_row(heads, block, *token, [&keys[of_row.clone()], &values[of_row]], isa);
        }
    };
    match keys.len() < PARALLEL_LEN {
        true => blocks.iter_mut().for_each(store),
        false => for_each_mut(&mut blocks, |_, block| store(block)),
    }
}

/// Prefetches the lines that [`store_row`] writes.
pub fn prefetch_row<T: KvElement>(Heads { head_dim, .. }: Heads, block: &[T], token: usize) {
    for of_head in block.chunks_exact(T::values_len(head_dim) + T::keys_len(head_dim)) {
        let (values, keys) = of_head.split_at(T::values_len(head_dim));
        T::prefetch([keys, values], token, head_dim);
    }
}

/// Stores one token's keys and values of all heads.
pub fn store_row<T: KvElement>(heads: Heads, block: &mut [T], token: usize, [keys, values]: [&[f32]; 2], isa: Isa) {
    let head_dim = heads.head_dim;
    let block = block.chunks_exact_mut(T::values_len(head_dim) + T::keys_len(head_dim));
    for ((of_head, key), value) in block.zip(keys.chunks_exact(head_dim)).zip(values.chunks_exact(head_dim)) {
        let (values, keys) = of_head.split_at_mut(T::values_len(head_dim));
        T::store([keys, values], token, [key, value], isa);
    }
}
