//! The tasks of a thread.

use std::{
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

/// A thread's share of the tasks that are left: the first one in the low half, the end in the high half.
///
/// The thread takes its tasks in order, so that it reads and writes one stretch of memory; other threads steal from the
/// end. The alignment keeps other data out of its cache lines.
#[derive(Default)]
#[repr(align(128))]
pub struct TaskRange(AtomicU64);

impl TaskRange {
    pub fn set(&self, tasks: Range<u32>) {
        self.0.store(u64::from(tasks.start) | u64::from(tasks.end) << 32, Ordering::Relaxed);
    }

    /// Takes the first task, if any is left.
    #[inline]
    pub fn first(&self) -> Option<usize> {
        self.take(|tasks| (tasks.start, tasks.start + 1..tasks.end))
    }

    /// Takes the last task, if any is left.
    #[inline]
    pub fn last(&self) -> Option<usize> {
        self.take(|tasks| (tasks.end - 1, tasks.start..tasks.end - 1))
    }

    /// Takes the task that `split` chooses, which also gives the tasks that remain.
    #[inline]
    fn take(&self, split: impl Fn(Range<u32>) -> (u32, Range<u32>)) -> Option<usize> {
        let mut held = self.0.load(Ordering::Relaxed);
        loop {
            let tasks = held as u32..(held >> 32) as u32;
            if tasks.is_empty() {
                return None;
            }
            let (task, left) = split(tasks);
            let left = u64::from(left.start) | u64::from(left.end) << 32;
            match self.0.compare_exchange_weak(held, left, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(task as usize),
                Err(now) => held = now,
            }
        }
    }
}
