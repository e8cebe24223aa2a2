//! The tasks of sequences: each turns the outputs of its rows into tokens, in its own way and with its own state.

mod classification;
mod generation;
mod scoring;

pub use classification::Classification;
pub use generation::Generation;
pub use scoring::Scoring;

use super::scheduler::Chunk;
use crate::{Token, stream::End};

/// The task of a sequence.
pub enum SequenceTask {
    Generate(Box<Generation>),
    Classify(Box<Classification>),
    Score(Box<Scoring>),
}

/// The results of a step of one sequence.
#[derive(Default)]
pub struct StepResult {
    /// The sampled tokens: the accepted ones of the draft, and one more.
    pub sampled: Vec<u32>,
    /// Tokens for the stream: their text is decided.
    pub ready: Vec<Token>,
    pub end: Option<End>,
}

impl SequenceTask {
    /// Takes the logits of the chunk's output rows, `[output rows, vocab_size]`.
    pub fn advance(&mut self, chunk: &Chunk, logits: &[f32]) -> StepResult {
        let mut step = StepResult::default();
        let advanced = match self {
            Self::Generate(generation) => generation.advance(&chunk.draft, logits, &mut step),
            Self::Classify(classification) => classification.advance(logits, &mut step),
            Self::Score(scoring) => scoring.advance(chunk, logits, &mut step),
        };
        if let Err(error) = advanced {
            step.end = Some(error.into());
        }
        step
    }

    /// Whether the outputs after all tokens are wanted, and not after the last one only.
    pub fn wants_all_rows(&self) -> bool {
        matches!(self, Self::Score(_))
    }
}

/// The parts of a step's outputs that belong to its rows.
fn rows(logits: &[f32], count: usize) -> impl Iterator<Item = &[f32]> {
    logits.chunks_exact(logits.len() / count)
}
