//! The task of `score`: log-probabilities of a prompt.

use super::{StepResult, rows};
use crate::{
    Result,
    engine::{sampler::Sampler, scheduler::Chunk},
    kernels::threads::parallel,
    stream::End,
    text::OutputText,
};

/// A running scoring of a prompt: the log-probability of each of its tokens.
pub struct Scoring {
    pub sampler: Sampler,
    pub output: OutputText,
    pub prompt: Vec<u32>,
    /// Tokens of the prompt that are scored.
    pub scored: usize,
}

impl Scoring {
    /// Scores the tokens after each row of a chunk. After a preemption some are scored already.
    pub fn advance(&mut self, chunk: &Chunk, logits: &[f32], step: &mut StepResult) -> Result<()> {
        let mut ready = Vec::new();
        if self.scored == 0 {
            ready.extend(self.output.push(self.prompt[0], None)?.ready);
            self.scored = 1;
        }
        let rows = rows(logits, chunk.len).zip(&self.prompt[chunk.start + 1..]);
        let rows: Vec<_> = rows.skip(self.scored - chunk.start - 1).collect();
        let found = parallel::map(&rows, |_, (row, id)| self.sampler.score(row, **id));
        for logprobs in found {
            ready.extend(self.output.push(self.prompt[self.scored], Some(logprobs?))?.ready);
            self.scored += 1;
        }
        if chunk.samples {
            ready.extend(self.output.finish()?);
            step.end = Some(End::stop());
        }
        step.ready = ready;
        Ok(())
    }
}
