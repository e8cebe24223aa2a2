//! State of one forward pass.

use super::{AttentionCapture, Batch, ops::AttentionPlans, rope::RopeRotation};
use crate::adapters::AdaptedRows;

/// State that all layers of a forward pass share.
pub struct Pass<'a> {
    pub batch: &'a Batch,
    /// The rotations of its positions, one for each of [`Spec::ropes`](super::Spec::ropes).
    pub rotations: Vec<RopeRotation>,
    /// The rows that adapters change.
    pub adapted: AdaptedRows<'a>,
    /// Where layers find which rows attend to which keys.
    pub plans: AttentionPlans,
    /// Records the attention of whole sequences.
    pub capture: Option<&'a AttentionCapture>,
}
