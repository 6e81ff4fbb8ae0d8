//! The graph: every node of the pipeline, in an order in which they can run.
//!
//! A node is one stage for one run. The plan follows from the configuration alone; what is on
//! disk does not matter here. Only initializations and variants that some run uses are
//! planned. The Makefile has the same graph stage by stage, and a test compares the two.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::activations::ActivationsParams;
use super::analyze::AnalyzeParams;
use super::cluster::ClusterParams;
use super::dataset::DatasetParams;
use super::evaluate::{self, EvaluateParams};
use super::multiplet::MultipletParams;
use super::pretrain::{self, PretrainParams};
use super::report::{IMPORTED, ReportParams};
use super::shared;
use super::subspaces::SubspacesParams;
use super::train::TrainParams;
use super::upcycle::UpcycleParams;
use crate::artifact::Place;
use crate::config::{
    Compute, Config, Device, EvaluateConfig, InitConfig, RunConfig, Source, Trains,
};
use crate::engine::Backend;
use crate::error::{Context, Error, Result};
use crate::model::{ClipConfig, Moe};
use crate::pipeline::{Externals, Files, Node, Upstream};
use crate::upcycle;

/// Files of a model that a reader of its final weights needs.
const MODEL: &[&str] = &["config.json", "model.safetensors"];

/// Files of a trained model with the weights at its start and at its end.
const TRAINED: &[&str] = &["config.json", "init.safetensors", "model.safetensors"];

/// Files of the data set that training reads.
const TRAINING_DATA: &[&str] = &[
    "concepts.parquet",
    "dataset.json",
    "labels.parquet",
    "samples-train.parquet",
    "samples-val.parquet",
    "tokenizer.json",
];

/// Files of the data set that the recording of FFN inputs reads.
const CALIBRATION_DATA: &[&str] = &[
    "concepts.parquet",
    "dataset.json",
    "labels.parquet",
    "samples-train.parquet",
    "tokenizer.json",
];

/// Files of the data set that the analysis of experts reads.
const ANALYSIS_DATA: &[&str] = &[
    "concepts.parquet",
    "dataset.json",
    "labels.parquet",
    "samples-val.parquet",
    "tokenizer.json",
];

/// Files of the data set that say how pictures and captions are prepared.
const PREPARATION: &[&str] = &["dataset.json", "tokenizer.json"];

/// What places call the default of a sweep.
const DEFAULT: &str = "default";

/// Files of a training that a choice of hyperparameters is made by.
const SWEPT: &[&str] = &["log.parquet", "validation.parquet"];

/// Stages that the report does not read: weights and raw activations.
const UNREPORTED: &[&str] = &["activations", "multiplet", "upcycle"];

/// Plans the whole pipeline. `cache` is the folder of downloaded packages.
pub fn plan(config: &Config, cache: &Path) -> Result<Vec<Node>> {
    // A method that cannot run with its parameters is refused here, and not after the training
    // of the dense model.
    upcycle::check_inits(&config.inits, &config.subspaces)?;

    let planner = Planner::new(config, cache, None)?;
    let runs: Vec<&str> = config.runs.keys().map(String::as_str).collect();
    let mut nodes = planner.training(&runs, &config.seeds)?;
    for stage in [Planner::evaluate, Planner::analyze] {
        for run in &runs {
            for &seed in &config.seeds {
                nodes.push(stage(&planner, run, seed)?);
            }
        }
    }
    nodes.extend(planner.evaluate_pixels()?);
    nodes.extend(planner.evaluate_sets()?);

    // The report reads what all the others write, so it comes last.
    let mut read = everything(&nodes);
    read.extend(sweep(config, cache, &mut nodes)?);
    nodes.push(planner.report(read)?);
    Ok(nodes)
}

/// Adds the trainings of section `sweep`, and returns what the report reads of them, by factor,
/// number of the value and seed. They are not evaluated: a choice sees validation pictures only.
fn sweep(config: &Config, cache: &Path, nodes: &mut Vec<Node>) -> Result<Vec<Upstream>> {
    let mut read = Vec::new();
    let base = config.seeds.first().copied();
    for (name, factor) in &config.sweep.factors {
        let points = config.sweep_points(name, factor)?;

        // The default first: what all values of a factor share carries its name, not a value's.
        let mut order: Vec<usize> = (0..points.len()).collect();
        order.sort_by_key(|&index| !points[index].is_default);
        for index in order {
            let point = &points[index];
            let about = |e: Error| {
                Error::new(e.kind(), format!("{}: {}", point.name, e.message()))
            };
            upcycle::check_inits(&point.config.inits, &point.config.subspaces)
                .map_err(about)?;

            // All points start from one dense model: another one would be another factor.
            let planner = Planner::new(&point.config, cache, base)?;
            let found = planner.training(&[&factor.run], &config.sweep.seeds)?;
            let named = if point.is_default { DEFAULT } else { &point.name };
            let places = shared::add(nodes, found, named)?;

            for &seed in &config.sweep.seeds {
                let place = Place::new("train", run_name(&factor.run, seed));
                read.push(Upstream {
                    name: format!("sweep/{name}/{index}-s{seed}"),
                    place: places.get(&place).cloned().unwrap_or(place),
                    files: Files::Listed(SWEPT),
                });
            }
        }
    }
    Ok(read)
}

/// All that the report reads of the comparison: every result but the weights and the raw
/// activations.
fn everything(nodes: &[Node]) -> Vec<Upstream> {
    let reported = nodes.iter().filter(|node| !UNREPORTED.contains(&node.stage));
    reported
        .map(|node| Upstream {
            name: node.place.to_string(),
            place: node.place.clone(),
            files: Files::All,
        })
        .collect()
}

/// What nodes are made from.
struct Planner<'a> {
    config: &'a Config,
    cache: &'a Path,
    /// What runs the models.
    backend: Backend,
    /// The seed of the one dense model that runs start from, instead of the configured ones.
    base: Option<u64>,
}

/// What runs the models of a pipeline: known, or refused, before any stage runs.
fn backend(config: &Config) -> Result<Backend> {
    let compute = config.compute();
    if Backend::choose(compute)? == Backend::Cpu {
        return Ok(Backend::Cpu);
    }
    let moe = &config.moe;
    let shape = pretrain::dense(config)?;
    let moe = Moe {
        experts: moe.experts,
        top_k: moe.top_k,
        rank: None,
        vision_blocks: moe.vision_blocks.indices(shape.vision.layers),
        text_blocks: moe.text_blocks.indices(shape.text.layers),
    };
    Backend::choose_for(compute, &ClipConfig { moe: Some(moe), ..shape })
}

impl<'a> Planner<'a> {
    fn new(config: &'a Config, cache: &'a Path, base: Option<u64>) -> Result<Self> {
        Ok(Self { config, cache, backend: backend(config)?, base })
    }

    /// The seeds of the dense models that runs start from.
    fn bases(&self) -> &[u64] {
        self.base.as_ref().map_or(self.config.base_seeds(), std::slice::from_ref)
    }

    /// The seed of the dense model that the runs of a seed start from.
    fn base_of(&self, seed: u64) -> u64 {
        self.base.unwrap_or_else(|| self.config.base_of(seed))
    }

    /// Everything up to the trained models of some runs.
    fn training(&self, runs: &[&str], seeds: &[u64]) -> Result<Vec<Node>> {
        let inits = self.used_inits(runs)?;
        let bases = self.bases();

        let mut nodes = vec![self.dataset()?];
        for &seed in bases {
            nodes.push(self.pretrain(seed)?);
        }

        // Activations and clusters are only needed by methods that ask for evidence.
        let (mut clusters, mut multiplets) = (false, false);
        for (_, init) in &inits {
            let needs = upcycle::find(&init.method)?.needs();
            clusters |= needs.clusters();
            multiplets |= needs.multiplet;
        }

        if clusters {
            for &seed in bases {
                nodes.push(self.activations(seed)?);
            }
            for &seed in bases {
                nodes.push(self.cluster(seed)?);
            }
        }

        for variant in used_variants(&inits)? {
            for &seed in bases {
                nodes.push(self.subspaces(variant, seed)?);
            }
        }
        if multiplets {
            for &seed in bases {
                nodes.push(self.multiplet(seed)?);
            }
        }

        for (name, init) in &inits {
            for &seed in seeds {
                nodes.push(self.upcycle(name, init, seed)?);
            }
        }
        for run in runs {
            for &seed in seeds {
                nodes.push(self.train(run, seed)?);
            }
        }
        Ok(nodes)
    }

    /// The one node of the data set, which every seed shares.
    fn dataset(&self) -> Result<Node> {
        // Paths are taken out of the parameters: where files lie must not reach the key.
        let mut dataset = self.config.dataset.clone();
        let with_paths = dataset.clone();
        let folder = PathBuf::from(std::mem::take(&mut dataset.folder));
        let file = PathBuf::from(std::mem::take(&mut dataset.file));
        let like = PathBuf::from(std::mem::take(&mut dataset.like));

        // Packages have pinned digests and are few; what a user has may be many files, and is
        // listed when the key is made.
        let adopted = super::adopted::files(&like);
        let externals = match dataset.source {
            Source::Emoji | Source::Icons => {
                let packages = super::dataset::externals(dataset.source, self.cache);
                Externals::Files([packages, adopted].concat())
            }
            Source::Shapes if adopted.is_empty() => Externals::None,
            Source::Shapes => Externals::Files(adopted),
            Source::Folder
            | Source::Csv
            | Source::Parquet
            | Source::Coco
            | Source::Webdataset => {
                Externals::Pairs(Box::new(with_paths), super::dataset::pairs, adopted)
            }
        };

        let mut node = node("dataset", None, &DatasetParams { dataset }, vec![])?;
        node.externals = externals;
        node.paths = BTreeMap::from([
            ("cache".to_owned(), self.cache.to_owned()),
            ("file".to_owned(), file),
            ("folder".to_owned(), folder),
            ("like".to_owned(), like),
        ]);
        Ok(node)
    }

    /// The dense model of a base: trained, or taken over from the folder in the configuration.
    fn pretrain(&self, seed: u64) -> Result<Node> {
        let pretrain = &self.config.pretrain;
        let run = base_name(seed);

        if pretrain.checkpoint.is_empty() {
            let model = self.config.model.clone();
            let optim = Box::new(pretrain.optim.clone());
            let params = PretrainParams::Train { model, optim, seed };
            let node = node("pretrain", run, &params, vec![dataset(TRAINING_DATA)])?;
            return Ok(self.with_engine(node));
        }

        // A checkpoint that is not the configured model is refused before anything runs.
        pretrain::dense(self.config)?;
        let folder = PathBuf::from(&pretrain.checkpoint);
        let data = dataset(TRAINING_DATA);
        let mut node = node("pretrain", run, &PretrainParams::Import {}, vec![data])?;
        node.externals = Externals::Folder(folder.clone(), vec![]);
        node.paths = BTreeMap::from([("checkpoint".to_owned(), folder)]);
        Ok(node)
    }

    /// The recording of FFN inputs of a base.
    fn activations(&self, seed: u64) -> Result<Node> {
        let (model, moe) = (&self.config.model, &self.config.moe);
        let params = ActivationsParams {
            activations: self.config.activations.clone(),
            vision_blocks: moe.vision_blocks.indices(model.vision.layers),
            text_blocks: moe.text_blocks.indices(model.text.layers),
            seed,
        };

        let inputs =
            vec![dataset(CALIBRATION_DATA), input("pretrain", base_name(seed), MODEL)];
        Ok(self.with_engine(node("activations", base_name(seed), &params, inputs)?))
    }

    /// The clusters of a base: as many as there are experts.
    fn cluster(&self, seed: u64) -> Result<Node> {
        let cluster = self.config.cluster.clone();
        let params = ClusterParams { cluster, clusters: self.config.moe.experts, seed };
        let inputs = vec![all("activations", base_name(seed))];
        node("cluster", base_name(seed), &params, inputs)
    }

    /// The subspaces of a base, by one variant.
    fn subspaces(&self, variant: &str, seed: u64) -> Result<Node> {
        let subspaces = self.config.subspaces.get(variant).cloned().ok_or_else(|| {
            Error::usage(format!("subspaces does not have a variant named {variant}"))
        })?;

        let inputs = vec![
            input("pretrain", base_name(seed), MODEL),
            all("activations", base_name(seed)),
            input(
                "cluster",
                base_name(seed),
                &["assignments.parquet", "centroids.safetensors"],
            ),
        ];
        let params = SubspacesParams { subspaces, seed };
        node("subspaces", run_name(variant, seed), &params, inputs)
    }

    /// The fine-tuned FFNs of one base.
    fn multiplet(&self, seed: u64) -> Result<Node> {
        let (model, moe) = (&self.config.model, &self.config.moe);
        let params = MultipletParams {
            multiplet: self.config.multiplet.clone(),
            cluster: self.config.cluster.clone(),
            experts: moe.experts,
            vision_blocks: moe.vision_blocks.indices(model.vision.layers),
            text_blocks: moe.text_blocks.indices(model.text.layers),
            seed,
        };
        let inputs =
            vec![dataset(TRAINING_DATA), input("pretrain", base_name(seed), MODEL)];
        Ok(self.with_engine(node("multiplet", base_name(seed), &params, inputs)?))
    }

    /// One initialization for one seed. It reads only the evidence that its method asks for.
    fn upcycle(&self, name: &str, init: &InitConfig, seed: u64) -> Result<Node> {
        let base = self.base_of(seed);
        let mut inputs = vec![input("pretrain", base_name(base), MODEL)];

        let needs = upcycle::find(&init.method)?.needs();
        if needs.centroids {
            inputs.push(input("cluster", base_name(base), &["centroids.safetensors"]));
        }
        if needs.subspaces.is_some() {
            let run = run_name(variant_of(name, init)?, base);
            inputs.push(input("subspaces", run, &["bases.safetensors"]));
        }
        if needs.multiplet {
            inputs.push(input("multiplet", base_name(base), &["ffns.safetensors"]));
        }

        // Which variant is read shows in the digests of its files; its name does not count.
        let init = InitConfig { subspaces: None, ..init.clone() };
        let params = UpcycleParams { init, moe: self.config.moe.clone(), seed };
        node("upcycle", run_name(name, seed), &params, inputs)
    }

    /// The training of one run.
    fn train(&self, run: &str, seed: u64) -> Result<Node> {
        let mut train = self.config.train.clone();
        let named = run_name(run, seed);
        let run = self.run_config(run)?;
        if let Some(tokens) = run.eesd_tokens {
            train.eesd.tokens = tokens;
        }

        // Runs that differ in the loss alone start from the same initialization.
        let params = TrainParams { train, eesd: run.eesd, trains: run.trains, seed };
        let init = input("upcycle", run_name(&run.init, seed), MODEL);
        let inputs = vec![dataset(TRAINING_DATA), init];
        Ok(self.with_engine(node("train", named, &params, inputs)?))
    }

    /// A run whose tensors that are to train exist.
    fn run_config(&self, name: &str) -> Result<&RunConfig> {
        let run = &self.config.runs[name];
        let method = &self.config.inits[&run.init].method;
        if run.trains == Trains::Routers && upcycle::find(method)?.form().is_dense() {
            return Err(Error::usage(format!(
                "runs.{name}.trains: found routers, but the method {method} of its \
                 initialization has no router; expected all"
            )));
        }
        Ok(run)
    }

    /// A node that runs a model: the engine's name enters its key.
    fn with_engine(&self, node: Node) -> Node {
        let (backend, compute) = (self.backend.name(), self.config.compute());
        Node { backend, compute, ..node }
    }

    /// The evaluation of one run.
    fn evaluate(&self, run: &str, seed: u64) -> Result<Node> {
        let named = run_name(run, seed);
        let evaluate =
            EvaluateConfig { sets: vec![], pixels: 0, ..self.config.evaluate.clone() };
        let params = EvaluateParams::Splits { evaluate, seed };
        let inputs = vec![all("dataset", None), input("train", named.clone(), TRAINED)];
        Ok(self.with_engine(node("evaluate", named, &params, inputs)?))
    }

    /// Classifiers on pixels, which no model takes part in: one node for all runs.
    fn evaluate_pixels(&self) -> Result<Option<Node>> {
        let evaluate = &self.config.evaluate;
        if evaluate.pixels == 0 {
            return Ok(None);
        }
        let params = EvaluateParams::Pixels {
            pixels: evaluate.pixels,
            probe_l2: evaluate.probe_l2.clone(),
            bootstrap: evaluate.bootstrap,
            seed: self.config.seeds.first().copied().unwrap_or(1),
        };
        let run = Some(evaluate::PIXELS.to_owned());
        node("evaluate", run, &params, vec![all("dataset", None)]).map(Some)
    }

    /// Every model on every set of others: the dense models before they are touched, and the
    /// runs.
    fn evaluate_sets(&self) -> Result<Vec<Node>> {
        let bases = self.bases().iter();
        let mut models: Vec<(&'static str, Option<String>)> =
            bases.map(|&seed| ("pretrain", base_name(seed))).collect();
        for run in self.config.runs.keys() {
            let seeds = self.config.seeds.iter();
            models.extend(seeds.map(|&seed| ("train", run_name(run, seed))));
        }

        let mut nodes = Vec::new();
        for folder in &self.config.evaluate.sets {
            for (stage, model) in &models {
                nodes.push(self.evaluate_set(folder, stage, model.clone())?);
            }
        }
        Ok(nodes)
    }

    /// One model on one set. The place is `<model>.<set>`.
    fn evaluate_set(
        &self,
        folder: &str,
        stage: &'static str,
        model: Option<String>,
    ) -> Result<Node> {
        let evaluate = &self.config.evaluate;
        let set = EvaluateConfig::set_name(folder);
        let named = model.as_ref().map(|model| format!("{model}.{set}"));
        let params = EvaluateParams::Set {
            set,
            recall_at: evaluate.recall_at.clone(),
            bootstrap: evaluate.bootstrap,
            batch: evaluate.batch,
            corrupt_share: self.config.dataset.corrupt_share,
        };
        let inputs = vec![dataset(PREPARATION), input(stage, model, MODEL)];
        let mut node = self.with_engine(node("evaluate", named, &params, inputs)?);
        node.externals = Externals::Folder(PathBuf::from(folder), vec![]);
        node.paths = BTreeMap::from([("set".to_owned(), PathBuf::from(folder))]);
        Ok(node)
    }

    /// The analysis of one run's experts, beside the dense model that it comes from.
    fn analyze(&self, run: &str, seed: u64) -> Result<Node> {
        let named = run_name(run, seed);
        let params = AnalyzeParams { analyze: self.config.analyze.clone(), seed };
        let inputs = vec![
            dataset(ANALYSIS_DATA),
            input("pretrain", base_name(self.base_of(seed)), MODEL),
            input("train", named.clone(), TRAINED),
        ];
        Ok(self.with_engine(node("analyze", named, &params, inputs)?))
    }

    /// The report, which reads all of `inputs`.
    fn report(&self, inputs: Vec<Upstream>) -> Result<Node> {
        // Paths must not reach the key of the report either.
        let mut config = self.config.clone();
        let path = |text: &mut String| PathBuf::from(std::mem::take(text));
        let mut paths = BTreeMap::from([
            ("dataset.folder".to_owned(), path(&mut config.dataset.folder)),
            ("dataset.file".to_owned(), path(&mut config.dataset.file)),
            ("dataset.like".to_owned(), path(&mut config.dataset.like)),
            ("pretrain.checkpoint".to_owned(), path(&mut config.pretrain.checkpoint)),
        ]);
        for (index, set) in config.evaluate.sets.iter_mut().enumerate() {
            let name = EvaluateConfig::set_name(set);
            let folder = std::mem::replace(set, name);
            paths.insert(format!("evaluate.sets.{index}"), PathBuf::from(folder));
        }

        // That there is a checkpoint is part of the story; where it lies is not.
        if !self.config.pretrain.checkpoint.is_empty() {
            IMPORTED.clone_into(&mut config.pretrain.checkpoint);
        }

        // What ran the models stands in the keys of the results that are read.
        config.device = Device::Auto;

        let node = node("report", None, &ReportParams { config }, inputs)?;
        Ok(Node { paths, ..node })
    }

    /// The initializations that the runs use, by name.
    fn used_inits(&self, runs: &[&str]) -> Result<Vec<(&'a str, &'a InitConfig)>> {
        let used: BTreeSet<&str> =
            runs.iter().map(|&run| self.config.runs[run].init.as_str()).collect();

        used.into_iter()
            .map(|name| {
                let init = self.config.inits.get(name);
                init.map(|init| (name, init)).ok_or_else(|| {
                    Error::usage(format!(
                        "runs names the initialization {name}, which inits does not have"
                    ))
                })
            })
            .collect()
    }
}

/// The variant of subspaces that an initialization names.
fn variant_of<'a>(name: &str, init: &'a InitConfig) -> Result<&'a str> {
    init.subspaces.as_deref().ok_or_else(|| {
        let method = &init.method;
        Error::usage(format!(
            "inits.{name}: the method {method} needs `subspaces: <variant>`"
        ))
    })
}

/// The variants of subspaces that some run's method asks for.
fn used_variants<'a>(inits: &[(&str, &'a InitConfig)]) -> Result<BTreeSet<&'a str>> {
    let mut used = BTreeSet::new();
    for (name, init) in inits {
        if upcycle::find(&init.method)?.needs().subspaces.is_some() {
            used.insert(variant_of(name, init)?);
        }
    }
    Ok(used)
}

/// The run of a stage that exists once per dense model.
#[expect(clippy::unnecessary_wraps, reason = "stages without runs pass None instead")]
fn base_name(seed: u64) -> Option<String> {
    Some(format!("s{seed}"))
}

/// The run of a stage that exists once per name and seed.
#[expect(clippy::unnecessary_wraps, reason = "stages without runs pass None instead")]
fn run_name(name: &str, seed: u64) -> Option<String> {
    Some(format!("{name}-s{seed}"))
}

/// Some files of the data set.
fn dataset(files: &'static [&'static str]) -> Upstream {
    input("dataset", None, files)
}

/// Some files of an upstream result, which the reader calls by its stage.
fn input(
    stage: &'static str,
    run: Option<String>,
    files: &'static [&'static str],
) -> Upstream {
    let place = Place::new(stage, run);
    Upstream { name: stage.to_owned(), place, files: Files::Listed(files) }
}

/// A result that is read whole.
fn all(stage: &'static str, run: Option<String>) -> Upstream {
    Upstream { files: Files::All, ..input(stage, run, &[]) }
}

/// A node that runs no model and reads nothing from outside.
fn node(
    stage: &'static str,
    run: Option<String>,
    params: &impl Serialize,
    inputs: Vec<Upstream>,
) -> Result<Node> {
    let params = serde_json::to_value(params)
        .context(|| format!("cannot write the parameters of {stage} as JSON"))?;

    Ok(Node {
        stage,
        place: Place::new(stage, run),
        params,
        // Stages without a model run on processors, whatever the device.
        backend: Backend::Cpu.name(),
        compute: Compute::default(),
        inputs,
        externals: Externals::None,
        paths: BTreeMap::new(),
    })
}
