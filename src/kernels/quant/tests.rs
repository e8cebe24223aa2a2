use candle_core::{
    Device, Tensor,
    quantized::{QStorage, QTensor},
};

use half::f16;

use super::{affine::Affine, ggml::GgmlType, matrix::QuantMatrix};
use crate::kernels::Isa;

/// Types that candle reads, too.
const FORMATS: [GgmlType; 10] = [
    GgmlType::Q4_0,
    GgmlType::Q4_1,
    GgmlType::Q5_0,
    GgmlType::Q5_1,
    GgmlType::Q8_0,
    GgmlType::Q2_K,
    GgmlType::Q3_K,
    GgmlType::Q4_K,
    GgmlType::Q5_K,
    GgmlType::Q6_K,
];

fn random(mut state: u64) -> impl FnMut() -> u64 {
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        state >> 40
    }
}

fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut next = random(seed);
    (0..len).map(|_| next() as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// A matrix of random bits with moderate scales, and its values by candle, if candle reads the type.
fn matrix(dtype: GgmlType, rows: usize, columns: usize) -> (QuantMatrix, Vec<f32>) {
    let mut next = random(7);
    let mut bytes: Vec<u8> =
        (0..rows * columns / dtype.block_len() * dtype.block_bytes()).map(|_| next() as u8).collect();
    let halves: &[usize] = match dtype {
        GgmlType::Q4_1 | GgmlType::Q5_1 | GgmlType::Q4_K | GgmlType::Q5_K => &[0, 2],
        GgmlType::Q2_K => &[80, 82],
        GgmlType::Q3_K => &[108],
        GgmlType::Q6_K => &[208],
        _ => &[0],
    };
    for block in bytes.chunks_mut(dtype.block_bytes()) {
        for at in halves {
            let half = f16::from_f32(next() as f32 / (1 << 31) as f32 - 0.003);
            block[*at..at + 2].copy_from_slice(&half.to_le_bytes());
        }
        if dtype == GgmlType::Q8_0 {
            block[2..18].fill(0x80);
        }
    }
    let matrix = QuantMatrix::from_ggml(dtype, &bytes, rows, columns, false);
    let Some(kind) = dtype.candle() else { return (matrix, Vec::new()) };
    let storage = QStorage::from_data(bytes.into(), &Device::Cpu, kind).unwrap();
    let stored = QTensor::new(storage, (rows, columns)).unwrap();
    (matrix, stored.dequantize(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap())
}

#[test]
fn rows_are_the_ones_that_candle_reads() {
    for dtype in FORMATS {
        let (rows, columns) = (21, 512);
        let (matrix, exact) = matrix(dtype, rows, columns);
        for row in 0..rows {
            for (ours, theirs) in matrix.row(row).iter().zip(&exact[row * columns..]) {
                assert!((ours - theirs).abs() <= 1e-6 * theirs.abs(), "{dtype:?}: {ours} {theirs}");
            }
        }
    }
}

#[test]
fn bands_make_up_the_matrix() {
    for dtype in FORMATS {
        let columns = 512;
        let bands = || [32, 32, 11].map(|rows| matrix(dtype, rows, columns).0);
        let joined = QuantMatrix::of_bands(75, bands()).unwrap();
        let rows: Vec<_> = bands().iter().flat_map(|band| (0..band.rows).map(|row| band.row(row))).collect();
        assert!(rows.iter().enumerate().all(|(row, expected)| joined.row(row) == *expected), "{dtype:?}");
        let x = noise(columns, 3);
        let products: Vec<f32> = bands().iter().flat_map(|band| band.multiply(&x, Isa::detect())).collect();
        assert_eq!(joined.multiply(&x, Isa::detect()), products, "{dtype:?}");
    }
}

#[test]
fn rows_that_candle_quantized_are_near_the_originals() {
    let (rows, columns) = (3, 256);
    let values = noise(rows * columns, 13);
    for dtype in FORMATS {
        let tensor = Tensor::from_slice(&values, (rows, columns), &Device::Cpu).unwrap();
        let stored = QTensor::quantize(&tensor, dtype.candle().unwrap()).unwrap();
        let matrix = QuantMatrix::from_ggml(dtype, &stored.data().unwrap(), rows, columns, false);
        let ours: Vec<f32> = (0..rows).flat_map(|row| matrix.row(row)).collect();
        assert!(ours.iter().zip(&values).all(|(ours, value)| (ours - value).abs() < 0.4), "{dtype:?}");
    }
}

#[test]
fn products_are_near_exact_ones() {
    for dtype in FORMATS {
        let (rows, columns, tokens) = (37, 512, 6);
        let (matrix, exact) = matrix(dtype, rows, columns);
        let x = noise(tokens * columns, 9);
        let ours = matrix.multiply(&x, Isa::detect());
        for (token, x) in x.chunks(columns).enumerate() {
            for (row, weights) in exact.chunks(columns).enumerate() {
                let (got, expected) = (f64::from(ours[token * rows + row]), dot(weights, x));
                let scale = (dot(weights, weights) * dot(x, x)).sqrt();
                assert!((got - expected).abs() < 0.01 * scale, "{dtype:?}: {got} for {expected} of {scale}");
            }
        }
    }
}

/// A matrix of random codes in groups of 64, whose columns are in another order.
fn affine(bits: u32, rows: usize, columns: usize) -> Affine {
    let mut next = random(u64::from(bits));
    let mut values = |len: usize, width: f32| -> Vec<f32> {
        (0..len).map(|_| (next() as f32 / (1 << 24) as f32 - 0.5) * width).map(|n| f16::from_f32(n).to_f32()).collect()
    };
    let (scales, offsets) = (values(rows * columns / 64, 0.01), values(rows * columns / 64, 0.1));
    let codes = (0..rows * columns).map(|_| (next() & ((1 << bits) - 1)) as u8).collect();
    let order = (0..columns as u32).map(|column| (column * 37 + 5) % columns as u32).collect();
    Affine { rows, columns, bits, group: 64, codes, scales, offsets, order: Some(order) }
}

#[test]
fn precise_products_are_exact_to_16_bits_on_every_path_in_every_batch() {
    for bits in [2, 3, 4, 6, 8] {
        let (rows, columns, tokens) = (37, 320, 6);
        let affine = affine(bits, rows, columns);
        let matrix = QuantMatrix::from_affine(&affine, true);
        let exact = affine.to_f32();
        for row in 0..rows {
            let weights = &exact[row * columns..][..columns];
            assert!(matrix.row(row).iter().zip(weights).all(|(ours, w)| (ours - w).abs() < 3e-4));
        }
        let x = noise(tokens * columns, 9);
        let ours = matrix.multiply(&x, Isa::detect());
        for (token, x) in x.chunks(columns).enumerate() {
            for row in 0..rows {
                let weights = matrix.row(row);
                let (got, expected) = (f64::from(ours[token * rows + row]), dot(&weights, x));
                let scale = (dot(&weights, &weights) * dot(x, x)).sqrt();
                assert!((got - expected).abs() < 3e-5 * scale, "{bits} bits: {got} for {expected} of {scale}");
            }
        }
        let alone: Vec<f32> = x.chunks(columns).flat_map(|token| matrix.multiply(token, Isa::Scalar)).collect();
        for isa in Isa::available() {
            assert_eq!(matrix.multiply(&x, isa), alone, "{bits} bits, {isa:?}");
        }
    }
}

#[test]
fn rows_quantized_here_are_near_the_originals() {
    let (rows, columns) = (5, 96);
    let weights = noise(rows * columns, 3);
    for (bits, tolerance) in [(8, 0.005), (4, 0.075)] {
        let matrix = QuantMatrix::from_affine(&Affine::quantized(&weights, rows, columns, bits), false);
        let ours: Vec<f32> = (0..rows).flat_map(|row| matrix.row(row)).collect();
        assert!(ours.iter().zip(&weights).all(|(ours, weight)| (ours - weight).abs() < tolerance), "{bits} bits");
    }
}

#[test]
fn codes_of_iq4_and_mxfp4_are_indices_of_tables() {
    let one = f16::ONE.to_le_bytes();
    let nibbles: Vec<u8> = (0..16).map(|i| i | (15 - i) << 4).collect();
    let uneven =
        [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];
    let both_ways = |values: [f32; 16]| [values.to_vec(), values.into_iter().rev().collect()].concat();
    let row = |kind, bytes: &[u8], columns| QuantMatrix::from_ggml(kind, bytes, 1, columns, false).row(0);
    assert_eq!(row(GgmlType::IQ4_NL, &[&one[..], &nibbles].concat(), 32), both_ways(uneven));
    let floats = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
    assert_eq!(row(GgmlType::MXFP4, &[&[127], &nibbles[..]].concat(), 32), both_ways(floats));
    let quarters: Vec<f32> = both_ways(floats).iter().map(|float| float / 4.0).collect();
    assert_eq!(row(GgmlType::MXFP4, &[&[125], &nibbles[..]].concat(), 32), quarters);
    // Scales of 6 bits, from 32 on above zero: the first block has 33, the second 48 and the last 31.
    let mut bytes = [&one[..], &[0b10 | 0b11 << 2, 0b01 << 6], &[0x01, 0, 0, 0xf0]].concat();
    (0..8).for_each(|_| bytes.extend(&nibbles));
    let blocks = row(GgmlType::IQ4_XS, &bytes, 256);
    let scaled = |scale: f32| both_ways(uneven).iter().map(|value| value * scale).collect::<Vec<_>>();
    assert_eq!(blocks[..32], scaled(1.0));
    assert_eq!(blocks[32..64], scaled(16.0));
    assert_eq!(blocks[224..], scaled(-1.0));
}

#[test]
fn every_path_and_every_batch_gives_the_same_bits() {
    let uneven = [GgmlType::IQ4_NL, GgmlType::IQ4_XS, GgmlType::MXFP4];
    for dtype in FORMATS.into_iter().chain(uneven) {
        for (rows, tokens) in [(1, 1), (16, 2), (33, 3), (40, 8), (31, 15), (600, 33)] {
            let columns = 256;
            let (matrix, _) = matrix(dtype, rows, columns);
            let mut x = noise(tokens * columns, 11);
            // CodeFormat of ±127 only, against the extreme weights.
            x[..columns].iter_mut().for_each(|value| *value = value.signum());
            let alone: Vec<f32> = x.chunks(columns).flat_map(|token| matrix.multiply(token, Isa::Scalar)).collect();
            for isa in Isa::available() {
                assert_eq!(matrix.multiply(&x, isa), alone, "{dtype:?} {isa:?} {rows} rows, {tokens} tokens");
            }
        }
    }
}

#[test]
fn zeros_give_zeros_and_nan_is_not_lost() {
    let (matrix, _) = matrix(GgmlType::Q8_0, 5, 64);
    for isa in Isa::available() {
        assert_eq!(matrix.multiply(&[0.0; 64], isa), [0.0; 5]);
        for value in [f32::NAN, f32::INFINITY] {
            let mut x = [1.0; 64];
            x[3] = value;
            assert!(matrix.multiply(&x, isa).iter().all(|y| !y.is_finite()), "{isa:?} {value}");
        }
    }
}

#[test]
fn transposed_products_are_the_formula_of_the_rows() {
    let affine = |bits, rows: usize, columns: usize| {
        let mut affine = Affine::quantized(&crate::kernels::noise(rows * columns, 1, 1.0), rows, columns, bits);
        affine.order = Some((0..columns as u32).map(|column| (column * 37 + 5) % columns as u32).collect());
        QuantMatrix::from_affine(&affine, true)
    };
    // Scales are a quarter.
    let floats: Vec<u8> = (0..20 * 3 * 17).map(|i| if i % 17 == 0 { 125 } else { (i * 89 % 251) as u8 }).collect();
    let floats = QuantMatrix::from_ggml(GgmlType::MXFP4, &floats, 20, 96, true);
    for matrix in [affine(4, 5, 64), affine(8, 300, 96), floats] {
        let (rows, columns) = (matrix.rows, matrix.columns);
        let x = crate::kernels::noise(3 * rows, 2, 1.0);
        for isa in Isa::available() {
            let y = matrix.multiply_transposed(&x, false, isa);
            for (x, y) in x.chunks(rows).zip(y.chunks(columns)) {
                let mut exact = vec![0f64; columns];
                for (row, x) in x.iter().enumerate() {
                    let products = matrix.row(row).into_iter().map(|weight| f64::from(weight) * f64::from(*x));
                    exact.iter_mut().zip(products).for_each(|(sum, product)| *sum += product);
                }
                assert!(y.iter().zip(exact).all(|(y, exact)| (f64::from(*y) - exact).abs() < 1e-6 * rows as f64));
            }
        }
    }
}
