//! Unpacked blocks of weights.

use std::{arch::x86_64::*, cell::Cell};

use crate::kernels::{
    arch::x86_64::quantized::prefetch::is_signed,
    layout::{
        activations::GROUP,
        codes::{CodeFormat, CodeLine, PanelFactors, QuantPanel, ROWS},
    },
};

/// Tokens whose sums are in registers at the same time.
pub const FEW: usize = 4;

/// Registers for the two halves of a panel's rows: a value or four codes for each row.
pub type Halves<T> = [T; 2];

/// The weights of a block. All bit patterns are values of it.
#[repr(C, align(64))]
pub struct UnpackedBlock<const GROUPS: usize> {
    /// Magnitudes of the weights, or the weights themselves if they are unsigned.
    pub magnitudes: [Halves<__m256i>; GROUPS],
    /// Masks of the negative weights, if weights are signed.
    pub negative: [Halves<__m256i>; GROUPS],
    /// The correction for negative weights: their magnitudes are multiplied by `!x`, which is one less than `-x`.
    pub lacking: Halves<__m256i>,
    pub scales: Halves<__m256>,
    /// Undefined for formats without offsets.
    pub offsets: Halves<__m256>,
}

/// A thread's memory for blocks of any length.
#[derive(Default)]
pub struct BlockScratch(Vec<CodeLine>);

impl BlockScratch {
    /// Takes the thread's memory, to be given back by [`keep`](Self::keep).
    pub fn take() -> Self {
        ROOM.take()
    }

    /// Gives the memory back to the thread.
    pub fn keep(self) {
        ROOM.set(self);
    }

    /// So many blocks with unspecified values.
    pub fn blocks<const GROUPS: usize>(&mut self, count: usize) -> &mut [UnpackedBlock<GROUPS>] {
        let lines = count * size_of::<UnpackedBlock<GROUPS>>() / size_of::<CodeLine>();
        if self.0.len() < lines {
            self.0.resize(lines, CodeLine([0; ROWS * GROUP]));
        }
        // SAFETY: the memory is long enough and aligned as lines are, and all bit patterns are values of blocks.
        unsafe { std::slice::from_raw_parts_mut(self.0.as_mut_ptr().cast(), count) }
    }
}

thread_local! {
    static ROOM: Cell<BlockScratch> = Cell::default();
}

impl<const GROUPS: usize> UnpackedBlock<GROUPS> {
    /// Unpacks the weights of a block.
    ///
    /// # Safety
    /// The machine has AVX2 and F16C, `check` passed, and the panel has the block.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    pub unsafe fn unpack<C: CodeFormat, const VNNI: bool>(&mut self, panel: &QuantPanel<'_>, block: usize) {
        let zero = _mm256_setzero_si256();
        let mut lacking = [zero; 2];
        for i in 0..GROUPS {
            for (half, lacking) in lacking.iter_mut().enumerate() {
                // SAFETY: passed on.
                let weights = unsafe { weights::<C, VNNI>(panel, block * GROUPS + i, half) };
                if is_signed::<C, VNNI>() {
                    let (magnitudes, negative) = (_mm256_abs_epi8(weights), _mm256_cmpgt_epi8(zero, weights));
                    (self.magnitudes[i][half], self.negative[i][half]) = (magnitudes, negative);
                    *lacking = _mm256_add_epi16(*lacking, _mm256_maddubs_epi16(magnitudes, negative));
                } else {
                    self.magnitudes[i][half] = weights;
                }
            }
        }
        if is_signed::<C, VNNI>() {
            self.lacking = lacking.map(|pairs| _mm256_madd_epi16(pairs, _mm256_set1_epi16(-1)));
        }
        // SAFETY: passed on.
        unsafe {
            self.scales = lanes(&panel.scales, block);
            if let Some(offsets) = &panel.offsets {
                self.offsets = lanes(offsets, block);
            }
        }
    }
}

/// The weights of a group of columns in half of the rows, less the bias if they are signed.
///
/// # Safety
/// The machine has AVX2, `check` passed, and the panel has the group.
#[inline]
#[target_feature(enable = "avx2")]
pub unsafe fn weights<C: CodeFormat, const VNNI: bool>(panel: &QuantPanel<'_>, group: usize, half: usize) -> __m256i {
    let bias = if is_signed::<C, VNNI>() { panel.bias } else { 0 };
    let (bias, first) = (_mm256_set1_epi8(bias as i8), half * ROWS / 2 * GROUP);
    let line = if C::NIBBLES { group / 2 } else { group };
    // SAFETY: the panel has the line, of which half is read.
    unsafe {
        let codes = _mm256_load_si256(panel.codes.as_ptr().add(line).cast::<u8>().add(first).cast());
        let weights = match (C::NIBBLES, group % 2) {
            (false, _) => _mm256_sub_epi8(codes, bias),
            (true, 0) => _mm256_and_si256(codes, _mm256_set1_epi8(15)),
            (true, _) => _mm256_and_si256(_mm256_srli_epi32(codes, 4), _mm256_set1_epi8(15)),
        };
        if C::TABLE {
            let table = panel.table.unwrap_or(&[0; 16]);
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            return _mm256_shuffle_epi8(_mm256_sub_epi8(table, bias), weights);
        }
        match C::HIGHER {
            0 => weights,
            _ => with_higher::<C>(weights, panel.higher.as_ptr(), group, first),
        }
    }
}

/// Adds the higher bits to the codes of a group from byte `first` on.
///
/// # Safety
/// The machine has AVX2, and `higher` holds the group.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn with_higher<C: CodeFormat>(weights: __m256i, higher: *const CodeLine, group: usize, first: usize) -> __m256i {
    // SAFETY: passed on; `first` is 0 or 32, so 32 bytes from there are inside a line.
    unsafe {
        if C::HIGHER == 1 {
            // Each byte is spread over eight lanes, which test one bit each.
            let spread = _mm256_setr_epi64x(0, 0x0101_0101_0101_0101, 0x0202_0202_0202_0202, 0x0303_0303_0303_0303);
            let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
            let bits = higher.cast::<u64>().add(group).read() >> first;
            let bits = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), spread), bit);
            let set = _mm256_cmpeq_epi8(bits, bit);
            return _mm256_or_si256(weights, _mm256_and_si256(set, _mm256_set1_epi8(16)));
        }
        let pairs = _mm256_load_si256(higher.add(group / 4).cast::<u8>().add(first).cast());
        let pairs = match group % 4 {
            0 => _mm256_slli_epi32(pairs, 4),
            1 => _mm256_slli_epi32(pairs, 2),
            2 => pairs,
            _ => _mm256_srli_epi32(pairs, 2),
        };
        _mm256_or_si256(weights, _mm256_and_si256(pairs, _mm256_set1_epi8(48)))
    }
}

/// Does as `PanelFactors::lanes`.
///
/// # Safety
/// The machine has AVX2 and F16C, and the block exists.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn lanes(factors: &PanelFactors<'_>, block: usize) -> Halves<__m256> {
    // SAFETY: the slices hold the block.
    [0, ROWS / 2].map(|first| unsafe {
        let halves = factors.halves.as_ptr().add(block >> factors.shared).cast::<u16>().add(first);
        let halves = _mm256_cvtph_ps(_mm_loadu_si128(halves.cast()));
        match factors.multiples {
            None => halves,
            Some(multiples) => {
                let multiples = _mm_loadl_epi64(multiples.as_ptr().add(block).cast::<i8>().add(first).cast());
                _mm256_mul_ps(halves, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(multiples)))
            }
        }
    })
}
