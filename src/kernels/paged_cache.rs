use super::panels::{Element, ElementType, Elements, LANES, with_elements};

/// Tokens in one block of the cache: the scores of a block's keys are the lanes of a panel.
pub const BLOCK_TOKENS: usize = LANES;

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
    elements: &mut [T],
    slots: impl Iterator<Item = usize>,
    keys: &[f32],
    values: &[f32],
) {
    let Heads { num_kv_heads, head_dim, .. } = heads;
    let (keys, values) = (T::from_f32s(keys), T::from_f32s(values));
    let width = num_kv_heads * head_dim;
    for ((slot, keys), values) in slots.zip(keys.chunks_exact(width)).zip(values.chunks_exact(width)) {
        let (block, token) = (slot / BLOCK_TOKENS, slot % BLOCK_TOKENS);
        let block = elements.chunks_exact_mut(2 * heads.elements_per_block()).skip(block * num_kv_heads);
        for ((block, key), value) in block.zip(keys.chunks_exact(head_dim)).zip(values.chunks_exact(head_dim)) {
            let (stored_keys, stored_values) = block.split_at_mut(heads.elements_per_block());
            for (lanes, key) in stored_keys.chunks_exact_mut(BLOCK_TOKENS).zip(key) {
                lanes[token] = *key;
            }
            stored_values[token * head_dim..][..head_dim].copy_from_slice(value);
        }
    }
}
