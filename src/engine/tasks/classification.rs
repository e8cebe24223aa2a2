//! The task of `classify`: one token.

use tokio::sync::oneshot;

use super::StepResult;
use crate::{
    Result,
    engine::sampler::Sampler,
    stream::{End, waking},
    text::OutputText,
};

/// A running classification: one token, whichever it is.
pub struct Classification {
    pub sampler: Sampler,
    pub output: OutputText,
    /// Receives the logits.
    pub reply: Option<oneshot::Sender<Vec<f32>>>,
}

impl Classification {
    pub fn advance(&mut self, logits: &[f32], step: &mut StepResult) -> Result<()> {
        let (id, logprobs) = self.sampler.sample(logits, None)?;
        step.sampled.push(id);
        if let Some(reply) = self.reply.take() {
            // A caller that is gone needs no logits.
            let _ = waking(|| reply.send(logits.to_vec()));
        }
        step.ready.push(self.output.only(id, logprobs)?);
        step.end = Some(End::stop());
        Ok(())
    }
}
