//! Recurrent states of a pass: which one a sequence goes on with, and which become snapshots of the prefix cache.

use super::{BlockPool, BlockTable};
use crate::decoder::{SpanStates, StateSave};

impl BlockPool {
    /// Extends the states of a pass over a draft. States before draft tokens are saved, so that a rejected token costs
    /// no recomputation: the one before the draft in any case, others as long as free slots last. False if there is no
    /// slot at all, and so no draft.
    pub fn save_before_draft(&mut self, states: &mut SpanStates, draft_len: usize) -> bool {
        let Some(own) = states.saves.last_mut().filter(|_| draft_len > 0) else { return true };
        if self.states.available() == 0 {
            return false;
        }
        let (end, count) = (own.tokens, self.states.free().clamp(1, draft_len));
        own.tokens += draft_len;
        for tokens in end..end + count {
            self.states.take().into_iter().for_each(|slot| states.save(tokens, slot));
        }
        true
    }

    /// Saves a snapshot after `tokens` tokens, at the end of a block, unless there is one or no slot for it.
    pub fn save_snapshot(&mut self, table: &BlockTable, states: &mut SpanStates, tokens: usize) {
        let content = table.contents.get(tokens / self.block_tokens - 1);
        if content.is_none_or(|content| !self.states.contains(*content))
            && let Some(slot) = self.states.take()
        {
            states.save(tokens, slot);
        }
    }

    /// Picks, after a pass, the state that the sequence goes on with: the last one of at most `right` tokens. Returns
    /// its tokens, or `right` in a model without recurrent layers. The other states stay in `states`.
    pub fn adopt(&mut self, table: &mut BlockTable, states: &mut SpanStates, right: usize) -> usize {
        self.end_read(table);
        let Some(state) = &mut table.state else { return right };
        let at = states.saves.iter().rposition(|save| save.tokens <= right).unwrap_or_default();
        let adopted = states.saves.remove(at);
        debug_assert!(adopted.tokens <= right, "there is a state before each draft");
        state.slot = adopted.slot;
        adopted.tokens
    }

    /// Keeps the remaining states of a pass as snapshots where they are at the end of a published block, and frees the
    /// other slots. A snapshot in the answer, after `prompt_len` tokens, supersedes the sequence's earlier one.
    pub fn keep_snapshots(&mut self, table: &mut BlockTable, states: SpanStates, prompt_len: usize) {
        for StateSave { tokens, slot } in states.saves {
            let is_border = tokens.is_multiple_of(self.block_tokens);
            let content = table.contents.get((tokens / self.block_tokens).wrapping_sub(1));
            let Some(content) = content.copied().filter(|_| is_border) else {
                self.states.give_back(slot);
                continue;
            };
            self.states.insert(content, slot);
            if tokens > prompt_len
                && let Some(earlier) = table.snapshot.replace(content)
                && earlier != content
            {
                self.states.supersede(earlier);
            }
        }
    }

    /// Frees the slots of a pass that has failed or whose sequence is gone, except for the sequence's own.
    pub fn discard(&mut self, mut states: SpanStates) {
        states.saves.pop();
        states.saves.into_iter().for_each(|save| self.states.give_back(save.slot));
    }

    /// Unpins the snapshot that a sequence began with.
    pub fn end_read(&mut self, table: &mut BlockTable) {
        if let Some(source) = table.state.as_mut().and_then(|state| state.source.take()) {
            self.states.end_read(source.content);
        }
    }
}
