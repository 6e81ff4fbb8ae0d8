//! Full fine-tuning on a labelled set: a head on the image tower, and the tower itself
//! (METHOD §6).
//!
//! ```text
//! pictures ─ image tower ─► unit embeddings z [n, P] ─ head: s W z + b ─► cross-entropy
//!               ▲ AdamW, by a Tuner                       ▲ AdamW, here
//! ```
//!
//! The labels are those of the few-shot probes, the subgroups, so that 5 shots, 10 shots and
//! all pictures are one column each of the same task. The head starts as the zero-shot
//! classifier (Wortsman et al., *Robust fine-tuning of zero-shot models*, CVPR 2022), so that
//! the start is no worse than zero-shot. Pictures are not varied, and no choice is made
//! between steps: test pictures are looked at once, at the end.

use std::collections::BTreeSet;

use super::measurement::Row;
use super::metrics::classification::Classified;
use super::metrics::classifier;
use super::{
    Bootstrap, Bundle, Encoder, LabelledImages, Measurement, Outcome, Test, Vocabulary,
    embed,
};
use crate::config::{EvaluateConfig, OptimConfig};
use crate::error::{Error, Result};
use crate::image::Pixels;
use crate::linalg::Matrix;
use crate::num::round_f32;
use crate::rng::{self, SliceRandom as _};

/// The head's scale s of cosines: 1/0.07, the temperature that CLIP begins with.
const SCALE: f64 = 1.0 / 0.07;

/// A loss over the unit embeddings [n, P] of pictures: its value, and its gradient by them.
pub type EmbeddingLoss<'a> = &'a mut dyn FnMut(&[f32]) -> Result<(f64, Vec<f32>)>;

/// A model whose image tower trains.
pub trait Tuner: Encoder {
    /// The loss of pictures and its gradient, which stays inside.
    fn step(&mut self, pixels: Pixels<'_>, loss: EmbeddingLoss<'_>) -> Result<f64>;

    /// Trains by the gradient of the last step, number `step` from 0; its learning rate
    /// comes back.
    fn update(&mut self, step: usize) -> Result<f64>;
}

/// Fine-tunes on all training pictures of `bundle` and measures on the shift splits; `None`
/// if the data have fewer than two classes or no shifted picture of one.
pub fn fine_tune(
    tuner: &mut dyn Tuner,
    bundle: &Bundle<'_>,
    config: &EvaluateConfig,
    seed: u64,
) -> Result<Option<(Measurement, Vec<Outcome>)>> {
    let bootstrap = Bootstrap::new(seed, config.bootstrap)?;
    let classes = Classes::of(bundle);
    let mut tests: Vec<LabelledImages<Test>> = Vec::new();
    if classes.members.len() < 2 || bundle.shifts.is_empty() {
        return Ok(None);
    }

    let mut head = classes.zero_shot_head(tuner, bundle, config.batch)?;
    train(tuner, &mut head, bundle, (&classes, &config.fine_tuning, seed))?;
    for name in &bundle.shifts {
        tests.push(embed::split(tuner, bundle.test(name)?, config.batch)?);
    }
    measure(&head, &classes, &tests, bootstrap)
}

/// Subgroups with a training picture.
#[derive(Debug)]
struct Classes {
    /// Concepts of each class.
    members: Vec<Vec<usize>>,
    /// Class of each concept.
    class: Vec<Option<usize>>,
}

impl Classes {
    fn of(bundle: &Bundle<'_>) -> Self {
        let Vocabulary { concepts, classes, .. } = &bundle.vocabulary;
        let label = |c: usize| (c < *classes).then(|| concepts[c].subgroup);
        let trained: BTreeSet<usize> =
            bundle.train.concept.iter().filter_map(|&c| label(c)).collect();
        let trained: Vec<usize> = trained.into_iter().collect();
        let class: Vec<Option<usize>> =
            (0..concepts.len()).map(|c| trained.binary_search(&label(c)?).ok()).collect();
        let members = (0..trained.len())
            .map(|own| (0..class.len()).filter(|&c| class[c] == Some(own)).collect());
        Self { members: members.collect(), class }
    }

    fn zero_shot_head(
        &self,
        tuner: &mut dyn Tuner,
        bundle: &Bundle<'_>,
        batch: usize,
    ) -> Result<Head> {
        let vocabulary = &bundle.vocabulary;
        let prompts = embed::texts(tuner, vocabulary, &vocabulary.prompts()?, batch)?;
        let rows = |concepts: &Vec<usize>| -> Vec<usize> {
            concepts.iter().flat_map(|&c| vocabulary.rows(c)).collect()
        };
        let rows: Vec<Vec<usize>> = self.members.iter().map(rows).collect();
        Ok(Head::new(&classifier::build(&prompts, &rows)?))
    }
}

/// The steps, over epochs in which every picture comes once.
fn train(
    tuner: &mut dyn Tuner,
    head: &mut Head,
    bundle: &Bundle<'_>,
    (classes, optim, seed): (&Classes, &OptimConfig, u64),
) -> Result<()> {
    // Pictures without a class keep their rows and are never dealt.
    let class: Vec<Option<usize>> =
        bundle.train.concept.iter().map(|&c| classes.class[c]).collect();
    let mut order: Vec<usize> =
        (0..class.len()).filter(|&row| class[row].is_some()).collect();
    let batch = optim.batch.min(order.len());
    let steps_per_epoch = order.len() / batch;

    for step in 0..optim.steps {
        let (epoch, place) = (step / steps_per_epoch, step % steps_per_epoch);
        if place == 0 {
            let name = format!("eval/fine-tuning/{epoch}");
            order.sort_unstable();
            order.shuffle(&mut rng::stream(seed, &name));
        }

        // Every batch is full; what is left of an epoch is dealt in another.
        let rows = &order[place * batch..(place + 1) * batch];
        let pixels = (bundle.train.pixels)(rows)?;
        let labels: Vec<usize> = rows.iter().filter_map(|&row| class[row]).collect();

        let loss = tuner.step(pixels.view(), &mut |unit| Ok(head.step(unit, &labels)))?;
        if !loss.is_finite() {
            return Err(Error::failed(format!(
                "the loss of fine-tuning became {loss} in step {step}; a lower \
                 evaluate.fine_tuning.learning_rate or a longer warm-up usually helps"
            )));
        }
        let learning_rate = tuner.update(step)?;
        head.update(learning_rate, optim);
    }
    Ok(())
}

/// Accuracy on the pictures of all shift splits together, with an interval over pictures that
/// are drawn anew within each split: as the probes are measured.
fn measure(
    head: &Head,
    classes: &Classes,
    tests: &[LabelledImages<Test>],
    bootstrap: Bootstrap,
) -> Result<Option<(Measurement, Vec<Outcome>)>> {
    let mut hits: Vec<Vec<bool>> = Vec::new();
    let mut outcomes = Vec::new();
    for images in tests {
        let labelled = (0..images.len())
            .filter_map(|row| Some((row, classes.class[images.concept[row]]?)));
        let (rows, class): (Vec<usize>, Vec<usize>) = labelled.unzip();
        if rows.is_empty() {
            continue;
        }
        let data = rows.iter().flat_map(|&row| head.logits(images.embeddings.row(row)));
        let logits = Matrix::new(rows.len(), head.bias.len(), data.collect())?;
        let own = correct(&logits, &class)?;
        outcomes.extend(rows.iter().zip(&own).map(|(&row, &hit)| Outcome {
            task: "finetune",
            split: images.split.clone(),
            metric: "acc1".to_owned(),
            sample: images.sample[row],
            value: f64::from(u8::from(hit)),
        }));
        hits.push(own);
    }

    // A split without any picture of a class has no part in the score.
    let count: usize = hits.iter().map(Vec::len).sum();
    if count == 0 {
        return Ok(None);
    }

    let resampled = bootstrap.resample("finetune/shift", 1, |draws| {
        let right = hits.iter().map(|split| {
            let drawn = draws.examples(split.len());
            drawn.into_iter().filter(|&index| split[index]).count()
        });
        vec![right.sum::<usize>() as f64 / count as f64]
    });
    let right = hits.iter().flatten().filter(|&&hit| hit).count();
    let row = Row { task: "finetune", split: "shift", n: count };
    let measured = row.measured("acc1", right as f64 / count as f64, &resampled[0]);
    Ok(Some((measured, outcomes)))
}

/// Whether the largest logit of each row [n, C] is that of its class: the rule of all
/// classification, with the logits as features and the classes as axes.
fn correct(logits: &Matrix, class: &[usize]) -> Result<Vec<bool>> {
    let classes = logits.cols();
    let mut axes = Matrix::zeros(classes, classes);
    for index in 0..classes {
        axes.row_mut(index)[index] = 1.0;
    }
    let found = Classified::new(logits, &axes, class)?;
    Ok((0..found.len()).map(|index| found.hit(index)).collect())
}

/// A linear classifier of unit embeddings, and what `AdamW` keeps of it. All in f64: it is
/// small beside a tower.
#[derive(Debug, Clone)]
struct Head {
    /// W [C, P].
    weights: Vec<f64>,
    /// b `[C]`.
    bias: Vec<f64>,
    width: usize,
    /// Gradient and moments of W, then of b.
    gradient: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
    steps: i32,
}

impl Head {
    /// The head whose classes point along the rows of `classifier` [C, P].
    fn new(classifier: &Matrix) -> Self {
        let weights: Vec<f64> = classifier.data().iter().map(|&v| f64::from(v)).collect();
        let count = weights.len() + classifier.rows();
        Self {
            bias: vec![0.0; classifier.rows()],
            width: classifier.cols(),
            gradient: vec![0.0; count],
            first: vec![0.0; count],
            second: vec![0.0; count],
            steps: 0,
            weights,
        }
    }

    fn logits(&self, unit: &[f32]) -> Vec<f32> {
        self.exact_logits(unit).into_iter().map(round_f32).collect()
    }

    fn exact_logits(&self, unit: &[f32]) -> Vec<f64> {
        let rows = self.weights.chunks_exact(self.width).zip(&self.bias);
        let dot = |row: &[f64]| -> f64 {
            row.iter().zip(unit).map(|(w, z)| w * f64::from(*z)).sum()
        };
        rows.map(|(row, bias)| SCALE * dot(row) + bias).collect()
    }

    /// Mean cross-entropy of unit embeddings [n, P] of these classes, and its gradient by
    /// them; the head keeps its own.
    fn step(&mut self, unit: &[f32], labels: &[usize]) -> (f64, Vec<f32>) {
        let (width, classes) = (self.width, self.bias.len());
        let share = 1.0 / labels.len() as f64;
        self.gradient.fill(0.0);
        let mut loss = 0.0;
        let mut by_embedding = Vec::with_capacity(unit.len());
        for (row, &label) in unit.chunks_exact(width).zip(labels) {
            let logits = self.exact_logits(row);
            let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = logits.iter().map(|v| (v - largest).exp()).sum();
            loss += share * (total.ln() + largest - logits[label]);

            // d loss / d logits is softmax - target.
            let mut own = vec![0.0; width];
            for (class, logit) in logits.iter().enumerate() {
                let target = f64::from(u8::from(class == label));
                let slope = share * ((logit - largest).exp() / total - target);
                self.gradient[classes * width + class] += slope;
                let at = class * width..(class + 1) * width;
                let by_weights = &mut self.gradient[at.clone()];
                for (((g, w), out), z) in
                    by_weights.iter_mut().zip(&self.weights[at]).zip(&mut own).zip(row)
                {
                    *g += SCALE * slope * f64::from(*z);
                    *out += SCALE * slope * w;
                }
            }
            by_embedding.extend(own.into_iter().map(round_f32));
        }
        (loss, by_embedding)
    }

    /// One step of `AdamW`; the bias does not decay.
    fn update(&mut self, learning_rate: f64, optim: &OptimConfig) {
        self.steps += 1;
        let (keep1, keep2) = (optim.beta1, optim.beta2);
        let (whole1, whole2) =
            (1.0 - keep1.powi(self.steps), 1.0 - keep2.powi(self.steps));
        let decay = 1.0 - learning_rate * optim.weight_decay;
        self.weights.iter_mut().for_each(|w| *w *= decay);

        let values = self.weights.iter_mut().chain(&mut self.bias);
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((value, g), (first, second)) in values.zip(&self.gradient).zip(moments) {
            *first = keep1 * *first + (1.0 - keep1) * g;
            *second = keep2 * *second + (1.0 - keep2) * g * g;
            let root = (*second / whole2).sqrt() + optim.epsilon;
            *value -= learning_rate * (*first / whole1) / root;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> (Head, Vec<f32>, Vec<usize>) {
        let mut classifier = Matrix::zeros(3, 4);
        rng::fill_normal(&mut rng::stream(1, "head"), 0.5, classifier.data_mut());
        let mut unit = Matrix::zeros(5, 4);
        rng::fill_normal(&mut rng::stream(1, "unit"), 0.5, unit.data_mut());
        (Head::new(&classifier), unit.into_data(), vec![0, 2, 1, 1, 0])
    }

    #[test]
    fn gradients_of_the_head_and_of_embeddings_are_those_of_finite_differences() {
        let (mut head, unit, labels) = head();
        let (_, by_embedding) = head.step(&unit, &labels);
        let gradient = head.gradient.clone();
        let step = 1e-4;
        let loss = |head: &Head, unit: &[f32]| head.clone().step(unit, &labels).0;

        for (index, analytic) in gradient[..head.weights.len()].iter().enumerate() {
            let moved = |sign: f64| {
                let mut other = head.clone();
                other.weights[index] += sign * step;
                loss(&other, &unit)
            };
            let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
            assert!((slope - analytic).abs() < 1e-5, "weight {index}");
        }
        for class in 0..3 {
            let moved = |sign: f64| {
                let mut other = head.clone();
                other.bias[class] += sign * step;
                loss(&other, &unit)
            };
            let slope = (moved(1.0) - moved(-1.0)) / (2.0 * step);
            assert!((slope - gradient[12 + class]).abs() < 1e-5, "bias {class}");
        }
        for index in 0..unit.len() {
            let moved = |sign: f32| {
                let mut other = unit.clone();
                other[index] += sign * 1e-2;
                (loss(&head, &other), f64::from(other[index]))
            };
            let ((high, right), (low, left)) = (moved(1.0), moved(-1.0));
            let slope = (high - low) / (right - left);
            let found = f64::from(by_embedding[index]);
            assert!((slope - found).abs() < 2e-2 * found.abs().max(1.0), "{index}");
        }
    }

    #[test]
    fn a_step_of_the_head_lowers_the_loss_and_decays_the_weights_alone() {
        let (mut head, unit, labels) = head();
        let overrides = crate::config::Overrides::default();
        let optim = crate::config::load_default(&overrides).unwrap().train.optim;
        let (before, _) = head.step(&unit, &labels);
        head.update(1e-3, &optim);
        let (after, _) = head.step(&unit, &labels);
        assert!(after < before, "{after} {before}");

        // Without a gradient only the decay of the weights is left.
        let mut still = Head { gradient: vec![0.0; 15], ..head.clone() };
        still.first.fill(0.0);
        still.update(0.5, &optim);
        let expected = 1.0 - 0.5 * optim.weight_decay;
        for (found, old) in still.weights.iter().zip(&head.weights) {
            assert!((found - expected * old).abs() < 1e-12);
        }
        assert_eq!(still.bias, head.bias);
    }

    #[test]
    fn the_largest_logit_decides() {
        let logits = Matrix::new(3, 2, vec![1.0, 3.0, -1.0, -4.0, 2.0, 0.5]).unwrap();
        assert_eq!(correct(&logits, &[1, 0, 1]).unwrap(), [true, true, false]);
    }
}
