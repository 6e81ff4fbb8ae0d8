//! The symmetric contrastive loss over a batch, from raw embeddings to their gradients
//! (METHOD §4). It is one operator, because the two cross-entropies share the similarity
//! matrix, and the gradient passes through the normalization at once.
//!
//! ```text
//! S = I Tᵀ [B, B]     p = softmax(s S) along a row     q = softmax(s Sᵀ) along a row
//! loss = 1/(2B) Σ_i (cross-entropy of p_i, target i) + (cross-entropy of q_i, target i)
//! d loss / d I_i = s/(2B) Σ_j (p_ij + q_ji - 2 y_ij) T_j
//! d loss / d T_j = s/(2B) Σ_i (q_ji + p_ij - 2 y_ij) I_i
//! ```
//!
//! I and T are unit rows, and s = `exp(logit_scale)`. The target y is 1 - ε on the diagonal
//! and ε/B everywhere, as PyTorch's `CrossEntropyLoss` smooths labels. Sums are f64.
//!
//! Several ranks hold a part of the pairs each. Unit embeddings are gathered, then a rank
//! computes the rows of S and of Sᵀ that are its own, in strips of 16. Of a row of the other
//! matrix the gradient needs nothing but the row's largest value and its sum of exponentials,
//! which are gathered too: `q_ji` follows from `S_ij` and the numbers of row j. So the gradient is
//! that of the loss over the whole batch, and none has to flow back through a gather. Strips
//! have the same shape, and the sums over them the same order, for any number of ranks.

use rayon::prelude::*;

use super::simd;
use crate::error::Result;
use crate::linalg::gemm::{self, Rows, Write};
use crate::num::{self, round_f32};
use crate::ranks::Ranks;

/// Rows of a strip. It divides the pairs of a rank, so that no two ranks share a strip.
pub const STRIP: usize = 16;

/// Everything the loss yields, reused from step to step. A rank has b of the B pairs.
#[derive(Debug, Default, Clone)]
pub struct Contrastive {
    /// Fraction ε of the target that is spread evenly over the batch; 0 unless set.
    pub label_smoothing: f64,
    /// The loss of the last call, that of the whole batch.
    pub loss: f64,
    /// d loss / d raw image embeddings [b, P].
    pub image_gradient: Vec<f32>,
    /// d loss / d raw text embeddings [b, P].
    pub text_gradient: Vec<f32>,
    /// d loss / d `logit_scale`, that of the whole batch.
    pub scale_gradient: f64,
    images: Side,
    texts: Side,
}

/// One of the two kinds of embeddings.
#[derive(Debug, Default, Clone)]
struct Side {
    /// The own rows.
    own: Unit,
    /// The unit rows of all ranks [B, P].
    all: Vec<f32>,
    /// Products of the own rows with all rows of the other side [b, B].
    similarity: Vec<f32>,
    /// The softmaxes of all ranks.
    softmax: Softmax,
}

/// What turns a similarity v into a probability: `exp(s (v - largest)) * inverse`.
#[derive(Debug, Default, Clone)]
struct Softmax {
    /// Largest value of each row `[B]`.
    largest: Vec<f32>,
    /// One over the sum of exponentials of each row `[B]`.
    inverse: Vec<f32>,
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
    /// Computes loss and gradients for raw embeddings [b, P] of the own pairs.
    pub fn run(
        &mut self,
        ranks: &dyn Ranks,
        (images, texts): (&[f32], &[f32]),
        width: usize,
        logit_scale: f32,
    ) -> Result<()> {
        let own = images.len() / width;
        let target = Target {
            pairs: own * ranks.count(),
            first: own * ranks.rank(),
            scale: logit_scale.exp(),
            smoothing: self.label_smoothing,
        };
        self.images.normalize(ranks, images, width)?;
        self.texts.normalize(ranks, texts, width)?;

        let rows = self.images.compare(&self.texts.all, width, target);
        let columns = self.texts.compare(&self.images.all, width, target);
        self.add(ranks, rows.iter().zip(&columns), target)?;
        self.images.gather_softmax(ranks, &rows)?;
        self.texts.gather_softmax(ranks, &columns)?;

        self.image_gradient.resize(images.len(), 0.0);
        self.text_gradient.resize(texts.len(), 0.0);
        let (i, t) = (&mut self.images, &mut self.texts);
        i.gradient(&mut self.image_gradient, t, width, target);
        t.gradient(&mut self.text_gradient, i, width, target);
        Ok(())
    }

    /// The loss and its derivative by the scale, from the sums of all strips in their order.
    fn add<'a>(
        &mut self,
        ranks: &dyn Ranks,
        strips: impl Iterator<Item = (&'a Strip, &'a Strip)>,
        target: Target,
    ) -> Result<()> {
        let own: Vec<f64> = strips
            .flat_map(|(row, column)| {
                [row.loss + column.loss, row.along_scale + column.along_scale]
            })
            .collect();
        let mut all = vec![0.0; own.len() * ranks.count()];
        ranks.gather(&own, &mut all)?;

        let fraction = 0.5 / target.pairs as f64;
        let sum = |which: usize| all.iter().skip(which).step_by(2).sum::<f64>();
        self.loss = fraction * sum(0);
        self.scale_gradient = fraction * f64::from(target.scale) * sum(1);
        Ok(())
    }

    /// Adds gradients with respect to the *unit* embeddings, then passes all of it through
    /// the normalization. Call once after [`Contrastive::run`].
    pub fn finish(&mut self, extra: Option<(&[f32], &[f32])>, width: usize) {
        if let Some((images, texts)) = extra {
            simd::add(&mut self.image_gradient, images);
            simd::add(&mut self.text_gradient, texts);
        }
        self.images.own.backward(&mut self.image_gradient, width);
        self.texts.own.backward(&mut self.text_gradient, width);
    }

    /// The own unit image and text embeddings of the last call.
    pub fn unit_rows(&self) -> (&[f32], &[f32]) {
        (&self.images.own.rows, &self.texts.own.rows)
    }
}

/// What the rows of a similarity matrix are compared with.
#[derive(Debug, Clone, Copy)]
struct Target {
    /// Pairs B of the whole batch.
    pairs: usize,
    /// The first of the own pairs.
    first: usize,
    scale: f32,
    smoothing: f64,
}

/// What the rows of a strip yield.
#[derive(Debug, Clone, Default)]
struct Strip {
    largest: Vec<f32>,
    inverse: Vec<f32>,
    /// Σ loss.
    loss: f64,
    /// Σ (softmax - target) ⊙ similarity: the derivative by the scale.
    along_scale: f64,
}

impl Side {
    /// Normalizes the own rows and gathers those of all ranks.
    fn normalize(&mut self, ranks: &dyn Ranks, raw: &[f32], width: usize) -> Result<()> {
        self.own.normalize(raw, width);
        self.all.resize(raw.len() * ranks.count(), 0.0);
        ranks.gather(&self.own.rows, &mut self.all)
    }

    /// The similarities of the own rows with all rows of the other side, and their
    /// cross-entropies.
    fn compare(&mut self, others: &[f32], width: usize, target: Target) -> Vec<Strip> {
        let others = Rows::new(others, width);
        let own = self.own.rows.len() / width;
        self.similarity.resize(own * target.pairs, 0.0);

        let strips = self.similarity.par_chunks_mut(STRIP * target.pairs);
        let rows = self.own.rows.par_chunks(STRIP * width);
        let strips = strips.zip(rows).enumerate().map(|(index, (similarity, rows))| {
            gemm::a_bt(similarity, Rows::new(rows, width), others, Write::Replace);
            let mut strip = Strip::default();
            let first = target.first + index * STRIP;
            for (row, label) in similarity.chunks_exact(target.pairs).zip(first..) {
                strip.add(row, label, target);
            }
            strip
        });
        strips.collect()
    }

    /// Makes the softmaxes of all ranks known to each.
    fn gather_softmax(&mut self, ranks: &dyn Ranks, strips: &[Strip]) -> Result<()> {
        let largest: Vec<f32> = strips.iter().flat_map(|s| &s.largest).copied().collect();
        let inverse: Vec<f32> = strips.iter().flat_map(|s| &s.inverse).copied().collect();
        for (own, all) in
            [(largest, &mut self.softmax.largest), (inverse, &mut self.softmax.inverse)]
        {
            all.resize(own.len() * ranks.count(), 0.0);
            ranks.gather(&own, all)?;
        }
        Ok(())
    }

    /// The gradient by the own unit rows; the similarities are used up.
    fn gradient(&mut self, out: &mut [f32], others: &Self, width: usize, target: Target) {
        let Target { pairs, first, scale, smoothing } = target;
        let keep = round_f32(1.0 - smoothing);
        let spread = round_f32(smoothing / pairs as f64);
        let factor = scale * 0.5 / pairs as f32;
        let (own, other) = (&self.softmax, &others.softmax);
        let by_row = Rows::new(&others.all, width);

        let strips = self.similarity.par_chunks_mut(STRIP * pairs);
        let out = out.par_chunks_mut(STRIP * width);
        strips.zip(out).enumerate().for_each(|(index, (similarity, out))| {
            let first = first + index * STRIP;
            for (row, label) in similarity.chunks_exact_mut(pairs).zip(first..) {
                let (largest, inverse) = (own.largest[label], own.inverse[label]);
                simd::dispatch(
                    #[inline(always)]
                    || {
                        let columns = other.largest.iter().zip(&other.inverse);
                        for (v, (other_largest, other_inverse)) in
                            row.iter_mut().zip(columns)
                        {
                            let along_row = simd::exp(scale * (*v - largest)) * inverse;
                            let along_column =
                                simd::exp(scale * (*v - other_largest)) * other_inverse;
                            *v =
                                factor * ((along_row - spread) + (along_column - spread));
                        }
                    },
                );
                row[label] -= factor * (keep + keep);
            }
            gemm::a_b(out, Rows::new(similarity, pairs), by_row, Write::Replace);
        });
    }
}

impl Strip {
    /// Adds a row of similarities whose counterpart stands at `label`: its cross-entropy
    /// with smoothed targets.
    fn add(&mut self, row: &[f32], label: usize, target: Target) {
        let Target { pairs, scale, smoothing, .. } = target;

        // The mean similarity matters to smoothed targets only.
        let mean = if smoothing > 0.0 { num::sum(row) / pairs as f64 } else { 0.0 };
        let (largest, total, weighted) = simd::dispatch(
            #[inline(always)]
            || {
                let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let (mut total, mut weighted) = (0.0_f64, 0.0_f64);
                for v in row {
                    let e = simd::exp(scale * (*v - largest));
                    total += f64::from(e);
                    weighted += f64::from(e * *v);
                }
                (largest, total, weighted)
            },
        );
        self.largest.push(largest);
        self.inverse.push(round_f32(1.0 / total));

        let own = row[label];
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
        self.loss += total.ln() - loss;
        self.along_scale += weighted / total - along;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ranks::Alone;
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
                c.run(&Alone, (i, t), width, s).unwrap();
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
            c.run(&Alone, (images, texts), width, 1.0).unwrap();
            c.loss
        };
        assert!((loss(texts) - loss(&rotated)).abs() < 1e-6);
    }

    #[test]
    fn equal_embeddings_give_the_loss_of_guessing() {
        let mut c = Contrastive::default();
        c.run(&Alone, (&[1.0; 12], &[1.0; 12]), 3, 2.0).unwrap();
        assert!((c.loss - 4.0_f64.ln()).abs() < 1e-6);
    }
}
