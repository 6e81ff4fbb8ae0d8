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
use super::evaluate::EvaluateParams;
use super::pretrain::{self, PretrainParams};
use super::report::{IMPORTED, ReportParams};
use super::subspaces::SubspacesParams;
use super::train::TrainParams;
use super::upcycle::UpcycleParams;
use crate::artifact::Place;
use crate::config::{Compute, Config, Device, InitConfig, Source};
use crate::engine::Backend;
use crate::error::{Context, Error, Result};
use crate::pipeline::{Externals, Files, Node, Upstream};
use crate::upcycle::{self, Needs};

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

/// Stages that the report does not read: weights and raw activations.
const UNREPORTED: &[&str] = &["activations", "upcycle"];

/// Plans the whole pipeline. `cache` is the folder of downloaded packages.
pub fn plan(config: &Config, cache: &Path) -> Result<Vec<Node>> {
    upcycle::check_inits(&config.inits, &config.subspaces)?;
    let planner = Planner { config, cache };
    let inits = planner.used_inits()?;
    let bases = config.base_seeds();
    let mut nodes = vec![planner.dataset()?];
    for &seed in bases {
        nodes.push(planner.pretrain(seed)?);
    }

    // Activations and clusters are only needed by methods that ask for evidence.
    let mut clusters = false;
    for (_, init) in &inits {
        clusters |= upcycle::find(&init.method)?.needs() != Needs::default();
    }
    if clusters {
        for &seed in bases {
            nodes.push(planner.activations(seed)?);
        }
        for &seed in bases {
            nodes.push(planner.cluster(seed)?);
        }
    }
    for variant in used_variants(&inits)? {
        for &seed in bases {
            nodes.push(planner.subspaces(variant, seed)?);
        }
    }

    for (name, init) in &inits {
        for &seed in &config.seeds {
            nodes.push(planner.upcycle(name, init, seed)?);
        }
    }
    let of_every_run = [Planner::train, Planner::evaluate, Planner::analyze];
    for stage in of_every_run {
        for run in config.runs.keys() {
            for &seed in &config.seeds {
                nodes.push(stage(&planner, run, seed)?);
            }
        }
    }
    nodes.push(planner.report(&nodes)?);
    Ok(nodes)
}

struct Planner<'a> {
    config: &'a Config,
    cache: &'a Path,
}

impl<'a> Planner<'a> {
    fn dataset(&self) -> Result<Node> {
        // Paths are taken out of the parameters: where files lie must not reach the key.
        let mut dataset = self.config.dataset.clone();
        let with_paths = dataset.clone();
        let folder = PathBuf::from(std::mem::take(&mut dataset.folder));
        let file = PathBuf::from(std::mem::take(&mut dataset.file));
        let like = PathBuf::from(std::mem::take(&mut dataset.like));

        let adopted = super::dataset::adopted(&like);
        let externals = match dataset.source {
            Source::Emoji => {
                let packages = super::dataset::externals(self.cache);
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
            ("cache", self.cache.to_owned()),
            ("file", file),
            ("folder", folder),
            ("like", like),
        ]);
        Ok(node)
    }

    fn pretrain(&self, seed: u64) -> Result<Node> {
        let pretrain = &self.config.pretrain;
        let run = base_name(seed);
        if pretrain.checkpoint.is_empty() {
            let model = self.config.model.clone();
            let optim = Box::new(pretrain.optim.clone());
            let params = PretrainParams::Train { model, optim, seed };
            let node = node("pretrain", run, &params, vec![dataset(TRAINING_DATA)])?;
            return self.with_engine(node);
        }

        // A checkpoint that is not the configured model is refused before anything runs.
        pretrain::dense(self.config)?;
        let folder = PathBuf::from(&pretrain.checkpoint);
        let data = dataset(TRAINING_DATA);
        let mut node = node("pretrain", run, &PretrainParams::Import {}, vec![data])?;
        node.externals = Externals::Folder(folder.clone(), vec![]);
        node.paths = BTreeMap::from([("checkpoint", folder)]);
        Ok(node)
    }

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
        self.with_engine(node("activations", base_name(seed), &params, inputs)?)
    }

    fn cluster(&self, seed: u64) -> Result<Node> {
        let cluster = self.config.cluster.clone();
        let params = ClusterParams { cluster, clusters: self.config.moe.experts, seed };
        let inputs = vec![all("activations", base_name(seed))];
        node("cluster", base_name(seed), &params, inputs)
    }

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

    fn upcycle(&self, name: &str, init: &InitConfig, seed: u64) -> Result<Node> {
        let base = self.config.base_of(seed);
        let mut inputs = vec![input("pretrain", base_name(base), MODEL)];

        let needs = upcycle::find(&init.method)?.needs();
        if needs.centroids {
            inputs.push(input("cluster", base_name(base), &["centroids.safetensors"]));
        }
        if needs.subspaces.is_some() {
            let run = run_name(variant_of(name, init)?, base);
            inputs.push(input("subspaces", run, &["bases.safetensors"]));
        }

        // Which variant is read shows in the digests of its files; its name does not count.
        let init = InitConfig { subspaces: None, ..init.clone() };
        let params = UpcycleParams { init, moe: self.config.moe.clone(), seed };
        node("upcycle", run_name(name, seed), &params, inputs)
    }

    fn train(&self, run: &str, seed: u64) -> Result<Node> {
        let train = self.config.train.clone();
        let named = run_name(run, seed);
        let run = &self.config.runs[run];
        let params = TrainParams { train, eesd: run.eesd, seed };
        let init = input("upcycle", run_name(&run.init, seed), MODEL);
        self.with_engine(node(
            "train",
            named,
            &params,
            vec![dataset(TRAINING_DATA), init],
        )?)
    }

    /// A node that runs a model: the engine's name enters its key.
    fn with_engine(&self, node: Node) -> Result<Node> {
        let compute = self.config.compute();
        Ok(Node { backend: Backend::choose(compute)?.name(), compute, ..node })
    }

    fn evaluate(&self, run: &str, seed: u64) -> Result<Node> {
        let named = run_name(run, seed);
        let params = EvaluateParams { evaluate: self.config.evaluate.clone(), seed };
        let inputs = vec![all("dataset", None), input("train", named.clone(), TRAINED)];
        self.with_engine(node("evaluate", named, &params, inputs)?)
    }

    fn analyze(&self, run: &str, seed: u64) -> Result<Node> {
        let named = run_name(run, seed);
        let params = AnalyzeParams { analyze: self.config.analyze.clone(), seed };
        let inputs = vec![
            dataset(ANALYSIS_DATA),
            input("pretrain", base_name(self.config.base_of(seed)), MODEL),
            input("train", named.clone(), TRAINED),
        ];
        self.with_engine(node("analyze", named, &params, inputs)?)
    }

    /// The report reads every result but the weights and the raw activations.
    fn report(&self, nodes: &[Node]) -> Result<Node> {
        let mut config = self.config.clone();
        let path = |text: &mut String| PathBuf::from(std::mem::take(text));
        let paths = BTreeMap::from([
            ("dataset.folder", path(&mut config.dataset.folder)),
            ("dataset.file", path(&mut config.dataset.file)),
            ("dataset.like", path(&mut config.dataset.like)),
            ("pretrain.checkpoint", path(&mut config.pretrain.checkpoint)),
        ]);

        // That there is a checkpoint is part of the story; where it lies is not.
        if !self.config.pretrain.checkpoint.is_empty() {
            IMPORTED.clone_into(&mut config.pretrain.checkpoint);
        }
        // What ran the models stands in the keys of the results that are read.
        config.device = Device::Auto;
        let inputs = nodes
            .iter()
            .filter(|node| !UNREPORTED.contains(&node.stage))
            .map(|node| Upstream {
                name: node.place.to_string(),
                place: node.place.clone(),
                files: Files::All,
            })
            .collect();
        let node = node("report", None, &ReportParams { config }, inputs)?;
        Ok(Node { paths, ..node })
    }

    /// The initializations that some run uses, by name.
    fn used_inits(&self) -> Result<Vec<(&'a str, &'a InitConfig)>> {
        let used: BTreeSet<&str> =
            self.config.runs.values().map(|r| r.init.as_str()).collect();
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
