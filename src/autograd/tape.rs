//! The tape of reverse-mode differentiation: while it records, each operation on a tracked tensor notes how a gradient
//! passes it.

use std::{
    cell::RefCell,
    collections::{HashMap, HashSet, hash_map::Entry},
};

use candle_core::{Result, Tensor, TensorId};

use crate::kernels::{Isa, elementwise::add_to};

thread_local! {
    static RECORDING: RefCell<Option<Tape>> = const { RefCell::new(None) };
}

/// Recorded operations, in order.
#[derive(Default)]
pub struct Tape {
    steps: Vec<TapeEntry>,
    /// Tensors that gradients are wanted for, and tensors computed from them.
    tracked: HashSet<TensorId>,
}

/// An operation.
struct TapeEntry {
    inputs: Vec<TensorId>,
    output: TensorId,
    back: Backward,
}

/// From the gradient of the output to the gradients of all inputs.
type Backward = Box<dyn FnOnce(Vec<f32>) -> Result<Vec<Vec<f32>>>>;

/// Gradients by tensors.
pub struct Gradients {
    found: HashMap<TensorId, Vec<f32>>,
    isa: Isa,
}

/// Ends a recording whatever happens.
struct Recording;

impl Drop for Recording {
    fn drop(&mut self) {
        RECORDING.take();
    }
}

impl Tape {
    /// Records the operations of this thread on `leaves` and their descendants.
    pub fn record<'a, R>(
        leaves: impl IntoIterator<Item = &'a Tensor>,
        compute: impl FnOnce() -> Result<R>,
    ) -> Result<(R, Self)> {
        let tracked = leaves.into_iter().map(Tensor::id).collect();
        RECORDING.replace(Some(Self { steps: Vec::new(), tracked }));
        let recording = Recording;
        let computed = compute()?;
        let tape = RECORDING.take().unwrap_or_default();
        drop(recording);
        Ok((computed, tape))
    }

    /// The gradients of all leaves, from the gradient of `output`.
    pub fn back(self, output: &Tensor, gradient: Vec<f32>, isa: Isa) -> Result<Gradients> {
        let mut gradients = Gradients { found: HashMap::new(), isa };
        gradients.add(output.id(), gradient);
        for TapeEntry { inputs, output, back } in self.steps.into_iter().rev() {
            // An output that nothing used has no gradient.
            let Some(gradient) = gradients.found.remove(&output) else { continue };
            for (input, gradient) in inputs.into_iter().zip(back(gradient)?) {
                if self.tracked.contains(&input) {
                    gradients.add(input, gradient);
                }
            }
        }
        Ok(gradients)
    }
}

/// Records an operation: `back` maps the gradient of `output` to the gradients of `inputs`.
pub fn note<B>(inputs: &[&Tensor], output: &Tensor, back: impl FnOnce() -> B)
where
    B: FnOnce(Vec<f32>) -> Result<Vec<Vec<f32>>> + 'static,
{
    RECORDING.with_borrow_mut(|tape| {
        let Some(tape) = tape else { return };
        if inputs.iter().any(|input| tape.tracked.contains(&input.id())) {
            tape.tracked.insert(output.id());
            let inputs = inputs.iter().map(|input| input.id()).collect();
            tape.steps.push(TapeEntry { inputs, output: output.id(), back: Box::new(back()) });
        }
    });
}

/// Whether a gradient is wanted for a tensor.
pub fn is_tracked(x: &Tensor) -> bool {
    RECORDING.with_borrow(|tape| tape.as_ref().is_some_and(|tape| tape.tracked.contains(&x.id())))
}

impl Gradients {
    /// The gradient of a leaf, if the output depends on it.
    pub fn take(&mut self, of: &Tensor) -> Option<Vec<f32>> {
        self.found.remove(&of.id())
    }

    fn add(&mut self, of: TensorId, gradient: Vec<f32>) {
        match self.found.entry(of) {
            Entry::Vacant(entry) => {
                entry.insert(gradient);
            }
            Entry::Occupied(entry) => add_to(entry.into_mut(), &gradient, self.isa),
        }
    }
}
