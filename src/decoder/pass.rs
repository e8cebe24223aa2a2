use super::{Batch, rope::Rotation};

/// What all layers of a forward pass share.
pub struct Pass<'a> {
    pub batch: &'a Batch,
    /// The rotations of its positions, one for each of [`Spec::ropes`](super::Spec::ropes).
    pub rotations: Vec<Rotation>,
}
