//! A pool of threads that share the loops of a forward pass. Inside a [`PoolScope`] they spin, so that sharing a loop
//! costs less than a microsecond; outside they sleep.

#![allow(unsafe_code, reason = "a task that other threads call through a pointer")]

use std::{
    any::Any,
    cell::{Cell, UnsafeCell},
    marker::PhantomData,
    mem::{take, transmute},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rayon::{ThreadPoolBuildError, ThreadPoolBuilder, prelude::*};

use super::task_range::TaskRange;

/// Polls before a thread yields, and between two looks at the clock.
const SPINS: usize = 2000;
/// How long threads poll for the next scope before they sleep.
const LINGER: Duration = Duration::from_micros(200);

/// Set while threads may join the job.
const OPEN: u64 = 1 << 63;
/// Bits that count the helpers in the job. The bits above count jobs.
const MEMBERS: u64 = (1 << 16) - 1;
const JOB: u64 = 1 << 16;

type PoolTask<'a> = dyn Fn(usize) + Sync + 'a;

/// The state that the threads of a pool share.
struct PoolState {
    /// [`OPEN`], the number of the job, and the number of helpers in it.
    state: AtomicU64,
    /// Written while no thread is in a job, and read by threads in a job.
    task: UnsafeCell<Option<*const PoolTask<'static>>>,
    /// The tasks that each thread has left.
    shares: Box<[TaskRange]>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Whether a scope is open.
    awake: AtomicBool,
    /// Whether a job is being shared or set up.
    sharing: AtomicBool,
    ended: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

// SAFETY: `task` is written by one thread at a time, before it opens a job, and read by threads that have entered the
// job, which that thread waits for.
unsafe impl Sync for PoolState {}
// SAFETY: as above; the pointer is to a `Sync` closure.
unsafe impl Send for PoolState {}

/// Threads that help the thread which opens a scope.
pub struct ThreadPool {
    shared: Arc<PoolState>,
    helpers: usize,
    /// Whether a scope is open, whose thread they help.
    busy: AtomicBool,
}

thread_local! {
    static AMBIENT: Cell<Ambient> = const { Cell::new(Ambient::None) };
}

/// The threads that share the loops of this thread.
#[derive(Default)]
enum Ambient {
    /// Rayon's global pool.
    #[default]
    None,
    /// No other thread: this one computes a task of a loop.
    Alone,
    Pool(Arc<PoolState>),
}

impl ThreadPool {
    /// A pool of `threads` threads: the one that opens a scope, and helpers that are named `name` and a number.
    pub fn new(name: &str, threads: usize) -> Result<Self, ThreadPoolBuildError> {
        let shared = Arc::new(PoolState {
            state: AtomicU64::new(0),
            task: UnsafeCell::new(None),
            shares: (0..threads.max(1)).map(|_| TaskRange::default()).collect(),
            panic: Mutex::new(None),
            awake: AtomicBool::new(false),
            sharing: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            sleepers: Mutex::new(0),
            wake: Condvar::new(),
        });
        let pool = Self { shared, helpers: threads.saturating_sub(1), busy: AtomicBool::new(false) };
        for i in 1..threads {
            let (name, shared) = (name.to_owned(), pool.shared.clone());
            // Rayon loops inside candle then stay on this thread.
            let alone = ThreadPoolBuilder::new().num_threads(1).thread_name(move |_| format!("{name} {i}"));
            alone.build()?.spawn(move || shared.help(i));
        }
        Ok(pool)
    }

    /// Does `work` inside a scope.
    pub fn scope<R>(&self, work: impl FnOnce() -> R) -> R {
        let _scope = self.begin();
        work()
    }

    /// Opens a scope of this thread, whose loops the pool shares until the scope is dropped. While another scope of the
    /// pool is open, the thread computes alone.
    pub fn begin(&self) -> PoolScope<'_> {
        let helped = self.helpers > 0 && !self.busy.swap(true, Ordering::Acquire);
        let ambient = if helped { Ambient::Pool(self.shared.clone()) } else { Ambient::Alone };
        if helped {
            self.shared.rouse();
        }
        PoolScope { pool: helped.then_some(self), _ambient: AmbientGuard::by(ambient) }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.rouse();
    }
}

/// A scope in which the pool shares the loops of a thread.
pub struct PoolScope<'a> {
    /// The pool, unless the thread computes alone.
    pool: Option<&'a ThreadPool>,
    _ambient: AmbientGuard,
}

impl Drop for PoolScope<'_> {
    fn drop(&mut self) {
        if let Some(pool) = self.pool {
            pool.shared.awake.store(false, Ordering::SeqCst);
            pool.busy.store(false, Ordering::Release);
        }
    }
}

impl PoolState {
    /// Wakes sleeping helpers.
    fn rouse(&self) {
        self.awake.store(true, Ordering::SeqCst);
        if *self.sleepers.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            self.wake.notify_all();
        }
    }

    /// The loop of helper `i`, until the pool is dropped.
    fn help(&self, i: usize) {
        AMBIENT.set(Ambient::Alone);
        let mut done = 0;
        while !self.ended.load(Ordering::SeqCst) {
            match self.enter(done) {
                Some(job) => {
                    done = job;
                    self.work(i);
                    self.state.fetch_sub(1, Ordering::Release);
                }
                None => self.wait(done),
            }
        }
    }

    /// Enters the open job, unless it is the one that the helper did last.
    fn enter(&self, done: u64) -> Option<u64> {
        let state = self.state.load(Ordering::Acquire);
        let job = state & !OPEN & !MEMBERS;
        let new = state & OPEN != 0 && job != done;
        let entered =
            new && self.state.compare_exchange(state, state + 1, Ordering::Acquire, Ordering::Relaxed).is_ok();
        entered.then_some(job)
    }

    /// Waits for a job; sleeps after [`LINGER`] outside of scopes.
    fn wait(&self, done: u64) {
        let comes = || {
            let state = self.state.load(Ordering::Relaxed);
            state & OPEN != 0 && state & !OPEN & !MEMBERS != done || self.ended.load(Ordering::Relaxed)
        };
        let begun = Instant::now();
        loop {
            if spin_until(comes) {
                return;
            }
            thread::yield_now();
            if !self.awake.load(Ordering::SeqCst) && begun.elapsed() > LINGER {
                let mut sleepers = self.sleepers.lock().unwrap_or_else(PoisonError::into_inner);
                *sleepers += 1;
                while !self.awake.load(Ordering::SeqCst) {
                    sleepers = self.wake.wait(sleepers).unwrap_or_else(PoisonError::into_inner);
                }
                *sleepers -= 1;
                return;
            }
        }
    }

    /// Computes the tasks of the thread's own share, then tasks of other shares.
    fn work(&self, own: usize) {
        // SAFETY: the caller is in the job, and `task` is not written meanwhile.
        let Some(task) = (unsafe { *self.task.get() }) else { return };
        // SAFETY: the thread that opened the job keeps the closure alive until all helpers have left the job.
        let task = unsafe { &*task };
        let all = || {
            while let Some(i) = self.shares[own].first() {
                task(i);
            }
            let (before, after) = self.shares.split_at(own);
            for share in after.iter().chain(before) {
                while let Some(i) = share.last() {
                    task(i);
                }
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(all)) {
            self.shares.iter().for_each(|share| share.set(0..0));
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }

    /// Computes all tasks together with the helpers that come in time.
    fn share(&self, tasks: usize, task: &PoolTask<'_>) {
        // Scopes that are not dropped in reverse order may leave the pool to two threads.
        if tasks > u32::MAX as usize || self.sharing.swap(true, Ordering::Acquire) {
            return (0..tasks).for_each(task);
        }
        // SAFETY: this function does not return while a thread has the pointer, so the closure outlives all uses.
        let task: *const PoolTask<'static> = unsafe { transmute(std::ptr::from_ref(task)) };
        // SAFETY: no job is open and no helper in one, since the last call waited for that; `sharing` excludes other
        // calls.
        unsafe { *self.task.get() = Some(task) };
        let threads = self.shares.len();
        for (i, share) in self.shares.iter().enumerate() {
            share.set((tasks * i / threads) as u32..(tasks * (i + 1) / threads) as u32);
        }
        let job = (self.state.load(Ordering::Relaxed) & !OPEN).wrapping_add(JOB) & !OPEN;
        self.state.store(job | OPEN, Ordering::Release);
        self.work(0);
        self.state.fetch_and(!OPEN, Ordering::AcqRel);
        wait_until(|| self.state.load(Ordering::Acquire) & MEMBERS == 0);
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.sharing.store(false, Ordering::Release);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// Polls a condition [`SPINS`] times; `true` once it holds.
fn spin_until(done: impl Fn() -> bool) -> bool {
    (0..SPINS).any(|_| {
        std::hint::spin_loop();
        done()
    })
}

/// Waits for a condition that another thread makes true soon.
pub fn wait_until(done: impl Fn() -> bool) {
    while !spin_until(&done) {
        thread::yield_now();
    }
}

/// Restores the previous [`Ambient`] of the thread when it is dropped.
struct AmbientGuard(Ambient, PhantomData<*const ()>);

impl AmbientGuard {
    fn by(ambient: Ambient) -> Self {
        Self(AMBIENT.replace(ambient), PhantomData)
    }
}

impl Drop for AmbientGuard {
    fn drop(&mut self) {
        AMBIENT.set(take(&mut self.0));
    }
}

/// The number of threads that share a loop of this thread.
pub fn current_num_threads() -> usize {
    match &AmbientGuard::by(Ambient::Alone).0 {
        Ambient::None => rayon::current_num_threads(),
        Ambient::Alone => 1,
        Ambient::Pool(shared) => shared.shares.len(),
    }
}

/// Calls `task` with every index below `tasks`: on the threads of the scope, or on rayon's outside of one.
pub fn for_each(tasks: usize, task: impl Fn(usize) + Sync) {
    if tasks <= 1 {
        return (0..tasks).for_each(task);
    }
    // Loops within tasks run on the thread of the task.
    match &AmbientGuard::by(Ambient::Alone).0 {
        Ambient::None => (0..tasks).into_par_iter().with_max_len(1).for_each(&task),
        Ambient::Alone => (0..tasks).for_each(task),
        Ambient::Pool(shared) => shared.share(tasks, &task),
    }
}

/// Calls `work` once for each thread of the scope, or once outside of a scope. A call must not wait for another one to
/// begin: a late thread finds its call done by another.
pub fn on_all_threads(work: impl Fn() + Sync) {
    match &AmbientGuard::by(Ambient::Alone).0 {
        Ambient::None | Ambient::Alone => work(),
        Ambient::Pool(shared) => shared.share(shared.shares.len(), &|_| work()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::threads::parallel::{for_each_mut, map};

    #[test]
    fn every_task_runs_once_and_nested_loops_too() {
        let pool = ThreadPool::new("pool", 3).unwrap();
        for round in 0..2000 {
            let mut counts = vec![0usize; 2 + round % 50];
            pool.scope(|| {
                for_each_mut(&mut counts, |i, count| {
                    assert_eq!(current_num_threads(), 1);
                    let mut inner = [0; 3];
                    for_each_mut(&mut inner, |i, inner| *inner += i);
                    *count += i + inner.iter().sum::<usize>();
                });
                assert_eq!(current_num_threads(), 3);
            });
            assert!(counts.iter().enumerate().all(|(i, count)| *count == i + 3), "{round}");
        }
    }

    #[test]
    fn a_panic_of_a_task_reaches_the_caller_and_the_pool_goes_on() {
        let pool = ThreadPool::new("pool", 2).unwrap();
        for round in 0..50 {
            let ran = catch_unwind(AssertUnwindSafe(|| {
                pool.scope(|| for_each(8, |i| assert!(i != round % 8, "task {i}")));
            }));
            assert!(ran.is_err());
            assert_eq!(pool.scope(|| map(&[1, 2, 3], |i, x| i + x)), [1, 3, 5]);
        }
    }

    #[test]
    fn sleeping_threads_wake_for_the_next_scope() {
        let pool = ThreadPool::new("pool", 2).unwrap();
        for _ in 0..3 {
            thread::sleep(Duration::from_millis(20));
            // Both tasks wait for each other.
            let both = std::sync::Barrier::new(2);
            pool.scope(|| {
                for_each(2, |_| {
                    both.wait();
                })
            });
        }
    }

    #[test]
    fn scopes_dropped_in_any_order_share_no_job() {
        let (pool, other) = (ThreadPool::new("pool", 2).unwrap(), ThreadPool::new("other", 2).unwrap());
        let (first, second) = (pool.begin(), other.begin());
        drop(first);
        drop(second);
        // This thread still shares its loops with the pool, which another thread has by now.
        let sum = || (0..200).map(|_| map(&[1; 8], |i, x| i + x).iter().sum::<usize>()).sum::<usize>();
        thread::scope(|scope| {
            let theirs = scope.spawn(|| pool.scope(sum));
            assert_eq!([sum(), theirs.join().unwrap()], [200 * 36; 2]);
        });
    }
}
