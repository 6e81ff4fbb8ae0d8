//! The plan: who exists, who reads whom, and what may reach whose key.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use upcycle::config::{Config, Overrides, load_default};
use upcycle::pipeline::Node;
use upcycle::stage::activations::ActivationsParams;
use upcycle::stage::analyze::AnalyzeParams;
use upcycle::stage::cluster::ClusterParams;
use upcycle::stage::dataset::DatasetParams;
use upcycle::stage::evaluate::EvaluateParams;
use upcycle::stage::multiplet::MultipletParams;
use upcycle::stage::pretrain::PretrainParams;
use upcycle::stage::report::ReportParams;
use upcycle::stage::subspaces::SubspacesParams;
use upcycle::stage::train::TrainParams;
use upcycle::stage::upcycle::UpcycleParams;
use upcycle::stage::{self, ALL, plan};

pub(crate) fn config(set: &[&str]) -> Config {
    let set = set.iter().map(|&text| text.to_owned()).collect();
    load_default(&Overrides { profile: None, set }).unwrap()
}

pub(crate) fn nodes(set: &[&str]) -> Vec<Node> {
    plan(&config(set), Path::new("cache")).unwrap()
}

/// A run that needs the one stage that the default comparison does without.
pub(crate) const MULTIPLET: &str = "runs.clip-moe={init: clip-moe}";

/// Stages whose parameters differ between two configurations.
fn touched(set: &[&str]) -> BTreeSet<&'static str> {
    let before: BTreeMap<_, _> =
        nodes(&[]).into_iter().map(|node| (node.place.clone(), node)).collect();
    nodes(set)
        .iter()
        .filter(|node| {
            before.get(&node.place).is_none_or(|old| old.params != node.params)
        })
        .map(|node| node.stage)
        .filter(|stage| *stage != "report")
        .collect()
}

#[test]
fn every_node_comes_after_all_it_reads_and_exists_once() {
    for (bases, models) in [("per-seed", 3), ("shared", 1)] {
        let bases = format!("pretrain.bases={bases}");
        complete(&["seeds=[1, 2, 3]", &bases, MULTIPLET], models);
    }
}

fn complete(set: &[&str], models: usize) {
    let nodes = nodes(set);
    let mut seen = BTreeSet::new();
    for node in &nodes {
        for upstream in &node.inputs {
            assert!(
                seen.contains(&upstream.place),
                "{} before {}",
                node.place,
                upstream.place
            );
        }
        assert!(seen.insert(node.place.clone()), "{} twice", node.place);
    }

    let reached: BTreeSet<&str> = nodes.iter().map(|node| node.stage).collect();
    assert_eq!(reached, stage::names().collect(), "stages without a node, or unknown");
    let count = |stage| seen.iter().filter(|place| place.stage == stage).count();
    for stage in ["pretrain", "activations", "cluster", "multiplet"] {
        assert_eq!(count(stage), models, "{stage}");
    }
    for stage in ["train", "analyze"] {
        assert_eq!(count(stage), 3 * config(set).runs.len(), "{stage}");
    }
    // Classifiers on pixels need no run.
    assert_eq!(count("evaluate"), 3 * config(set).runs.len() + 1);
    assert_eq!((count("dataset"), count("report")), (1, 1));
}

#[test]
fn every_stage_knows_the_code_it_was_built_from() {
    let of_stage = |name| upcycle::pipeline::source::of_stage(name, "cpu-f32");
    let hashes: BTreeSet<&str> = stage::names().map(of_stage).collect();
    assert_eq!(hashes.len(), ALL.len());
    assert!(!hashes.contains(""));
    let on_card = upcycle::pipeline::source::of_stage("train", "cuda-bf16");
    assert!(!on_card.is_empty() && !hashes.contains(on_card));
    let formats = upcycle::pipeline::source::formats();
    for package in ["parquet", "safetensors", "rand_chacha"] {
        assert!(formats.iter().any(|(name, _)| *name == package), "{package}");
    }
}

#[test]
fn a_parameter_reaches_its_own_stages_only() {
    for (set, stages) in [
        ("dataset.context=20", vec!["dataset"]),
        ("model.embed_dim=32", vec!["pretrain"]),
        ("pretrain.optim.steps=9", vec!["pretrain"]),
        ("activations.samples=9", vec!["activations"]),
        ("cluster.restarts=9", vec!["cluster"]),
        ("subspaces.paper.tau=0.9", vec!["subspaces"]),
        ("moe.top_k=3", vec!["upcycle"]),
        ("moe.experts=4", vec!["cluster", "upcycle"]),
        ("moe.vision_blocks={last: 2}", vec!["activations", "upcycle"]),
        ("inits.sparse.router_std=0.03", vec!["upcycle"]),
        ("train.balance=0.5", vec!["train"]),
        ("runs.sparse.eesd=0.5", vec!["train"]),
        ("evaluate.bootstrap=9", vec!["evaluate"]),
        ("analyze.samples=9", vec!["analyze"]),
        ("report.title=x", vec![]),
        ("dataset.folder=elsewhere", vec![]),
    ] {
        assert_eq!(touched(&[set]), stages.into_iter().collect(), "{set}");
    }
}

/// The device enters the keys of stages that run a model, by the engine's name; its number
/// and the way it was chosen do not.
#[test]
fn the_device_is_chosen_when_the_plan_is_made() {
    for set in [vec![], vec!["device=cpu"], vec!["device=auto"]] {
        for node in nodes(&set) {
            assert_eq!(node.backend, "cpu-f32", "{}", node.place);
        }
        assert!(touched(&set).is_empty(), "{set:?}");
    }
    for (set, word) in [
        // No machine has that many cards.
        ("device=cuda:99", "device: found cuda:99"),
        ("precision=bf16", "set `precision: f32`"),
    ] {
        let error = plan(&config(&[set]), Path::new("cache")).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
    for bad in ["device=gpu", "precision=f16"] {
        let set = vec![bad.to_owned()];
        let error = load_default(&Overrides { profile: None, set }).unwrap_err();
        assert_eq!(error.kind().exit_code(), 2, "{bad}");
    }
}

#[test]
fn more_seeds_leave_the_nodes_of_the_old_ones_alone() {
    let places = |set: &[&str]| -> BTreeMap<String, Node> {
        nodes(set).into_iter().map(|node| (node.place.to_string(), node)).collect()
    };
    let (three, four) = (places(&[]), places(&["seeds=[1, 2, 3, 4]"]));
    for (place, node) in three.iter().filter(|(place, _)| *place != "report") {
        assert_eq!(
            format!("{:?}", four.get(place)),
            format!("{:?}", Some(node)),
            "{place}"
        );
    }
}

#[test]
fn a_shared_base_is_made_once_and_read_by_all_seeds() {
    let nodes = nodes(&["pretrain.bases=shared", "seeds=[1, 2, 3]"]);
    let of = |stage| nodes.iter().filter(|n| n.stage == stage).count();
    assert_eq!((of("pretrain"), of("activations"), of("cluster")), (1, 1, 1));
    assert_eq!(of("train"), 3 * config(&[]).runs.len());
    for node in nodes.iter().filter(|node| node.stage == "upcycle") {
        assert_eq!(node.inputs[0].place.to_string(), "pretrain/s1");
    }
}

#[test]
fn a_run_that_trains_routers_needs_some() {
    let set = ["runs.dense={init: dense, trains: routers}"];
    let error = plan(&config(&set), Path::new("cache")).unwrap_err().to_string();
    assert!(error.contains("runs.dense.trains: found routers"), "{error}");
    let set = ["runs.sparse={init: sparse, trains: routers}"];
    assert_eq!(touched(&set), BTreeSet::from(["train"]));
}

#[test]
fn only_what_some_run_uses_is_planned() {
    let set = ["runs.dense.init=sparse", "pretrain.checkpoint=folder"];
    let nodes = nodes(&set);
    assert!(!nodes.iter().any(|node| node.place.to_string() == "upcycle/dense-s1"));
    let pretrain = nodes.iter().find(|node| node.stage == "pretrain").unwrap();
    assert!(pretrain.paths.contains_key("checkpoint"));
    assert!(!pretrain.params.to_string().contains("folder"), "a path in a key");
}

#[test]
fn every_node_has_the_parameters_its_stage_reads_back() {
    for node in nodes(&[MULTIPLET]) {
        let value = node.params.clone();
        let fine = match node.stage {
            "dataset" => serde_json::from_value::<DatasetParams>(value).is_ok(),
            "pretrain" => serde_json::from_value::<PretrainParams>(value).is_ok(),
            "activations" => serde_json::from_value::<ActivationsParams>(value).is_ok(),
            "cluster" => serde_json::from_value::<ClusterParams>(value).is_ok(),
            "multiplet" => serde_json::from_value::<MultipletParams>(value).is_ok(),
            "subspaces" => serde_json::from_value::<SubspacesParams>(value).is_ok(),
            "upcycle" => serde_json::from_value::<UpcycleParams>(value).is_ok(),
            "train" => serde_json::from_value::<TrainParams>(value).is_ok(),
            "evaluate" => serde_json::from_value::<EvaluateParams>(value).is_ok(),
            "analyze" => serde_json::from_value::<AnalyzeParams>(value).is_ok(),
            _ => serde_json::from_value::<ReportParams>(value).is_ok(),
        };
        assert!(fine, "{}", node.place);
    }
}

/// The places of a stage.
fn places<'n>(nodes: &'n [Node], stage: &str) -> BTreeSet<&'n str> {
    let of_stage = nodes.iter().filter(|node| node.stage == stage);
    of_stage.filter_map(|node| node.place.run.as_deref()).collect()
}

/// A sweep makes anew what a value changes, and nothing else.
#[test]
fn a_sweep_shares_what_its_values_do_not_change() {
    let plain = nodes(&[]);
    let factors = "{tau: {run: cluster-aware, values: [subspaces.paper.tau=0.9]}, \
                   balance: {run: cluster-aware, values: [train.balance=0.1]}}";
    let swept = nodes(&["sweep.seeds=[7]", &format!("sweep.factors={factors}")]);

    let added = |stage| -> Vec<&str> {
        let before = places(&plain, stage);
        places(&swept, stage).into_iter().filter(|run| !before.contains(run)).collect()
    };
    for stage in ["pretrain", "activations", "cluster", "evaluate", "analyze"] {
        assert!(added(stage).is_empty(), "{stage}: {:?}", added(stage));
    }
    assert_eq!(added("subspaces"), ["paper@tau-0.9-s1"]);
    let inits = ["cluster-aware@default-s7", "cluster-aware@tau-0.9-s7"];
    assert_eq!(added("upcycle"), inits);
    assert_eq!(
        added("train"),
        [
            "cluster-aware@balance-0.1-s7",
            "cluster-aware@default-s7",
            "cluster-aware@tau-0.9-s7"
        ]
    );

    // The report reads the trainings, each under the name of its factor.
    let report = swept.last().unwrap();
    let read = |name: &str| {
        let found = report.inputs.iter().find(|input| input.name == name).unwrap();
        found.place.to_string()
    };
    assert_eq!(read("sweep/tau/0-s7"), "train/cluster-aware@default-s7");
    assert_eq!(read("sweep/balance/0-s7"), "train/cluster-aware@default-s7");
    assert_eq!(read("sweep/tau/1-s7"), "train/cluster-aware@tau-0.9-s7");

    // Nodes of the comparison are not touched by it.
    for node in &plain {
        let same = swept.iter().find(|other| other.place == node.place).unwrap();
        assert!(node.stage == "report" || same.params == node.params, "{}", node.place);
    }
}

/// With the comparison's own seed, the default of a sweep is the comparison's run.
#[test]
fn a_sweep_on_a_seed_of_the_comparison_uses_its_runs() {
    let factors = "{seed: {run: cluster-aware, values: [train.balance=0.1]}}";
    let swept = nodes(&["sweep.seeds=[1]", &format!("sweep.factors={factors}")]);
    assert!(!places(&swept, "train").contains("cluster-aware@default-s1"));
    assert!(places(&swept, "train").contains("cluster-aware@seed-0.1-s1"));
}

#[test]
fn a_sweep_cannot_change_the_data() {
    let factors = "{size: {run: sparse, values: [dataset.image_size=48]}}";
    let config = config(&["sweep.seeds=[1]", &format!("sweep.factors={factors}")]);
    let error = plan(&config, Path::new("cache")).unwrap_err().to_string();
    assert!(error.contains("size-48") && error.contains("dataset"), "{error}");
}
