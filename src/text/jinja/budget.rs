//! Limits of a template: work, memory and nesting. Templates are untrusted.

use std::{cell::Cell, rc::Rc};

/// Bytes a text may have, and with it the prompt.
pub const MAX_TEXT_BYTES: usize = 16 << 20;
/// How deep values may be nested.
pub const MAX_VALUE_DEPTH: usize = 100;
/// How deep the parts of a template may be nested.
pub const MAX_SYNTAX_DEPTH: usize = 100;
/// How deep evaluation may go: macros and recursive loops call each other.
pub const MAX_CALL_DEPTH: usize = 400;
/// Units of work, before the allowance for the size of the input. A unit is a node of the syntax tree, an item of a
/// list, …
const WORK_UNITS: u64 = 4_000_000;
/// … or as many bytes.
const BYTES_PER_UNIT: usize = 16;
/// Units of work for each byte of the input.
const WORK_UNITS_PER_BYTE: u64 = 8;
/// Bytes that values may take at one time, before the allowance for the size of the input.
const LIVE_BYTES: usize = 24 << 20;
/// Bytes that values may take for each byte of the input.
const LIVE_BYTES_PER_BYTE: usize = 6;

/// Why a template ended.
#[derive(Debug)]
pub struct JinjaError {
    pub reason: String,
    /// Whether the template itself said so, by `raise_exception`.
    pub raised: bool,
}

pub type Outcome<T> = Result<T, JinjaError>;

impl JinjaError {
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), raised: false }
    }
}

/// An outcome that ends the template.
pub fn fail<T>(reason: impl Into<String>) -> Outcome<T> {
    Err(JinjaError::new(reason))
}

/// The work and memory that are left for one rendering.
#[derive(Clone)]
pub struct RenderBudget(Rc<RemainingBudget>);

struct RemainingBudget {
    work: Cell<u64>,
    bytes: Cell<usize>,
}

impl RenderBudget {
    /// The budget for an input of so many bytes.
    pub fn new(input_bytes: usize) -> Self {
        let work = WORK_UNITS.saturating_add(WORK_UNITS_PER_BYTE.saturating_mul(input_bytes as u64));
        let bytes = LIVE_BYTES.saturating_add(LIVE_BYTES_PER_BYTE.saturating_mul(input_bytes));
        Self(Rc::new(RemainingBudget { work: Cell::new(work), bytes: Cell::new(bytes) }))
    }

    /// Takes units of work.
    pub fn work(&self, units: usize) -> Outcome<()> {
        match self.0.work.get().checked_sub(units as u64) {
            Some(left) => {
                self.0.work.set(left);
                Ok(())
            }
            None => fail("it takes too much work"),
        }
    }

    /// Takes the work of going through bytes.
    pub fn scan(&self, bytes: usize) -> Outcome<()> {
        self.work(1 + bytes / BYTES_PER_UNIT)
    }

    /// Takes memory, which is given back when the returned value is dropped.
    pub fn hold(&self, bytes: usize) -> Outcome<HeldMemory> {
        let mut held = HeldMemory { bytes: 0, budget: self.clone() };
        held.grow(bytes)?;
        Ok(held)
    }
}

/// Memory that a value takes.
pub struct HeldMemory {
    bytes: usize,
    budget: RenderBudget,
}

impl HeldMemory {
    pub fn budget(&self) -> &RenderBudget {
        &self.budget
    }

    pub fn grow(&mut self, bytes: usize) -> Outcome<()> {
        match self.budget.0.bytes.get().checked_sub(bytes) {
            Some(left) => {
                self.budget.0.bytes.set(left);
                self.bytes += bytes;
                Ok(())
            }
            None => fail("its values take too much memory"),
        }
    }
}

impl Drop for HeldMemory {
    fn drop(&mut self) {
        self.budget.0.bytes.set(self.budget.0.bytes.get().saturating_add(self.bytes));
    }
}

/// Refuses texts that are too long before there are any.
pub fn check_text(bytes: usize) -> Outcome<()> {
    if bytes > MAX_TEXT_BYTES { fail(format!("a text is longer than {MAX_TEXT_BYTES} bytes")) } else { Ok(()) }
}
