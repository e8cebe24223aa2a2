use super::{AttentionCapture, Batch, lora::AdaptedRows, rope::Rotation};

/// What all layers of a forward pass share.
pub struct Pass<'a> {
    pub batch: &'a Batch,
    /// The rotations of its positions, one for each of [`Spec::ropes`](super::Spec::ropes).
    pub rotations: Vec<Rotation>,
    /// The rows that adapters change.
    pub adapted: AdaptedRows<'a>,
    /// Who wants to see the attention to whole sequences.
    pub capture: Option<&'a AttentionCapture>,
}
