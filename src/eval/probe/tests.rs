//! What both probes promise: the objective's optimum, separable data solved, bad input named.

use super::*;
use crate::rng;

/// Unit embeddings around one random center per class, `noise` apart.
fn clusters(
    classes: usize,
    each: usize,
    width: usize,
    noise: f32,
) -> (Matrix, Vec<usize>) {
    let mut stream = rng::stream(11, &format!("probe/{classes}/{each}/{noise}"));
    let mut centers = Matrix::zeros(classes, width);
    rng::fill_normal(&mut stream, 1.0, centers.data_mut());
    let mut rows = Matrix::zeros(classes * each, width);
    rng::fill_normal(&mut stream, noise, rows.data_mut());
    let class: Vec<usize> = (0..classes * each).map(|i| i / each).collect();
    for (index, &c) in class.iter().enumerate() {
        for (value, center) in rows.row_mut(index).iter_mut().zip(centers.row(c)) {
            *value += center;
        }
    }
    (crate::eval::similarity::unit_rows(&rows, "clusters").unwrap(), class)
}

fn all(matrix: &Matrix) -> Vec<usize> {
    (0..matrix.rows()).collect()
}

fn accuracy(
    linear: &Linear,
    features: &Standardized,
    x: &Matrix,
    class: &[usize],
) -> f64 {
    let weights = linear.on_embeddings(features).unwrap();
    let x = with_constant(x, &all(x)).unwrap();
    crate::eval::metrics::classification::Classified::new(&x, &weights, class)
        .unwrap()
        .accuracy()
        .acc1
}

/// Gradient of `(1/n) Σ cross-entropy + (λ/2)‖W‖²`, plainly; its largest entry.
fn logistic_gradient(x: &Standardized, class: &[usize], linear: &Linear, l2: f64) -> f64 {
    let (n, width, classes) = (x.len(), x.width(), linear.bias.len());
    let mut gradient: Vec<f64> = linear.weights.iter().map(|w| l2 * w).collect();
    let mut bias = vec![0.0; classes];
    for (i, row) in x.values().chunks_exact(width).enumerate() {
        let logit = |c: usize| {
            let dot = (0..width).map(|k| row[k] * linear.weights[k * classes + c]);
            dot.sum::<f64>() + linear.bias[c]
        };
        let logits: Vec<f64> = (0..classes).map(logit).collect();
        let top = logits.iter().copied().fold(f64::MIN, f64::max);
        let total: f64 = logits.iter().map(|l| (l - top).exp()).sum();
        for c in 0..classes {
            let hit = f64::from(u8::from(class[i] == c));
            let error = ((logits[c] - top).exp() / total - hit) / n as f64;
            bias[c] += error;
            for k in 0..width {
                gradient[k * classes + c] += error * row[k];
            }
        }
    }
    gradient.iter().chain(&bias).map(|g| g.abs()).fold(0.0, f64::max)
}

#[test]
fn linfas_alpha_is_the_mean_objectives_weight_times_n() {
    let (x, class) = clusters(7, 6, 10, 1.0);
    let features = Standardized::new(&x, &all(&x)).unwrap();
    let weights = [1.0, 1e-3, 0.1];
    let path = Logistic::new(1e-8, 2000).fit(&features, &class, 7, &weights).unwrap();
    for (linear, &l2) in path.iter().zip(&weights) {
        let at_optimum = logistic_gradient(&features, &class, linear, l2);
        assert!(at_optimum < 1e-6, "ℓ2 {l2}: gradient {at_optimum}");
        // A weight off by the factor n would not be an optimum.
        let off = logistic_gradient(&features, &class, linear, l2 / 42.0);
        assert!(off > 1e-4, "ℓ2 {l2}: gradient {off}");
    }
}

#[test]
fn the_ridge_solution_zeroes_its_objectives_gradient() {
    let (x, class) = clusters(5, 6, 8, 1.0);
    let features = Standardized::new(&x, &all(&x)).unwrap();
    let (n, width) = (features.len(), features.width());
    for (linear, l2) in
        Ridge.fit(&features, &class, 5, &[0.01, 1.0]).unwrap().iter().zip([0.01, 1.0])
    {
        for c in 0..5 {
            let mut gradient: Vec<f64> =
                (0..width).map(|k| l2 * linear.weights[k * 5 + c]).collect();
            let mut bias = 0.0;
            for (i, row) in features.values().chunks_exact(width).enumerate() {
                let dot: f64 =
                    (0..width).map(|k| row[k] * linear.weights[k * 5 + c]).sum();
                let target = if class[i] == c { 1.0 } else { -1.0 };
                let error = (dot + linear.bias[c] - target) / n as f64;
                bias += error;
                gradient.iter_mut().zip(row).for_each(|(g, v)| *g += error * v);
            }
            let worst = gradient.iter().map(|g| g.abs()).fold(f64::abs(bias), f64::max);
            assert!(worst < 1e-12, "{worst}");
        }
    }
}

#[test]
fn separable_classes_are_learned_completely() {
    let (x, class) = clusters(12, 20, 16, 0.05);
    let (fit, test): (Vec<usize>, Vec<usize>) = all(&x).iter().partition(|i| *i % 2 == 0);
    let features = Standardized::new(&x, &fit).unwrap();
    let of = |rows: &[usize]| -> Vec<usize> { rows.iter().map(|&i| class[i]).collect() };
    let rows = test.iter().flat_map(|&i| x.row(i).to_vec()).collect();
    let unseen = Matrix::new(test.len(), 16, rows).unwrap();
    let probes: [&dyn Probe; 2] = [&Logistic::default(), &Ridge];
    for probe in probes {
        let path = probe.fit(&features, &of(&fit), 12, &[1e-3, 1.0]).unwrap();
        for linear in &path {
            let found = accuracy(linear, &features, &unseen, &of(&test));
            assert!((found - 1.0).abs() < 1e-12, "{}: {found}", probe.name());
        }
    }
}

#[test]
fn stopping_early_changes_no_prediction_that_counts() {
    let (x, class) = clusters(40, 20, 32, 1.5);
    let (fit, test): (Vec<usize>, Vec<usize>) = all(&x).iter().partition(|i| *i % 2 == 0);
    let features = Standardized::new(&x, &fit).unwrap();
    let of = |rows: &[usize]| -> Vec<usize> { rows.iter().map(|&i| class[i]).collect() };
    let rows = test.iter().flat_map(|&i| x.row(i).to_vec()).collect();
    let unseen = Matrix::new(test.len(), 32, rows).unwrap();
    let weights = [1e-3, 1e-2, 1e-1, 1.0];
    let quick = Logistic::default().fit(&features, &of(&fit), 40, &weights).unwrap();
    let exact =
        Logistic::new(1e-7, 3000).fit(&features, &of(&fit), 40, &weights).unwrap();
    for ((quick, exact), l2) in quick.iter().zip(&exact).zip(weights) {
        let quick = accuracy(quick, &features, &unseen, &of(&test));
        let exact = accuracy(exact, &features, &unseen, &of(&test));
        assert!((quick - exact).abs() < 0.004, "ℓ2 {l2}: {quick}, exact {exact}");
    }
}

#[test]
fn folding_the_standardization_changes_no_score() {
    let (x, class) = clusters(4, 8, 6, 0.7);
    let features = Standardized::new(&x, &all(&x)).unwrap();
    let linear = Ridge.fit(&features, &class, 4, &[0.1]).unwrap().remove(0);
    let folded = linear.on_embeddings(&features).unwrap();
    for (i, row) in features.values().chunks_exact(6).enumerate() {
        for c in 0..4 {
            let plain: f64 = (0..6).map(|k| row[k] * linear.weights[k * 4 + c]).sum();
            let own = x.row(i).iter().chain(&[1.0]).zip(folded.row(c));
            let on_raw: f64 = own.map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            assert!((plain + linear.bias[c] - on_raw).abs() < 1e-4);
        }
    }
}

#[test]
fn a_constant_feature_is_no_division_by_zero() {
    let x = Matrix::new(4, 2, vec![0.5, 0.1, 0.5, 0.2, 0.5, 0.8, 0.5, 0.9]).unwrap();
    let features = Standardized::new(&x, &all(&x)).unwrap();
    assert!(features.values().iter().all(|v| v.is_finite()));
    for probe in [&Ridge as &dyn Probe, &Logistic::default()] {
        let linear = probe.fit(&features, &[0, 0, 1, 1], 2, &[0.01]).unwrap().remove(0);
        assert!((accuracy(&linear, &features, &x, &[0, 0, 1, 1]) - 1.0).abs() < 1e-12);
    }
}

#[test]
fn labels_that_do_not_fit_are_refused() {
    let (x, _) = clusters(2, 3, 4, 1.0);
    let features = Standardized::new(&x, &all(&x)).unwrap();
    for probe in [&Ridge as &dyn Probe, &Logistic::default()] {
        for (class, classes) in [
            (vec![0, 0, 0, 1, 1], 2),
            (vec![0, 0, 0, 1, 1, 2], 2),
            (vec![0, 0, 0, 1, 1, 1], 3),
            (vec![0; 6], 1),
        ] {
            assert!(probe.fit(&features, &class, classes, &[0.1]).is_err());
        }
    }
    assert!(Standardized::new(&x, &[]).is_err());
}
