//! Slots of recurrent states: one for each running sequence, the others for snapshots of the prefix cache.

use std::collections::{BTreeMap, HashMap};

/// The identity of a published block's content, which includes all tokens before it.
pub type ContentId = u64;

/// Allocates state slots. Slots are numbers here; the decoder knows their memory.
///
/// A snapshot is the state after the last token of a published block, without which a recurrent model cannot use the
/// prefix. It lasts as long as the block, or until its slot is needed: the least recently used go first.
#[derive(Debug)]
pub struct StatePool {
    /// Slots of the cache; 0 in models without recurrent layers.
    capacity: usize,
    /// Slots that were ever taken.
    taken: u32,
    empty: Vec<u32>,
    snapshots: HashMap<ContentId, Snapshot>,
    /// Snapshots without readers, by their last use.
    idle: BTreeMap<u64, ContentId>,
    /// Counts uses.
    clock: u64,
}

#[derive(Debug)]
struct Snapshot {
    slot: u32,
    /// Sequences that begin with it in the next pass, and pin it.
    readers: usize,
    /// The time of the last use, its key in `idle`.
    used: u64,
    /// Whether another sequence has begun with it.
    hit: bool,
    /// Whether its block is gone, so that it lasts until its readers end.
    orphaned: bool,
}

/// The slot of a running sequence.
#[derive(Debug, Clone, Copy)]
pub struct SequenceState {
    pub slot: u32,
    /// The snapshot that it begins with, until its first pass is done.
    pub source: Option<Source>,
}

/// A snapshot that a sequence begins with.
#[derive(Debug, Clone, Copy)]
pub struct Source {
    pub content: ContentId,
    pub slot: u32,
}

impl StatePool {
    pub fn new(capacity: usize) -> Self {
        Self { capacity, taken: 0, empty: Vec::new(), snapshots: HashMap::new(), idle: BTreeMap::new(), clock: 0 }
    }

    /// Whether the model has recurrent layers.
    pub fn is_used(&self) -> bool {
        self.capacity > 0
    }

    /// Slots that can be allocated, by evicting snapshots if need be.
    pub fn available(&self) -> usize {
        self.free() + self.idle.len()
    }

    /// Slots without a state.
    pub fn free(&self) -> usize {
        self.capacity - self.taken as usize + self.empty.len()
    }

    /// Slots of snapshots.
    pub fn snapshots(&self) -> usize {
        self.snapshots.len()
    }

    /// Slots of sequences and passes.
    pub fn held(&self) -> usize {
        self.capacity - self.free() - self.snapshots.len()
    }

    /// Allocates a slot; the least recently used snapshot gives way if need be.
    pub fn take(&mut self) -> Option<u32> {
        if let Some(slot) = self.empty.pop() {
            return Some(slot);
        }
        if (self.taken as usize) < self.capacity {
            self.taken += 1;
            return Some(self.taken - 1);
        }
        let (_, content) = self.idle.pop_first()?;
        self.snapshots.remove(&content).map(|snapshot| snapshot.slot)
    }

    pub fn give_back(&mut self, slot: u32) {
        self.empty.push(slot);
    }

    pub fn contains(&self, content: ContentId) -> bool {
        self.snapshots.contains_key(&content)
    }

    /// Keeps the state in a slot as a snapshot.
    pub fn insert(&mut self, content: ContentId, slot: u32) {
        if self.contains(content) {
            return self.give_back(slot);
        }
        let snapshot = Snapshot { slot, readers: 0, used: self.tick(), hit: false, orphaned: false };
        self.idle.insert(snapshot.used, content);
        self.snapshots.insert(content, snapshot);
    }

    /// Frees a snapshot whose block is gone, after its last reader.
    pub fn remove(&mut self, content: ContentId) {
        let Some(snapshot) = self.snapshots.get_mut(&content) else { return };
        if snapshot.readers > 0 {
            snapshot.orphaned = true;
            return;
        }
        self.idle.remove(&snapshot.used);
        self.empty.push(snapshot.slot);
        self.snapshots.remove(&content);
    }

    /// Frees a snapshot that a later one of the same answer replaces, unless another sequence has begun with it.
    pub fn supersede(&mut self, content: ContentId) {
        if self.snapshots.get(&content).is_some_and(|snapshot| !snapshot.hit) {
            self.remove(content);
        }
    }

    /// Allocates the slot of a sequence that begins with a snapshot, which is pinned until `end_read`, or with nothing.
    /// If the snapshot's slot is the only one left, the sequence takes it over.
    pub fn begin(&mut self, content: Option<ContentId>) -> Option<SequenceState> {
        let Some(content) = content else { return Some(SequenceState { slot: self.take()?, source: None }) };
        let used = self.tick();
        let snapshot = self.snapshots.get_mut(&content)?;
        let (slot, is_idle) = (snapshot.slot, self.idle.remove(&snapshot.used).is_some());
        (snapshot.used, snapshot.hit) = (used, true);
        snapshot.readers += 1;
        match self.take() {
            Some(own) => Some(SequenceState { slot: own, source: Some(Source { content, slot }) }),
            None if is_idle => {
                self.snapshots.remove(&content);
                Some(SequenceState { slot, source: None })
            }
            None => {
                self.end_read(content);
                None
            }
        }
    }

    /// Unpins a snapshot.
    pub fn end_read(&mut self, content: ContentId) {
        let Some(snapshot) = self.snapshots.get_mut(&content) else { return };
        snapshot.readers -= 1;
        match (snapshot.readers, snapshot.orphaned) {
            (0, true) => self.remove(content),
            (0, false) => drop(self.idle.insert(snapshot.used, content)),
            _ => {}
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Snapshots of these contents, each in a slot of its own.
    fn with_snapshots(capacity: usize, contents: &[ContentId]) -> StatePool {
        let mut pool = StatePool::new(capacity);
        for content in contents {
            let slot = pool.take().unwrap();
            pool.insert(*content, slot);
        }
        pool
    }

    #[test]
    fn least_recently_used_snapshots_are_evicted_first() {
        let mut pool = with_snapshots(3, &[10, 11, 12]);
        pool.begin(Some(10)).and_then(|state| state.source).map(|source| pool.end_read(source.content)).unwrap();
        assert!(pool.contains(10) && !pool.contains(11), "the reader's own slot was 11's");
        assert_eq!((pool.held(), pool.snapshots(), pool.available()), (1, 2, 2));
        pool.take().unwrap();
        assert!(pool.contains(10) && !pool.contains(12));
    }

    #[test]
    fn pinned_snapshots_outlive_their_block() {
        let mut pool = with_snapshots(2, &[10]);
        let state = pool.begin(Some(10)).unwrap();
        assert_eq!((pool.available(), pool.take()), (0, None));
        pool.remove(10);
        assert_eq!(pool.available(), 0, "its block is gone, its reader is not");
        pool.end_read(state.source.unwrap().content);
        assert_eq!((pool.available(), pool.contains(10)), (1, false));
    }

    #[test]
    fn a_sequence_takes_over_the_last_slot() {
        let mut pool = with_snapshots(1, &[10]);
        let state = pool.begin(Some(10)).unwrap();
        assert_eq!((state.slot, state.source.is_none(), pool.held()), (0, true, 1));
        pool.give_back(state.slot);
        assert_eq!(pool.available(), 1);
    }

    #[test]
    fn readers_of_one_snapshot_need_a_slot_each() {
        let mut pool = with_snapshots(2, &[10]);
        assert!(pool.begin(Some(10)).is_some());
        assert!(pool.begin(Some(10)).is_none());
        assert_eq!((pool.held(), pool.snapshots()), (1, 1));
    }

    #[test]
    fn later_snapshots_of_an_answer_replace_unused_earlier_ones() {
        let mut pool = with_snapshots(4, &[10, 11]);
        pool.begin(Some(11));
        pool.end_read(11);
        pool.supersede(10);
        pool.supersede(11);
        assert_eq!((pool.contains(10), pool.contains(11)), (false, true));
    }
}
