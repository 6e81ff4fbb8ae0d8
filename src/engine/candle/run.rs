//! The reference as an engine: forward, candle's autograd, and AdamW by its formulas, in f64.
//!
//! Everything is done the obvious way: the whole batch at once, every expert on every row,
//! captions padded to their full length. Self-distillation chooses its rows from the whole
//! batch, where the engines choose within groups of 16 samples; up to 16 pairs and at a
//! fraction of 1 there is no difference.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};

use super::optim::AdamW;
use super::{Eesd, Eligible, MoeForm, Outputs, ReferenceClip, Routing, Terms, moe};
use crate::config::EesdTarget;
use crate::engine::{
    Engine, FfnInputs, ImageLoss, LayerRouting, LayerStats, Losses, Objective, Pairs,
    SavedState, TeacherPlan, TowerInput, Trainable, Training, TrainingState,
};
use crate::error::{Context as _, Error, Result};
use crate::image::Pixels;
use crate::io::tensors::Tensors;
use crate::model::names::ParameterId;
use crate::model::params::Layout;
use crate::model::{Checkpoint, ClipConfig, Tower};
use crate::num::{index_u32, round_f32};

/// The name that the engine would have in the keys of results.
pub const BACKEND: &str = "candle-f64";

/// The reference as an engine.
#[derive(Debug)]
pub struct Candle {
    config: ClipConfig,
    model: Option<ReferenceClip>,
    run: Option<Run>,
}

/// A training run.
#[derive(Debug)]
struct Run {
    training: Training,
    trainable: BTreeMap<String, Trainable>,
    optimizer: AdamW,
    gradients: BTreeMap<String, Tensor>,
    /// The teacher's weights, with all experts whole.
    average: Option<Vec<f64>>,
}

impl Candle {
    /// The engine of a model of this shape, without weights.
    pub fn new(config: &ClipConfig) -> Self {
        Self { config: config.clone(), model: None, run: None }
    }

    fn model(&self) -> Result<&ReferenceClip> {
        self.model.as_ref().ok_or_else(|| {
            Error::failed("the engine has no weights yet: call load first")
        })
    }

    fn run(&self) -> Result<&Run> {
        self.run.as_ref().ok_or_else(not_started)
    }

    /// Flat values of named tensors, in the order of the layout.
    fn flat<'a>(&self, of: impl Fn(&str) -> &'a Tensor) -> Result<Vec<f32>> {
        let layout = Layout::new(&self.config);
        let mut flat = Vec::with_capacity(layout.len());
        for (parameter, _) in layout.iter() {
            let values = of(&parameter.name)
                .flatten_all()
                .and_then(|tensor| tensor.to_dtype(DType::F32)?.to_vec1::<f32>())
                .context(|| format!("reading {}", parameter.name))?;
            flat.extend(values);
        }
        Ok(flat)
    }

    /// Named tensors of flat values.
    fn tensors(&self, flat: &[f32]) -> Result<BTreeMap<String, Tensor>> {
        let named = Layout::new(&self.config).unflatten(flat);
        named
            .into_iter()
            .map(|(name, tensor)| {
                let made = Tensor::from_vec(tensor.data, tensor.shape, &Device::Cpu)
                    .and_then(|tensor| tensor.to_dtype(DType::F64));
                Ok((name, made.context(|| "reading a checkpoint".to_owned())?))
            })
            .collect()
    }

    /// The weights with all experts whole.
    fn whole(&self) -> Result<Vec<f32>> {
        let config = self.config.clone();
        Ok(Checkpoint { config, values: self.values()? }.merged().values)
    }

    fn outputs(&self, pairs: Pairs<'_>) -> Result<Outputs> {
        forward(self.model()?, pairs)
    }

    /// A batch of which only one side matters: the other is one blank picture or caption.
    fn one_side(&self, input: TowerInput<'_>) -> Result<Outputs> {
        let blank_picture = vec![0.0; 3 * self.config.vision.image_size.pow(2)];
        let blank_caption = vec![0; self.config.text.context];
        let pairs = match input {
            TowerInput::Pixels(pixels) => Pairs { pixels, ids: &blank_caption },
            TowerInput::Ids(ids) => Pairs { pixels: Pixels::Values(&blank_picture), ids },
        };
        self.outputs(pairs)
    }

    /// Losses with their graph, and the sums of every MoE layer.
    fn losses(&self, run: &Run, pairs: Pairs<'_>) -> Result<(Tensor, Losses)> {
        let model = self.model()?;
        let outputs = self.outputs(pairs)?;
        let eligible = Eligible::new(&self.config, outputs.pooled.len(), &outputs.pooled);
        let objective = run.training.objective;

        let average = run.average.as_ref().zip(run.training.teacher);
        let teacher = average.map(|(values, plan)| (self.teacher(values), plan));
        let layers = teacher.as_ref().filter(|(_, p)| p.target == EesdTarget::Layer);

        let terms = Terms {
            balance: objective.balance,
            router_z: objective.router_z,
            label_smoothing: objective.label_smoothing,
            eesd: layers.map(|(teacher, plan)| Eesd {
                weight: objective.eesd,
                teacher,
                fraction: plan.fraction,
            }),
        };
        let found = model.loss(&outputs, &eligible, &terms)?;

        let (mut total, mut eesd) = (found.total.clone(), found.eesd.clone());
        if let Some((teacher, plan)) = &teacher
            && plan.target == EesdTarget::Embedding
        {
            eesd = self.embedding_distance(teacher, &outputs, pairs)?;
            total = (&total + (&eesd * objective.eesd).context(computing)?)
                .context(computing)?;
        }

        let scale = &model.parameters[&ParameterId::LogitScale.name()];
        let mut losses = Losses {
            total: scalar(&total)?,
            clip: scalar(&found.clip)?,
            balance: scalar(&found.balance)?,
            router_z: scalar(&found.router_z)?,
            eesd: scalar(&eesd)?,
            logit_scale: scalar(scale)?,
            layers: Vec::new(),
        };

        for (index, (&(tower, block), routing)) in outputs.routing.iter().enumerate() {
            let mut sums = stats(routing, &eligible.rows(tower)).context(computing)?;
            if let Some([distance, target]) = found.distances.get(index) {
                sums.distance = scalar(distance)?;
                sums.target_square = scalar(target)?;
            }
            losses.layers.push((tower, block, sums));
        }
        Ok((total, losses))
    }

    fn teacher(&self, average: &[f64]) -> Tensors {
        let values: Vec<f32> = average.iter().map(|v| round_f32(*v)).collect();
        Layout::new(&self.config.merged()).unflatten(&values)
    }

    /// Mean squared distance of unit embeddings to those of the teacher with dense routing.
    fn embedding_distance(
        &self,
        teacher: &Tensors,
        outputs: &Outputs,
        pairs: Pairs<'_>,
    ) -> Result<Tensor> {
        let config = self.config.merged();
        let teacher = ReferenceClip::new(&config, teacher, DType::F64, &Device::Cpu)?;
        let target = forward(&teacher.with_moe(MoeForm::Ensemble), pairs)?;

        // Both towers' embeddings weigh the same: one mean over all 2 B of them.
        let squares =
            |own: &Tensor, target: &Tensor| (own - target.detach())?.sqr()?.sum_all();

        let count = 2 * outputs.pooled.len();
        squares(&outputs.image_embeds, &target.image_embeds)
            .and_then(|images| {
                images + squares(&outputs.text_embeds, &target.text_embeds)?
            })
            .and_then(|sum| sum / count as f64)
            .context(computing)
    }
}

impl Engine for Candle {
    fn backend(&self) -> &'static str {
        BACKEND
    }

    fn config(&self) -> &ClipConfig {
        &self.config
    }

    fn load(&mut self, values: &[f32]) -> Result<()> {
        let layout = Layout::new(&self.config);
        if values.len() != layout.len() {
            let (found, expected) = (values.len(), layout.len());
            return Err(Error::failed(format!(
                "the engine was given {found} weights, expected {expected}: the weights \
                 belong to a model of another shape"
            )));
        }

        let tensors = layout.unflatten(values);
        let model = ReferenceClip::new(&self.config, &tensors, DType::F64, &Device::Cpu)?;

        // New weights end a training run: its moments belong to the old ones.
        (self.model, self.run) = (Some(model), None);
        Ok(())
    }

    fn values(&self) -> Result<Vec<f32>> {
        let parameters = &self.model()?.parameters;
        self.flat(|name| parameters[name].as_tensor())
    }

    fn encode_images(&mut self, pixels: Pixels<'_>) -> Result<Vec<f32>> {
        host(&self.one_side(TowerInput::Pixels(pixels))?.image_embeds)
    }

    fn encode_texts(&mut self, ids: &[u32]) -> Result<Vec<f32>> {
        host(&self.one_side(TowerInput::Ids(ids))?.text_embeds)
    }

    fn ffn_inputs(
        &mut self,
        input: TowerInput<'_>,
        blocks: &[usize],
    ) -> Result<FfnInputs> {
        let outputs = self.one_side(input)?;

        let rows = TowerRows::of(&self.config, input, &outputs);

        // The reference pads every caption; an engine leaves the rows behind the end of
        // text out, so they are left out here.
        let mut found = FfnInputs { starts: vec![0], ..FfnInputs::default() };
        for sample in &rows.samples {
            found.counted.extend(sample.clone().map(|row| rows.counted[row]));
            found.starts.push(found.counted.len());
        }

        let width = self.config.tower(rows.tower).width;
        for &block in blocks {
            let Some(inputs) = outputs.ffn_in.get(&(rows.tower, block)) else {
                let tower = rows.tower.name();
                return Err(Error::usage(format!(
                    "the {tower} tower has no block {block}"
                )));
            };

            let all = host(inputs)?;
            let kept = rows.samples.iter().cloned().flatten();
            let kept = kept.flat_map(|row| &all[row * width..(row + 1) * width]).copied();
            found.rows.insert(block, kept.collect());
        }
        Ok(found)
    }

    fn routing(&mut self, input: TowerInput<'_>) -> Result<Vec<LayerRouting>> {
        let outputs = self.one_side(input)?;
        let rows = TowerRows::of(&self.config, input, &outputs);
        let counted: Vec<usize> =
            (0..rows.counted.len()).filter(|&row| rows.counted[row]).collect();
        let width = self.config.tower(rows.tower).width;

        let own = outputs.routing.iter().filter(|((tower, _), _)| *tower == rows.tower);
        own.map(|(&(tower, block), routing)| {
            let inputs = outputs.ffn_in[&(tower, block)].reshape(((), width));
            let inputs = inputs.context(computing)?;
            let take = |x: &Tensor| moe::take(x, &counted).context(computing);
            let chosen = counted.iter().flat_map(|&row| &routing.chosen[row]);
            Ok(LayerRouting {
                block,
                inputs: host(&take(&inputs)?)?,
                probabilities: host(&take(&routing.probs)?)?,
                chosen: chosen.map(|&expert| index_u32(expert)).collect(),
            })
        })
        .collect()
    }

    fn start_training(&mut self, training: &Training) -> Result<()> {
        let model = self.model()?;
        let layout = Layout::new(&self.config);

        let names = layout.iter().map(|(parameter, _)| parameter.name.clone());
        let trainable = names.zip(training.trainable.iter().copied()).collect();
        let follow = training.teacher.map(|plan| self.followed(plan)).transpose()?;

        self.run = Some(Run {
            optimizer: AdamW::new(&model.parameters).context(computing)?,
            trainable,
            gradients: BTreeMap::new(),
            average: follow,
            training: training.clone(),
        });
        Ok(())
    }

    fn set_objective(&mut self, objective: Objective) -> Result<()> {
        let run = self.run.as_mut().ok_or_else(not_started)?;
        run.training.objective = objective;
        run.gradients.clear();
        Ok(())
    }

    fn step(&mut self, pairs: Pairs<'_>) -> Result<Losses> {
        let run = self.run()?;
        let (total, losses) = self.losses(run, pairs)?;
        self.differentiate(&total)?;
        Ok(losses)
    }

    fn image_step(&mut self, pixels: Pixels<'_>, loss: ImageLoss<'_>) -> Result<f64> {
        let embeddings = self.one_side(TowerInput::Pixels(pixels))?.image_embeds;
        let (value, gradient) = loss(&host(&embeddings)?)?;

        // A sum with constant factors has the loss's gradient by the embeddings.
        let factors = Tensor::from_vec(gradient, embeddings.dims(), &Device::Cpu);
        let linear = factors
            .and_then(|factors| (embeddings * factors.to_dtype(DType::F64)?)?.sum_all());
        self.differentiate(&linear.context(computing)?)?;
        Ok(value)
    }

    fn update(&mut self, learning_rate: f64) -> Result<f64> {
        let run = self.run.as_mut().ok_or_else(not_started)?;
        let model = self.model.as_ref().ok_or_else(not_started)?;
        if run.gradients.is_empty() {
            return Err(Error::failed("there is no gradient: call step first"));
        }

        let step = (learning_rate, &run.training.optim);
        let norm = run
            .optimizer
            .step(&model.parameters, &run.gradients, &run.trainable, step)
            .context(computing)?;

        // METHOD §4: the logit scale stays within 1 and 100, if it trains at all.
        let name = ParameterId::LogitScale.name();
        if run.trainable[&name] != Trainable::Frozen {
            let scale = &model.parameters[&name];
            let clamped = scale.clamp(0.0, 100.0_f64.ln());
            clamped.and_then(|value| scale.set(&value)).context(computing)?;
        }

        self.follow()?;
        Ok(norm)
    }

    fn gradient(&self) -> Result<Vec<f32>> {
        let gradients = &self.run()?.gradients;
        if gradients.is_empty() {
            return Err(Error::failed("there is no gradient: call step first"));
        }
        self.flat(|name| &gradients[name])
    }

    fn training_state(&self) -> Result<TrainingState> {
        let run = self.run()?;
        let rounded = |values: &Vec<f64>| values.iter().map(|v| round_f32(*v)).collect();
        Ok(TrainingState {
            values: self.values()?,
            first: self.flat(|name| &run.optimizer.first[name])?,
            second: self.flat(|name| &run.optimizer.second[name])?,
            average: run.average.as_ref().map(rounded),
            steps: run.optimizer.steps,
        })
    }

    fn restore(&mut self, state: &dyn SavedState) -> Result<()> {
        let state = TrainingState::read_whole(state)?;
        let mut run = self.run.take().ok_or_else(not_started)?;
        run.optimizer = AdamW {
            first: self.tensors(&state.first)?,
            second: self.tensors(&state.second)?,
            steps: state.steps,
        };
        run.average = state
            .average
            .as_ref()
            .map(|values| values.iter().map(|v| f64::from(*v)).collect());

        // Loading ends the run, which is therefore put back afterwards.
        self.load(&state.values)?;
        self.run = Some(run);
        Ok(())
    }
}

impl Candle {
    /// Keeps the gradient of a scalar, zeros where a tensor is frozen.
    fn differentiate(&mut self, scalar: &Tensor) -> Result<()> {
        let mut gradients = self.model()?.gradient_tensors(scalar)?;
        let run = self.run.as_mut().ok_or_else(not_started)?;
        for (name, gradient) in &mut gradients {
            if run.trainable[name] == Trainable::Frozen {
                *gradient = gradient.zeros_like().context(computing)?;
            }
        }
        run.gradients = gradients;
        Ok(())
    }

    /// The teacher at the weights as they are; zeros where nothing is followed.
    fn followed(&self, plan: TeacherPlan) -> Result<Vec<f64>> {
        let mut values: Vec<f64> = self.whole()?.into_iter().map(f64::from).collect();
        for (parameter, range) in Layout::new(&self.config.merged()).iter() {
            if plan.target == EesdTarget::Layer && !parameter.id.is_moe() {
                values[range].fill(0.0);
            }
        }
        Ok(values)
    }

    /// Moves the teacher towards the weights by 1 - decay.
    fn follow(&mut self) -> Result<()> {
        let Some(plan) = self.run()?.training.teacher else { return Ok(()) };
        let values = self.followed(plan)?;

        let run = self.run.as_mut().ok_or_else(not_started)?;
        if let Some(average) = &mut run.average {
            for (average, value) in average.iter_mut().zip(values) {
                *average += (1.0 - plan.decay) * (value - *average);
            }
        }
        Ok(())
    }
}

/// The rows of a tower that an engine keeps, among the padded ones of the reference.
struct TowerRows {
    tower: Tower,
    /// The kept rows of each sample.
    samples: Vec<std::ops::Range<usize>>,
    /// Whether a padded row counts.
    counted: Vec<bool>,
}

impl TowerRows {
    fn of(config: &ClipConfig, input: TowerInput<'_>, outputs: &Outputs) -> Self {
        let images = match input {
            TowerInput::Pixels(pixels) => {
                pixels.len() / (3 * config.vision.image_size.pow(2))
            }
            TowerInput::Ids(_) => 1,
        };

        let eligible = Eligible::new(config, images, &outputs.pooled);
        match input {
            TowerInput::Pixels(_) => {
                let tokens = config.tower(Tower::Vision).tokens;
                let samples = (0..images).map(|i| i * tokens..(i + 1) * tokens).collect();
                Self { tower: Tower::Vision, samples, counted: eligible.vision }
            }
            TowerInput::Ids(_) => {
                let context = config.text.context;
                let ends = outputs.pooled.iter().enumerate();
                let samples = ends.map(|(i, end)| i * context..i * context + end + 1);
                Self {
                    tower: Tower::Text,
                    samples: samples.collect(),
                    counted: eligible.text,
                }
            }
        }
    }
}

fn forward(model: &ReferenceClip, pairs: Pairs<'_>) -> Result<Outputs> {
    let (side, context) = (model.config.vision.image_size, model.config.text.context);
    let pictures = pairs.pixels.len() / (3 * side * side);
    let captions = pairs.ids.len() / context;

    let shape = (pictures, 3, side, side);
    let values = pairs.pixels.values(side * side);
    let pixels = Tensor::from_slice(&values, shape, &Device::Cpu);
    let ids = Tensor::from_slice(pairs.ids, (captions, context), &Device::Cpu);
    model.forward(&pixels.context(computing)?, &ids.context(computing)?)
}

/// The sums over the counted rows of one layer.
fn stats(routing: &Routing, rows: &[usize]) -> candle_core::Result<LayerStats> {
    let experts = routing.probs.dim(1)?;
    let entropies = routing.entropies()?;
    let log_sums =
        super::layers::log_sum_exp(&moe::take(&routing.logits, rows)?)?.sqr()?;

    let mut counts = vec![0.0; experts];
    for &expert in rows.iter().flat_map(|&row| &routing.chosen[row]) {
        counts[expert] += 1.0;
    }

    Ok(LayerStats {
        rows: rows.len() as f64,
        counts,
        probability: moe::take(&routing.probs, rows)?
            .sum(0)?
            .to_dtype(DType::F64)?
            .to_vec1()?,
        entropy: rows.iter().map(|&row| entropies[row]).sum(),
        log_sum_square: log_sums.sum_all()?.to_dtype(DType::F64)?.to_scalar()?,
        ..LayerStats::default()
    })
}

fn scalar(x: &Tensor) -> Result<f64> {
    x.to_dtype(DType::F64).and_then(|x| x.to_scalar()).context(computing)
}

fn host(x: &Tensor) -> Result<Vec<f32>> {
    x.flatten_all().and_then(|x| x.to_dtype(DType::F32)?.to_vec1()).context(computing)
}

fn computing() -> String {
    "running the reference model".to_owned()
}

fn not_started() -> Error {
    Error::failed("the engine does not train yet: call start_training first")
}
