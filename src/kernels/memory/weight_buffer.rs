//! Buffers of weights in huge pages. Every forward pass reads all weights: with huge pages processors translate fewer
//! addresses and prefetch further ahead. Most matrices are smaller than such a page, so they share mappings.

#![allow(unsafe_code, reason = "memory that several buffers share")]

use std::{
    alloc::Layout,
    io,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{Ordering, fence},
    },
};

use memmap2::{MmapMut, MmapRaw};

use super::prefetch::LINE_BYTES;

/// Size of a mapping that small buffers share.
const REGION_BYTES: usize = 32 << 20;
/// Size from which on a buffer has a mapping of its own.
const LARGE_BYTES: usize = REGION_BYTES / 4;
/// Alignment of a buffer in its mapping.
const ALIGNMENT: usize = LINE_BYTES;
/// A multiple of the size of small pages on every system.
const PAGE_BYTES: usize = 1 << 16;

/// Values of a matrix.
pub enum WeightBuffer<T> {
    /// A band of a matrix while it is packed, or a matrix without a mapping.
    Heap(Vec<T>),
    /// A matrix put together out of bands.
    Mapped(MappedValues<T>),
}

impl<T: Copy> WeightBuffer<T> {
    /// Space for `len` values: a mapping, or a vector where the system grants none.
    pub fn with_capacity(len: usize) -> Self {
        const { assert!(align_of::<T>() <= ALIGNMENT) };
        let mapped = Layout::array::<T>(len).ok().and_then(|layout| {
            let (region, start) = Region::allocate(layout).ok()?;
            let first = NonNull::new(region.0.as_mut_ptr().wrapping_add(start).cast())?;
            Some(Self::Mapped(MappedValues { first, len: 0, capacity: len, region }))
        });
        mapped.unwrap_or(Self::Heap(Vec::new()))
    }

    /// Space for `panels` panels, given the values of `count` of them.
    pub fn for_panels(panels: usize, values: &[T], count: usize) -> Self {
        Self::with_capacity(values.len() / count * panels)
    }

    /// Appends values.
    ///
    /// # Panics
    /// If they exceed the capacity of a mapping.
    pub fn append(&mut self, values: &[T]) {
        match self {
            Self::Heap(vec) => vec.extend_from_slice(values),
            Self::Mapped(mapped) => mapped.append(values),
        }
    }
}

impl<T> Deref for WeightBuffer<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        match self {
            Self::Heap(values) => values,
            // SAFETY: `len` values were written, and belong to this buffer alone.
            Self::Mapped(mapped) => unsafe { std::slice::from_raw_parts(mapped.first.as_ptr(), mapped.len) },
        }
    }
}

impl<T> DerefMut for WeightBuffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Self::Heap(values) => values,
            // SAFETY: as above.
            Self::Mapped(mapped) => unsafe { std::slice::from_raw_parts_mut(mapped.first.as_ptr(), mapped.len) },
        }
    }
}

/// A part of a region that one buffer owns.
pub struct MappedValues<T> {
    first: NonNull<T>,
    len: usize,
    capacity: usize,
    region: Arc<Region>,
}

// SAFETY: it owns its values, as a `Vec` does.
unsafe impl<T: Send> Send for MappedValues<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for MappedValues<T> {}

impl<T: Copy> MappedValues<T> {
    fn append(&mut self, values: &[T]) {
        assert!(values.len() <= self.capacity - self.len);
        // SAFETY: the space behind the values that were written belongs to this buffer, and is long enough.
        unsafe { self.first.add(self.len).copy_from_nonoverlapping(NonNull::from_ref(values).cast(), values.len()) };
        self.len += values.len();
    }
}

impl<T> Drop for MappedValues<T> {
    /// Gives pages back that belong to this buffer alone, even while other buffers need the region.
    fn drop(&mut self) {
        let start = self.first.as_ptr().addr() - self.region.0.as_ptr().addr();
        self.region.release(start, start + self.capacity * size_of::<T>());
    }
}

/// An anonymous mapping, in huge pages where the system has them.
struct Region(MmapRaw);

/// The region that small buffers are allocated from, and how many of its bytes are taken.
static SHARED: Mutex<Option<(Arc<Region>, usize)>> = Mutex::new(None);

impl Region {
    /// A region with space for `layout`, and the offset of that space.
    fn allocate(layout: Layout) -> io::Result<(Arc<Self>, usize)> {
        let bytes = layout.size().next_multiple_of(ALIGNMENT);
        if bytes >= LARGE_BYTES {
            return Ok((Arc::new(Self::map(layout.size())?), 0));
        }
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let (region, start) = match shared.take() {
            // All its buffers are gone.
            Some((region, _)) if Arc::strong_count(&region) == 1 => {
                // Their last accesses happened before, which reading the count alone does not ensure.
                fence(Ordering::Acquire);
                (region, 0)
            }
            Some((region, used)) if used + bytes <= REGION_BYTES => (region, used),
            _ => (Arc::new(Self::map(REGION_BYTES)?), 0),
        };
        *shared = Some((region.clone(), start + bytes));
        Ok((region, start))
    }

    fn map(bytes: usize) -> io::Result<Self> {
        let map = MmapMut::map_anon(bytes)?;
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(memmap2::Advice::HugePage) {
            tracing::debug!(%error, "weights are in small pages");
        }
        Ok(Self(map.into()))
    }

    /// Gives the whole pages between two offsets back to the system.
    fn release(&self, start: usize, end: usize) {
        #[cfg(unix)]
        {
            let (start, end) = (start.next_multiple_of(PAGE_BYTES), end / PAGE_BYTES * PAGE_BYTES);
            if let Some(len) = end.checked_sub(start).filter(|len| *len > 0) {
                // SAFETY: nobody reads these pages before they are written again.
                let advised = unsafe { self.0.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, len) };
                if let Err(error) = advised {
                    tracing::debug!(%error, "pages of dropped weights stay");
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
    fn buffers_keep_their_values_while_others_come_and_go() {
        let buffer = |len: usize, seed: usize| {
            let mut buffer = WeightBuffer::with_capacity(len);
            let values: Vec<u64> = (0..len).map(|i| (i * seed) as u64).collect();
            values.chunks(1000).for_each(|some| buffer.append(some));
            assert_eq!(buffer.as_ptr().addr() % ALIGNMENT, 0);
            (buffer, values)
        };
        let mut all: Vec<_> =
            [0, 1, 7, 100_000, 1, 2_000_000, 50_000].into_iter().zip(1..).map(|(l, s)| buffer(l, s)).collect();
        for round in 0..20 {
            all.remove(round % all.len());
            all.push(buffer(200_000 + round, 10 + round));
            assert!(all.iter().all(|(buffer, values)| **buffer == **values));
        }
        let (buffer, _) = &mut all[0];
        buffer[0] = 99;
        assert_eq!(buffer[0], 99);
    }

    #[test]
    #[should_panic]
    fn appending_beyond_the_capacity_panics() {
        let mut buffer = WeightBuffer::with_capacity(3);
        buffer.append(&[1u8, 2]);
        buffer.append(&[3, 4]);
    }
}
