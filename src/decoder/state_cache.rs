//! The recurrent states of one layer, one slot for each state that sequences or the prefix cache keep.

use std::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use candle_core::{Error, Result, bail};

/// Slots of `len` f32 values each. Memory of a slot is allocated at its first use.
///
/// Threads write different slots at the same time. A slot that is written is in no other thread's hands: whoever hands
/// out slots takes care of that, and a violation is an error.
pub struct StateCache {
    len: usize,
    slots: Vec<RwLock<Vec<f32>>>,
}

impl StateCache {
    pub fn new(len: usize, slots: usize) -> Self {
        Self { len, slots: (0..slots).map(|_| RwLock::default()).collect() }
    }

    /// Runs `update` on the state in `slot`, which begins as a copy of the state in `from`, or as zeros.
    pub fn update<R>(&self, from: Option<u32>, slot: u32, update: impl FnOnce(&mut [f32]) -> Result<R>) -> Result<R> {
        let mut state = self.write(slot)?;
        match from {
            Some(from) if from == slot => {}
            Some(from) => {
                let from = self.read(from)?;
                state.clone_from(&from);
            }
            None => state.fill(0.0),
        }
        update(&mut state)
    }

    /// Copies `state` into `slot`.
    pub fn save(&self, slot: u32, state: &[f32]) -> Result<()> {
        self.write(slot)?.copy_from_slice(state);
        Ok(())
    }

    fn read(&self, slot: u32) -> Result<RwLockReadGuard<'_, Vec<f32>>> {
        let state = self.slot(slot)?.try_read().map_err(|_| shared(slot))?;
        if state.len() != self.len {
            bail!("state slot {slot} was never written");
        }
        Ok(state)
    }

    fn write(&self, slot: u32) -> Result<RwLockWriteGuard<'_, Vec<f32>>> {
        let mut state = self.slot(slot)?.try_write().map_err(|_| shared(slot))?;
        if state.len() != self.len {
            state.try_reserve_exact(self.len).map_err(Error::wrap)?;
            state.resize(self.len, 0.0);
        }
        Ok(state)
    }

    fn slot(&self, slot: u32) -> Result<&RwLock<Vec<f32>>> {
        self.slots.get(slot as usize).ok_or_else(|| Error::Msg(format!("there is no state slot {slot}")))
    }
}

/// A slot that another thread has, or that a thread left in a panic.
fn shared(slot: u32) -> Error {
    Error::Msg(format!("state slot {slot} is in use"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(states: &StateCache, from: Option<u32>, slot: u32) -> Vec<f32> {
        let add = |state: &mut [f32]| {
            state.iter_mut().for_each(|value| *value += 1.0);
            Ok(state.to_vec())
        };
        states.update(from, slot, add).unwrap()
    }

    #[test]
    fn a_state_goes_on_in_place_or_from_a_copy() {
        let states = StateCache::new(2, 3);
        assert_eq!(add(&states, None, 0), [1.0; 2]);
        assert_eq!(add(&states, Some(0), 0), [2.0; 2]);
        assert_eq!(add(&states, Some(0), 1), [3.0; 2]);
        assert_eq!(add(&states, Some(0), 0), [3.0; 2], "the copy left the original alone");
        assert_eq!(add(&states, None, 1), [1.0; 2], "a sequence that begins finds zeros");
    }

    #[test]
    fn slots_that_are_missing_unwritten_or_in_use_are_errors() {
        let states = StateCache::new(1, 2);
        // candle adds a backtrace where the environment asks for one.
        let first_line = |error: Error| error.to_string().lines().next().map(str::to_owned).unwrap();
        let error = |from, slot| first_line(states.update(from, slot, |_| Ok(())).unwrap_err());
        assert_eq!(error(None, 2), "there is no state slot 2");
        assert_eq!(error(Some(1), 0), "state slot 1 was never written");
        let nested = states.update(None, 0, |state| states.save(0, state)).unwrap_err();
        assert_eq!(first_line(nested), "state slot 0 is in use");
    }
}
