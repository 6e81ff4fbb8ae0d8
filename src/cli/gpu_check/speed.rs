//! Times: matrix products, copies, training steps, activations, kernels.

use std::time::Instant;

use serde_json::json;

use super::Outcome;
use super::models::{self, Losses};
use crate::config::EesdTarget;
use crate::config::Precision;
use crate::engine::cuda::Cuda;
use crate::engine::cuda::device::{Device, Extents, Kind, Operand};
use crate::engine::{Engine as _, Objective, Pairs, TeacherPlan, TowerInput};
use crate::error::Result;
use crate::model::{ClipConfig, Tower};

/// Steps before the clock runs: buffers grow in them, and the card wakes up.
const WARM_UP: usize = 3;

/// Products of each shape that are timed together.
const PRODUCTS: usize = 20;

/// What is timed and how often.
#[derive(Debug, Clone, Copy)]
pub(super) struct Timing<'a> {
    pub(super) device: usize,
    pub(super) steps: usize,
    pub(super) model: &'a str,
}

/// Bytes of the copy that stands for the card's memory: far more than its caches hold.
const COPIED: usize = 1 << 30;

/// What the card does at most: a large copy within its memory, in GB/s of bytes read and
/// written.
fn copying(device: &Device) -> Result<f64> {
    let (from, to) = (device.buffer(Kind::U8, COPIED)?, device.buffer(Kind::U8, COPIED)?);
    device.copy(to.all(), from.all())?;
    device.wait()?;

    let clock = Instant::now();
    for _ in 0..PRODUCTS {
        device.copy(to.all(), from.all())?;
    }
    device.wait()?;
    Ok(2.0 * (COPIED * PRODUCTS) as f64 / clock.elapsed().as_secs_f64() / 1e9)
}

/// A large copy, whose speed stands for that of the card's memory, and matrix products in
/// bf16: a large square one, whose speed stands for the card's peak, and those of a ViT-B/16
/// at 256 pairs.
pub(super) fn products(ordinal: usize, outcome: &mut Outcome) -> Result<()> {
    let device = Device::open(ordinal, Precision::Bf16)?;
    let copied = copying(&device)?;
    outcome.row(
        format!("copy within the card {copied:.0} GB/s, read and written"),
        json!({ "copy": "device to device", "gigabytes_per_second": copied }),
    );

    let rows = 256 * 197;
    let expert = rows / 4;
    let shapes = [
        ("square", 8192, 8192, 8192),
        ("qkv", rows, 2304, 768),
        ("fc1", rows, 3072, 768),
        ("fc2", rows, 768, 3072),
        ("expert fc1", expert, 3072, 768),
        ("fc1 weight", 3072, 768, rows),
        ("expert fc1 weight", 3072, 768, expert),
    ];
    let mut peak = f64::NAN;
    for (name, m, n, k) in shapes {
        let weight = name.ends_with("weight");
        let kind = if weight { Kind::F32 } else { Kind::Bf16 };
        let (a, b) =
            (device.buffer(Kind::Bf16, m * k)?, device.buffer(Kind::Bf16, n * k)?);
        let c = device.buffer(kind, m * n)?;
        let operands = if weight {
            (Operand::new(a.all(), m).turned(), Operand::new(b.all(), n))
        } else {
            (Operand::new(a.all(), k), Operand::new(b.all(), k).turned())
        };
        let once = || device.gemm((c.all(), n), operands, Extents { m, n, k }, 0.0);
        once()?;
        device.wait()?;
        let clock = Instant::now();
        for _ in 0..PRODUCTS {
            once()?;
        }
        device.wait()?;
        let seconds = clock.elapsed().as_secs_f64() / PRODUCTS as f64;
        let rate = 2.0 * (m as f64) * (n as f64) * (k as f64) / seconds / 1e12;
        if name == "square" {
            peak = rate;
        }
        outcome.row(
            format!("product {name:18} {m:6} x {n:5} x {k:6} {rate:7.1} TFLOP/s {:5.1} %", 100.0 * rate / peak),
            json!({ "product": name, "m": m, "n": n, "k": k, "tflops": rate, "of_square": rate / peak }),
        );
    }
    Ok(())
}

/// A model, its losses and its batch.
struct Race {
    name: String,
    config: ClipConfig,
    losses: Losses,
    batch: usize,
}

fn races() -> Vec<Race> {
    let mut all = Vec::new();
    for (patch, batch) in [(32, 256), (32, 1024), (16, 256), (16, 1024)] {
        for variant in ["dense", "moe", "moe-eesd"] {
            let moe = variant != "dense";
            let balance = if moe { 0.01 } else { 0.0 };
            let target = EesdTarget::Layer;
            let teacher = TeacherPlan { target, fraction: 0.05, decay: 0.999 };
            let teacher = (variant == "moe-eesd").then_some(teacher);
            let eesd = if teacher.is_some() { 0.1 } else { 0.0 };
            let objective = Objective { balance, eesd, ..Objective::default() };
            all.push(Race {
                name: format!("vit-b-{patch} {variant} {batch}"),
                config: models::vit_b(patch, 12, moe),
                losses: Losses { objective, teacher },
                batch,
            });
        }
    }
    all
}

/// Multiplications and additions of a training step, as products count them: two per
/// weight and token forward, twice that backward; attention's scores likewise.
fn operations(config: &ClipConfig, batch: usize) -> f64 {
    let mut forward = 0.0;
    for tower in Tower::BOTH {
        let shape = config.tower(tower);
        let (d, h, t) = (shape.width as f64, shape.hidden as f64, shape.tokens as f64);
        let k = config.moe.as_ref().map_or(1, |moe| moe.top_k) as f64;
        let mixtures = config.moe_blocks(tower).len() as f64;
        let layers = shape.layers as f64;
        let ffn = 2.0 * d * h * (layers - mixtures + k * mixtures);
        let seen = if shape.causal { t / 2.0 } else { t };
        forward += t * 2.0 * (layers * (4.0 * d * d + 2.0 * d * seen) + ffn);
    }
    let vision = &config.vision;
    let patches = vision.patches() * 3 * vision.patch.pow(2) * vision.width;
    forward += 2.0 * patches as f64;
    3.0 * forward * batch as f64
}

fn ready(race: &Race, device: usize) -> Result<Cuda> {
    let mut engine = Cuda::open(&race.config, device, Precision::Bf16)?;
    engine.load(&models::values(&race.config, 1))?;
    engine.start_training(&models::training(&race.config, race.losses))?;
    Ok(engine)
}

/// Training steps: median time, memory, achieved operations; then encoding and recording.
pub(super) fn steps(timing: &Timing<'_>, outcome: &mut Outcome) {
    for race in races().iter().filter(|race| race.name.contains(timing.model)) {
        match time(race, timing) {
            Ok((line, row)) => outcome.row(line, row),
            // A batch that does not fit is an answer, not a failure of the check.
            Err(error) => outcome.row(
                format!("step {:24} {error}", race.name),
                json!({ "step": race.name, "error": error.to_string() }),
            ),
        }
    }
}

fn time(race: &Race, timing: &Timing<'_>) -> Result<(String, serde_json::Value)> {
    let mut engine = ready(race, timing.device)?;
    // What models before this one used would count as its own.
    engine.device().trim()?;
    let (free, total) = engine.device().memory()?;
    let (pictures, ids) = models::full_pairs(&race.config, race.batch);
    let pixels = pictures.view();
    let pairs = Pairs { pixels, ids: &ids };
    let mut times = Vec::new();
    let mut last = 0.0;
    for step in 0..WARM_UP + timing.steps {
        let clock = Instant::now();
        last = engine.step(pairs)?.total;
        engine.update(1e-4)?;
        engine.device().wait()?;
        if step >= WARM_UP {
            times.push(1e3 * clock.elapsed().as_secs_f64());
        }
    }
    let (left, _) = engine.device().memory()?;
    times.sort_by(f64::total_cmp);
    let (median, low, high) = (times[times.len() / 2], times[0], times[times.len() - 1]);
    let rate = operations(&race.config, race.batch) / median / 1e9;
    let memory = (total - left) >> 20;
    let clock = Instant::now();
    let recorded = engine.ffn_inputs(TowerInput::Pixels(pixels), &[5])?;
    let recording = race.batch as f64 / clock.elapsed().as_secs_f64();
    let clock = Instant::now();
    engine.encode_images(pixels)?;
    let encoding = race.batch as f64 / clock.elapsed().as_secs_f64();
    let per_second = 1e3 * race.batch as f64 / median;
    let rows = recorded.counted.len();
    Ok((
        format!(
            "step {:24} {median:8.1} ms [{low:.1}, {high:.1}] {per_second:7.0} pairs/s {rate:6.1} TFLOP/s {memory:6} MiB loss {last:.3}; {encoding:.0} pictures/s encoded, {recording:.0} recorded",
            race.name
        ),
        json!({
            "step": race.name, "backend": engine.backend(), "median_ms": median, "low_ms": low,
            "high_ms": high, "pairs_per_second": per_second, "tflops": rate,
            "memory_mib": memory, "free_before_mib": free >> 20, "loss": last,
            "encoded_per_second": encoding, "recorded_per_second": recording,
            "recorded_rows": rows,
        }),
    ))
}

/// The model whose step is taken apart where none is named.
const PROFILED: &str = "vit-b-16 moe 256";

/// Where the time of one step goes, and how fast each kernel moves its arguments.
pub(super) fn profile(timing: &Timing<'_>, outcome: &mut Outcome) -> Result<()> {
    let wanted = if timing.model.is_empty() { PROFILED } else { timing.model };
    for race in races().iter().filter(|race| race.name.contains(wanted)) {
        let mut engine = ready(race, timing.device)?;
        let (pictures, ids) = models::full_pairs(&race.config, race.batch);
        let pairs = Pairs { pixels: pictures.view(), ids: &ids };
        for _ in 0..WARM_UP {
            engine.step(pairs)?;
            engine.update(1e-4)?;
        }
        engine.device().start_profile();
        engine.step(pairs)?;
        engine.update(1e-4)?;
        let times = engine.device().profile()?;
        let total: f64 = times.values().map(|own| own.milliseconds).sum();
        outcome.line(format!("profile {} {total:.2} ms", race.name));
        let mut sorted: Vec<_> = times.iter().collect();
        sorted.sort_by(|a, b| b.1.milliseconds.total_cmp(&a.1.milliseconds));
        for (name, own) in sorted {
            let share = 100.0 * own.milliseconds / total;
            let rate = own.bytes as f64 / own.milliseconds / 1e6;
            outcome.row(
                format!(
                    "  {name:40} {:5} x {:9.3} ms {share:5.1} % {rate:6.0} GB/s",
                    own.calls, own.milliseconds
                ),
                json!({
                    "profile": race.name, "kernel": name, "calls": own.calls,
                    "ms": own.milliseconds, "gigabytes_per_second": rate,
                }),
            );
        }
    }
    Ok(())
}
