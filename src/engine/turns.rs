use std::sync::{
    Condvar, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicUsize, Ordering},
};

/// Who computes: a model's passes take turns with what is computed aside, and go first.
#[derive(Debug, Default)]
pub struct Turns {
    busy: Mutex<bool>,
    free: Condvar,
    passes: AtomicUsize,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub struct Turn<'a> {
    turns: &'a Turns,
}

impl Turns {
    /// Waits for a turn of a forward pass.
    pub fn pass(&self) -> Turn<'_> {
        self.passes.fetch_add(1, Ordering::SeqCst);
        let turn = self.take(|_| false);
        self.passes.fetch_sub(1, Ordering::SeqCst);
        turn
    }

    /// Waits for a turn of other work, as long as passes wait for theirs.
    pub fn aside(&self) -> Turn<'_> {
        self.take(|turns| turns.passes.load(Ordering::SeqCst) > 0)
    }

    fn take(&self, yields: impl Fn(&Self) -> bool) -> Turn<'_> {
        let busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |busy: &mut bool| *busy || yields(self);
        let mut busy: MutexGuard<'_, bool> = self.free.wait_while(busy, waits).unwrap_or_else(PoisonError::into_inner);
        *busy = true;
        Turn { turns: self }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        *self.turns.busy.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.turns.free.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, thread, time::Duration};

    use super::*;

    #[test]
    fn passes_that_wait_go_first() {
        let turns = Turns::default();
        let (sender, order) = mpsc::channel();
        thread::scope(|scope| {
            let held = turns.pass();
            for name in ["aside", "pass"] {
                let (turns, sender) = (&turns, sender.clone());
                scope.spawn(move || {
                    let _turn = if name == "pass" { turns.pass() } else { turns.aside() };
                    sender.send(name).unwrap();
                });
                thread::sleep(Duration::from_millis(50));
            }
            drop(held);
        });
        assert_eq!(order.try_iter().collect::<Vec<_>>(), ["pass", "aside"]);
    }
}
