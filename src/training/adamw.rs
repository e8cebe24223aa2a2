//! The AdamW optimizer and gradient clipping.

use rayon::prelude::*;

const BETAS: (f32, f32) = (0.9, 0.999);
const EPS: f32 = 1e-8;

/// AdamW ([paper](https://arxiv.org/abs/1711.05101)) over parameters in a fixed order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AdamW {
    /// Steps taken.
    pub steps: u32,
    /// The moments of each parameter; empty before the first step.
    pub moments: Vec<Moments>,
}

/// The running means of a parameter's gradients and of their squares.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Moments {
    pub first: Vec<f32>,
    pub second: Vec<f32>,
}

impl AdamW {
    /// One step with a learning rate and a weight decay.
    pub fn step(&mut self, parameters: &mut [&mut Vec<f32>], gradients: &[Vec<f32>], rate: f32, decay: f32) {
        self.steps += 1;
        if self.moments.is_empty() {
            let zeros = |gradient: &Vec<f32>| vec![0f32; gradient.len()];
            self.moments = gradients.iter().map(|g| Moments { first: zeros(g), second: zeros(g) }).collect();
        }
        let steps = self.steps as i32;
        let unbiased = (1.0 - BETAS.0.powi(steps), (1.0 - BETAS.1.powi(steps)).sqrt());
        let all = parameters.par_iter_mut().zip(gradients).zip(&mut self.moments);
        all.for_each(|((parameter, gradient), Moments { first, second })| {
            for (((p, g), m), v) in parameter.iter_mut().zip(gradient).zip(first).zip(second) {
                *m += (1.0 - BETAS.0) * (g - *m);
                *v = BETAS.1 * *v + (1.0 - BETAS.1) * g * g;
                *p *= 1.0 - rate * decay;
                *p -= rate / unbiased.0 * *m / (v.sqrt() / unbiased.1 + EPS);
            }
        });
    }
}

/// Scales gradients to a global norm of at most `limit` (0: any). Returns the norm before.
pub fn clip(gradients: &mut [Vec<f32>], limit: f32) -> f32 {
    let squares = |gradient: &Vec<f32>| gradient.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>();
    let norm = gradients.iter().map(squares).sum::<f64>().sqrt() as f32;
    let scale = limit / (norm + 1e-6);
    if limit > 0.0 && scale < 1.0 {
        gradients.par_iter_mut().for_each(|gradient| gradient.iter_mut().for_each(|g| *g *= scale));
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_match_torch() {
        // torch.optim.AdamW, lr 0.1, weight_decay 0.01, of 0.5 with the gradients 0.3, -0.2, 0.05.
        let (mut adamw, mut parameter) = (AdamW::default(), vec![0.5]);
        for (gradient, expected) in [(0.3, 0.3995), (-0.2, 0.384_648), (0.05, 0.364_416)] {
            adamw.step(&mut [&mut parameter], &[vec![gradient]], 0.1, 0.01);
            assert!((parameter[0] - expected).abs() < 1e-6, "{parameter:?} {expected}");
        }
    }

    #[test]
    fn clipping_scales_the_global_norm() {
        let mut gradients = vec![vec![3.0], vec![0.0, 4.0]];
        assert_eq!(clip(&mut gradients, 10.0), 5.0);
        assert_eq!(gradients, [vec![3.0], vec![0.0, 4.0]]);
        assert_eq!(clip(&mut gradients, 1.0), 5.0);
        assert!((gradients[0][0] - 0.6).abs() < 1e-6 && (gradients[1][1] - 0.8).abs() < 1e-6);
    }
}
