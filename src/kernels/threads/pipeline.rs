//! A pipeline: items go through stages one behind the other, without a barrier after each stage.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use super::pool;

/// An item and the number of stages that it has gone through.
struct StageSlot<'a, T> {
    item: Mutex<&'a mut T>,
    stages: AtomicUsize,
}

/// The items before an item, on their way through its stage.
pub struct EarlierItems<'a> {
    /// Whether all of them have left the stage.
    have_left: &'a dyn Fn() -> bool,
    stopped: &'a AtomicBool,
}

impl EarlierItems<'_> {
    /// Waits until all of them have left the stage; `false` if an error keeps one from it.
    pub fn wait(&self) -> bool {
        pool::wait_until(|| (self.have_left)() || self.stopped.load(Ordering::Relaxed));
        (self.have_left)()
    }
}

/// Calls `task(stage, index, item, earlier)` for every stage and item. An item enters a stage once it and all items
/// before it have left the previous stage; the task can wait until the earlier items have left this stage, too. No
/// task begins after an error.
///
/// # Errors
/// The first error of a task.
pub fn run<T: Send, E: Send>(
    items: &mut [T],
    stages: usize,
    task: impl Fn(usize, usize, &mut T, EarlierItems<'_>) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let count = items.len();
    let place = |item| StageSlot { item: Mutex::new(item), stages: AtomicUsize::new(0) };
    let places: Vec<_> = items.iter_mut().map(place).collect();
    let (next, stopped, error) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(None));
    let tasks = stages * count;
    pool::on_all_threads(|| {
        // Tasks are taken in order, so a thread only waits for tasks that other threads are computing.
        let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|taken| *taken < tasks);
        while let Some(taken) = take() {
            let (stage, i) = (taken / count, taken % count);
            let ready = || places[..=i].iter().all(|place| place.stages.load(Ordering::Acquire) >= stage);
            pool::wait_until(|| ready() || stopped.load(Ordering::Relaxed));
            if stopped.load(Ordering::Relaxed) {
                return;
            }
            // An error or a panic stops the other threads.
            let stop = StopUnlessDone(&stopped);
            let have_left = || places[..i].iter().all(|place| place.stages.load(Ordering::Acquire) > stage);
            let earlier = EarlierItems { have_left: &have_left, stopped: &stopped };
            let done = task(stage, i, &mut places[i].item.lock().unwrap_or_else(PoisonError::into_inner), earlier);
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

/// Stops the other threads when it is dropped.
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
    fn an_item_enters_a_stage_after_all_items_before_it() {
        let pool = ThreadPool::new("pool", 3).unwrap();
        for count in [0, 1, 2, 7, 24] {
            let seen: Vec<_> = (0..count).map(|_| AtomicUsize::new(0)).collect();
            let mut items = vec![0; count];
            let went = pool.scope(|| {
                run(&mut items, 50, |stage, i, item, _| {
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
        let went = run(&mut alone, 2, |_, _, item, _| {
            *item += 1;
            Ok::<_, ()>(())
        });
        assert_eq!((went, alone), (Ok(()), [2; 3]));
    }

    #[test]
    fn an_item_can_wait_for_earlier_items_in_its_stage() {
        let pool = ThreadPool::new("pool", 3).unwrap();
        let order = Mutex::new(Vec::new());
        let went = pool.scope(|| {
            run(&mut [(); 5], 20, |stage, i, _, earlier| {
                assert!(earlier.wait());
                order.lock().unwrap().push((stage, i));
                Ok::<_, ()>(())
            })
        });
        let mut order = order.into_inner().unwrap();
        // Stages overlap; within each the order is that of the items.
        order.sort_by_key(|(stage, _)| *stage);
        assert!(went.is_ok() && order.is_sorted());
        let went = pool.scope(|| {
            run(&mut [(); 5], 20, |stage, i, _, earlier| match (stage, i) {
                (7, 2) => Err("failed"),
                _ => earlier.wait().then_some(()).ok_or("waits in vain"),
            })
        });
        assert!(went.is_err());
    }

    #[test]
    fn an_error_or_a_panic_stops_all_threads() {
        let pool = ThreadPool::new("pool", 3).unwrap();
        for at in [(0, 0), (0, 5), (3, 2), (9, 5)] {
            let mut items = [0; 6];
            let mut through = |fail: &(dyn Fn() -> Result<(), usize> + Sync)| {
                pool.scope(|| run(&mut items, 10, |stage, i, _, _| if (stage, i) == at { fail() } else { Ok(()) }))
            };
            assert_eq!(through(&|| Err(7)), Err(7));
            assert!(catch_unwind(AssertUnwindSafe(|| through(&|| panic!("task")))).is_err());
            assert_eq!(through(&|| Ok(())), Ok(()));
        }
    }
}
