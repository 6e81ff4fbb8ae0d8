//! K-means against the published implementations (`tests/fixtures/kmeans`) and its theorems.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use linfa::ParamGuard;
use proptest::prelude::*;

use super::*;
use crate::error::Result;
use crate::linalg::Matrix;
use crate::rng;

fn params(k: usize) -> SphericalKMeansParams {
    SphericalKMeans::params(k).iterations(100).restarts(10).tolerance(0.0).seed(1)
}

fn fit(params: SphericalKMeansParams, x: &Matrix) -> SphericalKMeansModel {
    params.check().unwrap().fit_rows(x).unwrap()
}

fn random(rows: usize, cols: usize, seed: u64) -> Matrix {
    let mut x = Matrix::zeros(rows, cols);
    rng::fill_normal(&mut rng::stream(seed, "test/x"), 1.0, x.data_mut());
    x
}

/// The slow obvious objective: mean over rows of the largest cosine, plain f64 loops.
fn objective(x: &Matrix, centroids: &Matrix) -> f64 {
    let dot = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    let best = |row: &[f32]| {
        let cosine = |c: &[f32]| dot(row, c) / (dot(row, row) * dot(c, c)).sqrt();
        centroids.iter_rows().map(cosine).fold(f64::NEG_INFINITY, f64::max)
    };
    x.iter_rows().map(best).sum::<f64>() / x.rows() as f64
}

fn assert_never_falls(history: &[IterationStats]) {
    for pair in history.windows(2).filter(|pair| pair[0].restart == pair[1].restart) {
        let gain = pair[1].objective - pair[0].objective;
        assert!(gain >= -1e-12, "the objective fell by {}: {pair:?}", -gain);
    }
}

fn fixture(name: &str) -> (Matrix, Vec<i64>, serde_json::Value) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kmeans");
    let bytes = fs::read(folder.join(format!("{name}.safetensors"))).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let x = file.tensor("x").unwrap();
    let values =
        x.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
    let matrix = Matrix::new(x.shape()[0], x.shape()[1], values.collect()).unwrap();
    let labels = file.tensor("planted_label").unwrap();
    let labels = labels.data().chunks_exact(8);
    let labels = labels.map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    let expected = fs::read(folder.join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
    (matrix, labels, expected[name].clone())
}

#[test]
fn planted_clusters_are_found() {
    let (x, planted, expected) = fixture("planted");
    let model = fit(params(8), &x);
    let best = expected["best_fixed_point"].as_f64().unwrap();
    println!("planted: {} of {best}", model.objective);
    assert!((model.objective - best).abs() < 1e-6);
    assert!((model.objective - objective(&x, &model.centroids)).abs() < 1e-12);
    let mut renaming = BTreeMap::new();
    for (planted, found) in planted.iter().zip(&model.assignments) {
        assert_eq!(renaming.entry(planted).or_insert(found), &found);
    }
    assert_eq!(renaming.len(), 8);
    assert_never_falls(&model.history);
}

#[test]
fn overlapping_clusters_reach_the_published_objective() {
    let (x, _, expected) = fixture("overlapping");
    let model = fit(params(8), &x);
    println!("overlapping: {}, faiss {}", model.objective, expected["faiss_best"]);
    assert!(model.objective >= expected["must_reach"].as_f64().unwrap());
    assert_never_falls(&model.history);
    let last = |r| model.history.iter().rev().find(|s| s.restart == r).unwrap().objective;
    assert!((0..10).all(|r| last(r) <= last(model.restart)));
    assert!((last(model.restart) - model.objective).abs() < 1e-7);
}

#[test]
fn the_thread_count_does_not_change_a_bit() {
    let x = random(5000, 24, 3);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| fit(params(6).restarts(3).iterations(8), &x))
    };
    let one = with(1);
    assert_eq!(one, with(2));
    assert_eq!(one, with(5));
}

#[test]
fn assigning_the_training_rows_gives_the_stored_assignments() {
    let x = random(3000, 16, 4);
    let model = fit(params(7).restarts(2).iterations(5), &x);
    let (labels, cosines) = model.assign(&x).unwrap();
    assert_eq!((labels, cosines), (model.assignments.clone(), model.cosines.clone()));
    assert_eq!(model.sizes.iter().sum::<usize>(), 3000);
    assert!(model.assign(&random(3, 15, 4)).is_err());
}

/// Gives the rows a few chunks at a time, as a file would.
struct Streamed(Matrix);

impl RowSource for Streamed {
    fn rows(&self) -> usize {
        self.0.rows()
    }
    fn cols(&self) -> usize {
        self.0.cols()
    }
    fn pass(&self, visit: &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<()> {
        self.0.data().chunks(2 * CHUNK * self.0.cols()).try_for_each(visit)
    }
}

#[test]
fn a_streamed_source_gives_the_same_bits() {
    let x = random(6000, 8, 5);
    let checked = params(4).restarts(2).iterations(6).check().unwrap();
    assert_eq!(
        checked.fit_rows(&x).unwrap(),
        checked.fit_rows(&Streamed(x.clone())).unwrap()
    );
}

#[test]
fn more_clusters_than_directions_is_no_failure() {
    let x = Matrix::new(6, 2, [[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]].concat().repeat(2));
    let model = fit(params(4), &x.unwrap());
    assert!((model.objective - 1.0).abs() < 1e-12);
    assert_eq!(model.sizes.iter().filter(|&&size| size > 0).count(), 2);
    assert!(
        model.centroids.iter_rows().all(|row| (row[0].hypot(row[1]) - 1.0).abs() < 1e-6)
    );
}

#[test]
fn rows_of_zeros_move_nothing() {
    let mut x = random(50, 5, 6);
    let without = fit(params(3), &x);
    let data = [x.into_data(), vec![0.0; 10]].concat();
    x = Matrix::new(52, 5, data).unwrap();
    let model = fit(params(3), &x);
    assert_eq!(model.assignments[50..], [0, 0]);
    assert_eq!(model.cosines[50..], [0.0, 0.0]);
    assert!((model.objective * 52.0 - without.objective * 50.0).abs() < 1e-6);
    assert!(params(2).check().unwrap().fit_rows(&Matrix::zeros(4, 3)).is_err());
}

#[test]
fn impossible_requests_are_refused_in_a_sentence() {
    let fit = |k, x: &Matrix| params(k).check().and_then(|p| p.fit_rows(x)).unwrap_err();
    let x = random(3, 2, 7);
    assert!(fit(4, &x).message().contains("4 clusters from 3 rows"));
    assert!(fit(0, &x).message().contains("clusters: found 0"));
    let mut bad = x;
    bad.row_mut(1)[0] = f32::NAN;
    assert!(fit(2, &bad).message().contains("row 1"));
    assert!(params(2).tolerance(f64::NAN).check().is_err());
}

#[test]
fn huge_and_tiny_rows_are_clustered_by_direction() {
    let x = random(40, 6, 8);
    let expected = fit(params(3), &x);
    for scale in [1e36, 1e-36] {
        let mut scaled = x.clone();
        scaled.data_mut().iter_mut().for_each(|v| *v *= scale);
        let model = fit(params(3), &scaled);
        assert!((model.objective - expected.objective).abs() < 1e-6, "{scale}");
    }
}

/// Each value rounded to bf16, ties to even, by arithmetic instead of bits.
fn rounded(x: &Matrix) -> Matrix {
    let round = |&v: &f32| {
        if v == 0.0 {
            return v;
        }
        let step = f64::from(v).abs().log2().floor().exp2() / 128.0;
        crate::num::round_f32((f64::from(v) / step).round_ties_even() * step)
    };
    Matrix::new(x.rows(), x.cols(), x.data().iter().map(round).collect()).unwrap()
}

#[test]
fn bf16_iterations_are_those_of_the_rounded_rows_to_the_last_bit() {
    for (rows, cols) in [(3000, 24), (2000, 17)] {
        let x = random(rows, cols, 9);
        let ask = params(6).restarts(3).iterations(12);
        let half = fit(ask.clone().precision(Precision::Bf16), &x);
        let slow = fit(ask, &rounded(&x));
        assert_eq!(half.centroids, slow.centroids);
        assert_eq!((&half.history, half.restart), (&slow.history, slow.restart));
        // What is returned besides belongs to the rows themselves.
        assert!((half.objective - objective(&x, &half.centroids)).abs() < 1e-12);
        let (labels, cosines) = half.assign(&x).unwrap();
        assert_eq!((labels, cosines), (half.assignments, half.cosines));
    }
}

#[test]
fn bf16_reaches_the_objective_of_f32_on_any_number_of_threads() {
    for name in ["planted", "overlapping"] {
        let (x, _, _) = fixture(name);
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let half = params(8).precision(Precision::Bf16);
            pool.unwrap().install(|| fit(half, &x))
        };
        let half = with(1);
        assert_eq!(half, with(3));
        let full = fit(params(8), &x);
        println!("{name}: bf16 {}, f32 {}", half.objective, full.objective);
        assert!((half.objective - full.objective).abs() < 1e-4);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_objective_never_falls(
        n in 1_usize..300, d in 1_usize..12, k in 1_usize..9, seed in 0_u64..1000,
    ) {
        prop_assume!(k <= n);
        let x = random(n, d, seed);
        let model = fit(params(k).restarts(3).seed(seed), &x);
        assert_never_falls(&model.history);
        prop_assert!((model.objective - objective(&x, &model.centroids)).abs() < 1e-9);
        for centroid in model.centroids.iter_rows() {
            let length = centroid.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
            prop_assert!((length - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn lengths_of_rows_do_not_matter(seed in 0_u64..1000) {
        let x = random(200, 7, seed);
        let mut scaled = x.clone();
        for i in 0..200 {
            let factor = [0.25, 1.0, 8.0, 1024.0][i % 4];
            scaled.row_mut(i).iter_mut().for_each(|v| *v *= factor);
        }
        let a = fit(params(5).restarts(2), &x);
        let b = fit(params(5).restarts(2), &scaled);
        prop_assert_eq!(a.assignments, b.assignments);
        prop_assert_eq!(a.centroids, b.centroids);
    }

    #[test]
    fn as_many_clusters_as_rows_gives_each_its_own(n in 1_usize..12, seed in 0_u64..1000) {
        let model = fit(params(n), &random(n, 6, seed));
        prop_assert!((model.objective - 1.0).abs() < 1e-9);
        prop_assert!(model.sizes.iter().all(|&size| size == 1));
    }

    #[test]
    fn one_cluster_is_the_mean_direction(n in 1_usize..200, seed in 0_u64..1000) {
        let x = random(n, 4, seed);
        let model = fit(params(1), &x);
        let mut sum = [0.0_f64; 4];
        for row in x.iter_rows() {
            let length = row.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            row.iter().zip(&mut sum).for_each(|(&v, s)| *s += f64::from(v) / length);
        }
        let length = sum.iter().map(|v| v * v).sum::<f64>().sqrt();
        prop_assert!((model.objective - length / n as f64).abs() < 1e-9);
    }

    /// From the same start a permutation of the rows permutes the labels. The start itself
    /// is drawn by row position, so planted clusters, found from any start, stand in for it.
    #[test]
    fn permuting_rows_permutes_labels(seed in 0_u64..200) {
        use crate::rng::SliceRandom;
        let noise = random(240, 12, seed);
        let mut x = noise.clone();
        for i in 0..240 {
            x.row_mut(i).iter_mut().for_each(|v| *v *= 0.05);
            x.row_mut(i)[i % 4] += 1.0;
        }
        let mut order: Vec<usize> = (0..240).collect();
        order.shuffle(&mut rng::stream(seed, "test/order"));
        let data: Vec<f32> = order.iter().flat_map(|&i| x.row(i).to_vec()).collect();
        let permuted = Matrix::new(240, 12, data).unwrap();
        let (a, b) = (fit(params(4), &x), fit(params(4), &permuted));
        prop_assert!((a.objective - b.objective).abs() < 1e-9);
        let mut renaming = BTreeMap::new();
        for (position, &i) in order.iter().enumerate() {
            let to = b.assignments[position];
            prop_assert_eq!(*renaming.entry(a.assignments[i]).or_insert(to), to);
        }
    }
}
