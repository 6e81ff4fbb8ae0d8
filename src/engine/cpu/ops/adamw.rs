//! AdamW with decoupled weight decay and the EMA, fused in one pass over flat buffers.

use super::simd;

/// The numbers of one step of the optimizer, the same for all values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Coefficients {
    /// Learning rate of this step.
    pub learning_rate: f32,
    /// First decay β1.
    pub beta1: f32,
    /// Second decay β2.
    pub beta2: f32,
    /// ε, added to the root as in PyTorch.
    pub epsilon: f32,
    /// 1 - β1ᵗ.
    pub correction1: f32,
    /// 1 - β2ᵗ.
    pub correction2: f32,
    /// Factor on the gradient (clipping).
    pub gradient_scale: f32,
}

/// Updates a range of parameters and both moments; `decay` is 0 where the role has none.
pub fn update(
    step: &Coefficients,
    decay: f32,
    (values, gradients): (&mut [f32], &[f32]),
    (first, second): (&mut [f32], &mut [f32]),
) {
    // Both corrections of the moments are constants of a step: they leave the loop.
    let keep = 1.0 - step.learning_rate * decay;
    let rate = step.learning_rate / step.correction1;
    let root = 1.0 / step.correction2.sqrt();

    // Decay acts on the weights themselves and not through the moments.
    simd::dispatch(
        #[inline(always)]
        || {
            let moments = first.iter_mut().zip(second);
            for ((v, g), (m, s)) in values.iter_mut().zip(gradients).zip(moments) {
                let g = g * step.gradient_scale;
                *m = step.beta1.mul_add(*m, (1.0 - step.beta1) * g);
                *s = step.beta2.mul_add(*s, (1.0 - step.beta2) * g * g);
                *v = *v * keep - rate * *m / (s.sqrt().mul_add(root, step.epsilon));
            }
        },
    );
}

/// average += (1 - decay) (value - average).
pub fn average(average: &mut [f32], values: &[f32], decay: f32) {
    simd::dispatch(
        #[inline(always)]
        || {
            for (a, v) in average.iter_mut().zip(values) {
                *a = (1.0 - decay).mul_add(v - *a, *a);
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formulas of Loshchilov & Hutter in f64, value by value.
    fn reference(v: f64, grads: &[f64], lr: f64, wd: f64) -> f64 {
        let (b1, b2, eps) = (0.9, 0.98, 1e-6);
        let (mut v, mut m, mut s) = (v, 0.0, 0.0);
        for (t, g) in grads.iter().enumerate() {
            let t = i32::try_from(t + 1).unwrap();
            m = b1 * m + (1.0 - b1) * g;
            s = b2 * s + (1.0 - b2) * g * g;
            v -= lr * wd * v;
            v -= lr * (m / (1.0 - f64::powi(b1, t)))
                / ((s / (1.0 - f64::powi(b2, t))).sqrt() + eps);
        }
        v
    }

    #[test]
    fn three_steps_equal_the_formulas() {
        let grads = [0.5_f32, -0.25, 0.125];
        for decay in [0.0, 0.2] {
            let (mut v, mut m, mut s) = (vec![1.5_f32; 19], vec![0.0; 19], vec![0.0; 19]);
            for (t, g) in grads.iter().enumerate() {
                let t = i32::try_from(t + 1).unwrap();
                let step = Coefficients {
                    learning_rate: 1e-2,
                    beta1: 0.9,
                    beta2: 0.98,
                    epsilon: 1e-6,
                    correction1: 1.0 - 0.9_f32.powi(t),
                    correction2: 1.0 - 0.98_f32.powi(t),
                    gradient_scale: 1.0,
                };
                update(&step, decay, (&mut v, &[*g; 19]), (&mut m, &mut s));
            }
            let exact = reference(1.5, &grads.map(f64::from), 1e-2, f64::from(decay));
            assert!(v.iter().all(|v| (f64::from(*v) - exact).abs() < 1e-6));
        }
    }

    /// candle-nn writes the same optimizer over its own tensors.
    #[test]
    fn steps_equal_those_of_candle_nn() {
        use candle_core::{Device, Tensor, Var};
        use candle_nn::{AdamW, Optimizer, ParamsAdamW};
        let start: Vec<f32> = (0..40_u8).map(|i| f32::from(i).sin()).collect();
        let var = Var::from_slice(&start, 40, &Device::Cpu).unwrap();
        let params = ParamsAdamW {
            lr: 3e-3,
            beta1: 0.9,
            beta2: 0.98,
            eps: 1e-6,
            weight_decay: 0.1,
        };
        let mut theirs = AdamW::new(vec![var.clone()], params).unwrap();
        let (mut values, mut first) = (start, vec![0.0; 40]);
        let mut second = first.clone();
        for t in 1..=5 {
            // The gradient of Σ v⁴/4 is v³.
            let gradient: Vec<f32> = values.iter().map(|v| v.powi(3)).collect();
            let loss: Tensor =
                (var.powf(4.0).unwrap().sum_all().unwrap() * 0.25).unwrap();
            theirs.backward_step(&loss).unwrap();
            let step = Coefficients {
                learning_rate: 3e-3,
                beta1: 0.9,
                beta2: 0.98,
                epsilon: 1e-6,
                correction1: 1.0 - 0.9_f32.powi(t),
                correction2: 1.0 - 0.98_f32.powi(t),
                gradient_scale: 1.0,
            };
            update(&step, 0.1, (&mut values, &gradient), (&mut first, &mut second));
            let expected: Vec<f32> = var.to_vec1().unwrap();
            let pairs = values.iter().zip(&expected);
            assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() < 2e-6), "step {t}");
        }
    }
}
