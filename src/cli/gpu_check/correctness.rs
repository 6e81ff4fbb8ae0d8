//! Losses and every gradient against the CPU engine, and two runs against each other.

use serde_json::json;

use super::Outcome;
use super::models::{self, Losses};
use crate::config::EesdTarget;
use crate::config::Precision;
use crate::engine::cpu::Cpu;
use crate::engine::cuda::Cuda;
use crate::engine::{Engine, Objective, Pairs, TeacherPlan, Training, TrainingState};
use crate::error::Result;
use crate::image::Pixels;
use crate::model::ClipConfig;
use crate::model::params::Layout;

/// Allowed distance of the gradient, relative to its length: rounding of f32 sums of other
/// orders, and of bf16 through all layers.
const F32: f64 = 1e-4;
const BF16: f64 = 0.1;

/// One model under one set of losses.
struct Case {
    name: &'static str,
    config: ClipConfig,
    pairs: usize,
    target: Option<EesdTarget>,
}

fn cases() -> Vec<Case> {
    let case = |name, config, pairs, target| Case { name, config, pairs, target };
    let (layer, embedding) = (Some(EesdTarget::Layer), Some(EesdTarget::Embedding));
    vec![
        case("tiny dense", models::tiny(false), 37, None),
        case("tiny mixture", models::tiny(true), 37, None),
        case("tiny mixture, layers distilled", models::tiny(true), 37, layer),
        case("tiny mixture, embeddings distilled", models::tiny(true), 37, embedding),
        case("ViT-B/32, one block, dense", models::vit_b(32, 1, false), 32, None),
        case("ViT-B/16, one block, mixture", models::vit_b(16, 1, true), 16, layer),
    ]
}

/// Runs all cases in both precisions.
pub(super) fn check(device: usize, outcome: &mut Outcome) -> Result<()> {
    for case in cases() {
        let teacher =
            case.target.map(|target| TeacherPlan { target, fraction: 0.4, decay: 0.9 });
        let objective =
            Objective { balance: 0.5, router_z: 0.3, eesd: 0.7, label_smoothing: 0.0 };
        let training = models::training(&case.config, Losses { objective, teacher });
        let student = models::values(&case.config, 1);
        let taught = models::values(&case.config, 2);
        let weights = (student.as_slice(), taught.as_slice());
        let batch = models::pairs(&case.config, case.pairs);
        let pairs = Pairs { pixels: Pixels::Values(&batch.0), ids: &batch.1 };
        let mut cpu = Cpu::new(&case.config);
        start(&mut cpu, &training, weights)?;
        let (total, truth) = (cpu.step(pairs)?.total, cpu.gradient()?);
        for precision in [Precision::F32, Precision::Bf16] {
            let mut engine = Cuda::open(&case.config, device, precision)?;
            start(&mut engine, &training, weights)?;
            let own = engine.step(pairs)?;
            let gradient = engine.gradient()?;
            engine.step(pairs)?;
            let same = engine.gradient()? == gradient;
            let (name, loss) = (case.name, (own.total - total).abs() / total.abs());
            let off = distance(&gradient, &truth);
            let worst = worst(&case.config, &gradient, &truth);
            let limit = if precision == Precision::F32 { F32 } else { BF16 };
            // A difference that is no number is wrong too.
            let right = off < limit && loss < limit && same;
            outcome.wrong += usize::from(!right);
            let backend = engine.backend();
            let (word, bits) = (
                if right { "ok" } else { "WRONG" },
                if same { "same bits" } else { "OTHER BITS" },
            );
            outcome.row(
                format!(
                    "{word:5} {backend:9} {name:36} loss {loss:.1e} gradient {off:.1e} (worst {}: {:.1e}) {bits}",
                    worst.1, worst.0
                ),
                json!({
                    "check": name, "backend": backend, "loss_gap": loss, "gradient_gap": off,
                    "worst_tensor": worst.1, "worst_gap": worst.0, "same_bits": same,
                }),
            );
        }
    }
    Ok(())
}

/// Makes an engine ready to train a student under a teacher of other weights.
fn start(
    engine: &mut dyn Engine,
    training: &Training,
    (student, taught): (&[f32], &[f32]),
) -> Result<()> {
    engine.load(taught)?;
    engine.start_training(training)?;
    let state = engine.training_state()?;
    engine.restore(&TrainingState { values: student.to_vec(), ..state })
}

fn squares(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum()
}

fn distance(found: &[f32], truth: &[f32]) -> f64 {
    let gaps = found.iter().zip(truth).map(|(a, b)| f64::from(*a) - f64::from(*b));
    (squares(gaps) / squares(truth.iter().map(|v| f64::from(*v)))).sqrt()
}

/// The tensor that is farthest off, relative to its own length.
fn worst(config: &ClipConfig, found: &[f32], truth: &[f32]) -> (f64, String) {
    let layout = Layout::new(config);
    let each =
        layout.iter().filter(|(_, range)| truth[range.clone()].iter().any(|v| *v != 0.0));
    let gap =
        |range: std::ops::Range<usize>| distance(&found[range.clone()], &truth[range]);
    each.map(|(parameter, range)| (gap(range), parameter.name.clone()))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .unwrap_or_default()
}
