//! Operations on each row alone: norms, rotations, activations, sums.

use candle_core::{Result, Tensor};

use crate::{
    autograd::{binary, linear, note, rows_of, unary, with_f32},
    decoder::ops::{NormWeights, Rotation},
    kernels::{
        Isa,
        elementwise::{self, Activation, NormParams, RotationAngles},
    },
};

pub fn normalize(x: &Tensor, norm: &NormWeights, isa: Isa) -> Result<Tensor> {
    let (this, back) = (norm.clone(), norm.clone());
    let forward = move |x: &[f32]| with_values(&this, |norm| elementwise::normalize(x, norm, isa));
    unary(x, x.dim(1)?, forward, move |x, gradient| {
        with_values(&back, |norm| elementwise::normalize_gradient(x, gradient, norm, isa))
    })
}

/// Gives a norm as the kernels take it.
fn with_values<R>(norm: &NormWeights, compute: impl FnOnce(NormParams<'_>) -> R) -> Result<R> {
    with_f32(&norm.weight, |weight| match &norm.bias {
        Some(bias) => with_f32(bias, |bias| compute(of_values(norm, weight, Some(bias)))),
        None => Ok(compute(of_values(norm, weight, None))),
    })?
}

fn of_values<'a>(norm: &NormWeights, weight: &'a [f32], bias: Option<&'a [f32]>) -> NormParams<'a> {
    NormParams { weight, bias, size: norm.size, kind: norm.kind, eps: norm.eps as f32 }
}

pub fn rotate(x: &Tensor, head_dim: usize, rotation: &Rotation, isa: Isa) -> Result<Tensor> {
    let width = x.dim(1)?;
    let turn = |back: bool| {
        let Rotation { cos, sin, style } = rotation.clone();
        move |x: &[f32]| {
            let turn = |cos: &[f32], sin: &[f32]| {
                elementwise::rotate(x, width, RotationAngles { head_dim, cos, sin, style }, isa)
            };
            with_f32(&cos, |cos| {
                with_f32(&sin, |sin| match back {
                    false => turn(cos, sin),
                    true => turn(cos, &sin.iter().map(|sin| -sin).collect::<Vec<_>>()),
                })
            })?
        }
    };
    let back = turn(true);
    linear(x, width, turn(false), move |gradient| back(&gradient))
}

pub fn activate(x: &Tensor, up: Option<&Tensor>, activation: Activation, isa: Isa) -> Result<Tensor> {
    let columns = x.dim(1)?;
    match up {
        Some(up) => binary(
            [x, up],
            columns,
            move |[x, up]| Ok(elementwise::activate(x, Some(up), activation, isa)),
            move |[x, up], gradient| {
                let (grad_x, grad_up) = elementwise::activate_gradient(x, Some(up), gradient, activation, isa);
                Ok([grad_x, grad_up.unwrap_or_default()])
            },
        ),
        None => unary(
            x,
            columns,
            move |x| Ok(elementwise::activate(x, None, activation, isa)),
            move |x, gradient| Ok(elementwise::activate_gradient(x, None, gradient, activation, isa).0),
        ),
    }
}

pub fn add(x: &Tensor, y: &Tensor, scale: f32, isa: Isa) -> Result<Tensor> {
    let add = |x: &[f32], y: &[f32]| elementwise::add(x, y, scale, isa);
    let sum = rows_of(with_f32(x, |x| with_f32(y, |y| add(x, y)))??, x.dim(1)?)?;
    note(&[x, y], &sum, || {
        move |gradient: Vec<f32>| {
            let grad_y = gradient.iter().map(|value| value * scale).collect();
            Ok(vec![gradient, grad_y])
        }
    });
    Ok(sum)
}
