//! Items that go through stages one behind the other, shared by the threads of a pass, which do not meet after each stage.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use super::pool;

/// An item and the stages it has gone through.
struct StageSlot<'a, T> {
    item: Mutex<&'a mut T>,
    stages: AtomicUsize,
}

/// Calls `task` with each of `stages` and each item, which it may change. That of an item begins once the item and all before
/// it have ended the stage before. After an error no more begin.
pub fn run<T: Send, E: Send>(
    items: &mut [T],
    stages: usize,
    task: impl Fn(usize, usize, &mut T) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let count = items.len();
    let place = |item| StageSlot { item: Mutex::new(item), stages: AtomicUsize::new(0) };
    let places: Vec<_> = items.iter_mut().map(place).collect();
    let (next, stopped, error) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(None));
    let tasks = stages * count;
    pool::on_all_threads(|| {
        // Tasks are taken in their order, so that what a thread waits for, another one has in hand.
        let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|taken| *taken < tasks);
        while let Some(taken) = take() {
            let (stage, i) = (taken / count, taken % count);
            let ready = || places[..=i].iter().all(|place| place.stages.load(Ordering::Acquire) >= stage);
            pool::wait_until(|| ready() || stopped.load(Ordering::Relaxed));
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            // The others are stopped unless this is done, also if it panics.
            let stop = StopUnlessDone(&stopped);
            let done = task(stage, i, &mut places[i].item.lock().unwrap_or_else(PoisonError::into_inner));
            match done {
                Ok(()) => {
                    std::mem::forget(stop);
                    places[i].stages.store(stage + 1, Ordering::Release);
                }
                Err(first) => {
                    error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(first);
                }
            }
        }
    });
    error.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}

/// Stops the others when it is dropped.
struct StopUnlessDone<'a>(&'a AtomicBool);

impl Drop for StopUnlessDone<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::kernels::threads::ThreadPool;

    #[test]
    fn an_item_finds_those_before_it_where_it_comes_from() {
        let pool = ThreadPool::new("team", 3).unwrap();
        for count in [0, 1, 2, 7, 24] {
            let seen: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            let mut items = vec![0; count];
            let went = pool.scope(|| {
                run(&mut items, 50, |stage, i, item| {
                    assert!(seen[..i].iter().all(|before| before.load(Ordering::Relaxed) >= stage));
                    assert_eq!(*item, stage);
                    *item += 1;
                    seen[i].store(*item, Ordering::Relaxed);
                    Ok::<_, ()>(())
                })
            });
            assert_eq!((went, items), (Ok(()), vec![50; count]));
        }
        let mut alone = [0; 3];
        let went = run(&mut alone, 2, |_, _, item| {
            *item += 1;
            Ok::<_, ()>(())
        });
        assert_eq!((went, alone), (Ok(()), [2; 3]));
    }

    #[test]
    fn an_error_or_a_panic_ends_all() {
        let pool = ThreadPool::new("team", 3).unwrap();
        for at in [(0, 0), (0, 5), (3, 2), (9, 5)] {
            let mut items = [0; 6];
            let mut through = |fail: &(dyn Fn() -> Result<(), usize> + Sync)| {
                pool.scope(|| run(&mut items, 10, |stage, i, _| if (stage, i) == at { fail() } else { Ok(()) }))
            };
            assert_eq!(through(&|| Err(7)), Err(7));
            assert!(catch_unwind(AssertUnwindSafe(|| through(&|| panic!("task")))).is_err());
            assert_eq!(through(&|| Ok(())), Ok(()));
        }
    }
}
