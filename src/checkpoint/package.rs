//! One folder that loads anywhere: weights, the code that runs them, tokenizer, preprocessing
//! and a model card.
//!
//! The code is the Python package's own source, so that it stands once. `config.json` is ours
//! with the keys by which Hugging Face's Auto classes find the code.

use std::path::{Path, PathBuf};

use minijinja::Environment;
use serde::Deserialize;
use serde_json::{Value, json};

use super::export::export_upcycle;
use super::image_processor::{self, Processor};
use super::lineage::Lineage;
use super::preprocess::Preprocessing;
use super::shards::write_json;
use super::{config, hugging_face};
use crate::data::Meta;
use crate::error::{Context, Error, Result};
use crate::model::{Checkpoint, ClipConfig, Tower};
use crate::tables::{self, ComparisonRow};
use crate::text::Tokenizer;

/// The code in the folder, with its license.
const CODE: [(&str, &str); 5] = [
    (
        "configuration_upcycle.py",
        include_str!("../../python/upcycle_moe/configuration_upcycle.py"),
    ),
    (
        "image_processing_upcycle.py",
        include_str!("../../python/upcycle_moe/image_processing_upcycle.py"),
    ),
    ("modeling_upcycle.py", include_str!("../../python/upcycle_moe/modeling_upcycle.py")),
    ("network_upcycle.py", include_str!("../../python/upcycle_moe/network_upcycle.py")),
    ("LICENSE-code.txt", include_str!("../../LICENSE")),
];

/// The template of `README.md`.
const CARD: &str = include_str!("package/card.md");

/// A model with everything that its folder holds.
#[derive(Debug)]
pub struct Package<'a> {
    /// The weights, in the form they are kept in.
    pub model: &'a Checkpoint,
    /// The vocabulary the model was trained with.
    pub tokenizer: &'a Tokenizer,
    /// What pictures have to go through.
    pub pictures: &'a Preprocessing,
    /// What the model card says beyond that.
    pub card: &'a Card,
}

/// What a model card says and the weights do not tell.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Card {
    /// The name of the model.
    pub name: String,
    /// The result of a pipeline that was exported, as `train/sparse-s1/<key>`.
    pub origin: Option<String>,
    /// Who made the pictures it was trained on, and under which license.
    pub attribution: Vec<String>,
    /// Measurements, and the files they were read from.
    pub results: Results,
}

impl Card {
    /// The card of a model. The data set that it was trained on says whose pictures they are.
    pub fn new(name: &str, lineage: Option<&Lineage>, results: Results) -> Result<Self> {
        let attribution = lineage.map(attribution).transpose()?.unwrap_or_default();
        let origin = lineage.map(|lineage| lineage.origin.clone());
        Ok(Self { name: name.to_owned(), origin, attribution, results })
    }
}

/// The field `attribution` of a data set.
fn attribution(lineage: &Lineage) -> Result<Vec<String>> {
    let path = lineage.description();
    let place = path.display();
    let text = std::fs::read_to_string(&path).context(|| format!("reading {place}"))?;
    let meta: Meta = serde_json::from_str(&text).map_err(|e| {
        Error::corrupt(format!("{place} is not a valid dataset.json")).caused_by(e)
    })?;
    Ok(meta.layout.attribution)
}

/// Measurements of a model, in the order of their files: task, split, metric, value and
/// interval in percent.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Results {
    rows: Vec<[String; 5]>,
    sources: Vec<String>,
    /// What the report says about the run: metric, mean over seeds, difference, interval.
    compared: Vec<[String; 4]>,
}

/// `metrics.json` of the stage `evaluate`.
#[derive(Deserialize)]
struct Evaluated {
    r#final: Measurements,
}

#[derive(Deserialize)]
struct Measurements {
    measurements: Vec<Measured>,
}

#[derive(Deserialize)]
struct Measured {
    task: String,
    split: String,
    metric: String,
    value: f64,
    low: f64,
    high: f64,
}

/// A file of `upcycle-evaluate on`, whose fields are `CLIP_benchmark`'s.
#[derive(Deserialize)]
struct Benchmarked {
    dataset: String,
    task: String,
    metrics: std::collections::BTreeMap<String, Option<f64>>,
}

impl Results {
    /// What a pipeline measured of its own checkpoint, as far as it did: the results of the
    /// stage `evaluate`, and what the report says of all seeds of the run.
    pub fn of(lineage: &Lineage) -> Result<Self> {
        let run = lineage.run();
        let mut results = Self::default();
        if let Some(folder) = lineage.reader(&format!("evaluate/{run}"))? {
            results = Self::read(&[folder.join("metrics.json")])?;
            results.sources = vec![format!("the result `evaluate/{run}`")];
        }
        if let Some(folder) = lineage.reader("report")? {
            let name = run.rsplit_once("-s").map_or(run, |(name, _)| name);
            let rows: Vec<ComparisonRow> = tables::read(&folder)?;
            let own = rows.iter().filter(|row| row.run == name && row.point == "final");
            results.compared = own.filter(|row| is_telling(row)).map(compared).collect();
        }
        Ok(results)
    }

    /// Reads `metrics.json` of the stage `evaluate`, or a set's JSON of `upcycle-evaluate on`.
    pub fn read(files: &[PathBuf]) -> Result<Self> {
        let mut results = Self::default();
        for path in files {
            // The kind of a file is told by its fields, as both are JSON.
            let place = path.display();
            let text =
                std::fs::read_to_string(path).context(|| format!("reading {place}"))?;
            results.rows.extend(rows(&text).ok_or_else(|| {
                Error::usage(format!(
                    "--metrics: {place} holds no measurements; expected metrics.json of the \
                     stage evaluate, or a set's JSON file of upcycle-evaluate on"
                ))
            })?);
            results.sources.push(format!("`{place}`"));
        }
        Ok(results)
    }
}

/// Whether a metric belongs onto a card: the first place, and not the first ten.
fn is_telling(row: &ComparisonRow) -> bool {
    let metric = row.metric.as_str();
    matches!(metric, "shift" | "acc1")
        || metric.ends_with("recall@1")
        || metric.starts_with("logistic")
}

/// A row of the report's comparison, in percent and percentage points.
fn compared(row: &ComparisonRow) -> [String; 4] {
    let percent = |value: f64| format!("{:.1}", 100.0 * value);
    let signed = |value: f64| format!("{:+.1}", 100.0 * value);
    let spread = if row.std.is_finite() {
        format!(" ± {}", percent(row.std))
    } else {
        String::new()
    };
    let difference =
        if row.difference.is_finite() { signed(row.difference) } else { "-".to_owned() };

    // The interval that covers pictures too decides, where there is one.
    let (low, high) = if row.mixed_covers.is_empty() {
        (row.difference_low, row.difference_high)
    } else {
        (row.mixed_low, row.mixed_high)
    };
    let interval = if low.is_finite() {
        format!("{} to {}", signed(low), signed(high))
    } else {
        "-".to_owned()
    };
    let metric = format!("{} {} on {}", row.task, row.metric, row.split);
    [cell(&metric), format!("{}{spread}", percent(row.mean)), difference, interval]
}

/// The rows of one file of either kind; `None` if it is neither.
fn rows(text: &str) -> Option<Vec<[String; 5]>> {
    let percent = |value: f64| format!("{:.1}", 100.0 * value);

    if let Ok(file) = serde_json::from_str::<Evaluated>(text) {
        let row = |m: Measured| {
            let interval = format!("{} to {}", percent(m.low), percent(m.high));
            [cell(&m.task), cell(&m.split), cell(&m.metric), percent(m.value), interval]
        };
        return Some(file.r#final.measurements.into_iter().map(row).collect());
    }

    let file: Benchmarked = serde_json::from_str(text).ok()?;
    // A metric that the set does not allow, as acc5 of four classes, is null.
    let row = |(metric, value): (String, Option<f64>)| {
        let none = "-".to_owned();
        Some([
            cell(&file.task),
            cell(&file.dataset),
            cell(&metric),
            percent(value?),
            none,
        ])
    };
    Some(file.metrics.into_iter().filter_map(row).collect())
}

/// Text that cannot end its cell of a table.
fn cell(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace('|', "\\|")
}

/// Writes a package: weights in one file, or in shards of at most `shard` bytes with an index.
///
/// Names and shapes are documented in `docs/checkpoints.md`; [`super::import`] reads it.
pub fn export_package(
    folder: &Path,
    package: &Package<'_>,
    shard: Option<u64>,
) -> Result<()> {
    let Package { model, tokenizer, pictures, card } = package;
    let shape = &model.config;

    // The model as we keep it, and then its configuration again with more keys.
    export_upcycle(folder, model, Some(pictures), shard)?;
    write_json(&folder.join(hugging_face::FILE), &hugging_face_config(shape)?)?;
    for (name, text) in CODE {
        write(&folder.join(name), text)?;
    }

    // transformers builds a fast tokenizer of the vocabulary, with the settings beside it.
    let vocabulary = tokenizer.json()?;
    write(&folder.join("tokenizer.json"), &vocabulary)?;
    let settings = tokenizer_config(&vocabulary, shape.text.context)?;
    write_json(&folder.join("tokenizer_config.json"), &settings)?;

    let settings =
        image_processor::json(pictures, shape.vision.image_size, Processor::Own)?;
    write_json(&folder.join(image_processor::FILE), &settings)?;
    write(&folder.join("README.md"), &card_of(shape, pictures, card)?)
}

/// Our `config.json` with the keys of Hugging Face.
fn hugging_face_config(shape: &ClipConfig) -> Result<Value> {
    let writing = || "writing config.json".to_owned();
    let mut json = serde_json::to_value(shape).context(writing)?;
    json["model_type"] = json!(config::MODEL_TYPE);
    json["architectures"] = json!(["UpcycleClipModel"]);
    json["auto_map"] = json!({
        "AutoConfig": "configuration_upcycle.UpcycleClipConfig",
        "AutoModel": "modeling_upcycle.UpcycleClipModel",
        "AutoModelForZeroShotImageClassification": "modeling_upcycle.UpcycleClipModel",
    });
    Ok(json)
}

/// `tokenizer_config.json` beside a `tokenizer.json`.
fn tokenizer_config(vocabulary: &str, context: usize) -> Result<Value> {
    let json: Value = serde_json::from_str(vocabulary)
        .context(|| "reading the tokenizer".to_owned())?;
    let marks: Vec<&str> = json["added_tokens"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|token| token["content"].as_str())
        .collect();

    // The last two of the added tokens are the start and the end of text, in this order.
    let [.., start, end] = marks.as_slice() else {
        return Err(Error::failed("the tokenizer does not name its start and end marks"));
    };

    // A caption that spells out a mark holds it only if the vocabulary is CLIP's in
    // open_clip's spelling: that is what the weights were trained with.
    let is_clip = json["model"]["end_of_word_suffix"] == "</w>";
    let keeps_marks = is_clip && *end == "<end_of_text>";
    Ok(json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": context,
        "model_input_names": ["input_ids", "attention_mask"],
        "bos_token": start,
        "eos_token": end,
        "unk_token": end,
        "pad_token": end,
        "padding_side": "right",
        "truncation_side": "right",
        "split_special_tokens": !keeps_marks,
        // Versions of transformers before 5 set it to false where it is not said.
        "add_prefix_space": !is_clip,
        "clean_up_tokenization_spaces": false,
    }))
}

/// The text of `README.md`.
fn card_of(shape: &ClipConfig, pictures: &Preprocessing, card: &Card) -> Result<String> {
    let facts: Vec<Vec<String>> = facts(shape, pictures)
        .into_iter()
        .map(|(name, value)| vec![name.to_owned(), value])
        .collect();
    let results: Vec<Vec<String>> =
        card.results.rows.iter().map(|r| r.to_vec()).collect();
    // What people wrote about their pictures must not end a table or a list.
    let attribution: Vec<String> = card.attribution.iter().map(|l| cell(l)).collect();

    let context = minijinja::context! {
        name => card.name.as_str(),
        version => env!("CARGO_PKG_VERSION"),
        experts => shape.moe.as_ref().map(|moe| moe.experts),
        origin => card.origin.as_deref(),
        facts => facts,
        results => results,
        sources => card.results.sources.clone(),
        compared => card.results.compared.iter().map(|r| r.to_vec()).collect::<Vec<_>>(),
        attribution => attribution,
    };

    let text = Environment::new().render_named_str("card.md", CARD, context);
    text.map(|text| text.trim_end().to_owned() + "\n")
        .context(|| "writing the model card".to_owned())
}

/// The table of what the model is.
fn facts(shape: &ClipConfig, pictures: &Preprocessing) -> Vec<(&'static str, String)> {
    let (total, active) = crate::model::params::parameter_counts(shape);
    let tower = |tower| {
        let shape = shape.tower(tower);
        format!(
            "{} blocks of width {}, {} heads, FFN {}",
            shape.layers, shape.width, shape.heads, shape.hidden
        )
    };
    let (vision, text) = (&shape.vision, &shape.text);

    let mut facts = vec![
        ("parameters", format!("{total}, of which a token passes {active}")),
        ("activation", shape.activation.name().to_owned()),
        ("embedding", format!("{} values", shape.embed_dim)),
        ("image tower", tower(Tower::Vision)),
        ("text tower", tower(Tower::Text)),
    ];

    // Experts of low rank are few parameters on disk and whole FFNs when they run.
    if let Some(moe) = &shape.moe {
        let kept = moe.rank.map_or_else(String::new, |rank| {
            format!(", kept as one shared FFN and a product of rank {rank} each")
        });
        facts.push((
            "experts",
            format!(
                "{} per MoE layer, {} active per token{kept}",
                moe.experts, moe.top_k
            ),
        ));
        facts.push((
            "MoE layers",
            format!(
                "image blocks {:?}, text blocks {:?}, counted from 0",
                moe.vision_blocks, moe.text_blocks
            ),
        ));
    }

    facts.push((
        "pictures",
        format!(
            "{0} × {0} pixels in patches of {1}; mean {2:?}, std {3:?}",
            vision.image_size, vision.patch, pictures.mean, pictures.std
        ),
    ));
    facts.push((
        "texts",
        format!("{} tokens of a vocabulary of {}", text.context, text.vocabulary),
    ));
    facts
}

/// Writes a file of text.
fn write(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text).context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::text;

    fn own_vocabulary() -> String {
        let texts = vec!["red circle".to_owned(), "red square".to_owned()];
        text::train(&texts, 262).unwrap()
    }

    fn clip_vocabulary(spelling: [&str; 2]) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/fixtures/tokenizer/toy_bpe.txt.gz");
        let json = Tokenizer::open(&path).unwrap().json().unwrap();
        json.replace("<start_of_text>", spelling[0]).replace("<end_of_text>", spelling[1])
    }

    #[test]
    fn a_caption_keeps_marks_only_where_open_clip_would() {
        let ours = ["<start_of_text>", "<end_of_text>"];
        let theirs = ["<|startoftext|>", "<|endoftext|>"];
        for (vocabulary, spelling, splits) in [
            (own_vocabulary(), ours, true),
            (clip_vocabulary(ours), ours, false),
            (clip_vocabulary(theirs), theirs, true),
        ] {
            let config = tokenizer_config(&vocabulary, 16).unwrap();
            assert_eq!(config["split_special_tokens"], splits, "{spelling:?}");
            let is_own = vocabulary == own_vocabulary();
            assert_eq!(config["add_prefix_space"], is_own);
            assert_eq!([&config["bos_token"], &config["eos_token"]], spelling);
            assert_eq!(config["pad_token"], spelling[1]);
            assert_eq!(config["model_max_length"], 16);
        }
        assert!(tokenizer_config("{}", 16).is_err());
    }

    #[test]
    fn a_row_of_the_report_becomes_a_row_of_the_card() {
        let row = ComparisonRow {
            task: "concept".to_owned(),
            metric: "acc1".to_owned(),
            split: "pair".to_owned(),
            mean: 0.407,
            std: 0.014,
            difference: 0.006,
            difference_low: -0.004,
            difference_high: 0.016,
            ..ComparisonRow::default()
        };
        assert!(is_telling(&row));
        let expected = ["concept acc1 on pair", "40.7 ± 1.4", "+0.6", "-0.4 to +1.6"];
        assert_eq!(compared(&row), expected);
        let pictured = ComparisonRow {
            mixed_low: -0.012,
            mixed_high: 0.024,
            mixed_covers: "455 test pictures".to_owned(),
            ..row.clone()
        };
        assert_eq!(compared(&pictured)[3], "-1.2 to +2.4");
        let alone = ComparisonRow {
            std: f64::NAN,
            difference: f64::NAN,
            difference_low: f64::NAN,
            ..row
        };
        assert_eq!(compared(&alone), ["concept acc1 on pair", "40.7", "-", "-"]);
        assert!(!is_telling(&ComparisonRow { metric: "acc5".to_owned(), ..alone }));
    }

    #[test]
    fn measurements_of_both_kinds_are_read_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let measured = json!({"task": "concept", "split": "a|b", "metric": "acc1",
            "value": 0.5, "low": 0.25, "high": 0.754, "n": 8});
        let stage = json!({
            "init": {"measurements": []},
            "final": {"measurements": [measured], "choices": [], "notes": []},
        });
        let set = json!({"dataset": "wds/cars", "model": "m", "task": "zeroshot",
            "metrics": {"acc1": 0.25, "acc5": null}});
        let files =
            [file("a.json", &stage.to_string()), file("b.json", &set.to_string())];

        let results = Results::read(&files).unwrap();
        assert_eq!(
            results.rows,
            [
                ["concept", "a\\|b", "acc1", "50.0", "25.0 to 75.4"],
                ["zeroshot", "wds/cars", "acc1", "25.0", "-"],
            ]
        );
        assert_eq!(results.sources.len(), 2);

        let bad = file("c.json", r#"{"metrics": 3}"#);
        let error = Results::read(&[bad]).unwrap_err().to_string();
        assert!(error.contains("c.json holds no measurements"), "{error}");
    }
}
