//! The memory of weights. Every pass reads all of it: in huge pages processors look up fewer addresses, and fetch further
//! ahead, than in small ones. Matrices are smaller than that, and so share such pages.

#![allow(unsafe_code)]

use std::{
    alloc::{Layout, handle_alloc_error},
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{Ordering, fence},
    },
};

use memmap2::{MmapMut, MmapRaw};

use super::prefetch::LINE_BYTES;

/// What is mapped for small matrices at a time. Greater ones have mappings of their own.
const REGION_BYTES: usize = 32 << 20;
const GREAT_BYTES: usize = REGION_BYTES / 4;
/// What begins in a region begins where a line of memory does.
const ALIGNMENT: usize = LINE_BYTES;
/// Whole pages, of any system.
const PAGE_BYTES: usize = 1 << 16;

/// Numbers of weights.
pub enum WeightBuffer<T> {
    /// As they are made.
    Heap(Vec<T>),
    /// As they are kept: put together out of those that were made.
    Mapped(MappedValues<T>),
}

impl<T: Copy> WeightBuffer<T> {
    /// Space for `len` numbers.
    pub fn with_capacity(len: usize) -> Self {
        const { assert!(align_of::<T>() <= ALIGNMENT) };
        let layout = Layout::array::<T>(len).expect("no more numbers than memory has addresses");
        let (region, start) = Region::with(layout);
        let first = NonNull::new(region.0.as_mut_ptr().wrapping_add(start).cast()).expect("a mapping has an address");
        Self::Mapped(MappedValues { first, len: 0, capacity: len, region })
    }

    /// Space for as many for each of `panels` as those have for each of `theirs`.
    pub fn for_panels(panels: usize, those: &[T], theirs: usize) -> Self {
        Self::with_capacity(those.len() / theirs * panels)
    }

    /// Adds numbers for which there is space.
    pub fn append(&mut self, numbers: &[T]) {
        match self {
            Self::Heap(made) => made.extend_from_slice(numbers),
            Self::Mapped(kept) => kept.append(numbers),
        }
    }
}

impl<T> Deref for WeightBuffer<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        match self {
            Self::Heap(made) => made,
            // SAFETY: so many were written, and this alone has them.
            Self::Mapped(kept) => unsafe { std::slice::from_raw_parts(kept.first.as_ptr(), kept.len) },
        }
    }
}

impl<T> DerefMut for WeightBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Self::Heap(made) => made,
            // SAFETY: as above.
            Self::Mapped(kept) => unsafe { std::slice::from_raw_parts_mut(kept.first.as_ptr(), kept.len) },
        }
    }
}

/// A part of a region that nothing else has.
pub struct MappedValues<T> {
    first: NonNull<T>,
    len: usize,
    capacity: usize,
    region: Arc<Region>,
}

// SAFETY: it owns its numbers, as a `Vec` does.
unsafe impl<T: Send> Send for MappedValues<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for MappedValues<T> {}

impl<T: Copy> MappedValues<T> {
    fn append(&mut self, numbers: &[T]) {
        assert!(numbers.len() <= self.capacity - self.len);
        // SAFETY: there is space for them behind those that were written, and nobody else has it.
        unsafe { self.first.add(self.len).copy_from_nonoverlapping(NonNull::from_ref(numbers).cast(), numbers.len()) };
        self.len += numbers.len();
    }
}

impl<T> Drop for MappedValues<T> {
    /// Gives back the pages that it alone has, also if others still need the region.
    fn drop(&mut self) {
        let start = self.first.as_ptr().addr() - self.region.0.as_ptr().addr();
        self.region.release(start, start + self.capacity * size_of::<T>());
    }
}

/// A mapping, in huge pages where systems have them.
struct Region(MmapRaw);

/// The region that small matrices get their memory from, and what they have of it already.
static SHARED: Mutex<Option<(Arc<Region>, usize)>> = Mutex::new(None);

impl Region {
    /// A region with space for this, and where.
    fn with(layout: Layout) -> (Arc<Self>, usize) {
        let bytes = layout.size().next_multiple_of(ALIGNMENT);
        if bytes >= GREAT_BYTES {
            return (Arc::new(Self::map(layout.size())), 0);
        }
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let (region, start) = match shared.take() {
            // Nobody needs any of it any more.
            Some((region, _)) if Arc::strong_count(&region) == 1 => {
                // What others did with it until they gave it up came before, which the count alone does not say.
                fence(Ordering::Acquire);
                (region, 0)
            }
            Some((region, used)) if used + bytes <= REGION_BYTES => (region, used),
            _ => (Arc::new(Self::map(REGION_BYTES)), 0),
        };
        *shared = Some((region.clone(), start + bytes));
        (region, start)
    }

    fn map(bytes: usize) -> Self {
        let Ok(map) = MmapMut::map_anon(bytes) else {
            handle_alloc_error(Layout::from_size_align(bytes, ALIGNMENT).unwrap_or(Layout::new::<u8>()))
        };
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(memmap2::Advice::HugePage) {
            tracing::debug!(%error, "weights are kept in small pages");
        }
        Self(map.into())
    }

    /// Gives back the whole pages between two places.
    fn release(&self, start: usize, end: usize) {
        #[cfg(unix)]
        {
            let (start, end) = (start.next_multiple_of(PAGE_BYTES), end / PAGE_BYTES * PAGE_BYTES);
            if let Some(len) = end.checked_sub(start).filter(|len| *len > 0) {
                // SAFETY: nobody reads them before they are written again.
                let advised = unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len) };
                if let Err(error) = advised {
                    tracing::debug!(%error, "the pages of weights that were dropped stay");
                }
            }
        }
        #[cfg(not(unix))]
        let _ = (start, end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_what_was_appended_whoever_else_comes_and_goes() {
        let keep = |len: usize, seed: usize| {
            let mut kept = WeightBuffer::with_capacity(len);
            let numbers: Vec<u64> = (0..len).map(|i| (i * seed) as u64).collect();
            numbers.chunks(1000).for_each(|some| kept.append(some));
            assert_eq!(kept.as_ptr().addr() % ALIGNMENT, 0);
            (kept, numbers)
        };
        let mut all: Vec<_> =
            [0, 1, 7, 100_000, 1, 2_000_000, 50_000].into_iter().zip(1..).map(|(l, s)| keep(l, s)).collect();
        for round in 0..20 {
            all.remove(round % all.len());
            all.push(keep(200_000 + round, 10 + round));
            assert!(all.iter().all(|(kept, numbers)| **kept == **numbers));
        }
        let (kept, _) = &mut all[0];
        kept[0] = 99;
        assert_eq!(kept[0], 99);
    }

    #[test]
    #[should_panic]
    fn there_is_no_more_than_there_is_space_for() {
        let mut kept = WeightBuffer::with_capacity(3);
        kept.append(&[1u8, 2]);
        kept.append(&[3, 4]);
    }
}
