//! The pure kernels at full size: `cargo bench --bench kernels`.
//!
//! Names carry sizes and seed; the quality reached is printed beside the time, because a
//! fast k-means with a poor objective is no k-means.

#![expect(clippy::print_stdout, reason = "the quality stands beside the time")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use linfa::ParamGuard;
use upcycle::cluster::{Precision, SphericalKMeans};
use upcycle::config::{Activation, Center, Directions, Labels, SubspacesConfig};
use upcycle::engine::cpu::ops::{
    activation, attention, experts, layer_norm, linear, router,
};
use upcycle::ffn::FfnTensors;
use upcycle::linalg::{Matrix, eigen, wide};
use upcycle::lowrank::{FfnFunction, LayerMoments};
use upcycle::{par, rng};

const SEED: u64 = 1;

/// Rows around `centers` overlapping directions, of different lengths.
fn rows(n: usize, d: usize, centers: usize) -> Matrix {
    let mut means = vec![0.0_f32; centers * d];
    rng::fill_normal(&mut rng::stream(SEED, "bench/centres"), 0.08, &mut means);

    let mut x = Matrix::zeros(n, d);
    let chunk = 1000 * d;
    par::for_each_chunk(x.data_mut(), chunk, |index, chunk| {
        let mut stream = rng::stream(SEED, &format!("bench/x.{index}"));
        rng::fill_normal(&mut stream, 1.0, chunk);

        for (i, row) in chunk.chunks_exact_mut(d).enumerate() {
            let mean = &means[i % centers * d..][..d];
            row.iter_mut().zip(mean).for_each(|(v, m)| *v += m);
        }
    });
    x
}

/// Plain read of the same memory: the limit of k-means with few centroids.
fn read(x: &Matrix) -> f32 {
    let sums = par::map(x.rows().div_ceil(1024), |index| {
        let first = index * 1024 * x.cols();
        let piece = &x.data()[first..(first + 1024 * x.cols()).min(x.data().len())];

        // So many sums that reading is the limit, and not the latency of additions.
        let mut lanes = [0.0_f32; 64];
        for chunk in piece.as_chunks::<64>().0 {
            lanes.iter_mut().zip(chunk).for_each(|(lane, v)| *lane += v);
        }
        lanes.iter().sum::<f32>()
    });
    sums.iter().sum()
}

fn kmeans(criterion: &mut Criterion) {
    let (n, d, k) = (200_000, 768, 8);
    let x = rows(n, d, k);
    let mut group = criterion.benchmark_group(format!("kmeans/{n}x{d}/seed{SEED}"));
    group.sample_size(10).warm_up_time(Duration::from_millis(500));
    group.throughput(Throughput::Bytes(x.data().len() as u64 * 4));
    group.bench_function("read", |bencher| bencher.iter(|| read(black_box(&x))));
    group.finish();

    for (restarts, precision) in [
        (1, Precision::F32),
        (1, Precision::Bf16),
        (5, Precision::F32),
        (5, Precision::Bf16),
    ] {
        let fit = |iterations| {
            let params = SphericalKMeans::params(k).restarts(restarts).tolerance(0.0);
            let params = params.iterations(iterations).seed(SEED).precision(precision);
            let params = params.check();
            params.and_then(|p| p.fit_rows(&x)).expect("a fit")
        };

        // Eleven iterations against one: what a fit costs besides is left out.
        let start = Instant::now();
        fit(1);
        let short = start.elapsed();
        let start = Instant::now();
        let model = fit(11);
        let passes = model.history.iter().map(|stats| stats.iteration).max().unwrap_or(1);
        let per_iteration =
            start.elapsed().saturating_sub(short).as_secs_f64() / passes as f64;

        let size = if precision == Precision::F32 { 4.0 } else { 2.0 };
        let bytes = x.data().len() as f64 * size;
        println!(
            "kmeans/{n}x{d}/k{k}/restarts{restarts}/{precision:?}: {:.1} ms per iteration, {:.1} GB/s, \
             start and final pass {:.0} ms, objective {:.6}, history {}",
            1e3 * per_iteration,
            bytes / per_iteration / 1e9,
            1e3 * short.as_secs_f64(),
            model.objective,
            model.history.len()
        );
    }
}

fn subspaces(criterion: &mut Criterion) {
    let (d, h, experts, n) = (768, 3072, 8, 20_000);
    let x = rows(n, d, experts);
    let labels: Vec<u32> = (0..8).cycle().take(n).collect();

    let (mut fc1, mut fc2) = (Matrix::zeros(h, d), Matrix::zeros(d, h));
    let mut stream = rng::stream(SEED, "bench/weights");
    rng::fill_normal(&mut stream, 0.04, fc1.data_mut());
    rng::fill_normal(&mut stream, 0.02, fc2.data_mut());

    let bias1 = vec![0.0; h];
    let gelu = |values: &mut [f32]| activation::apply(Activation::Gelu, values);
    let bias2 = vec![0.0; d];

    let weights = FfnTensors {
        fc1: fc1.data(),
        fc1_bias: &bias1,
        fc2: fc2.data(),
        fc2_bias: &bias2,
    };
    let ffn = FfnFunction { weights, activation: &gelu };

    // Moments are gathered once and serve every variant.
    let start = Instant::now();
    let mut builder = LayerMoments::builder(ffn, experts).expect("an FFN");
    builder.push(x.data(), &labels).expect("rows");
    let moments = builder.finish().expect("moments");
    let gathered = start.elapsed().as_secs_f64();

    for center in [Center::None, Center::Mean] {
        let config = SubspacesConfig {
            labels: Labels::Clusters,
            directions: Directions::Top,
            center,
            tau: 0.99,
            min_rank: 1,
            min_tokens: 64,
            shrinkage: 0.1,
        };

        let start = Instant::now();
        let found = moments.subspaces(&config, SEED, "bench").expect("subspaces");
        println!(
            "subspaces/{d}x{h}/{experts} experts/{n} tokens/{center:?}: moments {gathered:.2} s \
             (shared by variants), 16 subspaces {:.2} s, ranks {} and {}, retained {:.4}, \
             error inside {:.4}, outside {:.4}",
            start.elapsed().as_secs_f64(),
            found[0].fc1.rank,
            found[0].fc2.rank,
            found[0].fc1.retained,
            found[0].fc1.error_inside,
            found[0].fc1.error_outside
        );
    }

    let small = wide::widened(&rows(d + 100, d, 1));
    let moment = wide::gram(small.transpose());
    let mut group = criterion.benchmark_group(format!("eigen/{d}/seed{SEED}"));
    group.sample_size(10).warm_up_time(Duration::from_millis(300));
    group.bench_function("symmetric", |bencher| {
        bencher.iter(|| eigen::symmetric(black_box(moment.as_ref())));
    });
    group.finish();
}

/// The training operators on one group of samples of the default image tower's larger
/// sister: 16 pictures of 65 tokens, width 128, hidden 512, 8 experts, K = 2. One thread;
/// whole steps are timed by `upcycle-inspect speed`.
fn operators(criterion: &mut Criterion) {
    let (samples, tokens, d, h, e, k) = (16, 65, 128, 512, 8, 2);
    let n = samples * tokens;
    let normal = |name: &str, len: usize, std: f32| {
        let mut values = vec![0.0; len];
        rng::fill_normal(&mut rng::stream(SEED, name), std, &mut values);
        values
    };
    let (x, dy) = (normal("bench/rows", n * d, 1.0), normal("bench/pull", n * d, 1.0));

    let mut group = criterion.benchmark_group(format!("ops/{n}x{d}/seed{SEED}"));
    group.sample_size(20).warm_up_time(Duration::from_millis(300));

    let (gain, bias) = (vec![1.0; d], vec![0.0; d]);
    let (mut y, mut dx) = (vec![0.0; n * d], vec![0.0; n * d]);
    let mut saved = layer_norm::Saved::default();
    let (mut dgain, mut dbias) = (vec![0.0; d], vec![0.0; d]);
    group.bench_function("layer_norm", |bencher| {
        bencher.iter(|| {
            layer_norm::forward(&mut y, black_box(&x), &gain, &bias, &mut saved);
            let mut own = layer_norm::Gradients { gain: &mut dgain, bias: &mut dbias };
            layer_norm::backward_add(&mut dx, &dy, &gain, &saved, &mut own);
        });
    });

    let weight = normal("bench/weight", h * d, 0.1);
    let (mut wide, mut dweight) = (vec![0.0; n * h], vec![0.0; h * d]);
    let (wide_bias, mut dwide_bias) = (vec![0.0; h], vec![0.0; h]);
    group.bench_function("linear", |bencher| {
        bencher.iter(|| {
            linear::forward(&mut wide, black_box(&x), &weight, &wide_bias);
            linear::backward_parameters(&mut dweight, &mut dwide_bias, &wide, &x);
            linear::backward_input(&mut dx, &wide, &weight, h);
        });
    });

    let qkv = normal("bench/qkv", n * 3 * d, 1.0);
    let starts: Vec<usize> = (0..=samples).map(|s| s * tokens).collect();
    let heads = attention::Heads { count: 2, causal: false };
    let mut workspace = attention::Workspace::default();
    let mut dqkv = vec![0.0; n * 3 * d];
    group.bench_function("attention", |bencher| {
        bencher.iter(|| {
            attention::forward(&mut y, black_box(&qkv), &starts, heads, &mut workspace);
            let state = (heads, &mut workspace);
            attention::backward(&mut dqkv, &dy, &qkv, &starts, state);
        });
    });

    let parts: [Vec<f32>; 4] =
        [(e * h * d, 0.1), (e * h, 0.0), (e * d * h, 0.05), (e * d, 0.0)]
            .map(|(len, std)| normal("bench/experts", len, std));
    let weights = experts::Weights {
        fc1: &parts[0],
        fc1_bias: &parts[1],
        fc2: &parts[2],
        fc2_bias: &parts[3],
    };
    let shape =
        experts::Shape { experts: e, width: d, hidden: h, activation: Activation::Gelu };

    let router = normal("bench/router", e * d, 0.1);
    let mut grown = parts.each_ref().map(|part| vec![0.0; part.len()]);
    let (mut routing, mut space) =
        (router::Routing::default(), experts::Workspace::default());
    let mut scratch = experts::Scratch::default();
    group.bench_function("router and experts", |bencher| {
        bencher.iter(|| {
            router::forward(&mut routing, black_box(&x), &router, d, k);
            experts::forward_add(&mut y, &x, &routing, (shape, weights), &mut space);
            let [fc1, fc1_bias, fc2, fc2_bias] = &mut grown;
            let mut own = experts::Gradients { fc1, fc1_bias, fc2, fc2_bias };
            let layer = (shape, weights, &mut own);
            let buffers = (&space, &mut scratch);
            experts::backward_add(&mut dx, &dy, &mut routing, layer, buffers);
        });
    });
    group.finish();
}

criterion_group!(benches, operators, subspaces, kmeans);
criterion_main!(benches);
