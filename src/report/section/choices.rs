//! What was chosen, what was used and how the report was made.

use serde_json::Value;

use crate::config::{
    Bases, Blocks, Center, Config, Directions, EesdTarget, Labels, OptimConfig,
    Overrides, SubspacesConfig, load_default,
};
use crate::report::CONFIGURATION;
use crate::report::document::{Block, Cell, Section, Table};
use crate::report::study::Study;
use crate::report::words;

/// Choices, data and the way to make all this again.
pub(in crate::report) fn section(study: &Study<'_>) -> Section {
    let credits = Block::List { items: study.inputs.dataset.attribution.clone() };
    Section {
        id: "how",
        title: "Choices, data, how it was made".to_owned(),
        lead: vec!["Where the paper leaves a detail open, the value is our choice; each is a key of `pipeline.yaml`.".to_owned()],
        blocks: vec![
            Block::Table(choices(study.config())),
            Block::Table(runs(study)),
            Block::Table(data(study)),
            Block::List { items: made(study) },
            Block::Command { code: command(study.config()) },
            Block::List { items: vec![changed(study.config())] },
            Block::Table(files(study)),
            Block::Details {
                summary: "Credits for the data".to_owned(),
                blocks: vec![credits],
            },
        ],
    }
}

fn choices(config: &Config) -> Table {
    let mut rows = architecture(config);
    rows.extend(config.subspaces.iter().map(|(name, variant)| {
        let what = format!("Subspaces \u{201c}{name}\u{201d}");
        row(&what, &format!("subspaces.{name}"), subspaces(variant))
    }));
    rows.extend(clustering(config));
    rows.extend(training(config));

    rows.push(row(
        "Relative compactness",
        "\u{2013}",
        "tr(S_W S_B\u{207a})/E on expert outputs, tokens grouped by their first expert"
            .to_owned(),
    ));

    table(
        "Choices",
        "Everything else stands in `pipeline.yaml` with its reason.",
        &["What", "Key", "Value"],
        rows,
    )
}

fn architecture(config: &Config) -> Vec<Vec<Cell>> {
    let (moe, model) = (&config.moe, &config.model);

    // Blocks are a rule in the configuration (`every-2`); the report prints what it gave.
    vec![
        row("Experts E", "moe.experts", moe.experts.to_string()),
        row(
            "Active experts K",
            "moe.top_k",
            format!("{}, weights renormalized to sum to 1", moe.top_k),
        ),
        row(
            "MoE blocks, image tower",
            "moe.vision_blocks",
            blocks(&moe.vision_blocks, model.vision.layers),
        ),
        row(
            "MoE blocks, text tower",
            "moe.text_blocks",
            blocks(&moe.text_blocks, model.text.layers),
        ),
    ]
}

fn subspaces(variant: &SubspacesConfig) -> String {
    let labels = match variant.labels {
        Labels::Clusters => "k-means clusters",
        Labels::Shuffled => "shuffled labels",
    };

    let moments = match variant.center {
        Center::None => "moments about the origin (paper)",
        Center::Mean => "moments about the cluster's mean",
    };

    // The method's own directions go without saying.
    let directions = match variant.directions {
        Directions::Top => String::new(),
        other => format!(", directions {}", other.name()),
    };

    format!(
        "\u{3c4} = {}, rank \u{2265} {}, {labels}{directions}, {moments}; clusters below {} tokens shrunk by \u{3b1} = {}",
        plain(variant.tau),
        variant.min_rank,
        variant.min_tokens,
        plain(variant.shrinkage)
    )
}

fn clustering(config: &Config) -> Vec<Vec<Cell>> {
    let scales = config.inits.values().map(|init| init.router_scale.unwrap_or(1.0));
    let mut scales: Vec<String> = scales.map(plain).collect();

    scales.sort();
    scales.dedup();

    let cluster = &config.cluster;
    vec![
        row("Scale of centroid routers", "inits.*.router_scale", words::list(&scales)),
        row(
            "Calibration samples",
            "activations.samples",
            words::grouped(config.activations.samples as f64),
        ),
        row(
            "k-means",
            "cluster",
            format!(
                "{} restarts, at most {} iterations",
                cluster.restarts, cluster.iterations
            ),
        ),
    ]
}

fn training(config: &Config) -> Vec<Vec<Cell>> {
    let (train, optim, eesd) = (&config.train, &config.train.optim, &config.train.eesd);

    let tokens = if eesd.tokens < 1.0 {
        let percent = plain(100.0 * eesd.tokens);
        format!("the {percent} % of tokens with the highest routing entropy")
    } else {
        "all tokens".to_owned()
    };

    let target = match eesd.target {
        EesdTarget::Layer => {
            "each MoE layer's output to its own ensemble, \u{2016}y \u{2212} y_ens\u{2016}\u{b2} over the mean \u{2016}y_ens\u{2016}\u{b2}"
        }
        EesdTarget::Embedding => {
            "final embeddings to those of a full EMA model with dense routing"
        }
    };

    let optimizer = format!(
        "AdamW \u{3b2} = ({}, {}), weight decay {}, gradient norm \u{2264} {}",
        plain(optim.beta1),
        plain(optim.beta2),
        plain(optim.weight_decay),
        plain(optim.clip_norm)
    );

    let schedule = format!(
        "{} after {} steps of warm-up, cosine to {}",
        plain(optim.learning_rate),
        optim.warmup,
        plain(optim.final_learning_rate)
    );

    vec![
        row(
            "Load-balance weight \u{3bb}_lb",
            "train.balance",
            format!("{}; the loss is 1 at uniform load", plain(train.balance)),
        ),
        row("Router z-loss weight \u{3bb}_z", "train.router_z", plain(train.router_z)),
        row("EESD target", "train.eesd.target", target.to_owned()),
        row("EESD tokens", "train.eesd.tokens", tokens),
        row(
            "EESD teacher",
            "train.eesd.half_life",
            format!(
                "EMA with decay {} per step",
                words::number(eesd.decay_over(train.optim.steps), 4)
            ),
        ),
        row("Optimizer", "train.optim", optimizer),
        row("Learning rate", "train.optim.learning_rate", schedule),
    ]
}

fn runs(study: &Study<'_>) -> Table {
    let config = study.config();
    let rows = study.runs.iter().map(|name| {
        let run = &config.runs[name];
        let init = config.inits.get(&run.init);

        // Parameters of the initialization, as far as its method has them.
        let mut parameters = Vec::new();
        if let Some(init) = init {
            parameters.extend(init.subspaces.as_ref().map(|s| format!("subspaces {s}")));
            parameters.extend(init.ratio.map(|r| format!("ratio {}", plain(r))));
            parameters.extend(init.alpha.map(|a| format!("alpha {}", plain(a))));
            parameters
                .extend(init.router_std.map(|s| format!("router std {}", plain(s))));
        }

        let method = init.map_or(words::NOTHING, |i| i.method.as_str());
        let seeds: Vec<String> =
            study.seeds(name).iter().map(ToString::to_string).collect();

        vec![
            Cell::words(study.name(name)).with_mark(Study::class(name)),
            Cell::words(name),
            Cell::words(method),
            Cell::words(if parameters.is_empty() {
                words::NOTHING.to_owned()
            } else {
                parameters.join(", ")
            }),
            Cell::words(plain(run.eesd)),
            Cell::words(seeds.join(", ")),
        ]
    });
    table(
        "Runs",
        "How each run is initialized, and the weight \u{3bb}_eesd of its self-distillation.",
        &["Run", "Key", "Method", "Parameters", "\u{3bb}_eesd", "Seeds"],
        rows.collect(),
    )
}

fn data(study: &Study<'_>) -> Table {
    let meta = &study.inputs.dataset;
    let tests = meta.tests.iter().filter(|split| meta.splits.contains_key(*split));
    let rest = meta.splits.keys().filter(|split| !meta.tests.contains(split));

    let use_of = |split: &String| {
        let mut uses = Vec::new();
        if *split == meta.retrieval {
            uses.push("retrieval");
        }
        if meta.shifts.contains(split) {
            uses.push("shift");
        }
        if meta.held_out.as_ref() == Some(split) {
            uses.push("held-out concepts");
        }
        match split.as_str() {
            "train" => uses.push("training"),
            "val" => uses.push("choices"),
            _ if uses.is_empty() => uses.push("test"),
            _ => {}
        }
        uses.join(", ")
    };

    // Splits that are never tested on come first: training and choices.
    let rows = rest.chain(tests).map(|split| {
        vec![
            Cell::words(split),
            Cell::number(words::grouped(meta.splits[split] as f64)),
            Cell::words(use_of(split)),
        ]
    });
    let size = study.config().dataset.image_size;
    let note = format!("Source `{}`, {size}\u{d7}{size} pixels.", meta.source);
    table("Data", &note, &["Split", "Pictures", "Used for"], rows.collect())
}

fn made(study: &Study<'_>) -> Vec<String> {
    let config = study.config();
    let seeds: Vec<String> = config.seeds.iter().map(ToString::to_string).collect();

    // Runs are compared at equal numbers of samples, so these are printed beside the
    // steps.
    let budget = |optim: &OptimConfig| {
        let (steps, batch) = (words::grouped(optim.steps as f64), optim.batch);
        let samples = words::grouped((optim.steps * optim.batch) as f64);
        format!("{steps} steps of {batch} pairs ({samples} samples)")
    };

    let dense = if config.pretrain.checkpoint.is_empty() {
        format!(
            "Dense pretraining: {}, {}.",
            budget(&config.pretrain.optim),
            match config.pretrain.bases {
                Bases::PerSeed => "one model per seed",
                Bases::Shared => "one model for all seeds",
            }
        )
    } else {
        "Dense model: imported from a checkpoint.".to_owned()
    };

    vec![
        format!("Seeds: {}.", seeds.join(", ")),
        dense,
        format!("After upcycling: {}, the same for every run.", budget(&config.train.optim)),
        format!("Intervals of single evaluations: {} bootstrap resamples; intervals of differences: Student's t over seeds.", config.evaluate.bootstrap),
        "The same results give the same report to the byte, and it loads nothing from the network. Only the times and the memory of the table of costs depend on the machine that made the results.".to_owned(),
        "The following command makes all of it again, and does nothing where everything is fresh. Where the results do not lie in `artifacts`, say so with `ARTIFACTS=`, and name their folder in the path.".to_owned(),
    ]
}

/// The command that makes this report again.
fn command(config: &Config) -> String {
    match differences(config) {
        Some(changed) if changed.is_empty() => "make".to_owned(),
        Some(changed)
            if changed.len() <= ASSIGNMENTS
                && !changed.iter().any(|text| awkward(text)) =>
        {
            format!("make SET='{}'", changed.join(" "))
        }
        _ => format!("make CONFIG=artifacts/report/current/{CONFIGURATION}"),
    }
}

/// The most assignments that are written on a command line.
const ASSIGNMENTS: usize = 4;

/// Whether the shell or `make` would read an assignment differently, or it stands for a path
/// that the report does not know.
fn awkward(text: &str) -> bool {
    let paths = ["dataset.source=", "pretrain.checkpoint="];
    text.contains(|c: char| c.is_whitespace() || "'`<$\\()\"{".contains(c))
        || paths.iter().any(|path| text.starts_with(path))
}

/// What differs from the shipped configuration, in words.
fn changed(config: &Config) -> String {
    match differences(config) {
        Some(changed) if changed.is_empty() => {
            "The configuration is the shipped `pipeline.yaml`.".to_owned()
        }
        Some(changed) => {
            let keys = changed.iter().map(|c| c.split('=').next().unwrap_or_default());
            let keys: Vec<String> = keys.map(|key| format!("`{key}`")).collect();
            let keys = words::list(&keys);
            format!("Keys that differ from the shipped `pipeline.yaml`: {keys}.")
        }
        None => format!("The configuration is `{CONFIGURATION}` beside this report."),
    }
}

/// The assignments that turn the shipped configuration into this one.
fn differences(config: &Config) -> Option<Vec<String>> {
    let shipped = load_default(&Overrides::default()).ok()?;
    let shipped = serde_json::to_value(shipped).ok()?;
    let own = serde_json::to_value(config).ok()?;
    let mut changed = Vec::new();
    diff(&shipped, &own, "", &mut changed);
    Some(changed)
}

/// The data behind the report, run by run, as links from its folder.
fn files(study: &Study<'_>) -> Table {
    let link = |stage: &str, run: &str, seed: u64, file: &str| Cell {
        link: format!("../../{stage}/{run}-s{seed}/current/{file}.parquet"),
        ..Cell::words(file)
    };
    let mut rows = vec![vec![
        Cell::words("all runs"),
        Cell::words(words::NOTHING),
        Cell { link: "comparison.parquet".to_owned(), ..Cell::words("comparison") },
    ]];
    for run in &study.runs {
        for seed in study.seeds(run) {
            let mut tables = vec![
                link("evaluate", run, seed, "metrics"),
                link("evaluate", run, seed, "resamples"),
                link("train", run, seed, "log"),
                link("analyze", run, seed, "embeddings"),
            ];
            if study.is_moe(run) {
                tables.push(link("analyze", run, seed, "analysis"));
                tables.push(link("analyze", run, seed, "tokens"));
            }
            let name = Cell::words(study.name(run)).with_mark(Study::class(run));
            rows.push([vec![name, Cell::words(seed.to_string())], tables].concat());
        }
    }

    // Every row is as wide as the widest.
    let width = rows.iter().map(Vec::len).max().unwrap_or(0);
    for row in &mut rows {
        row.resize(width, Cell::words(""));
    }
    let names = ["Run", "Seed"].into_iter().chain(std::iter::repeat("")).take(width);
    Table {
        title: "Data files".to_owned(),
        note: "Parquet tables, as links from the folder of this report; `docs/artifacts.md` lists their columns.".to_owned(),
        head: names.map(Cell::words).collect(),
        rows,
        foreign: false,
    }
}

/// The assignments that turn `from` into `to`.
fn diff(from: &Value, to: &Value, path: &str, out: &mut Vec<String>) {
    match (from, to) {
        (Value::Object(from), Value::Object(to)) if from.keys().eq(to.keys()) => {
            for (key, value) in to {
                let here =
                    if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                diff(&from[key], value, &here, out);
            }
        }

        _ if from == to => {}
        _ => out.push(format!("{path}={to}")),
    }
}

/// A choice; a key that is only a dash is not set as code.
fn row(what: &str, key: &str, value: String) -> Vec<Cell> {
    let key = if key.contains('\u{2013}') { key.to_owned() } else { format!("`{key}`") };
    vec![Cell::words(what), Cell::words(key), Cell::words(value)]
}

/// A table whose numeric columns are those of its first row.
fn table(title: &str, note: &str, head: &[&str], rows: Vec<Vec<Cell>>) -> Table {
    let numeric = |index: usize| {
        rows.first().is_some_and(|r| r.get(index).is_some_and(|c| !c.words))
    };
    let head = head
        .iter()
        .enumerate()
        .map(|(index, text)| Cell { words: !numeric(index), ..Cell::number(*text) });
    Table {
        title: title.to_owned(),
        note: note.to_owned(),
        head: head.collect(),
        rows,
        foreign: false,
    }
}

fn blocks(blocks: &Blocks, layers: usize) -> String {
    let indices: Vec<String> =
        blocks.indices(layers).iter().map(ToString::to_string).collect();
    if indices.is_empty() {
        "none".to_owned()
    } else {
        format!("{} of {layers} (from 0)", words::list(&indices))
    }
}

/// A number without needless digits.
fn plain(value: f64) -> String {
    let text = format!("{value}");
    if value != 0.0 && value.abs() < 1e-4 { format!("{value:e}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_short_where_it_can_be_and_complete_where_it_must() {
        let with = |set: &[&str]| {
            let set = set.iter().map(|&s| s.to_owned()).collect();
            command(&load_default(&Overrides { profile: None, set }).unwrap())
        };
        let whole = "make CONFIG=artifacts/report/current/pipeline.yaml";
        assert_eq!(with(&[]), "make");
        assert_eq!(
            with(&["seeds=[7]", "train.balance=0.5"]),
            "make SET='seeds=[7] train.balance=0.5'"
        );
        assert_eq!(with(&["report.title=a b"]), whole);
        assert_eq!(with(&["dataset.source=folder"]), whole);
        assert_eq!(with(&["pretrain.checkpoint=(imported)"]), whole);
    }
}
