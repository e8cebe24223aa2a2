//! The inner loop of dense products and of attention: factors times panels of 16 lanes. A lane sums
//! its products one by one in their order, so a result depends neither on what is computed beside
//! it, nor on the number of lanes a machine has.

use bytemuck::Zeroable;
use candle_core::DType;
use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::kernels::{Isa, memory::prefetch::Prefetcher};

/// Columns of a panel.
pub const LANES: usize = 16;
/// The types that weights, keys and values are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementType {
    F32,
    F16,
    Bf16,
}

impl ElementType {
    pub fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::F16 => Some(Self::F16),
            DType::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Numbers of this type, little endian.
    pub fn read(self, bytes: &[u8]) -> Vec<f32> {
        fn read<T: Element>(bytes: &[u8]) -> Vec<f32> {
            bytes.chunks_exact(size_of::<T>()).map(|bytes| T::from_le_bytes(bytes).to_f32()).collect()
        }
        match self {
            Self::F32 => read::<f32>(bytes),
            Self::F16 => read::<f16>(bytes),
            Self::Bf16 => read::<bf16>(bytes),
        }
    }
}

/// What panels are made of. All bits are values of it.
pub trait PanelElement: Copy + Send + Sync + Zeroable + 'static {
    /// What a step is multiplied by.
    type Factor: Copy;
    /// What the products of a lane add up to.
    type Sum: Copy + Zeroable;
    /// Those that one step has in a panel.
    const STEP_LEN: usize;
    /// Adds to the sums, and asks for what is `ahead` meanwhile.
    fn add_product(
        product: &PanelProduct<'_, Self>,
        sums: Accumulators<'_, Self::Sum>,
        ahead: &mut Prefetcher<'_>,
        isa: Isa,
    );
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// A number as it is stored. Computations are in f32, which holds all of them.
pub trait Element: sealed::Sealed + Copy + Send + Sync + Zeroable + 'static {
    const TYPE: ElementType;
    fn to_f32(self) -> f32;
    fn from_le_bytes(bytes: &[u8]) -> Self;
    /// Writes as many values, rounded to the nearest; what is too great becomes the greatest finite number.
    fn round(values: &[f32], rounded: &mut [Self], isa: Isa);
}

impl<T: Element> PanelElement for T {
    type Factor = f32;
    type Sum = f32;
    const STEP_LEN: usize = LANES;

    fn add_product(product: &PanelProduct<'_, T>, sums: Accumulators<'_, f32>, ahead: &mut Prefetcher<'_>, isa: Isa) {
        match isa {
            Isa::Scalar => add_scalar(product, sums),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni => super::x86_64::panels::add_avx2(product, sums, ahead),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni | Isa::Avx512Bf16 => super::x86_64::panels::add_avx512(product, sums, ahead),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonDotprod => super::aarch64::panels::add_neon(product, sums, ahead),
        }
    }
}

impl Element for f32 {
    const TYPE: ElementType = ElementType::F32;

    fn to_f32(self) -> f32 {
        self
    }

    fn from_le_bytes(bytes: &[u8]) -> Self {
        Self::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn round(values: &[f32], rounded: &mut [Self], _: Isa) {
        saturate(values, f32::MAX, rounded);
    }
}

/// The types of 16 bits differ by name only.
macro_rules! half_element {
    ($type:ident, $element_type:ident, $round:ident) => {
        impl Element for $type {
            const TYPE: ElementType = ElementType::$element_type;

            fn to_f32(self) -> f32 {
                self.into()
            }

            fn from_le_bytes(bytes: &[u8]) -> Self {
                Self::from_le_bytes([bytes[0], bytes[1]])
            }

            fn round(values: &[f32], rounded: &mut [Self], isa: Isa) {
                compiled_for!(isa, $round(values, rounded));
            }
        }

        /// As [`Element::round`].
        #[inline(always)]
        pub fn $round(values: &[f32], rounded: &mut [$type]) {
            let mut finite = [0f32; 64];
            for (values, rounded) in values.chunks(finite.len()).zip(rounded.chunks_mut(finite.len())) {
                let finite = &mut finite[..values.len()];
                saturate(values, $type::MAX.into(), finite);
                rounded.convert_from_f32_slice(finite);
            }
        }
    };
}

half_element!(f16, F16, round_f16);
half_element!(bf16, Bf16, round_bf16);

#[inline(always)]
fn saturate(values: &[f32], greatest: f32, finite: &mut [f32]) {
    values.iter().zip(finite).for_each(|(value, finite)| *finite = value.clamp(-greatest, greatest));
}

/// Rows of factors, each with all panels: sums of `factors[row][step] * panels[panel][step][lane]`.
pub struct PanelProduct<'a, T: PanelElement> {
    /// Row `r` is what begins at `r * factor_stride`: a factor for each step.
    pub factors: &'a [T::Factor],
    pub factor_stride: usize,
    pub rows: usize,
    pub panels: Panels<'a, T>,
    /// Steps in each piece of a panel.
    pub steps: usize,
    /// From one step of a panel to the next.
    pub panel_stride: usize,
}

/// Where panels are. Each step has `STEP_LEN` elements there.
pub enum Panels<'a, T> {
    /// Each has a place of its own.
    Apart(&'a [&'a [T]]),
    /// So many side by side, in pieces that have some of the steps each.
    Beside(usize, &'a [&'a [T]]),
}

impl<T: PanelElement> Panels<'_, T> {
    pub fn count(&self) -> usize {
        match self {
            Self::Apart(panels) => panels.len(),
            Self::Beside(count, _) => *count,
        }
    }

    /// Pieces of each panel.
    pub fn pieces(&self) -> usize {
        match self {
            Self::Apart(_) => 1,
            Self::Beside(_, pieces) => pieces.len(),
        }
    }

    /// Where a piece of a panel begins.
    #[inline(always)]
    pub fn start(&self, piece: usize, panel: usize) -> &[T] {
        match self {
            Self::Apart(panels) => panels[panel],
            Self::Beside(_, pieces) => &pieces[piece][panel * T::STEP_LEN..],
        }
    }
}

/// Where sums go: those of row `r` and panel `p` are at `r * stride + p * LANES`.
pub struct Accumulators<'a, S> {
    pub sums: &'a mut [S],
    pub stride: usize,
    /// Whether they are added to what is there, or take its place.
    pub add: bool,
}

impl<S: Copy + Zeroable> Accumulators<'_, S> {
    /// Makes zeros of those that the sums of a product take the place of.
    pub fn begin<T: PanelElement>(&mut self, product: &PanelProduct<'_, T>) {
        if !self.add {
            let rows = self.sums.chunks_mut(self.stride).take(product.rows);
            rows.for_each(|row| row[..product.panels.count() * LANES].fill(S::zeroed()));
        }
    }
}

impl<T: PanelElement> PanelProduct<'_, T> {
    /// Adds to `sums`, where those of row `r` and panel `p` are at `r * stride + p * LANES`.
    pub fn add_to(&self, sums: &mut [T::Sum], stride: usize, isa: Isa) {
        self.write(Accumulators { sums, stride, add: true }, &mut Prefetcher::idle(), isa);
    }

    /// Writes the sums. Meanwhile memory is asked for: a factor times a step of a panel is a unit of work.
    pub fn write(&self, mut sums: Accumulators<'_, T::Sum>, ahead: &mut Prefetcher<'_>, isa: Isa) {
        if self.rows > 0 && self.steps > 0 && self.panels.count() > 0 && self.panels.pieces() > 0 {
            T::add_product(self, sums, ahead, isa);
        } else {
            sums.begin(self);
        }
    }

    /// Calls `add` with each row and panel, and with the factor and what the panel has of each of their steps in turn.
    pub fn for_each_step(&self, mut add: impl FnMut(usize, usize, &T::Factor, &[T])) {
        for row in 0..self.rows {
            let factors = &self.factors[row * self.factor_stride..][..self.panels.pieces() * self.steps];
            for (piece, factors) in factors.chunks(self.steps).enumerate() {
                for panel in 0..self.panels.count() {
                    let elements = self.panels.start(piece, panel);
                    for (step, factor) in factors.iter().enumerate() {
                        add(row, panel, factor, &elements[step * self.panel_stride..][..T::STEP_LEN]);
                    }
                }
            }
        }
    }
}

fn add_scalar<T: Element>(product: &PanelProduct<'_, T>, mut sums: Accumulators<'_, f32>) {
    sums.begin(product);
    product.for_each_step(|row, panel, factor, values| {
        let sums = &mut sums.sums[row * sums.stride + panel * LANES..][..LANES];
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum = factor.mul_add(value.to_f32(), *sum);
        }
    });
}
