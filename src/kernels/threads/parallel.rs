//! Loops that the threads of a pool share. New memory is first touched by the thread that fills it.

#![allow(unsafe_code, reason = "slices whose parts different threads write")]

use bytemuck::Zeroable;

use super::pool::for_each;

/// A pointer to elements of which each task takes others.
pub struct DisjointPtr<T>(pub *mut T);

// SAFETY: each task takes other elements, whose type is `Send`.
unsafe impl<T: Send> Sync for DisjointPtr<T> {}

impl<T> DisjointPtr<T> {
    pub fn at(&self, at: usize) -> *mut T {
        self.0.wrapping_add(at)
    }
}

/// Calls `task` with the index of each item and the item.
pub fn for_each_mut<T: Send>(items: &mut [T], task: impl Fn(usize, &mut T) + Sync) {
    for_chunks_mut(items, 1, |i, item| task(i, &mut item[0]));
}

/// Calls `task` with each chunk of `len` items; the last chunk may be shorter.
pub fn for_chunks_mut<T: Send>(items: &mut [T], len: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    let (all, count) = (items.len(), items.len().div_ceil(len));
    let all_items = DisjointPtr(items.as_mut_ptr());
    for_each(count, |i| {
        let first = i * len;
        // SAFETY: chunks are inside the items and do not overlap, and the items are borrowed until all tasks are done.
        let chunk = unsafe { std::slice::from_raw_parts_mut(all_items.at(first), len.min(all - first)) };
        task(i, chunk);
    });
}

/// A vector of `all` values, zeros that `task` changes in chunks of `len`; the last chunk may be shorter.
pub fn filled<T: Zeroable + Send>(all: usize, len: usize, task: impl Fn(usize, &mut [T]) + Sync) -> Vec<T> {
    let mut values = Vec::<T>::with_capacity(all);
    let first_value = DisjointPtr(values.as_mut_ptr());
    for_each(all.div_ceil(len), |i| {
        let first = i * len;
        let len = len.min(all - first);
        // SAFETY: chunks are inside the capacity and do not overlap; `T` is `Zeroable`.
        let chunk = unsafe {
            first_value.at(first).write_bytes(0, len);
            std::slice::from_raw_parts_mut(first_value.at(first), len)
        };
        task(i, chunk);
    });
    // SAFETY: every chunk was zeroed, unless a panic of a task went past this.
    unsafe { values.set_len(all) };
    values
}

/// A copy of `values` that `task` changes in chunks of `len`; the last chunk may be shorter.
pub fn changed(values: &[f32], len: usize, task: impl Fn(usize, &mut [f32]) + Sync) -> Vec<f32> {
    let mut copy = Vec::<f32>::with_capacity(values.len());
    let first_value = DisjointPtr(copy.as_mut_ptr());
    for_each(values.len().div_ceil(len), |i| {
        let (first, from) = (i * len, &values[i * len..values.len().min((i + 1) * len)]);
        // SAFETY: chunks are inside the capacity and do not overlap.
        let chunk = unsafe {
            first_value.at(first).copy_from_nonoverlapping(from.as_ptr(), from.len());
            std::slice::from_raw_parts_mut(first_value.at(first), from.len())
        };
        task(i, chunk);
    });
    // SAFETY: every chunk was copied, unless a panic of a task went past this.
    unsafe { copy.set_len(values.len()) };
    copy
}

/// The results of `task` for each item, in the order of the items.
pub fn map<T: Sync, R: Send>(items: &[T], task: impl Fn(usize, &T) -> R + Sync) -> Vec<R> {
    let mut results: Vec<Option<R>> = items.iter().map(|_| None).collect();
    for_each_mut(&mut results, |i, result| *result = Some(task(i, &items[i])));
    results.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::threads::ThreadPool;

    #[test]
    fn loops_run_outside_of_a_pool() {
        let mut items = [0; 10];
        for_chunks_mut(&mut items, 3, |i, items| items.fill(i));
        assert_eq!(items, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]);
        assert_eq!(map(&[] as &[i32], |_, x| *x), [] as [i32; 0]);
    }

    #[test]
    fn every_value_is_written_once() {
        let pool = ThreadPool::new("pool", 2).unwrap();
        for len in [0, 1, 5, 48] {
            pool.scope(|| {
                let counted = filled(len, 3, |chunk, values: &mut [usize]| {
                    values.iter_mut().enumerate().for_each(|(i, value)| *value += chunk * 3 + i);
                });
                assert_eq!(counted, (0..len).collect::<Vec<_>>());
                let values: Vec<f32> = (0..len).map(|i| i as f32).collect();
                let more = changed(&values, 3, |chunk, values| values.iter_mut().for_each(|x| *x += chunk as f32));
                let exact = values.into_iter().enumerate().map(|(i, x)| x + (i / 3) as f32);
                assert_eq!(more, exact.collect::<Vec<_>>());
            });
        }
    }
}
