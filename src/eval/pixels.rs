//! Two classifiers that see pixels only: what a model must beat to have learned anything.
//!
//! The nearest training picture by Euclidean distance, and a linear one by ridge regression on
//! one-hot classes. Accuracy is that of the concept task, on the same pictures and the same
//! bootstrap resamples as that of a model; a concept without a training picture is never found.
//!
//! Pictures of more than 32 pixels a side are averaged down to 32, because the linear classifier
//! costs the cube of the number of values. The training split streams by in blocks: memory is
//! one matrix of values × values, and that of the judged pictures.

use std::collections::BTreeMap;

use faer::Mat;

use super::measurement::Row;
use super::{Bootstrap, Bundle, Measurement, Split, Test, Train, Validation};
use crate::error::{Context as _, Error, Result};
use crate::linalg::cholesky::Cholesky;
use crate::linalg::gemm::{self, Rows, Write};
use crate::num::{self, round_f32};
use crate::par;
use crate::rng;

/// Largest side of the pictures that the classifiers see.
const SIDE: usize = 32;

/// Training pictures read at a time.
const BLOCK: usize = 1024;

/// Judged pictures of a parallel task.
const JUDGED: usize = 256;

/// Rows of the Gram matrix of a parallel task.
const BAND: usize = 64;

/// Classes whose sums of pictures are compared at a time.
const CLASSES: usize = 512;

/// How the classifiers are fitted and judged.
#[derive(Debug, Clone)]
pub struct PixelSettings {
    /// Most training pictures; of more a uniform draw.
    pub most: usize,
    /// Ridge weights, of which the validation split chooses.
    pub l2: Vec<f64>,
    /// Resampling of the intervals.
    pub bootstrap: Bootstrap,
    /// Seed of the draw.
    pub seed: u64,
}

/// What the two classifiers reach.
#[derive(Debug, Clone, PartialEq)]
pub struct PixelBaselines {
    /// Of the nearest neighbor.
    pub nearest: Vec<Measurement>,
    /// Of the linear classifier.
    pub linear: Vec<Measurement>,
    /// Training pictures that both were fitted on.
    pub pictures: usize,
    /// The chosen ridge weight.
    pub l2: f64,
}

/// Fits both and measures them on every test split that shows a trained class. `None` where
/// no validation picture or no test picture does.
pub fn pixel_baselines(
    bundle: &Bundle<'_>,
    settings: &PixelSettings,
) -> Result<Option<PixelBaselines>> {
    bundle.check()?;
    let classes = bundle.vocabulary.classes;
    let trained = Trained::new(&bundle.train, classes, settings);
    let validation = Judged::new(&bundle.validation, classes, &trained)?;
    let mut tests = Vec::new();
    for name in &bundle.tests {
        let judged = Judged::new(bundle.test(name)?, classes, &trained)?;
        if judged.is_possible() {
            tests.push(judged);
        }
    }
    if !validation.is_possible() || tests.is_empty() {
        return Ok(None);
    }

    // The weight is chosen on validation pictures; no test picture takes part.
    let system = System::new(&trained)?;
    let mut tried = Vec::new();
    for &l2 in &settings.l2 {
        let solved = vec![system.solve(&validation.pixels, l2)?];
        let right = linear(&trained, &system, &solved, &[&validation])?;
        tried.push((l2, num::mean(&right[0])));
    }
    let better =
        |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1).then(a.0.total_cmp(&b.0));
    let Some(&(l2, _)) = tried.iter().max_by(better) else {
        return Err(Error::usage(
            "evaluate.probe_l2: found no weight, expected at least one",
        ));
    };

    let judged: Vec<&Judged> = tests.iter().collect();
    let solved = tests
        .iter()
        .map(|own| system.solve(&own.pixels, l2))
        .collect::<Result<Vec<_>>>()?;
    let of_linear = linear(&trained, &system, &solved, &judged)?;
    let of_nearest = nearest(&trained, &judged)?;
    Ok(Some(PixelBaselines {
        nearest: measured(bundle, settings.bootstrap, &tests, &of_nearest),
        linear: measured(bundle, settings.bootstrap, &tests, &of_linear),
        pictures: trained.order.len(),
        l2,
    }))
}

/// The accuracy on each split, and its mean over the shift splits.
fn measured(
    bundle: &Bundle<'_>,
    bootstrap: Bootstrap,
    tests: &[Judged],
    right: &[Vec<f64>],
) -> Vec<Measurement> {
    let (mut out, mut shifts) = (Vec::new(), Vec::new());
    for (test, right) in tests.iter().zip(right) {
        // The name of the concept task, so that resamples are those of a model's accuracy.
        let name = format!("concept/{}", test.split);
        let mut resampled = bootstrap.resample(&name, 1, |draws| {
            let drawn = draws.examples(right.len()).into_iter();
            let values: Vec<f64> = drawn.map(|picture| right[picture]).collect();
            vec![num::mean(&values)]
        });

        let row = Row { task: "concept", split: &test.split, n: right.len() };
        let found = row.measured("acc1", num::mean(right), &resampled[0]);
        if bundle.shifts.contains(&test.split) {
            shifts.push((found.value, found.n, resampled.remove(0)));
        }
        out.push(found);
    }

    // The mean over splits, whatever their sizes, in every resample.
    if let Some((_, _, first)) = shifts.first() {
        let mean_of = |b: usize| {
            num::mean(&shifts.iter().map(|(_, _, all)| all[b]).collect::<Vec<_>>())
        };
        let means: Vec<f64> = (0..first.len()).map(mean_of).collect();
        let values: Vec<f64> = shifts.iter().map(|(value, _, _)| *value).collect();
        let n = shifts.iter().map(|(_, n, _)| num::widen(*n)).sum();
        let row = Row { task: "summary", split: "shift", n };
        out.push(row.measured("shift", num::mean(&values), &means));
    }
    out
}

/// Rows of pixels [n, D].
#[derive(Debug)]
struct Pixels {
    data: Vec<f32>,
    width: usize,
}

impl Pixels {
    /// The pictures of a split at `indices`, averaged down where they are large.
    fn read<R>(split: &Split<'_, R>, indices: &[usize]) -> Result<Self> {
        let mut data = Vec::new();
        for part in indices.chunks(BLOCK) {
            let pixels = (split.pixels)(part)
                .context(|| format!("reading the pixels of split {}", split.name))?;
            let size = pixels.view().len() / part.len();
            for picture in pixels.view().values(size / 3).chunks_exact(size) {
                data.extend(averaged(picture));
            }
        }
        let width = data.len() / indices.len().max(1);
        Ok(Self { data, width })
    }

    fn rows(&self) -> std::slice::ChunksExact<'_, f32> {
        self.data.chunks_exact(self.width.max(1))
    }

    /// Some consecutive rows.
    fn part(&self, from: usize, count: usize) -> Rows<'_> {
        let values = &self.data[from * self.width..(from + count) * self.width];
        Rows::new(values, self.width)
    }

    fn len(&self) -> usize {
        self.data.len() / self.width.max(1)
    }
}

/// A picture [3, S, S] with every pixel the mean of a block, at most [`SIDE`] a side.
fn averaged(picture: &[f32]) -> Vec<f32> {
    let plane = picture.len() / 3;
    let side = plane.isqrt();
    if side <= SIDE {
        return picture.to_vec();
    }

    // Blocks differ by a pixel where the sides do not divide.
    let edge = |index: usize| index * side / SIDE;
    let mut out = Vec::with_capacity(3 * SIDE * SIDE);
    for plane in picture.chunks_exact(plane) {
        for (top, bottom) in (0..SIDE).map(|y| (edge(y), edge(y + 1))) {
            for (left, right) in (0..SIDE).map(|x| (edge(x), edge(x + 1))) {
                let rows = plane[top * side..bottom * side].chunks_exact(side);
                let sum: f32 = rows.map(|row| row[left..right].iter().sum::<f32>()).sum();
                out.push(sum / ((bottom - top) * (right - left)) as f32);
            }
        }
    }
    out
}

/// The training pictures, class by class.
struct Trained<'b> {
    split: &'b Split<'b, Train>,
    /// Class and position of each picture, classes ascending.
    order: Vec<(usize, usize)>,
    /// The class of each concept that has a picture.
    class_of: BTreeMap<usize, usize>,
}

impl<'b> Trained<'b> {
    fn new(
        split: &'b Split<'b, Train>,
        classes: usize,
        settings: &PixelSettings,
    ) -> Self {
        let is_of_class = |at: &usize| split.concept[*at] < classes;
        let mut positions: Vec<usize> = (0..split.len()).filter(is_of_class).collect();

        // A uniform draw: the first of a random permutation, in their own order.
        if positions.len() > settings.most {
            use rng::SliceRandom as _;
            positions.shuffle(&mut rng::stream(settings.seed, "eval/pixels"));
            positions.truncate(settings.most);
        }
        let mut order: Vec<(usize, usize)> =
            positions.into_iter().map(|at| (split.concept[at], at)).collect();
        order.sort_unstable();

        let mut class_of = BTreeMap::new();
        for (concept, _) in &mut order {
            let next = class_of.len();
            *concept = *class_of.entry(*concept).or_insert(next);
        }
        Self { split, order, class_of }
    }

    /// Hands out the pictures in blocks, each with the classes of its rows.
    fn each(
        &self,
        mut work: impl FnMut(&[(usize, usize)], &Pixels) -> Result<()>,
    ) -> Result<()> {
        for part in self.order.chunks(BLOCK) {
            let positions: Vec<usize> = part.iter().map(|(_, at)| *at).collect();
            work(part, &Pixels::read(self.split, &positions)?)?;
        }
        Ok(())
    }
}

/// Pictures that are judged: all that show a class.
struct Judged {
    split: String,
    pixels: Pixels,
    /// Their classes; none of a concept without a training picture.
    class: Vec<Option<usize>>,
}

impl Judged {
    fn new<R: Judging>(
        split: &Split<'_, R>,
        classes: usize,
        trained: &Trained<'_>,
    ) -> Result<Self> {
        let is_of_class = |at: &usize| split.concept[*at] < classes;
        let shown: Vec<usize> = (0..split.len()).filter(is_of_class).collect();
        let class_of = |&at: &usize| trained.class_of.get(&split.concept[at]).copied();
        Ok(Self {
            split: split.name.clone(),
            class: shown.iter().map(class_of).collect(),
            pixels: Pixels::read(split, &shown)?,
        })
    }

    /// Whether a classifier can be right on any of them.
    fn is_possible(&self) -> bool {
        self.class.iter().any(Option::is_some)
    }
}

/// Roles of pictures that classifiers may be judged by.
trait Judging {}

impl Judging for Validation {}
impl Judging for Test {}

/// The moments of the training pictures.
struct System {
    /// Mean of every value `[D]`.
    mean: Vec<f64>,
    /// Σ (x - mean)(x - mean)ᵀ.
    gram: Mat<f64>,
    pictures: usize,
}

impl System {
    fn new(trained: &Trained<'_>) -> Result<Self> {
        let pictures = trained.order.len();
        let (mut sums, mut products) = (Vec::new(), Vec::new());
        trained.each(|_, block| {
            let width = block.width;
            sums.resize(width, 0.0);
            products.resize(width * width, 0.0_f64);
            for row in block.rows() {
                sums.iter_mut().zip(row).for_each(|(sum, v)| *sum += f64::from(*v));
            }

            // Bands of the Gram matrix side by side; sums over blocks are in f64.
            par::for_each_chunk(&mut products, BAND * width, |band, out| {
                let (from, rows) = (band * BAND, out.len() / width);
                let mut found = vec![0.0; out.len()];
                let own = &block.data[from..];
                let (count, all) = (block.len(), Rows::new(&block.data, width));
                let own = Rows::strided(own, count, rows, width);
                gemm::at_b(&mut found, own, all, Write::Replace);
                out.iter_mut().zip(&found).for_each(|(sum, v)| *sum += f64::from(*v));
            });
            Ok(())
        })?;

        let n = pictures as f64;
        let mean: Vec<f64> = sums.iter().map(|sum| sum / n).collect();
        let width = mean.len();
        let centered =
            |i: usize, j: usize| products[i * width + j] - n * mean[i] * mean[j];
        let gram = Mat::from_fn(width, width, centered);
        Ok(Self { mean, gram, pictures })
    }

    /// (Σ + λ n I)⁻¹ (x - mean) of every picture x, as rows.
    fn solve(&self, pixels: &Pixels, l2: f64) -> Result<Pixels> {
        let (n, width) = (self.pictures as f64, pixels.width);
        let mut ridged = self.gram.clone();
        for k in 0..width {
            ridged[(k, k)] += l2 * n;
        }
        let solver = Cholesky::new(ridged.as_ref())
            .context(|| format!("the linear classifier on pixels at ridge {l2}"))?;

        // One decomposition serves all pictures; they are solved for in blocks side by side.
        let mut data = vec![0.0; pixels.data.len()];
        par::for_each_chunk(&mut data, JUDGED * width, |chunk, out| {
            let from = chunk * JUDGED;
            let value = |k: usize, row: usize| {
                f64::from(pixels.data[(from + row) * width + k]) - self.mean[k]
            };
            let right = Mat::from_fn(width, out.len() / width, value);
            let found = solver.solve(right.as_ref());
            for (row, out) in out.chunks_exact_mut(width).enumerate() {
                for (k, value) in out.iter_mut().enumerate() {
                    *value = round_f32(found[(k, row)]);
                }
            }
        });
        Ok(Pixels { data, width })
    }
}

/// The best class so far of each judged picture, with its score.
type Best = Vec<(f32, usize)>;

/// Whether the linear classifier is right on each picture of each split.
///
/// With one-hot targets of ±1 and centered pictures, the score of a class of m pictures is
/// 2 zᵀ Σ (x - mean) + 2 m / n - 1, the sum over its pictures and z being the solved picture.
fn linear(
    trained: &Trained<'_>,
    system: &System,
    solved: &[Pixels],
    judged: &[&Judged],
) -> Result<Vec<Vec<f64>>> {
    let mut best: Vec<Best> = judged.iter().map(|own| start(own)).collect();
    let mut waiting = Sums { first: 0, counts: Vec::new(), rows: Vec::new() };

    trained.each(|classes, block| {
        for ((class, _), row) in classes.iter().zip(block.rows()) {
            if *class == waiting.first + waiting.counts.len() {
                // A new class begins; the finished ones are compared when they are many.
                if waiting.counts.len() == CLASSES {
                    compare(&waiting, system, solved, &mut best);
                    waiting = Sums { first: *class, counts: vec![], rows: vec![] };
                }
                waiting.counts.push(0);
                waiting.rows.resize(waiting.rows.len() + row.len(), 0.0);
            }
            waiting.add(row, &system.mean);
        }
        Ok(())
    })?;

    // The last classes are usually fewer.
    compare(&waiting, system, solved, &mut best);
    Ok(judged.iter().zip(&best).map(|(own, best)| right(own, best)).collect())
}

/// Sums of the centered pictures of consecutive classes.
struct Sums {
    first: usize,
    counts: Vec<usize>,
    rows: Vec<f64>,
}

impl Sums {
    /// Adds a picture to the last class.
    fn add(&mut self, row: &[f32], mean: &[f64]) {
        let from = self.rows.len() - row.len();
        let sums = self.rows[from..].iter_mut().zip(row.iter().zip(mean));
        sums.for_each(|(sum, (v, mean))| *sum += f64::from(*v) - mean);
        if let Some(count) = self.counts.last_mut() {
            *count += 1;
        }
    }
}

/// Scores every judged picture by some classes and keeps the best; ties to the lower class.
fn compare(sums: &Sums, system: &System, solved: &[Pixels], best: &mut [Best]) {
    let n = system.pictures as f64;
    let classes: Vec<f32> = sums.rows.iter().map(|sum| round_f32(*sum)).collect();
    let prior: Vec<f32> =
        sums.counts.iter().map(|&count| round_f32(count as f64 / n)).collect();

    // Judged pictures side by side: each compares its own scores, whatever the threads.
    for (solved, best) in solved.iter().zip(best) {
        par::for_each_chunk(best, JUDGED, |chunk, best| {
            let z = solved.part(chunk * JUDGED, best.len());
            let mut scores = vec![0.0; best.len() * prior.len()];
            let by_class = Rows::new(&classes, solved.width);
            gemm::a_bt(&mut scores, z, by_class, Write::Replace);

            for (best, scores) in best.iter_mut().zip(scores.chunks_exact(prior.len())) {
                for (class, (score, prior)) in scores.iter().zip(&prior).enumerate() {
                    if score + prior > best.0 {
                        *best = (score + prior, sums.first + class);
                    }
                }
            }
        });
    }
}

/// Whether the class of the nearest training picture is right, for each picture of each split.
fn nearest(trained: &Trained<'_>, judged: &[&Judged]) -> Result<Vec<Vec<f64>>> {
    let mut best: Vec<Best> = judged.iter().map(|own| start(own)).collect();

    trained.each(|classes, block| {
        // ‖x - y‖² = ‖x‖² - 2 xᵀy + ‖y‖², and ‖x‖² is the same for all y.
        let half: Vec<f32> = block
            .rows()
            .map(|row| 0.5 * row.iter().map(|v| v * v).sum::<f32>())
            .collect();

        for (own, best) in judged.iter().zip(&mut best) {
            par::for_each_chunk(best, JUDGED, |chunk, best| {
                let x = own.pixels.part(chunk * JUDGED, best.len());
                let mut scores = vec![0.0; best.len() * half.len()];
                let y = Rows::new(&block.data, block.width);
                gemm::a_bt(&mut scores, x, y, Write::Replace);

                // Only a smaller distance takes the place: ties stay with the earlier picture.
                for (best, dots) in best.iter_mut().zip(scores.chunks_exact(half.len())) {
                    for ((dot, half), (class, _)) in dots.iter().zip(&half).zip(classes) {
                        if dot - half > best.0 {
                            *best = (dot - half, *class);
                        }
                    }
                }
            });
        }
        Ok(())
    })?;
    Ok(judged.iter().zip(&best).map(|(own, best)| right(own, best)).collect())
}

/// No class yet.
fn start(judged: &Judged) -> Best {
    vec![(f32::NEG_INFINITY, usize::MAX); judged.class.len()]
}

/// 1 where the best class is the picture's own.
fn right(judged: &Judged, best: &Best) -> Vec<f64> {
    let pairs = judged.class.iter().zip(best);
    pairs.map(|(class, (_, found))| f64::from(u8::from(*class == Some(*found)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::{Concept, Vocabulary};
    use crate::image::PixelBuffer;

    const SIDE: usize = 4;
    const WIDTH: usize = 3 * SIDE * SIDE;

    /// Picture `sample` of a concept: the concept's own pixels and a little noise.
    fn picture(concept: usize, sample: u32) -> Vec<f32> {
        let mut own = vec![0.0; WIDTH];
        rng::fill_normal(&mut rng::stream(1, &format!("c{concept}")), 1.0, &mut own);
        let mut noise = vec![0.0; WIDTH];
        rng::fill_normal(&mut rng::stream(2, &format!("s{sample}")), 0.8, &mut noise);
        own.iter().zip(noise).map(|(a, b)| a + b).collect()
    }

    fn split<R>(name: &str, first: u32, concepts: Vec<usize>) -> Split<'static, R> {
        let sample: Vec<u32> =
            (0..concepts.len()).map(|i| first + num::index_u32(i)).collect();
        let (of, own) = (concepts.clone(), sample.clone());
        let pixels = move |indices: &[usize]| -> Result<PixelBuffer> {
            let values = indices.iter().flat_map(|&i| picture(of[i], own[i]));
            Ok(PixelBuffer::Values(values.collect()))
        };
        Split::new(name, sample, concepts, vec![], Box::new(pixels)).unwrap()
    }

    /// Eight trained concepts of unequal sizes, and one, number 8, that is never trained on.
    fn bundle(tokenize: crate::eval::Tokenize<'_>) -> Bundle<'_> {
        let concept = |index: usize| Concept {
            label: format!("c{index}"),
            group: 0,
            subgroup: 0,
            held_out: index == 8,
        };
        let train = (0..120).map(|i| if i < 100 { i % 8 } else { 3 }).collect();
        let cycle = |n: usize| (0..n).map(|i| i % 8).collect::<Vec<_>>();
        Bundle {
            vocabulary: Vocabulary {
                concepts: (0..9).map(concept).collect(),
                classes: 9,
                templates: vec!["{}".to_owned()],
                tokenize,
            },
            train: split("train", 0, train),
            validation: split("val", 1000, cycle(40)),
            splits: vec![
                split("v2", 2000, cycle(64)),
                split("3d", 3000, cycle(80)),
                split("heldout", 4000, vec![8; 10]),
            ],
            tests: ["v2", "3d", "heldout"].map(str::to_owned).to_vec(),
            shifts: ["v2", "3d"].map(str::to_owned).to_vec(),
            retrieval: "v2".to_owned(),
            held_out: Some("heldout".to_owned()),
        }
    }

    fn settings(most: usize) -> PixelSettings {
        let bootstrap = Bootstrap::new(1, 50).unwrap();
        PixelSettings { most, l2: vec![0.01, 1.0], bootstrap, seed: 1 }
    }

    /// Both against the slow forms: a search over all pairs, and the normal equations in full.
    #[test]
    fn both_classifiers_are_those_of_their_definitions() {
        let tokenize = |_: &[String]| -> Result<Vec<u32>> { Ok(vec![]) };
        let bundle = bundle(&tokenize);
        let found = pixel_baselines(&bundle, &settings(1000)).unwrap().unwrap();
        assert_eq!(found.pictures, 120);
        let splits: Vec<&str> = found.linear.iter().map(|m| m.split.as_str()).collect();
        assert_eq!(splits, ["v2", "3d", "shift"], "an unknown concept is no task");

        let train: Vec<(usize, Vec<f32>)> = (0..120)
            .map(|i| {
                (
                    bundle.train.concept[i],
                    picture(bundle.train.concept[i], bundle.train.sample[i]),
                )
            })
            .collect();
        let test: Vec<(usize, Vec<f32>)> =
            (0..64).map(|i| (i % 8, picture(i % 8, 2000 + num::index_u32(i)))).collect();
        let share = |hits: usize| hits as f64 / 64.0;
        let distance = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
        };
        let near = |x: &[f32]| {
            let by = |a: &&(usize, Vec<f32>), b: &&(usize, Vec<f32>)| {
                distance(&a.1, x).total_cmp(&distance(&b.1, x))
            };
            train.iter().min_by(by).unwrap().0
        };
        let hits = test.iter().filter(|(class, x)| near(x) == *class).count();
        assert!((found.nearest[0].value - share(hits)).abs() < 1e-12);

        let mean: Vec<f64> = (0..WIDTH)
            .map(|k| train.iter().map(|(_, x)| f64::from(x[k])).sum::<f64>() / 120.0)
            .collect();
        let x = Mat::from_fn(120, WIDTH, |i, k| f64::from(train[i].1[k]) - mean[k]);
        let y = Mat::from_fn(120, 8, |i, c| if train[i].0 == c { 1.0 } else { -1.0 });
        let mut a = x.transpose() * &x;
        (0..WIDTH).for_each(|k| a[(k, k)] += found.l2 * 120.0);
        let w = Cholesky::new(a.as_ref()).unwrap().solve((x.transpose() * &y).as_ref());
        let bias = |c: usize| (0..120).map(|i| y[(i, c)]).sum::<f64>() / 120.0;
        let score = |x: &[f32], c: usize| {
            bias(c)
                + (0..WIDTH).map(|k| (f64::from(x[k]) - mean[k]) * w[(k, c)]).sum::<f64>()
        };
        let best = |x: &[f32]| {
            (0..8).max_by(|&a, &b| score(x, a).total_cmp(&score(x, b))).unwrap()
        };
        let hits = test.iter().filter(|(class, x)| best(x) == *class).count();
        assert!((found.linear[0].value - share(hits)).abs() < 1e-12);
        assert!(found.linear[0].value > 0.5 && found.nearest[0].value > 0.3, "{found:?}");
        let shift = f64::midpoint(found.linear[0].value, found.linear[1].value);
        assert!((found.linear[2].value - shift).abs() < 1e-12);
    }

    #[test]
    fn of_many_training_pictures_a_draw_is_taken_and_its_size_is_told() {
        let tokenize = |_: &[String]| -> Result<Vec<u32>> { Ok(vec![]) };
        let bundle = bundle(&tokenize);
        let found = pixel_baselines(&bundle, &settings(50)).unwrap().unwrap();
        assert_eq!(found.pictures, 50);
        assert_eq!(pixel_baselines(&bundle, &settings(50)).unwrap().unwrap(), found);
    }

    #[test]
    fn large_pictures_are_averaged_over_blocks() {
        let side = 64;
        let value = |i: usize| ((i % side) / 2) as f32;
        let picture: Vec<f32> = (0..3 * side * side).map(value).collect();
        let small = averaged(&picture);
        assert_eq!(small.len(), 3 * 32 * 32);
        assert!(
            (0..32).all(|x| (small[x] - x as f32).abs() < 1e-6),
            "{:?}",
            &small[..32]
        );
        assert_eq!(averaged(&picture[..3 * 16]).len(), 3 * 16);
    }
}
