//! Threads that compute a pass together. Between the operations of a pass they spin, so that sharing one of them costs
//! less than a microsecond; between passes they sleep.

#![allow(unsafe_code)]

use std::{
    any::Any,
    cell::{Cell, UnsafeCell},
    collections::HashSet,
    marker::PhantomData,
    mem::{take, transmute},
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rayon::{ThreadPoolBuildError, ThreadPoolBuilder, prelude::*};

/// Looks for work before a thread lets others run, and between two looks at the clock.
const SPINS: usize = 2000;
/// How long threads look for the next pass before they sleep.
const LINGER: Duration = Duration::from_micros(200);

/// Whether there is a job that threads may join.
const OPEN: u64 = 1 << 63;
/// The lowest bits count the threads in it, those above jobs.
const MEMBERS: u64 = (1 << 16) - 1;
const JOB: u64 = 1 << 16;

type PoolTask<'a> = dyn Fn(usize) + Sync + 'a;

/// What a team computes together.
struct PoolState {
    /// `OPEN`, the number of the job, and how many threads are in it besides the one whose job it is.
    state: AtomicU64,
    /// Written while no thread is in a job, read by those that are.
    task: UnsafeCell<Option<*const PoolTask<'static>>>,
    /// What is left of each thread's share of the tasks.
    shares: Box<[TaskRange]>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Whether there is a pass.
    awake: AtomicBool,
    /// Whether a thread has a job, or makes one.
    sharing: AtomicBool,
    ended: AtomicBool,
    sleepers: Mutex<usize>,
    wake: Condvar,
}

// SAFETY: `task` is written by one thread at a time, before it opens a job, and read by those that
// entered it, whom that thread waits for.
unsafe impl Sync for PoolState {}
// SAFETY: as above; the pointer is to what may be shared.
unsafe impl Send for PoolState {}

/// Some threads that help one of them.
pub struct ThreadPool {
    shared: Arc<PoolState>,
    helpers: usize,
    /// Whether a thread is in a pass.
    busy: AtomicBool,
}

thread_local! {
    static AMBIENT: Cell<Ambient> = const { Cell::new(Ambient::None) };
}

/// What loops of this thread are shared with.
#[derive(Default)]
enum Ambient {
    #[default]
    None,
    /// Nobody: it computes a task itself.
    Alone,
    ThreadPool(Arc<PoolState>),
}

impl ThreadPool {
    /// A team of `threads`, the caller's among them; the others are called `name` and a number.
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
            // What candle shares with rayon's threads stays on this one.
            let alone = ThreadPoolBuilder::new().num_threads(1).thread_name(move |_| format!("{name} {i}"));
            alone.build()?.spawn(move || shared.help(i));
        }
        Ok(pool)
    }

    /// Does work whose loops the team shares.
    pub fn scope<R>(&self, work: impl FnOnce() -> R) -> R {
        let _scope = self.begin();
        work()
    }

    /// Begins a pass of this thread, whose loops the team shares, unless it is in a pass already.
    pub fn begin(&self) -> PoolScope<'_> {
        let helped = self.helpers > 0 && !self.busy.swap(true, Ordering::Acquire);
        let ambient = if helped { Ambient::ThreadPool(self.shared.clone()) } else { Ambient::Alone };
        if helped {
            self.shared.rouse();
        }
        PoolScope { team: helped.then_some(self), _ambient: AmbientGuard::by(ambient) }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.shared.rouse();
    }
}

/// A pass of a thread, until it is dropped.
pub struct PoolScope<'a> {
    /// Which helps, if any.
    team: Option<&'a ThreadPool>,
    _ambient: AmbientGuard,
}

impl Drop for PoolScope<'_> {
    fn drop(&mut self) {
        if let Some(team) = self.team {
            team.shared.awake.store(false, Ordering::SeqCst);
            team.busy.store(false, Ordering::Release);
        }
    }
}

impl PoolState {
    /// Wakes those that sleep.
    fn rouse(&self) {
        self.awake.store(true, Ordering::SeqCst);
        if *self.sleepers.lock().unwrap_or_else(PoisonError::into_inner) > 0 {
            self.wake.notify_all();
        }
    }

    /// What the thread `i`, which helps, does until the team ends.
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

    /// Enters the open job, if it is not the one that is done already.
    fn enter(&self, done: u64) -> Option<u64> {
        let state = self.state.load(Ordering::Acquire);
        let job = state & !OPEN & !MEMBERS;
        let new = state & OPEN != 0 && job != done;
        let entered =
            new && self.state.compare_exchange(state, state + 1, Ordering::Acquire, Ordering::Relaxed).is_ok();
        entered.then_some(job)
    }

    /// Waits for a job, asleep if none has come for long.
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

    /// Computes the tasks of the job that are the thread's, then those that others have left.
    fn work(&self, own: usize) {
        // SAFETY: the caller is in the job, during which nobody writes.
        let Some(task) = (unsafe { *self.task.get() }) else { return };
        // SAFETY: whose job it is waits for all that entered it before what it points to goes.
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

    /// Computes all tasks with whoever helps.
    fn share(&self, tasks: usize, task: &PoolTask<'_>) {
        // Passes that do not end in the order in which they began may leave the team to two threads.
        if tasks > u32::MAX as usize || self.sharing.swap(true, Ordering::Acquire) {
            return (0..tasks).for_each(task);
        }
        // SAFETY: the lifetime ends after this function, which does not return while a thread has the pointer.
        let task: *const PoolTask<'static> = unsafe { transmute(std::ptr::from_ref(task)) };
        // SAFETY: no job is open and no thread in one, since the last call has waited for that; and `sharing` keeps all
        // other calls away.
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

/// Tasks that are still to be done: the first one in the low half, the end in the high one. A thread goes through its own in
/// their order, so that it reads and writes one stretch of memory; others take the last ones. Alone in its cache lines.
#[derive(Default)]
#[repr(align(128))]
struct TaskRange(AtomicU64);

impl TaskRange {
    fn set(&self, tasks: Range<u32>) {
        self.0.store(u64::from(tasks.start) | u64::from(tasks.end) << 32, Ordering::Relaxed);
    }

    fn first(&self) -> Option<usize> {
        self.take(|tasks| (tasks.start, tasks.start + 1..tasks.end))
    }

    fn last(&self) -> Option<usize> {
        self.take(|tasks| (tasks.end - 1, tasks.start..tasks.end - 1))
    }

    /// A task, unless there is none, and what is then left.
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

/// Looks for a while whether something has come true.
fn spin_until(done: impl Fn() -> bool) -> bool {
    (0..SPINS).any(|_| {
        std::hint::spin_loop();
        done()
    })
}

/// Waits for what another thread does soon.
pub fn wait_until(done: impl Fn() -> bool) {
    while !spin_until(&done) {
        thread::yield_now();
    }
}

/// The ambient that there was, which comes back when this is dropped: on the same thread.
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

/// The threads that loops are shared by.
pub fn current_num_threads() -> usize {
    match &AmbientGuard::by(Ambient::Alone).0 {
        Ambient::None => rayon::current_num_threads(),
        Ambient::Alone => 1,
        Ambient::ThreadPool(shared) => shared.shares.len(),
    }
}

/// Calls `task` with all numbers below `tasks`, on the threads of the pass; outside of one, on those of rayon.
pub fn for_each(tasks: usize, task: impl Fn(usize) + Sync) {
    if tasks <= 1 {
        return (0..tasks).for_each(task);
    }
    // While it is replaced, loops within tasks find nobody to share with.
    match &AmbientGuard::by(Ambient::Alone).0 {
        Ambient::None => (0..tasks).into_par_iter().with_max_len(1).for_each(&task),
        Ambient::Alone => (0..tasks).for_each(task),
        Ambient::ThreadPool(shared) => shared.share(tasks, &task),
    }
}

/// Calls `work` once for each thread of the pass, on as many at once as come in time, so that no call may wait for another one
/// to begin; outside of a pass once.
pub fn on_all_threads(work: impl Fn() + Sync) {
    match &AmbientGuard::by(Ambient::Alone).0 {
        Ambient::None | Ambient::Alone => work(),
        Ambient::ThreadPool(shared) => shared.share(shared.shares.len(), &|_| work()),
    }
}

/// The cores that this process may use: threads that share one gain little for computations.
pub fn physical_cores() -> usize {
    let available = thread::available_parallelism().map_or(1, usize::from);
    let siblings = |cpu: usize| {
        std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")).ok()
    };
    let cores: HashSet<String> = (0..).map_while(siblings).collect();
    if cores.is_empty() { available } else { available.min(cores.len()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::threads::parallel::{for_each_mut, map};

    #[test]
    fn every_task_is_done_once_and_nested_ones_too() {
        let pool = ThreadPool::new("team", 3).unwrap();
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
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        let pool = ThreadPool::new("team", 2).unwrap();
        for round in 0..50 {
            let ran = catch_unwind(AssertUnwindSafe(|| {
                pool.scope(|| for_each(8, |i| assert!(i != round % 8, "task {i}")));
            }));
            assert!(ran.is_err());
            assert_eq!(pool.scope(|| map(&[1, 2, 3], |i, x| i + x)), [1, 3, 5]);
        }
    }

    #[test]
    fn threads_that_sleep_wake_for_the_next_pass() {
        let pool = ThreadPool::new("team", 2).unwrap();
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
    fn passes_that_end_in_any_order_share_no_job() {
        let (pool, other) = (ThreadPool::new("team", 2).unwrap(), ThreadPool::new("other", 2).unwrap());
        let (first, second) = (pool.begin(), other.begin());
        drop(first);
        drop(second);
        // This thread still shares its loops with the team, which another one has by now.
        let sum = || (0..200).map(|_| map(&[1; 8], |i, x| i + x).iter().sum::<usize>()).sum::<usize>();
        thread::scope(|scope| {
            let theirs = scope.spawn(|| pool.scope(sum));
            assert_eq!([sum(), theirs.join().unwrap()], [200 * 36; 2]);
        });
    }
}
