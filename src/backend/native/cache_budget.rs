//! The size of the cache: blocks, state slots and context length that fit into the configured memory.

use crate::{
    Error, LoadConfig, Result,
    decoder::{BLOCK_TOKENS, CacheSize},
    engine::Limits,
};

/// Memory for the cache where nobody says how much.
const DEFAULT_CACHE_BYTES: usize = 1 << 30;
/// Blocks are numbered with 32 bits.
const MAX_BLOCKS: usize = u32::MAX as usize;

/// Recurrent states, of running sequences and for the prefix cache, that need no more than half of the memory.
const STATE_SLOTS: usize = 512;
/// Bytes that a block counts for in a model that stores nothing in it: the engine keeps its tokens.
const EMPTY_BLOCK_BYTES: usize = 1024;

/// Bytes of a model's cache.
#[derive(Debug, Clone, Copy)]
pub struct CacheCosts {
    /// Of one block of [`BLOCK_TOKENS`] tokens.
    pub block_bytes: usize,
    /// Of one sequence's recurrent states.
    pub state_bytes: usize,
}

/// How much a cache holds.
pub struct CacheBudget {
    pub size: CacheSize,
    /// Tokens a sequence may hold.
    pub context_len: usize,
    /// Blocks kept for later requests.
    max_idle_blocks: usize,
}

impl CacheBudget {
    /// The budget that `config` asks for, for a model of `max_positions` positions.
    pub fn new(config: &LoadConfig, max_positions: usize, costs: CacheCosts) -> Result<Self> {
        let block_bytes = if costs.block_bytes == 0 { EMPTY_BLOCK_BYTES } else { costs.block_bytes };
        let state_slots = state_slots(config, costs.state_bytes);
        let state_bytes = costs.state_bytes.saturating_mul(state_slots);
        if let Some(tokens) = config.context_len.filter(|tokens| *tokens > max_positions) {
            let reason = format!("{tokens} tokens, and the model was trained for {max_positions}");
            return Err(Error::config("context_len", reason));
        }
        let wanted = config.context_len.map_or(1, |tokens| tokens.div_ceil(BLOCK_TOKENS));
        let blocks = match config.kv_cache_bytes {
            Some(bytes) => bytes.saturating_sub(state_bytes) / block_bytes,
            None => (DEFAULT_CACHE_BYTES.saturating_sub(state_bytes) / block_bytes).max(wanted),
        };
        if blocks < wanted {
            let states = match state_bytes {
                0 => String::new(),
                bytes => format!(" beside {bytes} bytes of recurrent states"),
            };
            let reason = format!(
                "{} bytes hold {} tokens; {} tokens of {} bytes are needed{states}",
                config.kv_cache_bytes.unwrap_or_default(),
                blocks * BLOCK_TOKENS,
                config.context_len.unwrap_or(BLOCK_TOKENS),
                block_bytes / BLOCK_TOKENS,
            );
            return Err(Error::config("kv_cache_bytes", reason));
        }
        if blocks > MAX_BLOCKS {
            let (field, value) = match config.kv_cache_bytes {
                Some(bytes) => ("kv_cache_bytes", bytes),
                None => ("context_len", config.context_len.unwrap_or_default()),
            };
            let reason = format!("{value} makes {blocks} blocks of {BLOCK_TOKENS} tokens; {MAX_BLOCKS} are the most");
            return Err(Error::config(field, reason));
        }
        let context_len = config.context_len.unwrap_or(max_positions).min(blocks * BLOCK_TOKENS);
        let kept = match (config.prefix_cache_tokens, config.kv_cache_bytes) {
            (Some(tokens), _) => tokens,
            (None, Some(_)) => usize::MAX,
            (None, None) => context_len,
        };
        Ok(Self { size: CacheSize { blocks, state_slots }, context_len, max_idle_blocks: kept.div_ceil(BLOCK_TOKENS) })
    }

    /// The bounds of a scheduler.
    pub fn limits(&self, config: &LoadConfig) -> Limits {
        Limits {
            max_running: config.parallel_slots.unwrap_or(self.size.blocks),
            max_batched_tokens: config.max_batched_tokens,
            cache_blocks: self.size.blocks,
            state_slots: self.size.state_slots,
            block_tokens: BLOCK_TOKENS,
            max_idle_blocks: self.max_idle_blocks,
        }
    }
}

/// States of `state_bytes` each that half of the memory holds, as many as are of use, and at least one.
fn state_slots(config: &LoadConfig, state_bytes: usize) -> usize {
    if state_bytes == 0 {
        return 0;
    }
    let fit = config.kv_cache_bytes.unwrap_or(DEFAULT_CACHE_BYTES) / 2 / state_bytes;
    let useful = STATE_SLOTS.max(config.parallel_slots.unwrap_or(0).saturating_mul(2));
    fit.clamp(1, useful)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(config: &LoadConfig, block_bytes: usize, state_bytes: usize) -> (usize, usize) {
        let budget = CacheBudget::new(config, 1 << 20, CacheCosts { block_bytes, state_bytes }).unwrap();
        (budget.size.blocks, budget.size.state_slots)
    }

    #[test]
    fn states_take_at_most_half_of_the_memory() {
        let config = LoadConfig::new().kv_cache_bytes(10_000);
        assert_eq!(size(&config, 100, 0), (100, 0));
        assert_eq!(size(&config, 100, 1000), (50, 5));
        assert_eq!(size(&config, 100, 9000), (10, 1), "one sequence has to run");
        assert_eq!(size(&config, 100, 1), (94, STATE_SLOTS));
        assert_eq!(size(&config.parallel_slots(1000), 100, 1), (80, 2000));
    }

    #[test]
    fn a_model_of_recurrent_layers_alone_has_a_finite_cache() {
        let (blocks, state_slots) = size(&LoadConfig::new(), 0, 1 << 20);
        assert_eq!((blocks, state_slots), (512 << 10, 512));
    }

    #[test]
    fn a_state_that_leaves_no_room_for_tokens_is_refused_with_its_size() {
        let config = LoadConfig::new().kv_cache_bytes(1000);
        let costs = CacheCosts { block_bytes: 160, state_bytes: 900 };
        let error = CacheBudget::new(&config, 100, costs).err().unwrap().to_string();
        assert!(error.contains("1000 bytes hold 0 tokens; 16 tokens of 10 bytes are needed"), "{error}");
        assert!(error.contains("beside 900 bytes of recurrent states"), "{error}");
    }
}
