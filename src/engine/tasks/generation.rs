//! The task of `generate`: tokens up to an end, with drafts and masks.

use super::{StepResult, rows};
use crate::{
    Error, Result,
    engine::{
        drafter::Drafter,
        sampler::Sampler,
        token_mask::{MaskState, MaskThread, TokenSet},
    },
    stream::End,
    text::OutputText,
};

/// A running generation: sampler, detokenizer, drafter, mask.
pub struct Generation {
    pub sampler: Sampler,
    pub output: OutputText,
    /// Tokens that end the answer.
    pub end_ids: Vec<u32>,
    pub max_tokens: usize,
    pub drafter: Option<Box<dyn Drafter>>,
    pub mask: Option<MaskState>,
    pub counts: GenerationCounts,
}

/// The tokens of a generation so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct GenerationCounts {
    /// Tokens sampled, without one that ends the answer.
    pub sampled: usize,
    pub drafted: usize,
    pub accepted: usize,
}

impl Generation {
    /// Starts to compute the mask of the next tokens, beside the forward pass.
    pub fn start_mask(&mut self, draft: &[u32], thread: &mut MaskThread) {
        if let Some(mask) = &mut self.mask {
            mask.start(draft, thread);
        }
    }

    /// Samples for as long as the draft is right.
    pub fn advance(&mut self, draft: &[u32], logits: &[f32], step: &mut StepResult) -> Result<()> {
        let masks = self.mask.as_mut().map(MaskState::join).transpose()?;
        let sampled = self.sample_rows(draft, logits, masks.as_deref(), step);
        self.observe(draft.len(), &step.sampled)?;
        sampled
    }

    fn sample_rows(
        &mut self,
        draft: &[u32],
        logits: &[f32],
        masks: Option<&[TokenSet]>,
        step: &mut StepResult,
    ) -> Result<()> {
        let mut draft_left = draft.iter();
        for (index, logits) in rows(logits, 1 + draft.len()).enumerate() {
            let lost = || Error::internal("a token mask ends before the draft that it allows");
            let mask = masks.map(|masks| masks.get(index).ok_or_else(lost)).transpose()?;
            self.sample(logits, mask, step)?;
            // The next logits are of use only if they follow the token that was sampled.
            if step.end.is_some() || draft_left.next() != step.sampled.last() {
                break;
            }
        }
        Ok(())
    }

    /// Samples one token.
    fn sample(&mut self, logits: &[f32], mask: Option<&TokenSet>, step: &mut StepResult) -> Result<()> {
        let (id, logprobs) = self.sampler.sample(logits, mask)?;
        step.sampled.push(id);
        if self.end_ids.contains(&id) {
            step.ready.extend(self.output.finish()?);
            step.end = Some(End::stop());
            return Ok(());
        }
        self.counts.sampled += 1;
        let pushed = self.output.push(id, logprobs)?;
        step.ready.extend(pushed.ready);
        if pushed.stopped {
            step.end = Some(End::stop());
        } else if self.counts.sampled >= self.max_tokens {
            step.ready.extend(self.output.finish()?);
            step.end = Some(End::length());
        }
        Ok(())
    }

    /// Tells drafter and mask of the sampled tokens.
    fn observe(&mut self, drafted: usize, sampled: &[u32]) -> Result<()> {
        let accepted = sampled.len().saturating_sub(1);
        self.counts.drafted += drafted;
        self.counts.accepted += accepted;
        if let Some(drafter) = &mut self.drafter {
            drafter.observe(sampled, drafted, accepted);
        }
        match &mut self.mask {
            Some(mask) => mask.observe(sampled),
            None => Ok(()),
        }
    }

    /// A draft of the next tokens, if a wrong one costs `price` tokens. One more token is sampled after the draft, so
    /// it ends before the last token there may be.
    pub fn draft(&mut self, price: f64) -> Vec<u32> {
        let Some(drafter) = &mut self.drafter else { return Vec::new() };
        let mut draft = drafter.draft(self.max_tokens.saturating_sub(self.counts.sampled + 1), price);
        let end = draft.iter().position(|id| self.end_ids.contains(id));
        draft.truncate(end.unwrap_or(draft.len()));
        draft
    }
}
