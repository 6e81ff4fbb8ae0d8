//! Subspaces against the literal definition (`tests/fixtures/svd`) and their theorems.

use std::fs;
use std::path::PathBuf;

use faer::{Mat, MatRef};
use proptest::prelude::*;
use safetensors::SafeTensors;

use super::moments::Moment;
use super::*;
use crate::config::{Center, Directions, Labels};
use crate::ffn::FfnTensors;
use crate::linalg::{orthonormal, wide};
use crate::rng::{self, RngExt};

fn config(center: Center, tau: f64, min_rank: usize) -> SubspacesConfig {
    SubspacesConfig {
        labels: Labels::Clusters,
        directions: Directions::Top,
        center,
        tau,
        min_rank,
        min_tokens: 0,
        shrinkage: 0.0,
    }
}

fn random(rows: usize, cols: usize, seed: u64) -> Matrix {
    let mut x = Matrix::zeros(rows, cols);
    rng::fill_normal(&mut rng::stream(seed, "test/matrix"), 1.0, x.data_mut());
    x
}

fn quick_gelu(values: &mut [f32]) {
    for v in values {
        *v /= 1.0 + (-1.702 * *v).exp();
    }
}

/// A small FFN and clustered inputs with means off the origin.
struct Case {
    fc1: Matrix,
    bias1: Vec<f32>,
    fc2: Matrix,
    inputs: Matrix,
    labels: Vec<u32>,
}

const D: usize = 8;
const E: usize = 3;

impl Case {
    fn new(n: usize, hidden: usize, seed: u64) -> Self {
        let mut stream = rng::stream(seed, "test/labels");
        let labels: Vec<u32> = (0..n).map(|_| stream.random_range(0..3_u32)).collect();
        let (means, scales) = (random(E, D, seed + 1), random(E, D, seed + 2));
        let mut inputs = random(n, D, seed + 3);
        for (i, &label) in labels.iter().enumerate() {
            let label = crate::num::widen(label);
            let shape = means.row(label).iter().zip(scales.row(label));
            for (v, (mean, scale)) in inputs.row_mut(i).iter_mut().zip(shape) {
                *v = *v * scale + mean;
            }
        }
        let (fc1, fc2) = (random(hidden, D, seed + 4), random(D, hidden, seed + 5));
        let bias1 = random(1, hidden, seed + 6).into_data();
        Self { fc1, bias1, fc2, inputs, labels }
    }

    fn ffn(&self) -> FfnFunction<'_> {
        let weights = FfnTensors {
            fc1: self.fc1.data(),
            fc1_bias: &self.bias1,
            fc2: self.fc2.data(),
            fc2_bias: &[0.0; D],
        };
        FfnFunction { weights, activation: &quick_gelu }
    }

    fn solve(&self, config: &SubspacesConfig) -> Vec<ExpertSubspaces> {
        subspaces(self.ffn(), &self.inputs, &self.labels, E, config).unwrap()
    }

    /// The inputs of fc2, in plain f64 loops.
    fn hidden(&self) -> Mat<f64> {
        let (x, w) = (wide::widened(&self.inputs), wide::widened(&self.fc1));
        let z = wide::product(x.as_ref(), w.transpose());
        Mat::from_fn(z.nrows(), z.ncols(), |i, j| {
            let z = z[(i, j)] + f64::from(self.bias1[j]);
            z / (1.0 + (-1.702 * z).exp())
        })
    }
}

/// `Σ |y' - y|²` and `Σ |y|²` over the rows of one cluster, literally from the weights.
fn literal_error(
    inputs: MatRef<'_, f64>,
    (w, subspace): (&Matrix, &Subspace),
    labels: &[u32],
    cluster: usize,
) -> (f64, f64) {
    let kept = wide::widened(&project(w, subspace).unwrap());
    let bias = affine_bias(&vec![0.0; w.rows()], subspace).unwrap();
    let y = wide::product(inputs, wide::widened(w).transpose());
    let z = wide::product(inputs, kept.transpose());
    let mut sums = (0.0, 0.0);
    for i in (0..labels.len()).filter(|&i| crate::num::widen(labels[i]) == cluster) {
        for j in 0..w.rows() {
            sums.0 += (z[(i, j)] + f64::from(bias[j]) - y[(i, j)]).powi(2);
            sums.1 += y[(i, j)].powi(2);
        }
    }
    sums
}

fn tensor(file: &SafeTensors<'_>, name: &str) -> Mat<f64> {
    let view = file.tensor(name).unwrap();
    let values: Vec<f64> = if view.dtype() == safetensors::Dtype::F64 {
        let chunks = view.data().chunks_exact(8);
        chunks.map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
    } else {
        let chunks = view.data().chunks_exact(4);
        chunks.map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect()
    };
    let cols = view.shape().get(1).copied().unwrap_or(1);
    Mat::from_fn(view.shape()[0], cols, |i, j| values[i * cols + j])
}

#[test]
fn the_literal_definition_is_met_on_every_fixture_case() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/svd");
    let bytes = fs::read(folder.join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let expected = fs::read(folder.join("expected.json")).unwrap();
    let expected: serde_json::Value = serde_json::from_slice(&expected).unwrap();
    let w = tensor(&file, "w");
    let inputs: Vec<Moment> = (0..3)
        .map(|i| {
            let mut moment = Moment::zeros(16);
            moment.add(tensor(&file, &format!("x{i}")).transpose());
            wide::mirror(moment.second.as_mut());
            moment
        })
        .collect();
    let space = Space::of_inputs(w.clone(), &inputs);
    let mut worst = (0.0_f64, 0.0_f64);
    for case in expected["cases"].as_array().unwrap() {
        let number = |key: &str| case[key].as_f64().unwrap();
        let cluster = usize::try_from(case["cluster"].as_u64().unwrap()).unwrap();
        let (tau, total) = (number("tau"), number("total_energy"));
        let solved = space.solve(cluster, &config(Center::None, tau, 1)).unwrap();
        let sigma = tensor(&file, &format!("sigma{cluster}"));
        for (k, &value) in solved.values.iter().enumerate() {
            let (found, expected) = (value.sqrt(), sigma[(k, 0)]);
            let noise = expected < 1e-6 * sigma[(0, 0)];
            let allowed = if noise { 1e-6 } else { 1e-9 } * sigma[(0, 0)];
            assert!((found - expected).abs() < allowed, "{case}: {found}, {expected}");
            if !noise {
                worst.0 = worst.0.max((found - expected).abs() / sigma[(0, 0)]);
            }
        }
        // The fixture's rule has no exception at tau = 1; the stage's rule keeps W there.
        let rank = rank_for(&solved.values, tau);
        assert_eq!(rank as u64, case["rank"].as_u64().unwrap(), "{case}");
        assert_eq!(solved.rank, if tau >= 1.0 { 16 } else { rank });
        let basis = space.to_outputs(solved.vectors.subcols(0, rank));
        let inner = wide::product(basis.transpose(), w.as_ref());
        let projected = wide::product(basis.as_ref(), inner.as_ref());
        let reference = tensor(&file, &format!("w_projected{cluster}.tau{tau:?}"));
        let gap = (&projected - &reference).norm_max();
        assert!(gap < 1e-8, "{case}: {gap}");
        worst.1 = worst.1.max(gap);
        let discarded: f64 = solved.values[rank..].iter().sum();
        assert!((discarded - number("discarded_energy")).abs() < 1e-9 * total);
        if tau < 1.0 {
            let all =
                [0, 1, 2].map(|c| space.solve(c, &config(Center::None, tau, 1)).unwrap());
            let described = &space.describe(&all)[cluster];
            assert!((described.retained - number("retained")).abs() < 1e-9);
            for other in 0..3 {
                let reference = &case["relative_output_error_on"][format!("x{other}")];
                let gap = described.errors[other] - reference.as_f64().unwrap();
                assert!(gap.abs() < 1e-9, "{case}: {gap}");
            }
        }
    }
    println!("worst gaps: sigma {:.1e} of the largest, w {:.1e}", worst.0, worst.1);
}

#[test]
fn reported_errors_are_those_of_the_weights_on_the_tokens() {
    for (hidden, center, seed) in [
        (20, Center::None, 1),
        (20, Center::Mean, 2),
        (6, Center::None, 3),
        (6, Center::Mean, 4),
    ] {
        let case = Case::new(300, hidden, seed);
        let found = case.solve(&config(center, 0.9, 1));
        let (x, a) = (wide::widened(&case.inputs), case.hidden());
        for (i, expert) in found.iter().enumerate() {
            let pick = |j: usize, second: bool| {
                if second { &found[j].fc2 } else { &found[j].fc1 }
            };
            for (second, w, inputs) in [(false, &case.fc1, &x), (true, &case.fc2, &a)] {
                let own = if second { &expert.fc2 } else { &expert.fc1 };
                let error = |subspace, cluster| {
                    literal_error(inputs.as_ref(), (w, subspace), &case.labels, cluster)
                };
                let mut outside = (0.0, 0.0);
                let mut cross = 0.0;
                for j in 0..E {
                    let (off, all) = error(own, j);
                    assert!(
                        (own.errors[j] - off / all).abs() < 2e-6,
                        "{hidden} {center:?}"
                    );
                    if i != j {
                        outside = (outside.0 + off, outside.1 + all);
                        cross += error(pick(j, second), i).0 / 2.0;
                    }
                }
                assert!((own.error_outside - outside.0 / outside.1).abs() < 2e-6);
                assert!((own.error_inside - own.errors[i]).abs() < 1e-15);
                assert!((own.cross - cross / error(own, i).1).abs() < 2e-6);
                if center == Center::None {
                    // The theorem: the error on the cluster is the discarded energy.
                    assert!((own.error_inside - (1.0 - own.retained)).abs() < 1e-12);
                }
                assert!(own.rank < own.full_rank && own.retained >= 0.9);
            }
        }
    }
}

#[test]
fn centerd_maps_are_exact_on_the_mean_and_never_worse_at_equal_rank() {
    let case = Case::new(400, 20, 5);
    for rank in 1..D {
        let none = case.solve(&config(Center::None, 1e-9, rank));
        let mean = case.solve(&config(Center::Mean, 1e-9, rank));
        for (none, mean) in none.iter().zip(&mean) {
            assert_eq!((none.fc1.rank, mean.fc2.rank), (rank, rank));
            assert!(mean.fc1.error_inside <= none.fc1.error_inside + 1e-12);
            assert!(mean.fc2.error_inside <= none.fc2.error_inside + 1e-12);
            assert!(none.fc1.mean.is_none());
        }
        let own = &mean[1].fc1;
        let members: Vec<usize> = (0..400).filter(|&i| case.labels[i] == 1).collect();
        let center = Mat::from_fn(1, D, |_, j| {
            members.iter().map(|&i| f64::from(case.inputs.row(i)[j])).sum::<f64>()
                / members.len() as f64
        });
        let (off, all) = literal_error(center.as_ref(), (&case.fc1, own), &[1], 1);
        assert!(off / all < 1e-12, "{rank}: {off} of {all}");
    }
}

#[test]
fn threads_and_the_cut_of_the_stream_change_no_bit() {
    let case = Case::new(9000, 20, 6);
    let config = config(Center::Mean, 0.95, 1);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| case.solve(&config))
    };
    let one = with(1);
    assert_eq!(one, with(3));
    let mut builder = LayerMoments::builder(case.ffn(), E).unwrap();
    for (rows, labels) in case.inputs.data().chunks(777 * D).zip(case.labels.chunks(777))
    {
        builder.push(rows, labels).unwrap();
    }
    assert_eq!(one, builder.finish().unwrap().subspaces(&config, 0, "ffn").unwrap());
}

#[test]
fn full_rank_keeps_the_matrix_and_tau_one_is_full_rank() {
    let case = Case::new(100, 20, 7);
    for expert in case.solve(&config(Center::Mean, 1.0, 1)) {
        for (subspace, w) in [(&expert.fc1, &case.fc1), (&expert.fc2, &case.fc2)] {
            assert_eq!((subspace.rank, subspace.full_rank), (D, D));
            assert!(subspace.basis.is_none() && subspace.mean.is_none());
            assert_eq!(&project(w, subspace).unwrap(), w);
            assert_eq!((subspace.error_inside, subspace.error_outside), (0.0, 0.0));
            assert!((subspace.retained - 1.0).abs() < 1e-15);
        }
        let bias = affine_bias(&case.bias1, &expert.fc1).unwrap();
        assert_eq!(bias, case.bias1);
    }
}

#[test]
fn empty_and_small_clusters_lean_on_the_whole_and_say_so() {
    let mut case = Case::new(120, 20, 8);
    case.labels = (0..120).map(|i| u32::from(i < 4)).collect();
    for center in [Center::None, Center::Mean] {
        let config =
            SubspacesConfig { min_tokens: 10, shrinkage: 0.1, ..config(center, 0.9, 1) };
        let found = case.solve(&config);
        let shrinkage: Vec<f64> = found.iter().map(|e| e.fc1.shrinkage).collect();
        assert_eq!(shrinkage, [0.0, 0.1, 1.0]);
        assert_eq!(found.iter().map(|e| e.fc2.tokens).collect::<Vec<_>>(), [116, 4, 0]);
        assert!(found[2].fc1.error_inside == 0.0);
        assert!(found[2].fc1.rank >= 1 && found[2].fc1.retained >= 0.9);
        // Shrunk to nothing but the whole, a cluster keeps the whole's subspace.
        let whole = SubspacesConfig { shrinkage: 1.0, ..config };
        let whole = case.solve(&whole);
        assert_eq!(whole[1].fc1.rank, whole[2].fc1.rank);
        let gap = whole[1].fc1.spectrum.iter().zip(&whole[2].fc1.spectrum);
        assert!(gap.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) < 1e-12);
    }
    // One token, about its mean: no energy, so the smallest rank allowed.
    case.labels = (0..120).map(|i| u32::from(i < 1)).collect();
    let found = case.solve(&config(Center::Mean, 0.9, 2));
    assert_eq!(found[1].fc1.rank, 2);
    assert!(found[1].fc1.error_inside < 1e-12);
}

#[test]
fn a_value_that_is_not_finite_is_refused_wherever_it_stands() {
    let case = Case::new(10, 20, 9);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in 0..D {
            let mut row = [0.5; D];
            row[at] = bad;
            let mut layer = LayerMoments::builder(case.ffn(), 2).unwrap();
            layer.push(&row, &[1]).unwrap();
            assert!(layer.finish().unwrap_err().message().contains("not finite"));
            // A tall matrix, whose inputs count.
            let mut matrix = MatrixMoments::builder(&case.fc1, 2).unwrap();
            matrix.push(&row, &[1]).unwrap();
            assert!(matrix.finish().unwrap_err().message().contains("not finite"));
        }
    }
}

#[test]
fn wrong_shapes_and_values_are_refused_in_a_sentence() {
    let case = Case::new(10, 20, 9);
    let mut bad = case.ffn();
    bad.weights.fc1_bias = &case.bias1[1..];
    let error = LayerMoments::builder(bad, 2).unwrap_err();
    assert!(error.message().contains("19 of its bias"), "{error}");
    let mut builder = LayerMoments::builder(case.ffn(), 2).unwrap();
    assert!(builder.push(&[0.0; D], &[0, 1]).is_err());
    assert!(builder.push(&[0.0; D], &[2]).unwrap_err().message().contains("cluster 2"));
    let empty = builder.finish().unwrap();
    assert!(empty.subspaces(&config(Center::None, 0.9, 1), 0, "ffn").is_err());
    let moments = LayerMoments::builder(case.ffn(), 2);
    let mut moments = moments.unwrap();
    moments.push(&[1.0; D], &[0]).unwrap();
    let moments = moments.finish().unwrap();
    assert!(moments.subspaces(&config(Center::None, 0.0, 1), 0, "ffn").is_err());
}

fn random_directions(
    case: &Case,
    directions: Directions,
    tau: f64,
    center: Center,
) -> Vec<ExpertSubspaces> {
    case.solve(&SubspacesConfig { directions, ..config(center, tau, 1) })
}

/// Energy retained: the fraction of a cluster's outputs (about their mean, if centered) that
/// the basis keeps, literally from weights and tokens.
fn literal_energy(
    inputs: MatRef<'_, f64>,
    w: &Matrix,
    own: &Subspace,
    center: Center,
) -> f64 {
    let y = wide::product(inputs, wide::widened(w).transpose());
    let mean = |j: usize| -> f64 {
        let sum: f64 = (0..y.nrows()).map(|i| y[(i, j)]).sum();
        if center == Center::Mean { sum / y.nrows() as f64 } else { 0.0 }
    };
    let means: Vec<f64> = (0..y.ncols()).map(mean).collect();
    let y = Mat::from_fn(y.nrows(), y.ncols(), |i, j| y[(i, j)] - means[j]);
    let Some(basis) = &own.basis else { return 1.0 };
    let kept = wide::product(y.as_ref(), wide::widened(basis).as_ref());
    kept.squared_norm_l2() / y.squared_norm_l2()
}

fn rows_of(all: &Mat<f64>, labels: &[u32], cluster: usize) -> Mat<f64> {
    let own: Vec<usize> =
        (0..labels.len()).filter(|&i| crate::num::widen(labels[i]) == cluster).collect();
    Mat::from_fn(own.len(), all.ncols(), |i, j| all[(own[i], j)])
}

#[test]
fn random_directions_of_equal_rank_have_it_and_keep_less() {
    for (hidden, center) in [(20, Center::None), (20, Center::Mean), (6, Center::None)] {
        let case = Case::new(400, hidden, 11);
        let top = case.solve(&config(center, 0.9, 1));
        let drawn = random_directions(&case, Directions::RandomRank, 0.9, center);
        for (top, drawn) in top.iter().zip(&drawn) {
            for (top, drawn) in [(&top.fc1, &drawn.fc1), (&top.fc2, &drawn.fc2)] {
                assert_eq!((drawn.rank, drawn.tokens), (top.rank, top.tokens));
                assert_ne!(drawn.basis, top.basis);
                // The top directions are the best of their rank.
                assert!(drawn.retained <= top.retained + 1e-12);
                assert!(drawn.error_inside >= top.error_inside - 1e-12);
            }
        }
        assert_ne!(drawn[0].fc1.basis, drawn[1].fc1.basis);
    }
}

#[test]
fn random_directions_of_equal_energy_keep_it_with_no_direction_to_spare() {
    for (hidden, center) in [(20, Center::None), (20, Center::Mean), (6, Center::None)] {
        let case = Case::new(400, hidden, 12);
        let (x, a) = (wide::widened(&case.inputs), case.hidden());
        for tau in [0.5, 0.8] {
            let top = case.solve(&config(center, tau, 1));
            let drawn = random_directions(&case, Directions::RandomEnergy, tau, center);
            for (i, (top, drawn)) in top.iter().zip(&drawn).enumerate() {
                for (top, drawn, w, inputs) in [
                    (&top.fc1, &drawn.fc1, &case.fc1, &x),
                    (&top.fc2, &drawn.fc2, &case.fc2, &a),
                ] {
                    let own = rows_of(inputs, &case.labels, i);
                    let energy = literal_energy(own.as_ref(), w, drawn, center);
                    assert!((energy - drawn.retained).abs() < 1e-6, "{energy}");
                    assert!(drawn.retained >= tau - 1e-12);
                    let less: f64 = drawn.spectrum[..drawn.rank - 1].iter().sum();
                    assert!(less < tau || drawn.rank == 1);
                    assert!(drawn.rank >= top.rank);
                }
            }
        }
    }
}

#[test]
fn random_directions_stay_inside_the_column_space() {
    for hidden in [20, 6] {
        let case = Case::new(400, hidden, 13);
        let drawn = random_directions(&case, Directions::RandomRank, 0.8, Center::None);
        for expert in &drawn {
            for (w, own) in [(&case.fc1, &expert.fc1), (&case.fc2, &expert.fc2)] {
                let Some(basis) = &own.basis else { panic!("a rank below the full one") };
                // Where W has no more rows than columns, that space is everything.
                if w.rows() <= w.cols() {
                    continue;
                }
                let basis = wide::widened(basis);
                let (q, _) = orthonormal::qr(wide::widened(w).as_ref());
                let inner = wide::product(q.transpose(), basis.as_ref());
                let outside = &basis - wide::product(q.as_ref(), inner.as_ref());
                assert!(outside.norm_max() < 1e-5, "{hidden}: {}", outside.norm_max());
            }
        }
    }
}

#[test]
fn random_directions_follow_the_seed_and_the_layer() {
    let case = Case::new(200, 20, 14);
    let mut builder = LayerMoments::builder(case.ffn(), E).unwrap();
    builder.push(case.inputs.data(), &case.labels).unwrap();
    let moments = builder.finish().unwrap();
    let config = SubspacesConfig {
        directions: Directions::RandomRank,
        ..config(Center::None, 0.8, 1)
    };
    let at = |seed, place| moments.subspaces(&config, seed, place).unwrap();
    assert_eq!(at(1, "vision.1"), at(1, "vision.1"));
    assert_ne!(at(1, "vision.1"), at(2, "vision.1"));
    assert_ne!(at(1, "vision.1"), at(1, "text.1"));
}

/// The Cholesky route of SVD-LLM, in nalgebra: slow, literal, for positive definite moments.
fn literal_route(w: &Mat<f64>, g: &Mat<f64>, rank: usize) -> Mat<f64> {
    let dense =
        |m: &Mat<f64>| nalgebra::DMatrix::from_fn(m.nrows(), m.ncols(), |i, j| m[(i, j)]);
    let root = dense(g).cholesky().unwrap().l();
    let svd = (dense(w) * &root).svd(true, true);
    let (u, vt) = (svd.u.unwrap(), svd.v_t.unwrap());
    let mut order: Vec<usize> = (0..svd.singular_values.len()).collect();
    order.sort_by(|&a, &b| svd.singular_values[b].total_cmp(&svd.singular_values[a]));
    let mut kept = nalgebra::DMatrix::zeros(w.nrows(), w.ncols());
    for &k in order.iter().take(rank) {
        kept += u.column(k) * vt.row(k) * svd.singular_values[k];
    }
    // kept S⁻¹ by solving Sᵀ Z = keptᵀ.
    let z = root.transpose().solve_upper_triangular(&kept.transpose());
    let z = z.unwrap();
    Mat::from_fn(w.nrows(), w.ncols(), |i, j| z[(j, i)])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn the_projection_is_the_literal_cholesky_route(
        m in 1_usize..14, d in 1_usize..10, seed in 0_u64..1000,
    ) {
        let w = wide::widened(&random(m, d, seed));
        let x = wide::widened(&random(40 + d, d, seed + 1));
        let mut moment = Moment::zeros(d);
        moment.add(x.transpose());
        wide::mirror(moment.second.as_mut());
        let g = moment.second.clone();
        let space = Space::of_inputs(w.clone(), &[moment]);
        let full = m.min(d);
        for rank in 1..=full {
            let solved = space.solve(0, &config(Center::None, 1e-9, rank)).unwrap();
            prop_assert_eq!(solved.rank, rank);
            let basis = space.to_outputs(solved.vectors.subcols(0, rank));
            let inner = wide::product(basis.transpose(), w.as_ref());
            let projected = wide::product(basis.as_ref(), inner.as_ref());
            let gap = (&projected - literal_route(&w, &g, rank)).norm_max();
            prop_assert!(gap < 1e-8, "rank {} of {}: {}", rank, full, gap);
        }
    }

    #[test]
    fn moving_the_subspace_never_helps(seed in 0_u64..1000, rank in 1_usize..D) {
        let w = wide::widened(&random(20, D, seed));
        let x = wide::widened(&random(50, D, seed + 1));
        let y = wide::product(w.as_ref(), x.transpose());
        let mut moment = Moment::zeros(D);
        moment.add(x.transpose());
        wide::mirror(moment.second.as_mut());
        let space = Space::of_inputs(w.clone(), &[moment]);
        let solved = space.solve(0, &config(Center::None, 1e-9, rank)).unwrap();
        let basis = space.to_outputs(solved.vectors.subcols(0, rank));
        let error = |basis: &Mat<f64>| {
            let inner = wide::product(basis.transpose(), y.as_ref());
            (&y - wide::product(basis.as_ref(), inner.as_ref())).squared_norm_l2()
        };
        let best = error(&basis);
        let discarded: f64 = solved.values[rank..].iter().sum();
        prop_assert!((best - discarded).abs() < 1e-10 * y.squared_norm_l2());
        let mut stream = rng::stream(seed, "test/nudge");
        for size in [1e-3, 1e-1, 10.0] {
            let nudge = orthonormal::random(20, rank, &mut stream) * faer::Scale(size);
            let (moved, _) = orthonormal::qr((&basis + nudge).as_ref());
            prop_assert!(error(&moved) >= best * (1.0 - 1e-12));
        }
    }

    #[test]
    fn projecting_twice_is_projecting_once(seed in 0_u64..1000) {
        let case = Case::new(60, 20, seed);
        for expert in case.solve(&config(Center::None, 0.8, 1)) {
            let once = project(&case.fc1, &expert.fc1).unwrap();
            let twice = project(&once, &expert.fc1).unwrap();
            for (a, b) in once.data().iter().zip(twice.data()) {
                prop_assert!((a - b).abs() < 1e-5);
            }
        }
    }
}
