use crate::{Error, LoadConfig, Result, decoder::BLOCK_TOKENS, engine::Limits};

/// Memory for keys and values where nobody says how much.
const DEFAULT_CACHE_BYTES: usize = 1 << 30;
/// Blocks are numbered with 32 bits.
const MAX_BLOCKS: usize = u32::MAX as usize;

/// How much a key/value cache holds.
pub struct CacheBudget {
    pub blocks: usize,
    /// Tokens a sequence may hold.
    pub context_len: usize,
    /// Blocks kept for later requests.
    max_idle_blocks: usize,
}

impl CacheBudget {
    /// What `config` asks for, for a model of `max_positions` positions whose blocks take
    /// `block_bytes` each.
    pub fn new(config: &LoadConfig, max_positions: usize, block_bytes: usize) -> Result<Self> {
        if let Some(tokens) = config.context_len.filter(|tokens| *tokens > max_positions) {
            let reason = format!("{tokens} tokens, and the model was trained for {max_positions}");
            return Err(Error::config("context_len", reason));
        }
        let wanted = config.context_len.map_or(1, |tokens| tokens.div_ceil(BLOCK_TOKENS));
        let blocks = match config.kv_cache_bytes {
            Some(bytes) => bytes / block_bytes,
            None => (DEFAULT_CACHE_BYTES / block_bytes).max(wanted),
        };
        if blocks < wanted {
            let reason = format!(
                "{} bytes hold {} tokens; {} tokens of {} bytes are needed",
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
        Ok(Self { blocks, context_len, max_idle_blocks: kept.div_ceil(BLOCK_TOKENS) })
    }

    /// The bounds of a scheduler.
    pub fn limits(&self, config: &LoadConfig) -> Limits {
        Limits {
            max_running: config.parallel_slots.unwrap_or(self.blocks),
            max_batched_tokens: config.max_batched_tokens,
            cache_blocks: self.blocks,
            block_tokens: BLOCK_TOKENS,
            max_idle_blocks: self.max_idle_blocks,
        }
    }
}
