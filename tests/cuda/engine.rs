//! The whole engine against the CPU engine on tiny models.

use upcycle::config::{EesdTarget, OptimConfig, Precision};
use upcycle::engine::cpu::Cpu;
use upcycle::engine::cuda::Cuda;
use upcycle::engine::{
    Engine, Losses, Objective, Pairs, TeacherPlan, TowerInput, Trainable, Training,
    TrainingState,
};
use upcycle::image::{Normalise, PixelBuffer, Pixels};
use upcycle::model::names::ParameterId;
use upcycle::model::params::Layout;
use upcycle::model::{ClipConfig, Tower};

use crate::emulator::{Late, Order, session, session_in};
use crate::models::{config, pairs, values};
use crate::truth::gap;

const WEIGHTS: (f64, f64, f64) = (0.5, 0.3, 0.7);

pub(crate) fn optim() -> OptimConfig {
    OptimConfig {
        steps: 3,
        batch: 40,
        micro_batch: 0,
        lanes: 4,
        learning_rate: 1e-2,
        final_learning_rate: 0.0,
        warmup: 0,
        beta1: 0.9,
        beta2: 0.98,
        epsilon: 1e-6,
        weight_decay: 0.2,
        clip_norm: 1.0,
        augment: upcycle::config::Augment::None,
        validate_every: 0,
        checkpoint_every: 0,
    }
}

pub(crate) fn training(config: &ClipConfig, target: Option<EesdTarget>) -> Training {
    let (balance, router_z, eesd) = WEIGHTS;
    Training {
        optim: optim(),
        trainable: Trainable::all(config),
        objective: Objective { balance, router_z, eesd, label_smoothing: 0.0 },
        teacher: target.map(|target| TeacherPlan { target, fraction: 0.4, decay: 0.9 }),
    }
}

/// A CUDA engine at the weights of a student, with a teacher at those of another.
fn open(
    config: &ClipConfig,
    precision: Precision,
    weights: (&[f32], &[f32]),
    target: Option<EesdTarget>,
) -> Cuda {
    let mut engine = Cuda::open(config, 0, precision).unwrap();
    start(&mut engine, &training(config, target), weights);
    engine
}

/// Makes an engine ready to train `student`, with `teacher` as the weights of the teacher.
pub(crate) fn start(
    engine: &mut dyn Engine,
    training: &Training,
    (student, teacher): (&[f32], &[f32]),
) {
    engine.load(teacher).unwrap();
    engine.start_training(training).unwrap();
    let state = engine.training_state().unwrap();
    engine.restore(&TrainingState { values: student.to_vec(), ..state }).unwrap();
}

fn step(
    engine: &mut dyn Engine,
    (pixels, ids): &(Vec<f32>, Vec<u32>),
) -> (Losses, Vec<f32>) {
    let losses = engine.step(Pairs { pixels: Pixels::Values(pixels), ids }).unwrap();
    (losses, engine.gradient().unwrap())
}

pub(crate) fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// Largest gap of any tensor's gradient, relative to the tensor's largest value.
fn worst(config: &ClipConfig, found: &[f32], truth: &[f32]) -> (f64, String) {
    let layout = Layout::new(config);
    let each = layout.iter().map(|(parameter, range)| {
        let truth = wide(&truth[range.clone()]);
        (gap(&found[range], &truth), parameter.name.clone())
    });
    each.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap()
}

/// |found - truth| / |truth| over all values.
pub(crate) fn distance(found: &[f32], truth: &[f32]) -> f64 {
    let square =
        |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let pairs = found.iter().zip(truth);
    let gaps = square(&mut pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
    (gaps / square(&mut truth.iter().map(|v| f64::from(*v)))).sqrt()
}

/// One kind of step on a tiny model: the weights of student and teacher, and a batch.
struct Case {
    moe: bool,
    target: Option<EesdTarget>,
    config: ClipConfig,
    student: Vec<f32>,
    teacher: Vec<f32>,
    batch: (Vec<f32>, Vec<u32>),
}

impl Case {
    /// The dense model, the mixture, and the mixture with both kinds of distillation.
    fn all() -> [Self; 4] {
        [
            (false, None),
            (true, None),
            (true, Some(EesdTarget::Layer)),
            (true, Some(EesdTarget::Embedding)),
        ]
        .map(|(moe, target)| {
            let config = config(moe);
            Self {
                moe,
                target,
                student: values(&config, "student"),
                teacher: values(&config, "teacher"),
                batch: pairs(&config, 37),
                config,
            }
        })
    }

    fn weights(&self) -> (&[f32], &[f32]) {
        (&self.student, &self.teacher)
    }

    /// A CUDA engine that is ready for the step.
    fn open(&self, precision: Precision) -> Cuda {
        open(&self.config, precision, self.weights(), self.target)
    }

    /// Losses and gradient of the CPU engine.
    fn reference(&self) -> (Losses, Vec<f32>) {
        let mut engine = Cpu::new(&self.config);
        start(&mut engine, &training(&self.config, self.target), self.weights());
        step(&mut engine, &self.batch)
    }

    /// The kind of the step, for messages.
    fn name(&self) -> String {
        format!("moe: {}, distillation: {:?}", self.moe, self.target)
    }
}

#[test]
fn losses_and_every_gradient_equal_the_cpu_in_f32() {
    let Some(_session) = session() else { return };
    for case in Case::all() {
        let name = case.name();
        let (expected, truth) = case.reference();
        let (losses, gradient) = step(&mut case.open(Precision::F32), &case.batch);
        let near = |what: &str, a: f64, b: f64| {
            assert!((a - b).abs() < 2e-5 * (1.0 + b.abs()), "{name}, {what}: {a} {b}");
        };
        near("clip", losses.clip, expected.clip);
        near("balance", losses.balance, expected.balance);
        near("router z", losses.router_z, expected.router_z);
        near("eesd", losses.eesd, expected.eesd);
        near("total", losses.total, expected.total);

        assert_eq!(losses.layers.len(), expected.layers.len());
        for (own, other) in losses.layers.iter().zip(&expected.layers) {
            assert_eq!((own.0, own.1), (other.0, other.1));
            assert_eq!(own.2.counts, other.2.counts);
            near("rows", own.2.rows, other.2.rows);
            near("entropy", own.2.entropy, other.2.entropy);
        }
        let (off, tensor) = worst(&case.config, &gradient, &truth);
        assert!(off < 5e-5, "{name}, {tensor}: off by {off:.2e}");
    }
}

/// Full fine-tuning: a loss over pictures alone, whose gradient by the embeddings the caller
/// gives; here it is a sum with fixed weights.
#[test]
fn a_loss_over_pictures_has_the_gradient_of_the_cpu() {
    let Some(_session) = session() else { return };
    for moe in [false, true] {
        let config = config(moe);
        let (weights, batch) = (values(&config, "student"), pairs(&config, 21));
        let slope = values(&config, "slope")[..21 * config.embed_dim].to_vec();
        let mut loss = |unit: &[f32]| {
            let value = wide(unit).iter().zip(wide(&slope)).map(|(a, b)| a * b).sum();
            Ok((value, slope.clone()))
        };
        let mut outcome = |engine: &mut dyn Engine| {
            engine.load(&weights).unwrap();
            engine.start_training(&training(&config, None)).unwrap();
            // What a step of pairs leaves behind must not reach the next gradient.
            step(engine, &batch);
            let value = engine.image_step(Pixels::Values(&batch.0), &mut loss).unwrap();
            let gradient = engine.gradient().unwrap();
            (value, gradient, engine.update(1e-3).unwrap(), step(engine, &batch).0)
        };

        let mut cuda = Cuda::open(&config, 0, Precision::F32).unwrap();
        let (value, gradient, norm, after) = outcome(&mut cuda);
        let (expected, truth, expected_norm, expected_after) =
            outcome(&mut Cpu::new(&config));
        assert!((value - expected).abs() < 1e-5 * (1.0 + expected.abs()));
        assert!((norm / expected_norm - 1.0).abs() < 1e-5, "{norm} {expected_norm}");
        assert!((after.total - expected_after.total).abs() < 1e-4);
        let layout = Layout::new(&config);
        for (parameter, range) in layout.iter() {
            let truth = &truth[range.clone()];
            if truth.iter().all(|v| *v == 0.0) {
                let name = &parameter.name;
                assert!(gradient[range].iter().all(|v| *v == 0.0), "{name} trains");
                continue;
            }
            let off = gap(&gradient[range], &wide(truth));
            assert!(off < 5e-5, "{}: off by {off:.2e}", parameter.name);
        }

        let error = cuda
            .image_step(Pixels::Values(&batch.0), &mut |_| Ok((0.0, vec![0.0])))
            .unwrap_err();
        assert!(error.to_string().contains("1 values of gradient"), "{error}");
    }
}

#[test]
fn losses_and_gradients_are_near_the_cpu_in_bf16() {
    let Some(_session) = session() else { return };
    for case in Case::all() {
        let name = case.name();
        let (expected, truth) = case.reference();
        let (losses, gradient) = step(&mut case.open(Precision::Bf16), &case.batch);
        let off = (losses.total - expected.total).abs() / expected.total;
        assert!(off < 0.02, "{name}: {} {}", losses.total, expected.total);
        let off = distance(&gradient, &truth);
        println!("bf16, {name}: gradient off by {off:.3}");
        assert!(off < 0.08, "{name}: gradient off by {off:.3}");
    }
}

#[test]
fn micro_batches_have_the_gradient_of_the_whole_batch() {
    let Some(_session) = session() else { return };
    for case in Case::all() {
        let name = case.name();
        let mut engine = case.open(Precision::F32);
        let (whole, truth) = step(&mut engine, &case.batch);
        let mut plan = training(&case.config, case.target);
        plan.optim.micro_batch = 16;
        start(&mut engine, &plan, case.weights());
        let (losses, gradient) = step(&mut engine, &case.batch);
        assert!((whole.total - losses.total).abs() < 1e-5 * (1.0 + whole.total));
        let (off, tensor) = worst(&case.config, &gradient, &truth);
        assert!(off < 2e-5, "{name}, {tensor}: off by {off:.2e}");
    }
}

/// A model whose experts are kept in low rank.
pub(crate) fn low_rank() -> ClipConfig {
    let mut config = config(true);
    if let Some(moe) = &mut config.moe {
        moe.rank = Some(2);
    }
    config
}

/// Experts of low rank train as on the CPU: merged before a forward, their gradient pulled
/// back behind a backward, the teacher following the merged ones.
#[test]
fn experts_of_low_rank_train_as_on_the_cpu() {
    let Some(_session) = session() else { return };
    let config = low_rank();
    let weights = values(&config, "student");
    let batch = pairs(&config, 37);
    for target in [None, Some(EesdTarget::Layer), Some(EesdTarget::Embedding)] {
        let mut cpu = Cpu::new(&config);
        let mut engine = Cuda::open(&config, 0, Precision::F32).unwrap();
        for own in [&mut cpu as &mut dyn Engine, &mut engine] {
            own.load(&weights).unwrap();
            own.start_training(&training(&config, target)).unwrap();
        }
        assert_eq!(engine.values().unwrap(), weights);
        for round in 0..3 {
            let (expected, truth) = step(&mut cpu, &batch);
            let (losses, gradient) = step(&mut engine, &batch);
            assert!((losses.total - expected.total).abs() < 1e-3, "{target:?} {round}");
            let off = distance(&gradient, &truth);
            assert!(off < 1e-3, "{target:?} {round}: off by {off:.2e}");
            cpu.update(1e-2).unwrap();
            engine.update(1e-2).unwrap();
        }
        let (found, truth) =
            (engine.training_state().unwrap(), cpu.training_state().unwrap());
        let lengths = |own: &TrainingState| {
            (own.first.len(), own.second.len(), own.average.as_ref().map(Vec::len))
        };
        assert_eq!(lengths(&found), lengths(&truth));
        assert!(distance(&found.values, &truth.values) < 1e-3, "{target:?}");
        assert!(distance(&found.first, &truth.first) < 2e-3, "{target:?}");
        if let (Some(found), Some(truth)) = (&found.average, &truth.average) {
            assert!(distance(found, truth) < 1e-3, "{target:?}");
        }

        // A checkpoint goes on with the same bits.
        let mut other = Cuda::open(&config, 0, Precision::F32).unwrap();
        other.load(&weights).unwrap();
        other.start_training(&training(&config, target)).unwrap();
        other.restore(&found).unwrap();
        assert!(step(&mut other, &batch) == step(&mut engine, &batch), "{target:?}");
    }
}

/// Frozen tensors, smoothed labels and micro-batches at once, for every kind of model.
#[test]
fn smoothed_labels_and_frozen_tensors_equal_the_cpu() {
    let Some(_session) = session() else { return };
    for config in [config(false), config(true), low_rank()] {
        let weights = values(&config, "student");
        let batch = pairs(&config, 21);
        let mut plan = training(&config, None);
        plan.objective.label_smoothing = 0.1;
        plan.optim.micro_batch = 16;
        for own in plan.trainable.iter_mut().step_by(3) {
            *own = Trainable::Frozen;
        }
        let mut cpu = Cpu::new(&config);
        let mut engine = Cuda::open(&config, 0, Precision::F32).unwrap();
        let mut numbers = Vec::new();
        for own in [&mut cpu as &mut dyn Engine, &mut engine] {
            own.load(&weights).unwrap();
            own.start_training(&plan).unwrap();
            let (losses, gradient) = step(own, &batch);
            numbers.push((losses.clip, gradient, own.update(1e-2).unwrap()));
        }
        let (truth, found) = (&numbers[0], &numbers[1]);
        assert!((truth.0 - found.0).abs() < 2e-5 * truth.0, "{} {}", truth.0, found.0);
        let (off, name) = worst(&config, &found.1, &truth.1);
        assert!(off < 1e-4, "{name}: off by {off:.2e}");
        assert!((truth.2 / found.2 - 1.0).abs() < 1e-4, "{} {}", truth.2, found.2);
        let layout = Layout::new(&config);
        for (index, (parameter, range)) in layout.iter().enumerate() {
            let zero = found.1[range].iter().all(|g| *g == 0.0);
            assert_eq!(zero, index % 3 == 0, "{}", parameter.name);
        }
    }
}

/// A batch of levels is a batch of the values that the CPU makes of them, to the last bit,
/// also where a picture's place is used again before the kernels of the last one have run.
#[test]
fn levels_train_as_the_values_they_stand_for() {
    let config = config(true);
    let weights = values(&config, "student");
    let ids = pairs(&config, 40).1;
    let count = 40 * 3 * config.vision.image_size.pow(2);
    let batches: Vec<Vec<u8>> = (0..4)
        .map(|step| {
            (0..count)
                .map(|i| u8::try_from((i * 31 + step * 97) % 251).unwrap())
                .collect()
        })
        .collect();
    let run = |late, as_levels: bool| {
        let _session = session_in(Order { threads: 0, late })?;
        let mut plan = training(&config, None);
        plan.optim.micro_batch = 16;
        let mut engine = Cuda::open(&config, 0, Precision::F32).unwrap();
        engine.load(&weights).unwrap();
        engine.start_training(&plan).unwrap();
        for levels in &batches {
            let pixels = Pixels::Levels(levels, Normalise::OPENAI);
            let values = pixels.values(config.vision.image_size.pow(2));
            let pixels = if as_levels { pixels } else { Pixels::Values(&values) };
            engine.step(Pairs { pixels, ids: &ids }).unwrap();
            engine.update(1e-2).unwrap();
        }
        Some(engine.training_state().unwrap())
    };
    let Some(truth) = run(Late::Nothing, false) else { return };
    for late in [Late::Nothing, Late::Everything, Late::Kernels] {
        assert!(run(late, true).as_ref() == Some(&truth), "{late:?}");
    }
}

/// What is evaluated and recorded travels as levels, and a card makes the values of it that
/// processors make.
#[test]
fn levels_are_encoded_and_recorded_as_their_values() {
    let Some(_session) = session() else { return };
    let config = config(true);
    let weights = values(&config, "student");
    let area = config.vision.image_size.pow(2);
    let level = |i: usize| u8::try_from(i * 31 % 256).unwrap();
    let levels = (0..21 * 3 * area).map(level).collect();
    let levels = PixelBuffer::Levels(levels, Normalise::OPENAI);
    let values = PixelBuffer::Values(levels.view().values(area).into_owned());
    let (levels, values) = (levels.view(), values.view());

    let mut cuda = Cuda::open(&config, 0, Precision::F32).unwrap();
    let mut cpu = Cpu::new(&config);
    let both: [&mut dyn Engine; 2] = [&mut cuda, &mut cpu];
    for engine in both {
        engine.load(&weights).unwrap();
        let truth = engine.encode_images(values).unwrap();
        assert!(engine.encode_images(levels).unwrap() == truth);
        let truth = engine.ffn_inputs(TowerInput::Pixels(values), &[1]).unwrap();
        assert!(engine.ffn_inputs(TowerInput::Pixels(levels), &[1]).unwrap() == truth);
    }
}

#[test]
fn encoding_recording_and_routing_equal_the_cpu() {
    let Some(_session) = session() else { return };
    let config = config(true);
    let weights = values(&config, "student");
    let (pixels, ids) = pairs(&config, 21);
    let mut engine = Cuda::open(&config, 0, Precision::F32).unwrap();
    engine.load(&weights).unwrap();
    assert_eq!(engine.values().unwrap(), weights);
    let mut cpu = Cpu::new(&config);
    cpu.load(&weights).unwrap();
    let truth = cpu.encode_images(Pixels::Values(&pixels)).unwrap();
    assert!(
        gap(&engine.encode_images(Pixels::Values(&pixels)).unwrap(), &wide(&truth))
            < 1e-5
    );
    let truth = cpu.encode_texts(&ids).unwrap();
    assert!(gap(&engine.encode_texts(&ids).unwrap(), &wide(&truth)) < 1e-5);

    for (tower, input) in [
        (Tower::Vision, TowerInput::Pixels(Pixels::Values(&pixels))),
        (Tower::Text, TowerInput::Ids(&ids)),
    ] {
        let inputs = engine.ffn_inputs(input, &[0, 2]).unwrap();
        let truth = cpu.ffn_inputs(input, &[0, 2]).unwrap();
        assert_eq!(inputs.counted, truth.counted);
        assert_eq!(inputs.starts, truth.starts);
        assert_eq!(inputs.rows.len(), 2);
        for (block, rows) in &inputs.rows {
            assert!(gap(rows, &wide(&truth.rows[block])) < 1e-5, "{tower:?} {block}");
        }

        let layers = engine.routing(input).unwrap();
        let truth = cpu.routing(input).unwrap();
        assert_eq!(layers.len(), config.moe_blocks(tower).len());
        for (layer, truth) in layers.iter().zip(&truth) {
            assert_eq!(layer.block, truth.block);
            assert_eq!(layer.chosen, truth.chosen);
            assert!(gap(&layer.probabilities, &wide(&truth.probabilities)) < 1e-5);
            assert!(gap(&layer.inputs, &wide(&truth.inputs)) < 1e-5);
        }
    }
}

/// Three steps of training: gradients' norms, weights, moments and the teacher.
fn trained(
    precision: Precision,
    target: Option<EesdTarget>,
) -> (Vec<f64>, Vec<Vec<f32>>) {
    let config = config(true);
    let weights = values(&config, "student");
    let mut engine = open(&config, precision, (&weights, &weights), target);
    let (pixels, ids) = pairs(&config, 40);
    let mut numbers = Vec::new();
    for _ in 0..3 {
        numbers.push(
            engine
                .step(Pairs { pixels: Pixels::Values(&pixels), ids: &ids })
                .unwrap()
                .total,
        );
        numbers.push(engine.update(1e-2).unwrap());
    }
    let state = engine.training_state().unwrap();
    assert_eq!(state.steps, 3);
    let average = state.average.unwrap_or_default();
    (numbers, vec![state.values, state.first, state.second, average])
}

#[test]
fn three_steps_equal_those_of_the_cpu() {
    let Some(_session) = session() else { return };
    for target in [None, Some(EesdTarget::Layer), Some(EesdTarget::Embedding)] {
        let (numbers, state) = trained(Precision::F32, target);
        let config = config(true);
        let (weights, batch) = (values(&config, "student"), pairs(&config, 40));
        let mut cpu = Cpu::new(&config);
        start(&mut cpu, &training(&config, target), (&weights, &weights));
        for step in 0..3 {
            let total = self::step(&mut cpu, &batch).0.total;
            assert!((total - numbers[2 * step]).abs() < 1e-3, "{target:?} {step}");
            let norm = cpu.update(1e-2).unwrap();
            let ratio = norm / numbers[2 * step + 1];
            assert!((ratio - 1.0).abs() < 1e-3, "{target:?} {step}: {ratio}");
        }
        let truth = cpu.training_state().unwrap();
        assert!(distance(&state[0], &truth.values) < 1e-3, "{target:?}");
        assert_eq!(state[3].len(), truth.average.as_ref().map_or(0, Vec::len));
        if let Some(average) = truth.average {
            assert!(distance(&state[3], &average) < 1e-3, "{target:?}");
        }
    }
}

/// CLIP-MoE's constant scale may lie beyond what training allows.
#[test]
fn a_frozen_logit_scale_is_not_clamped() {
    let Some(_session) = session() else { return };
    let config = config(false);
    let mut weights = values(&config, "student");
    let scale = Layout::new(&config).range(ParameterId::LogitScale).start;
    weights[scale] = 5.0;
    for frozen in [true, false] {
        let mut plan = training(&config, None);
        for (own, (parameter, _)) in
            plan.trainable.iter_mut().zip(Layout::new(&config).iter())
        {
            if frozen && parameter.id == ParameterId::LogitScale {
                *own = Trainable::Frozen;
            }
        }
        let mut engine = Cuda::open(&config, 0, Precision::F32).unwrap();
        start(&mut engine, &plan, (&weights, &weights));
        step(&mut engine, &pairs(&config, 16));
        engine.update(1e-3).unwrap();
        let found = engine.values().unwrap()[scale];
        let expected = if frozen { 5.0 } else { 100.0_f32.ln() };
        assert!((found - expected).abs() < 1e-6, "{frozen}: {found}");
    }
}

#[test]
fn calls_in_the_wrong_order_are_refused_with_a_sentence() {
    let Some(_session) = session() else { return };
    let config = config(false);
    let (pixels, ids) = pairs(&config, 2);
    let batch = Pairs { pixels: Pixels::Values(&pixels), ids: &ids };
    let plan = training(&config, None);
    let mut engine = Cuda::open(&config, 0, Precision::F32).unwrap();
    let refused = |error: upcycle::error::Error, part: &str| {
        assert!(error.to_string().contains(part), "{error}");
    };
    refused(engine.encode_images(Pixels::Values(&pixels)).unwrap_err(), "no weights yet");
    refused(engine.values().unwrap_err(), "no weights yet");
    refused(engine.start_training(&plan).unwrap_err(), "no weights yet");
    refused(engine.load(&[0.0; 3]).unwrap_err(), "3 weights, expected");

    engine.load(&values(&config, "student")).unwrap();
    refused(engine.step(batch).unwrap_err(), "does not train yet");
    engine.start_training(&plan).unwrap();
    refused(engine.update(0.1).unwrap_err(), "call step first");
    refused(engine.gradient().unwrap_err(), "call step first");
    let short = Pairs { pixels: Pixels::Values(&pixels[1..]), ids: &ids };
    refused(engine.step(short).unwrap_err(), "expected");
    let mut odd = config;
    odd.vision.width = 24;
    refused(Cuda::open(&odd, 0, Precision::F32).unwrap_err(), "heads of 12 values");
}

/// `device: cuda:0` opens what is there, and the plan names it in keys.
#[test]
fn the_engine_is_chosen_by_device_and_precision() {
    use upcycle::config::{Compute, Device};
    use upcycle::engine::Backend;
    let Some(_session) = session() else { return };
    for (precision, name) in
        [(Precision::F32, "cuda-f32"), (Precision::Bf16, "cuda-bf16")]
    {
        for device in [Device::Auto, Device::Cuda(0)] {
            let backend = Backend::choose(Compute { device, precision }).unwrap();
            assert_eq!(backend.name(), name);
            let engine = upcycle::engine::open(&config(true), backend).unwrap();
            assert_eq!(engine.backend(), name);
        }
    }
    let compute = Compute { device: Device::Cpu, precision: Precision::F32 };
    assert_eq!(Backend::choose(compute).unwrap().name(), "cpu-f32");
    let compute = Compute { device: Device::Cuda(999), precision: Precision::F32 };
    let error = Backend::choose(compute).unwrap_err().to_string();
    assert!(error.contains("cuda:999") && error.contains("set `device: cpu`"), "{error}");
}

/// `device: auto` falls back where there are no kernels for a shape, and a card that was asked
/// for is refused with the reason.
#[test]
fn shapes_without_kernels_run_on_processors_or_are_refused() {
    use upcycle::config::{Compute, Device};
    use upcycle::engine::Backend;
    let Some(_session) = session() else { return };
    let choose = |device, config: &ClipConfig| {
        let compute = Compute { device, precision: Precision::F32 };
        Backend::choose_for(compute, config)
    };

    let (mut heads, mut wide) = (config(true), config(true));
    heads.vision.heads = 4;
    (wide.text.width, wide.text.heads) = (1088, 17);
    let (mut odd, mut many) = (config(true), config(true));
    odd.text.hidden = 44;
    many.moe.as_mut().unwrap().experts = 33;
    let cases = [
        (heads, "the vision tower has heads of 8 values"),
        (wide, "the text tower has width 1088"),
        (odd, "hidden width 44"),
        (many, "the model has 33 experts per layer"),
    ];
    for (config, reason) in cases {
        assert_eq!(choose(Device::Auto, &config).unwrap().name(), "cpu-f32", "{reason}");
        let error = choose(Device::Cuda(0), &config).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert!(error.ends_with("set `device: auto` or `device: cpu`"), "{error}");
    }
    assert_eq!(choose(Device::Auto, &config(true)).unwrap().name(), "cuda-f32");
}

#[test]
fn two_runs_give_the_same_bits() {
    let Some(_session) = session() else { return };
    for precision in [Precision::F32, Precision::Bf16] {
        let one = trained(precision, Some(EesdTarget::Layer));
        assert!(one == trained(precision, Some(EesdTarget::Layer)), "{precision:?}");
    }
}

/// Four orders of threads, and work that runs as late as it may.
#[test]
fn no_order_of_threads_changes_a_bit() {
    let late = |threads, late| Order { threads, late };
    let orders = [1, 7, 12].map(|threads| late(threads, Late::Nothing));
    let later = [(0, Late::Everything), (1, Late::Everything), (0, Late::Kernels)];
    let run = |order| {
        session_in(order)
            .map(|_session| trained(Precision::Bf16, Some(EesdTarget::Layer)))
    };
    let Some(one) = run(late(0, Late::Nothing)) else { return };
    let later = later.map(|(threads, when)| late(threads, when));
    for order in orders.into_iter().chain(later) {
        assert!(run(order).as_ref() == Some(&one), "{order:?}");
    }
}

#[test]
fn frozen_tensors_keep_their_values_and_have_no_gradient() {
    let Some(_session) = session() else { return };
    let config = config(true);
    let weights = values(&config, "student");
    let mut plan = training(&config, None);
    for own in plan.trainable.iter_mut().step_by(2) {
        *own = Trainable::Frozen;
    }
    let mut engine = Cuda::open(&config, 0, Precision::F32).unwrap();
    engine.load(&weights).unwrap();
    engine.start_training(&plan).unwrap();

    // A checkpoint may have moments of what is frozen now; they move nothing.
    let mut state = engine.training_state().unwrap();
    state.first.fill(1e-3);
    state.second.fill(1e-6);
    engine.restore(&state).unwrap();

    let (_, gradient) = step(&mut engine, &pairs(&config, 16));
    engine.update(1e-2).unwrap();
    let moved = engine.values().unwrap();
    for (index, (parameter, range)) in Layout::new(&config).iter().enumerate() {
        let changed = moved[range.clone()] != weights[range.clone()];
        let zero = gradient[range].iter().all(|g| *g == 0.0);
        let frozen = index % 2 == 0;
        assert_eq!((changed, zero), (!frozen, frozen), "{}", parameter.name);
    }
}

#[test]
fn a_checkpoint_goes_on_as_if_nothing_had_happened() {
    let Some(_session) = session() else { return };
    let config = config(true);
    let weights = values(&config, "student");
    let batch = pairs(&config, 20);
    let ready = || {
        open(&config, Precision::Bf16, (&weights, &weights), Some(EesdTarget::Embedding))
    };
    let advance = |engine: &mut Cuda| {
        step(engine, &batch);
        engine.update(1e-2).unwrap();
    };

    let mut whole = ready();
    advance(&mut whole);
    let state = whole.training_state().unwrap();
    advance(&mut whole);

    let mut other = ready();
    other.restore(&state).unwrap();
    advance(&mut other);
    assert!(whole.training_state().unwrap() == other.training_state().unwrap());
}
