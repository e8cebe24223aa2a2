//! The floating-point types that weights, keys and values are stored in.

use bytemuck::Zeroable;
use candle_core::DType;
use half::{bf16, f16, slice::HalfFloatSliceExt};

use crate::kernels::{Isa, multiversion::multiversion};

/// The types that weights, keys and values are stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementType {
    F32,
    F16,
    Bf16,
}

impl ElementType {
    /// `None` for types that kernels do not read.
    pub fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::F16 => Some(Self::F16),
            DType::BF16 => Some(Self::Bf16),
            _ => None,
        }
    }

    /// Converts little-endian values of this type.
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

mod sealed {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// A stored floating-point type. Computations are in f32, which represents all its values.
pub trait Element: sealed::Sealed + Copy + Send + Sync + Zeroable + 'static {
    const TYPE: ElementType;
    fn to_f32(self) -> f32;
    fn from_le_bytes(bytes: &[u8]) -> Self;
    /// Writes `values`, rounded to nearest. Values out of range become the greatest finite value.
    fn round(values: &[f32], rounded: &mut [Self], isa: Isa);
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

/// Implements [`Element`] for a type of 16 bits.
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
                $round(values, rounded, isa);
            }
        }

        multiversion! {
            /// As [`Element::round`].
            fn $round(values: &[f32], rounded: &mut [$type]) {
                let mut finite = [0f32; 64];
                for (values, rounded) in values.chunks(finite.len()).zip(rounded.chunks_mut(finite.len())) {
                    let finite = &mut finite[..values.len()];
                    saturate(values, $type::MAX.into(), finite);
                    rounded.convert_from_f32_slice(finite);
                }
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
