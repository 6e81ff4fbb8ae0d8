//! Drop-Upcycling: every expert forgets a random part of its hidden units.
//!
//! Per expert a set S of floor(r·h + 0.5) hidden units is drawn without replacement. The
//! rows S of W1, the entries S of b1 and the columns S of W2 are redrawn from a normal with
//! the mean and the unbiased standard deviation of that block of that tensor; b2 and all
//! other entries stay bit for bit. Statistics are taken in f64 before anything changes.
//!
//! Departures from the authors' converter, which the paper's text leaves open: it draws one
//! set per matrix (`independent_indices: true` here), takes int(h·r) units, permutes the
//! hidden units of every expert, and has no biases.

use super::{Form, Indices, LayerInput, MakeExperts, Method, Parameter, Router};
use crate::error::Result;
use crate::ffn::{Ffn, FfnTensors};
use crate::num;
use crate::par;
use crate::rng::{self, SliceRandom, Stream};

/// Method `drop`: a fraction of every expert's hidden units is redrawn.
#[derive(Debug)]
pub struct Drop;

impl Method for Drop {
    fn name(&self) -> &'static str {
        "drop"
    }

    fn reference(&self) -> &'static str {
        "Nakamura et al., Drop-Upcycling: Training Sparse Mixture of Experts with Partial \
         Re-initialization, ICLR 2025, https://arxiv.org/abs/2502.19261"
    }

    fn describe(&self) -> &'static str {
        "a fraction `ratio` of every expert's hidden units is redrawn; random router"
    }

    fn parameters(&self) -> &'static [Parameter] {
        &[Parameter::Ratio, Parameter::IndependentIndices]
    }

    fn form(&self) -> Form<'_> {
        Form::Experts(Router::Random, self)
    }
}

impl MakeExperts for Drop {
    fn experts(&self, layer: &LayerInput<'_>) -> Result<Vec<Ffn>> {
        let settings = layer.settings;
        Ok(par::map(settings.experts(), |index| {
            let mut stream = layer.streams.expert(self.name(), index);
            dropped(layer.dense, settings.ratio(), settings.indices(), &mut stream)
        }))
    }
}

/// One expert: the dense FFN with some hidden units redrawn.
fn dropped(
    dense: FfnTensors<'_>,
    ratio: f64,
    indices: Indices,
    stream: &mut Stream,
) -> Ffn {
    let (h, d) = (dense.hidden(), dense.width());
    let count = redrawn_units(ratio, h);
    let fc1_units = select(h, count, stream);

    let fc2_units = match indices {
        Indices::Shared => fc1_units.clone(),
        Indices::Independent => select(h, count, stream),
    };

    // The order of these lines is the order of the draws.
    let mut expert = dense.copied();
    redraw(&mut expert.fc1, rows(&fc1_units, d), stream);
    redraw(&mut expert.fc1_bias, fc1_units.iter().copied(), stream);
    redraw(&mut expert.fc2, columns(&fc2_units, h, d), stream);
    expert
}

/// floor(r·h + 0.5).
fn redrawn_units(ratio: f64, h: usize) -> usize {
    // Truncation after adding a half rounds to nearest, halves upwards.
    num::truncate_usize(ratio * h as f64 + 0.5).min(h)
}

/// `count` distinct indices below `h`, uniformly, ascending.
fn select(h: usize, count: usize, stream: &mut Stream) -> Vec<usize> {
    let mut units: Vec<usize> = (0..h).collect();
    let mut selected = units.partial_shuffle(stream, count).0.to_vec();

    // Ascending, so that draws come in memory order and not in that of the shuffle.
    selected.sort_unstable();
    selected
}

/// Positions of whole rows in a row-major matrix of `width` columns.
fn rows(units: &[usize], width: usize) -> impl Iterator<Item = usize> + Clone {
    units.iter().flat_map(move |unit| unit * width..(unit + 1) * width)
}

/// Positions of whole columns in a row-major matrix of `height` rows and `h` columns.
fn columns(
    units: &[usize],
    h: usize,
    height: usize,
) -> impl Iterator<Item = usize> + Clone {
    (0..height).flat_map(move |row| units.iter().map(move |unit| row * h + unit))
}

/// Replaces the block at `positions` by draws with the block's own statistics.
fn redraw(
    tensor: &mut [f32],
    positions: impl Iterator<Item = usize> + Clone,
    stream: &mut Stream,
) {
    let (mean, std) = block_statistics(tensor, positions.clone());

    // All statistics come first: a redrawn value must not enter them.
    for index in positions {
        tensor[index] = num::round_f32(mean + std * rng::normal_f64(stream));
    }
}

/// Mean and unbiased standard deviation of a block, in f64; a single entry has deviation 0.
fn block_statistics(
    tensor: &[f32],
    positions: impl Iterator<Item = usize>,
) -> (f64, f64) {
    let block: Vec<f64> = positions.map(|index| f64::from(tensor[index])).collect();
    (num::mean(&block), num::std_dev(&block))
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::samples::{Parts, ffn, run};
    use super::*;
    use crate::linalg::Matrix;
    use crate::rng;

    const FIXTURE: &str = include_str!("../../tests/fixtures/drop/drop.json");

    fn floats(value: &Value) -> Vec<f64> {
        match value {
            Value::Array(items) => items.iter().flat_map(floats).collect(),
            other => vec![other.as_f64().unwrap()],
        }
    }

    fn tensor(example: &Value, name: &str) -> Vec<f32> {
        let values = floats(&example["tensors"][name]);
        values.into_iter().map(num::round_f32).collect()
    }

    fn units(value: &Value) -> Vec<usize> {
        floats(value).into_iter().map(num::truncate_usize).collect()
    }

    fn close(found: f64, expected: &Value) -> bool {
        let expected = expected.as_f64().unwrap();
        (found - expected).abs() <= 1e-12 * expected.abs()
    }

    /// (tensor name, values, positions of the block, positions of the whole tensor).
    fn blocks(example: &Value) -> Vec<(&'static str, Vec<f32>, Vec<usize>)> {
        let selected = units(&example["selected"]);
        vec![
            ("c_fc.weight", tensor(example, "c_fc.weight"), rows(&selected, 4).collect()),
            ("c_fc.bias", tensor(example, "c_fc.bias"), selected.clone()),
            (
                "c_proj.weight",
                tensor(example, "c_proj.weight"),
                columns(&selected, 8, 4).collect(),
            ),
        ]
    }

    #[test]
    fn block_statistics_equal_the_reference() {
        let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
        let example = &fixture["worked_example"];
        for (name, values, block) in blocks(example) {
            let expected = &example["block_statistics"][name];
            let (mean, std) = block_statistics(&values, block.iter().copied());
            assert_eq!(block.len() as u64, expected["count"].as_u64().unwrap());
            assert!(close(mean, &expected["mean"]), "{name}: {mean}");
            assert!(close(std, &expected["std"]), "{name}: {std}");
        }
        let option = &example["independent_option"];
        let chosen = units(&option["c_proj_selected"]);
        let values = tensor(example, "c_proj.weight");
        let (mean, std) = block_statistics(&values, columns(&chosen, 8, 4));
        assert!(close(mean, &option["c_proj_statistics"]["mean"]), "{mean}");
        assert!(close(std, &option["c_proj_statistics"]["std"]), "{std}");
    }

    #[test]
    fn the_wrong_values_are_told_apart() {
        let fixture: Value = serde_json::from_str(FIXTURE).unwrap();
        let example = &fixture["worked_example"];
        let wrong = &example["wrong_values_to_tell_apart"];
        for (name, values, block) in blocks(example) {
            let (mean, std) = block_statistics(&values, block.iter().copied());
            assert!(!close(mean, &wrong["whole_tensor"][name]["mean"]), "{name}");
            assert!(!close(std, &wrong["whole_tensor"][name]["std"]), "{name}");
            assert!(!close(std, &wrong["std_divided_by_count"][name]), "{name}");
            let all = block_statistics(&values, 0..values.len());
            assert!(close(all.0, &wrong["whole_tensor"][name]["mean"]), "{name}");
            assert!(close(all.1, &wrong["whole_tensor"][name]["std"]), "{name}");
        }
    }

    #[test]
    fn halves_round_up() {
        let found: Vec<usize> =
            [(0.25, 10), (0.25, 8), (0.5, 7), (0.0, 9), (1.0, 9), (0.1, 4), (0.125, 4)]
                .map(|(ratio, h)| redrawn_units(ratio, h))
                .to_vec();
        assert_eq!(found, [3, 2, 4, 0, 9, 0, 1]);
    }

    fn matrix(values: &[f32], rows: usize) -> Matrix {
        Matrix::new(rows, values.len() / rows, values.to_vec()).unwrap()
    }

    fn changed_units(dense: &Ffn, expert: &Ffn) -> [Vec<usize>; 3] {
        let (h, d) = (dense.fc1_bias.len(), dense.fc2_bias.len());
        let rows = |a: &Matrix, b: &Matrix| -> Vec<usize> {
            (0..h).filter(|&i| a.row(i) != b.row(i)).collect()
        };
        let whole = |a: &Matrix, b: &Matrix, unit: usize| {
            let mut pairs = a.row(unit).iter().zip(b.row(unit));
            pairs.all(|(x, y)| x.to_bits() != y.to_bits())
        };
        let (fc1, new_fc1) = (matrix(&dense.fc1, h), matrix(&expert.fc1, h));
        let fc2 = matrix(&dense.fc2, d).transposed();
        let new_fc2 = matrix(&expert.fc2, d).transposed();
        let fc1_rows = rows(&fc1, &new_fc1);
        let fc2_columns = rows(&fc2, &new_fc2);
        assert!(fc1_rows.iter().all(|&unit| whole(&fc1, &new_fc1, unit)));
        assert!(fc2_columns.iter().all(|&unit| whole(&fc2, &new_fc2, unit)));
        assert_eq!(dense.fc2_bias, expert.fc2_bias);
        let bits = |values: &[f32], i: usize| values[i].to_bits();
        let bias = (0..h)
            .filter(|&i| bits(&dense.fc1_bias, i) != bits(&expert.fc1_bias, i))
            .collect();
        [fc1_rows, bias, fc2_columns]
    }

    #[test]
    fn the_same_units_change_in_every_tensor_and_nothing_else() {
        let dense = ffn(6, 40, 2);
        for (ratio, touched) in [(0.25, 10), (0.5, 20), (0.75, 30)] {
            let mut stream = rng::stream(1, "mask");
            let expert = dropped(dense.tensors(), ratio, Indices::Shared, &mut stream);
            let [rows, bias, columns] = changed_units(&dense, &expert);
            assert_eq!(rows, bias);
            assert_eq!(rows, columns);
            assert_eq!(rows.len(), touched);
        }
    }

    /// Fixture `untouched_fraction`: (1 - m/h)² of the units are untouched in both.
    #[test]
    fn independent_indices_touch_more_units() {
        let dense = ffn(2, 40, 2);
        for ratio in [0.25, 0.5, 0.75] {
            let untouched: Vec<f64> = (0..400)
                .map(|seed| {
                    let mut stream = rng::stream(seed, "independent");
                    let expert = dropped(
                        dense.tensors(),
                        ratio,
                        Indices::Independent,
                        &mut stream,
                    );
                    let [rows, bias, columns] = changed_units(&dense, &expert);
                    assert_eq!(rows, bias);
                    assert_eq!((rows.len(), columns.len()), (bias.len(), bias.len()));
                    let touched =
                        |unit: &usize| rows.contains(unit) || columns.contains(unit);
                    (0..40).filter(|unit| !touched(unit)).count() as f64 / 40.0
                })
                .collect();
            let error = num::std_dev(&untouched) / 20.0;
            let expected = (1.0 - ratio) * (1.0 - ratio);
            assert!((num::mean(&untouched) - expected).abs() < 4.5 * error, "{ratio}");
        }
    }

    #[test]
    fn the_ends_of_the_ratio_copy_and_replace() {
        let dense = ffn(3, 8, 2);
        let mut stream = rng::stream(1, "ends");
        assert_eq!(dropped(dense.tensors(), 0.0, Indices::Shared, &mut stream), dense);
        let all = dropped(dense.tensors(), 1.0, Indices::Independent, &mut stream);
        let [rows, bias, columns] = changed_units(&dense, &all);
        assert_eq!((rows.len(), bias.len(), columns.len()), (8, 8, 8));
    }

    fn moments(values: &[f64], mean: f64, std: f64) -> (f64, f64) {
        let power = |k: i32| {
            let standardized = values.iter().map(|v| ((v - mean) / std).powi(k));
            standardized.sum::<f64>() / values.len() as f64
        };
        (power(3), power(4) - 3.0)
    }

    /// The fixture's checks of the new block: mean, deviation, skewness and kurtosis within
    /// 4.5 standard errors, and no repeated row.
    #[test]
    fn new_values_are_normal_with_the_statistics_of_the_old_block() {
        let mut dense = ffn(64, 400, 6);
        for v in &mut dense.fc1 {
            *v = 0.7 + v.powi(3);
        }
        for v in &mut dense.fc2 {
            *v = *v * 0.01 - 3.0;
        }
        let expert =
            dropped(dense.tensors(), 0.5, Indices::Shared, &mut rng::stream(4, "normal"));
        let [selected, _, _] = changed_units(&dense, &expert);
        let fc1: Vec<usize> = rows(&selected, 64).collect();
        let fc2: Vec<usize> = columns(&selected, 400, 64).collect();
        for (old, new, block) in [
            (&dense.fc1, &expert.fc1, &fc1),
            (&dense.fc1_bias, &expert.fc1_bias, &selected),
            (&dense.fc2, &expert.fc2, &fc2),
        ] {
            let n = block.len() as f64;
            let (mean, std) = block_statistics(old, block.iter().copied());
            let (new_mean, new_std) = block_statistics(new, block.iter().copied());
            assert!((new_mean - mean).abs() <= 4.5 * std / n.sqrt());
            assert!((new_std - std).abs() <= 4.5 * std / (2.0 * (n - 1.0)).sqrt());
            if block.len() >= 10_000 {
                let values: Vec<f64> = block.iter().map(|&i| f64::from(new[i])).collect();
                let (skewness, kurtosis) = moments(&values, new_mean, new_std);
                assert!(skewness.abs() <= 4.5 * (6.0 / n).sqrt(), "{skewness}");
                assert!(kurtosis.abs() <= 4.5 * (24.0 / n).sqrt(), "{kurtosis}");
            }
        }
        let row_bits = |row: &[f32]| row.iter().map(|v| v.to_bits()).collect();
        let mut new_rows: Vec<Vec<u32>> = selected
            .iter()
            .map(|&unit| row_bits(&expert.fc1[unit * 64..(unit + 1) * 64]))
            .chain(dense.fc1.chunks(64).map(row_bits))
            .collect();
        let before = new_rows.len();
        new_rows.sort();
        new_rows.dedup();
        assert_eq!(new_rows.len(), before);
    }

    #[test]
    fn every_unit_is_chosen_equally_often_and_experts_differ() {
        let (h, count, n) = (20, 5, 3000_u64);
        let mut chosen = vec![0.0_f64; h];
        for seed in 0..n {
            let units = select(h, count, &mut rng::stream(seed, "frequency"));
            assert_eq!(units.len(), count);
            assert!(units.windows(2).all(|pair| pair[0] < pair[1]));
            for unit in units {
                chosen[unit] += 1.0;
            }
        }
        let p = 0.25_f64;
        let error = (p * (1.0 - p) / n as f64).sqrt();
        assert!(chosen.iter().all(|c| (c / n as f64 - p).abs() < 4.5 * error));

        let parts = Parts::new(4, 40, 3, 2);
        let made = run(&Drop, &parts, 3, 8);
        let sets: Vec<_> = made
            .experts
            .iter()
            .map(|expert| changed_units(&parts.dense, expert)[0].clone())
            .collect();
        assert!(sets[0] != sets[1] && sets[1] != sets[2] && sets[0] != sets[2]);
    }
}
