//! The symmetric contrastive loss over a batch, from raw embeddings to their gradients.
//!
//! L = ½ (CE(s Î T̂ᵀ) + CE(s T̂ Îᵀ)) with unit rows Î, T̂ and s = `exp(logit_scale)`
//! (METHOD §4). With label smoothing ε the target of a row is (1 - ε) times its own column plus
//! ε/B on every column, as PyTorch's `CrossEntropyLoss` has it. This is one operator, because
//! the two cross-entropies share the similarity matrix, and the gradient passes through the
//! normalization at once. Sums of the loss are f64.

use super::simd;
use crate::linalg::gemm::{self, Rows, Write};
use crate::num::{self, round_f32};

/// Everything the loss yields, reused from step to step.
#[derive(Debug, Default, Clone)]
pub struct Contrastive {
    /// Fraction ε of the target that is spread evenly over the batch; 0 unless set.
    pub label_smoothing: f64,
    /// The loss of the last call.
    pub loss: f64,
    /// d loss / d raw image embeddings [B, P].
    pub image_gradient: Vec<f32>,
    /// d loss / d raw text embeddings [B, P].
    pub text_gradient: Vec<f32>,
    /// d loss / d `logit_scale`.
    pub scale_gradient: f64,
    images: Unit,
    texts: Unit,
    similarity: Vec<f32>,
    by_column: Vec<f32>,
}

/// Unit rows and the lengths they had.
#[derive(Debug, Default, Clone)]
pub struct Unit {
    /// Normalized rows [N, P].
    pub rows: Vec<f32>,
    inverse_length: Vec<f32>,
}

impl Unit {
    /// Normalizes the rows of `raw` [N, P].
    pub fn normalize(&mut self, raw: &[f32], width: usize) {
        self.rows.clear();
        self.rows.extend_from_slice(raw);

        self.inverse_length.clear();

        // The bound keeps a row of zeros finite; PyTorch's `normalize` has the same.
        for row in self.rows.chunks_exact_mut(width) {
            let inverse = 1.0
                / simd::dispatch(
                    #[inline(always)]
                    || simd::dot(row, row),
                )
                .sqrt()
                .max(1e-12);

            for v in row {
                *v *= inverse;
            }
            self.inverse_length.push(inverse);
        }
    }

    /// Turns gradients of the unit rows into gradients of the raw rows, in place.
    pub fn backward(&self, gradient: &mut [f32], width: usize) {
        let rows = self.rows.chunks_exact(width).zip(&self.inverse_length);
        for (g, (row, inverse)) in gradient.chunks_exact_mut(width).zip(rows) {
            let along = simd::dispatch(
                #[inline(always)]
                || simd::dot(g, row),
            );
            for (g, r) in g.iter_mut().zip(row) {
                *g = (*g - along * r) * inverse;
            }
        }
    }
}

impl Contrastive {
    /// Computes loss and gradients for raw embeddings [B, P] of B pairs.
    pub fn run(&mut self, images: &[f32], texts: &[f32], width: usize, logit_scale: f32) {
        let pairs = images.len() / width;
        self.images.normalize(images, width);
        self.texts.normalize(texts, width);

        let scale = logit_scale.exp();
        self.similarity.resize(pairs * pairs, 0.0);

        let (i, t) =
            (Rows::new(&self.images.rows, width), Rows::new(&self.texts.rows, width));
        gemm::a_bt(&mut self.similarity, i, t, Write::Replace);

        // The cross-entropies of texts are those of the columns, which as rows lie
        // together.
        self.by_column.resize(pairs * pairs, 0.0);
        transpose(&mut self.by_column, &self.similarity, pairs);

        let target = Target { pairs, scale, smoothing: self.label_smoothing };
        let rows = cross_entropy(&mut self.similarity, target);
        let columns = cross_entropy(&mut self.by_column, target);
        let fraction = 0.5 / pairs as f64;
        self.loss = fraction * (rows.loss + columns.loss);
        self.scale_gradient =
            fraction * f64::from(scale) * (rows.along_scale + columns.along_scale);

        // Both halves hold (softmax - target); d loss / d similarity is their mean times s / B.
        let factor = scale * 0.5 / pairs as f32;
        for r in 0..pairs {
            for c in 0..pairs {
                let both = self.similarity[r * pairs + c] + self.by_column[c * pairs + r];
                self.similarity[r * pairs + c] = factor * both;
            }
        }

        self.image_gradient.resize(images.len(), 0.0);
        self.text_gradient.resize(texts.len(), 0.0);
        let by_similarity = Rows::new(&self.similarity, pairs);
        gemm::a_b(&mut self.image_gradient, by_similarity, t, Write::Replace);
        gemm::at_b(&mut self.text_gradient, by_similarity, i, Write::Replace);
    }

    /// Adds gradients with respect to the *unit* embeddings, then passes all of it through
    /// the normalization. Call once after [`Contrastive::run`].
    pub fn finish(&mut self, extra: Option<(&[f32], &[f32])>, width: usize) {
        if let Some((images, texts)) = extra {
            simd::add(&mut self.image_gradient, images);
            simd::add(&mut self.text_gradient, texts);
        }
        self.images.backward(&mut self.image_gradient, width);
        self.texts.backward(&mut self.text_gradient, width);
    }

    /// The unit image and text embeddings of the last call.
    pub fn unit_rows(&self) -> (&[f32], &[f32]) {
        (&self.images.rows, &self.texts.rows)
    }
}

/// What the rows of a similarity matrix are compared with.
#[derive(Debug, Clone, Copy)]
struct Target {
    pairs: usize,
    scale: f32,
    smoothing: f64,
}

/// Sums over the rows of a cross-entropy.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    /// Σ loss.
    loss: f64,
    /// Σ (softmax - target) ⊙ similarity: the derivative by the scale.
    along_scale: f64,
}

/// Cross-entropy with the diagonal as labels, smoothed. Replaces the similarities by
/// (softmax - target).
fn cross_entropy(similarity: &mut [f32], target: Target) -> Sums {
    let Target { pairs, scale, smoothing } = target;
    let keep = round_f32(1.0 - smoothing);
    let spread = round_f32(smoothing / pairs as f64);

    let mut sums = Sums::default();
    for (label, row) in similarity.chunks_exact_mut(pairs).enumerate() {
        // The mean similarity matters to smoothed targets only.
        let mean = if smoothing > 0.0 { num::sum(row) / pairs as f64 } else { 0.0 };
        simd::dispatch(
            #[inline(always)]
            || {
                let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let own = row[label];
                let mut total = 0.0_f64;
                let mut weighted = 0.0_f64;
                for v in row.iter_mut() {
                    let e = simd::exp(scale * (*v - largest));
                    total += f64::from(e);
                    weighted += f64::from(e * *v);
                    *v = e;
                }

                let inverse = round_f32(1.0 / total);
                for v in row.iter_mut() {
                    *v = *v * inverse - spread;
                }
                row[label] -= keep;

                let by_label = f64::from(scale * (own - largest));
                let by_mean = f64::from(scale) * (mean - f64::from(largest));
                let (loss, along) = if smoothing > 0.0 {
                    (
                        (1.0 - smoothing) * by_label + smoothing * by_mean,
                        (1.0 - smoothing) * f64::from(own) + smoothing * mean,
                    )
                } else {
                    (by_label, f64::from(own))
                };
                sums.loss += total.ln() - loss;
                sums.along_scale += weighted / total - along;
            },
        );
    }
    sums
}

fn transpose(out: &mut [f32], x: &[f32], n: usize) {
    for (r, row) in x.chunks_exact(n).enumerate() {
        for (c, v) in row.iter().enumerate() {
            out[c * n + r] = *v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;

    #[test]
    fn gradients_equal_finite_differences() {
        let (pairs, width) = (5, 7);
        let mut stream = rng::stream(1, "contrastive");
        let mut x = vec![0.0; 2 * pairs * width];
        rng::fill_normal(&mut stream, 1.0, &mut x);
        for label_smoothing in [0.0, 0.1, 0.6] {
            let loss = |x: &[f32], s: f32| {
                let mut c = Contrastive { label_smoothing, ..Contrastive::default() };
                let (i, t) = x.split_at(pairs * width);
                c.run(i, t, width, s);
                c.finish(None, width);
                c
            };
            let at = loss(&x, 1.3);
            let step = 1e-2;
            let difference = |up: &Contrastive, down: &Contrastive| {
                (up.loss - down.loss) / (2.0 * f64::from(step))
            };
            let s = difference(&loss(&x, 1.3 + step), &loss(&x, 1.3 - step));
            assert!((s - at.scale_gradient).abs() < 1e-4, "{s} {}", at.scale_gradient);
            let gradient = [at.image_gradient, at.text_gradient].concat();
            for (index, g) in gradient.iter().enumerate() {
                let moved = |by: f32| {
                    let mut y = x.clone();
                    y[index] += by;
                    loss(&y, 1.3)
                };
                let s = difference(&moved(step), &moved(-step));
                assert!((s - f64::from(*g)).abs() < 2e-4, "{index}: {s} {g}");
            }
        }
    }

    /// With all of the target spread evenly, pairs no longer matter.
    #[test]
    fn full_smoothing_does_not_know_which_text_belongs_to_which_image() {
        let width = 6;
        let mut x = vec![0.0; 2 * 4 * width];
        rng::fill_normal(&mut rng::stream(2, "contrastive"), 1.0, &mut x);
        let (images, texts) = x.split_at(4 * width);
        let rotated = [&texts[width..], &texts[..width]].concat();
        let loss = |texts: &[f32]| {
            let mut c = Contrastive { label_smoothing: 1.0, ..Contrastive::default() };
            c.run(images, texts, width, 1.0);
            c.loss
        };
        assert!((loss(texts) - loss(&rotated)).abs() < 1e-6);
    }

    #[test]
    fn equal_embeddings_give_the_loss_of_guessing() {
        let mut c = Contrastive::default();
        c.run(&[1.0; 12], &[1.0; 12], 3, 2.0);
        assert!((c.loss - 4.0_f64.ln()).abs() < 1e-6);
    }
}
