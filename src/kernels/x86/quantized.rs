use std::{arch::x86_64::*, ops::Range};

use crate::kernels::{
    activations::{GROUP, QuantRows, Tile},
    codes::{Codes, Line, Panel, PanelFactors, ROWS},
    dots::for_tiles,
    tiles::quantized::check,
};

/// How far ahead of a panel's codes those of others are asked for, at least: hardware does not look beyond a page.
const AHEAD: usize = 160;
/// A line in a fixed-point number of lines.
const LINE: usize = 1 << 16;

/// Defines a function as `dots::multiply_panels`, for machines of some features, out of one for a tile.
macro_rules! panels {
    ($name:ident, $features:literal, $tile:ident::<T, C, GROUPS $(, $vnni:literal)?>) => {
        pub fn $name<'a, C: Codes, const GROUPS: usize>(
            panels: Range<usize>,
            panel: impl Fn(usize) -> Panel<'a>,
            x: &QuantRows,
            write: impl FnMut(&[[f32; ROWS]]),
        ) {
            #[target_feature(enable = $features)]
            unsafe fn tile<const T: usize, C: Codes, const GROUPS: usize>(
                panel: &Panel<'_>,
                x: &Tile<'_, T>,
                products: &mut [[f32; ROWS]; T],
            ) {
                // SAFETY: passed on.
                unsafe { $tile::<T, C, GROUPS $(, $vnni)?>(panel, x, products) }
            }
            #[target_feature(enable = $features)]
            unsafe fn all<'a, C: Codes, const GROUPS: usize>(
                panels: Range<usize>,
                panel: impl Fn(usize) -> Panel<'a>,
                x: &QuantRows,
                mut write: impl FnMut(&[[f32; ROWS]]),
            ) {
                for i in panels {
                    let panel = panel(i);
                    check::<C, GROUPS>(&panel, x.blocks());
                    // SAFETY: the features are passed on, and `check` made sure that every slice holds all blocks.
                    unsafe { for_tiles!(&panel, x, write, tile::<C, GROUPS>) }
                }
            }
            // SAFETY: `Isa` names an instruction set only where its features were detected.
            unsafe { all::<C, GROUPS>(panels, panel, x, write) }
        }
    };
}

panels!(panels_avx2, "avx2,fma,f16c", avx2::<T, C, GROUPS>);
panels!(panels_avx512, "avx512f,avx512bw", avx512::<T, C, GROUPS, false>);
panels!(panels_vnni, "avx512f,avx512bw,avx512vnni", avx512::<T, C, GROUPS, true>);

/// # Safety
/// AVX-512 is there, with VNNI if it is to be used, and `check` passed.
#[inline(always)]
unsafe fn avx512<const T: usize, C: Codes, const GROUPS: usize, const VNNI: bool>(
    panel: &Panel<'_>,
    x: &Tile<'_, T>,
    products: &mut [[f32; ROWS]; T],
) {
    let table = panel.table.unwrap_or(&[0; 16]);
    // Each tile asks for its share of what comes next, so that memory is busy during all of them.
    let mut ahead = Ahead::of(panel, (x.index, x.count), 1, waits_for_memory::<C>(T) && x.count == 1);
    // SAFETY: block `b` of every slice is inside it, and so are its groups.
    unsafe {
        let mut sums = [_mm512_setzero_ps(); T];
        let bias = _mm512_set1_epi8(panel.bias as i8);
        let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
        for (b, x_scales) in x.scales.iter().enumerate() {
            // First, since compilers move integer products behind branches otherwise.
            let scales = lanes_avx512(&panel.scales, b);
            let offsets = panel.offsets.as_ref().map_or(_mm512_setzero_ps(), |offsets| lanes_avx512(offsets, b));
            let mut dots = [_mm512_setzero_si512(); T];
            for t in 0..T {
                dots[t] = _mm512_set1_epi32(if is_signed::<C, VNNI>() { 0 } else { x_scales[t].start });
            }
            for g in b * GROUPS..(b + 1) * GROUPS {
                let line = panel.codes.as_ptr().add(if C::NIBBLES { g / 2 } else { g });
                if !C::NIBBLES || g % 2 == 0 {
                    ahead.ask();
                }
                if C::HIGHER > 0 && x.index == 0 && (g * C::HIGHER).is_multiple_of(8) {
                    ahead.ask_for(panel.higher.as_ptr().wrapping_add((g / 2 + AHEAD) * C::HIGHER / 4));
                }
                let line = _mm512_load_si512(line.cast());
                let weights = match (C::NIBBLES, g % 2) {
                    (false, _) => line,
                    (true, 0) => _mm512_and_si512(line, _mm512_set1_epi8(15)),
                    (true, _) => _mm512_and_si512(_mm512_srli_epi32(line, 4), _mm512_set1_epi8(15)),
                };
                let weights = if C::TABLE { _mm512_shuffle_epi8(table, weights) } else { weights };
                let weights = with_higher_avx512::<C>(weights, panel.higher.as_ptr(), g);
                let weights = if is_signed::<C, VNNI>() { _mm512_sub_epi8(weights, bias) } else { weights };
                let codes = x.codes.as_ptr().add(g).cast::<i32>();
                for (t, dots) in dots.iter_mut().enumerate() {
                    let codes = _mm512_set1_epi32(codes.add(t).read_unaligned());
                    *dots = match VNNI {
                        true => _mm512_dpbusd_epi32(*dots, weights, codes),
                        false => _mm512_add_epi32(*dots, products_avx512::<C>(weights, codes)),
                    };
                }
            }
            for t in 0..T {
                let scale = _mm512_mul_ps(scales, _mm512_set1_ps(x_scales[t].scale));
                sums[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots[t]), scale, sums[t]);
            }
            if panel.offsets.is_some() {
                for t in 0..T {
                    sums[t] = _mm512_fmadd_ps(offsets, _mm512_set1_ps(x_scales[t].sum), sums[t]);
                }
            }
        }
        for t in 0..T {
            _mm512_storeu_ps(products[t].as_mut_ptr(), sums[t]);
        }
    }
}

/// The codes of panels that come after one, which are asked for while it is gone through several times.
struct Ahead {
    first: *const Line,
    /// Where the next line is, and from one to the next, in parts of a [`LINE`]th.
    at: usize,
    step: usize,
    /// Whether the farther cache is asked for them.
    far: bool,
}

impl Ahead {
    /// Those whose turn it is when the panel is gone through for the `index`th time of `count`, one for so many `lines` of it.
    #[inline(always)]
    fn of(panel: &Panel<'_>, (index, count): (usize, usize), lines: usize, far: bool) -> Self {
        let all = panel.codes.len();
        let at = LINE * all.max(AHEAD) + LINE * all * index / count;
        Self { first: panel.codes.as_ptr(), at, step: LINE * lines / count, far }
    }

    /// Asks for the next line.
    #[inline(always)]
    fn ask(&mut self) {
        self.ask_for(self.first.wrapping_add(self.at / LINE));
        self.at += self.step;
    }

    #[inline(always)]
    fn ask_for(&self, line: *const Line) {
        // SAFETY: every machine has it, and it reads nothing.
        unsafe {
            match self.far {
                true => _mm_prefetch::<_MM_HINT_T1>(line.cast()),
                false => _mm_prefetch::<_MM_HINT_T0>(line.cast()),
            }
        }
    }
}

/// Whether a tile of so many tokens takes less long than its weights come from memory: then the nearer cache, which has
/// fewer requests on their way at once, is not to be asked for them.
const fn waits_for_memory<C: Codes>(tokens: usize) -> bool {
    !C::NIBBLES || tokens <= 4
}

/// Whether the bias is taken from weights before they are multiplied: without VNNI pairs of products have 16 bits, which
/// hold those of magnitudes up to 128, and so codes of eight bits only as signed ones.
const fn is_signed<C: Codes, const VNNI: bool>() -> bool {
    !VNNI && (C::TABLE || !C::NIBBLES)
}

/// Groups of a block whose sums of pairs 16 bits hold together, unless weights are signed: those of weights of four bits
/// are `2 * 15 * 127` at most, of five `2 * 31 * 127`, and so on.
const fn span<C: Codes>(groups: usize) -> usize {
    let most = match C::HIGHER {
        0 => 8,
        1 => 4,
        _ => 2,
    };
    if groups < most { groups } else { most }
}

/// The sums of four products, as VNNI has them, of weights that are signed if [`is_signed`] says so.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn products_avx512<C: Codes>(weights: __m512i, codes: __m512i) -> __m512i {
    let (weights, codes) = match is_signed::<C, false>() {
        true => {
            let negative = _mm512_movepi8_mask(weights);
            let signed = _mm512_mask_sub_epi8(codes, negative, _mm512_setzero_si512(), codes);
            (_mm512_abs_epi8(weights), signed)
        }
        // At most 63: 2 * 63 * 127 < 32768.
        false => (weights, codes),
    };
    _mm512_madd_epi16(_mm512_maddubs_epi16(weights, codes), _mm512_set1_epi16(1))
}

/// With the higher bits of a group's codes.
///
/// # Safety
/// AVX-512 is there, and those of the group are at `higher`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn with_higher_avx512<C: Codes>(weights: __m512i, higher: *const Line, group: usize) -> __m512i {
    // SAFETY: passed on; a line is aligned.
    unsafe {
        match C::HIGHER {
            0 => weights,
            1 => {
                let bits = higher.cast::<u64>().add(group).read();
                _mm512_mask_add_epi8(weights, bits, weights, _mm512_set1_epi8(16))
            }
            _ => {
                let pairs = _mm512_load_si512(higher.add(group / 4).cast());
                let pairs = match group % 4 {
                    0 => _mm512_slli_epi32(pairs, 4),
                    1 => _mm512_slli_epi32(pairs, 2),
                    2 => pairs,
                    _ => _mm512_srli_epi32(pairs, 2),
                };
                // weights | pairs & 48
                _mm512_ternarylogic_epi32::<0xf8>(weights, pairs, _mm512_set1_epi8(48))
            }
        }
    }
}

/// As `PanelFactors::lanes`.
///
/// # Safety
/// AVX-512 is there, and the block.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn lanes_avx512(factors: &PanelFactors<'_>, block: usize) -> __m512 {
    // SAFETY: what is read of a block is inside the slices.
    unsafe {
        match factors.multiples {
            None => {
                let halves = factors.halves.as_ptr().add(block >> factors.shared);
                _mm512_cvtph_ps(_mm256_loadu_si256(halves.cast()))
            }
            Some(multiples) => {
                let halves = factors.halves.as_ptr().add(block >> factors.shared);
                let halves = _mm512_cvtph_ps(_mm256_loadu_si256(halves.cast()));
                let multiples = _mm_loadu_si128(multiples.as_ptr().add(block).cast());
                _mm512_mul_ps(halves, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(multiples)))
            }
        }
    }
}

/// # Safety
/// AVX2, FMA and F16C are there, and `check` passed.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2<const T: usize, C: Codes, const GROUPS: usize>(
    panel: &Panel<'_>,
    x: &Tile<'_, T>,
    products: &mut [[f32; ROWS]; T],
) {
    for first in [0, ROWS / 2] {
        // SAFETY: passed on; both halves of a panel have 8 rows.
        unsafe { avx2_half::<T, C, GROUPS>(panel, x, first, products) }
    }
}

/// The rows `first` to `first + 8`.
///
/// # Safety
/// AVX2, FMA and F16C are there, `check` passed, and `first` is 0 or 8.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn avx2_half<const T: usize, C: Codes, const GROUPS: usize>(
    panel: &Panel<'_>,
    x: &Tile<'_, T>,
    first: usize,
    products: &mut [[f32; ROWS]; T],
) {
    let ones = _mm256_set1_epi16(1);
    let bias = _mm256_set1_epi8(panel.bias as i8);
    let table = panel.table.unwrap_or(&[0; 16]);
    // Both halves are read when the first one is; each asks for its share of what comes next.
    let half = usize::from(first > 0);
    let mut ahead = Ahead::of(panel, (2 * x.index + half, 2 * x.count), 2, waits_for_memory::<C>(T) && x.count == 1);
    let mut sums = [_mm256_setzero_ps(); T];
    // SAFETY: block `b` of every slice is inside it, and a half of a panel inside its lines and lanes.
    unsafe {
        let table = _mm256_sub_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast())), bias);
        for (b, x_scales) in x.scales.iter().enumerate() {
            let scales = lanes_avx2(&panel.scales, b, first);
            let offsets = panel.offsets.as_ref().map_or(_mm256_setzero_ps(), |offsets| lanes_avx2(offsets, b, first));
            let mut dots = [_mm256_setzero_si256(); T];
            for t in 0..T {
                dots[t] = _mm256_set1_epi32(if is_signed::<C, false>() { 0 } else { x_scales[t].start });
            }
            let span = const { span::<C>(GROUPS) };
            for i in b * GROUPS / span..(b + 1) * GROUPS / span {
                let mut pairs = [_mm256_setzero_si256(); T];
                for g in i * span..(i + 1) * span {
                    if g % if C::NIBBLES { 4 } else { 2 } == 0 {
                        ahead.ask();
                    }
                    if C::HIGHER > 0 && x.index == 0 && half == 0 && (g * C::HIGHER).is_multiple_of(8) {
                        ahead.ask_for(panel.higher.as_ptr().wrapping_add((g / 2 + AHEAD) * C::HIGHER / 4));
                    }
                    let line = panel.codes.as_ptr().add(if C::NIBBLES { g / 2 } else { g });
                    let line = _mm256_load_si256(line.cast::<u8>().add(first * GROUP).cast());
                    let weights = match (C::NIBBLES, g % 2) {
                        (false, _) => _mm256_sub_epi8(line, bias),
                        (true, 0) => _mm256_and_si256(line, _mm256_set1_epi8(15)),
                        (true, _) => _mm256_and_si256(_mm256_srli_epi32(line, 4), _mm256_set1_epi8(15)),
                    };
                    let weights = if C::TABLE { _mm256_shuffle_epi8(table, weights) } else { weights };
                    let weights = match C::HIGHER {
                        0 => weights,
                        _ => with_higher_avx2::<C>(weights, panel.higher.as_ptr(), g, first * GROUP),
                    };
                    let codes = x.codes.as_ptr().add(g).cast::<i32>();
                    for t in 0..T {
                        let codes = _mm256_set1_epi32(codes.add(t).read_unaligned());
                        if is_signed::<C, false>() {
                            // The magnitudes of weights with the codes that have their signs.
                            let signed = _mm256_sign_epi8(codes, weights);
                            let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(weights), signed);
                            dots[t] = _mm256_add_epi32(dots[t], _mm256_madd_epi16(pairs, ones));
                        } else {
                            pairs[t] = _mm256_add_epi16(pairs[t], _mm256_maddubs_epi16(weights, codes));
                        }
                    }
                }
                if !is_signed::<C, false>() {
                    for t in 0..T {
                        dots[t] = _mm256_add_epi32(dots[t], _mm256_madd_epi16(pairs[t], ones));
                    }
                }
            }
            for t in 0..T {
                let scale = _mm256_mul_ps(scales, _mm256_set1_ps(x_scales[t].scale));
                sums[t] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots[t]), scale, sums[t]);
            }
            if panel.offsets.is_some() {
                for t in 0..T {
                    sums[t] = _mm256_fmadd_ps(offsets, _mm256_set1_ps(x_scales[t].sum), sums[t]);
                }
            }
        }
        for t in 0..T {
            _mm256_storeu_ps(products[t].as_mut_ptr().add(first), sums[t]);
        }
    }
}

/// With the higher bits of the codes of a group from `first` on.
///
/// # Safety
/// AVX2 is there, and those of the group are at `higher`.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn with_higher_avx2<C: Codes>(weights: __m256i, higher: *const Line, group: usize, first: usize) -> __m256i {
    // SAFETY: passed on; of a line 32 bytes are read from 0 or 32 on.
    unsafe {
        if C::HIGHER == 1 {
            // Each byte of the bits eight times, and in each of the eight another bit.
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

/// As `PanelFactors::lanes`, of the rows `first` to `first + 8`.
///
/// # Safety
/// AVX2 and F16C are there, the block is, and `first` is 0 or 8.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn lanes_avx2(factors: &PanelFactors<'_>, block: usize, first: usize) -> __m256 {
    // SAFETY: what is read of a block is inside the slices.
    unsafe {
        let halves = factors.halves.as_ptr().add(block >> factors.shared).cast::<u16>().add(first);
        let halves = _mm256_cvtph_ps(_mm_loadu_si128(halves.cast()));
        match factors.multiples {
            None => halves,
            Some(multiples) => {
                let multiples = _mm_loadl_epi64(multiples.as_ptr().add(block).cast::<i8>().add(first).cast());
                _mm256_mul_ps(halves, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(multiples)))
            }
        }
    }
}
