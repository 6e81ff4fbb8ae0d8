//! `upcycle-inspect study`: the small tables of a study, to be kept under version control.
//!
//! A study of hours is worth more than the machine that it ran on. What its conclusions rest
//! on is small: losses by step, validation, metrics and analyses of every run, what was chosen,
//! and from which results all that was read. Each kind is one CSV with the run and the seed in
//! front, so that a notebook reads it without this program. What has no result yet, or one of
//! other parameters, is left out and named, so that a running study can be exported as it grows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Answer, View};
use crate::artifact::{Manifest, Place};
use crate::config::Config;
use crate::error::{Context, Error, Result};
use crate::io::table::{Column, TableReader};
use crate::num;
use crate::pipeline::{Node, Upstream};
use crate::tables::{
    self, AnalysisRow, ExpertSimilarityRow, LogRow, MetricRow, Row as _, ValidationRow,
};

/// The arguments of `study`.
#[derive(Debug, clap::Args)]
pub(super) struct Export {
    /// Folder of the tables; it is made if it is missing, and its tables are replaced.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Training steps that become one row of the log, their mean.
    #[arg(long, value_name = "STEPS", default_value_t = 50)]
    every: u16,
}

/// One kind of table.
struct Kind {
    /// Name of the CSV.
    file: &'static str,
    /// The stages that write it.
    stages: &'static [&'static str],
    /// Name of the table in a result.
    table: &'static str,
}

/// The tables that are exported row by row.
const KINDS: [Kind; 4] = [
    Kind {
        file: "validation.csv",
        stages: &["pretrain", "train"],
        table: ValidationRow::FILE,
    },
    Kind { file: "similarity.csv", stages: &["train"], table: ExpertSimilarityRow::FILE },
    Kind { file: "metrics.csv", stages: &["evaluate"], table: MetricRow::FILE },
    Kind { file: "analysis.csv", stages: &["analyze"], table: AnalysisRow::FILE },
];

/// Name of the CSV of losses.
const LOG: &str = "log.csv";

/// Name of the description.
const DESCRIPTION: &str = "study.json";

/// The stages whose logs are exported.
const TRAINED: [&str; 2] = ["pretrain", "train"];

/// A result that is there.
struct Present {
    place: Place,
    folder: PathBuf,
    manifest: Manifest,
}

/// Writes the tables of every present result.
pub(super) fn export(view: &View, ask: &Export) -> Result<Answer> {
    let out = &ask.out;
    if ask.every == 0 {
        return Err(Error::usage("--every: found 0, expected at least 1 step a row"));
    }
    std::fs::create_dir_all(out).context(|| format!("making {}", out.display()))?;

    // Nodes come after those that they read.
    let (mut present, mut missing) = (Vec::new(), Vec::new());
    for node in &view.nodes {
        match find(view, node, &present)? {
            Some(found) => present.push(found),
            None => missing.push(node.place.to_string()),
        }
    }

    let mut rows = BTreeMap::new();

    for kind in &KINDS {
        let count = copy(kind, &present, &out.join(kind.file))?;
        rows.insert(kind.file, count);
    }
    rows.insert(LOG, log(&present, usize::from(ask.every), &out.join(LOG))?);

    let description = describe(&view.config, &present, &missing)?;
    let path = out.join(DESCRIPTION);
    let text = format!("{description:#}\n");
    std::fs::write(&path, text).context(|| format!("writing {}", path.display()))?;

    let mut lines: Vec<String> = rows
        .iter()
        .map(|(file, count)| format!("{}: {count} rows", out.join(file).display()))
        .collect();
    lines.push(format!("{}: {} results", path.display(), present.len()));
    if !missing.is_empty() {
        lines
            .push(format!("no result of this configuration yet: {}", missing.join(", ")));
    }
    Ok(Answer::new(lines, json!({ "rows": rows, "missing": missing })))
}

/// The current result of a node, if it is of this study: made with the parameters of the plan
/// from what is `present` upstream. It need not be fresh: what took hours is worth keeping after
/// a change of code, and its key says what made it.
fn find(view: &View, node: &Node, present: &[Present]) -> Result<Option<Present>> {
    let place = &node.place;
    let Some(key) = view.store.current(place) else { return Ok(None) };
    let Some(manifest) = view.store.manifest(place, &key)? else { return Ok(None) };

    // Parameters are those of the node alone: what differs upstream shows in the files it read.
    let made_from = &manifest.key_preimage;
    let read = |upstream: &Upstream| was_read(&made_from["inputs"], upstream, present);
    let is_of_study = made_from["params"] == node.params && node.inputs.iter().all(read);
    Ok(is_of_study.then(|| Present {
        place: place.clone(),
        folder: view.store.dir(place, &key),
        manifest,
    }))
}

/// Whether a result with these `inputs` read the files of what is present upstream.
fn was_read(inputs: &Value, upstream: &Upstream, present: &[Present]) -> bool {
    let files = inputs[&upstream.name].as_object();
    let source = present.iter().find(|found| found.place == upstream.place);
    let (Some(files), Some(source)) = (files, source) else { return false };

    let digests = source.manifest.digests();
    let same = |file, read: &Value| {
        digests.get(file).is_some_and(|own| *read == own.to_string())
    };
    files.iter().all(|(file, read)| same(file, read))
}

/// Copies a table of every result that has it; the number of rows comes back.
fn copy(kind: &Kind, present: &[Present], path: &Path) -> Result<usize> {
    let mut writer = Csv::create(path)?;
    let own = present.iter().filter(|p| kind.stages.contains(&p.place.stage.as_str()));
    for result in own {
        let file = result.folder.join(kind.table);
        // A dense model has no analysis of experts.
        if !file.exists() {
            continue;
        }

        // A table is streamed, as tables may be long.
        let who = who(&result.place);
        let mut reader = TableReader::open(&file)?;
        while let Some(table) = reader.next()? {
            let names: Vec<&str> =
                table.columns().iter().map(|(name, _)| name.as_str()).collect();
            writer.head(&names)?;

            for row in 0..table.rows() {
                let cells = table.columns().iter().map(|(_, column)| cell(column, row));
                writer.row(&who, cells)?;
            }
        }
    }
    writer.finish()
}

/// Means of the log over every `every` steps; the number of rows comes back.
fn log(present: &[Present], every: usize, path: &Path) -> Result<usize> {
    let mut writer = Csv::create(path)?;
    writer.head(&[
        "step",
        "samples",
        "learning_rate",
        "loss",
        "clip",
        "balance",
        "eesd",
        "gradient_norm",
        "logit_scale",
    ])?;

    for result in present.iter().filter(|p| TRAINED.contains(&p.place.stage.as_str())) {
        let who = who(&result.place);
        let rows: Vec<LogRow> = if result.folder.join(LogRow::FILE).exists() {
            tables::read(&result.folder)?
        } else {
            // A dense model that was brought was not trained here.
            Vec::new()
        };

        // One step's loss says little: batches differ. The last row may cover fewer steps.
        for chunk in rows.chunks(every) {
            let Some(last) = chunk.last() else { continue };
            let mean = |value: fn(&LogRow) -> f64| {
                number(num::mean(&chunk.iter().map(value).collect::<Vec<_>>()))
            };

            let cells = [
                last.step.to_string(),
                last.samples.to_string(),
                mean(|row| row.learning_rate),
                mean(|row| row.loss),
                mean(|row| row.clip),
                mean(|row| row.balance),
                mean(|row| row.eesd),
                mean(|row| row.gradient_norm),
                mean(|row| row.logit_scale),
            ];
            writer.row(&who, cells)?;
        }
    }
    writer.finish()
}

/// What the tables were made from and by: every result, and every parameter.
fn describe(config: &Config, present: &[Present], missing: &[String]) -> Result<Value> {
    let result = |own: &Present| {
        let made = &own.manifest.provenance;
        let about = json!({
            "key": own.manifest.key.to_string(),
            "finished": made.finished,
            "seconds": made.wall.round(),
            "threads": made.threads,
            "device": made.device,
            "processor": made.processor,
            "commit": made.git,
        });
        (own.place.to_string(), about)
    };

    // Paths say where files lay on the machine, and nothing about the study.
    let mut config = config.clone();
    config.dataset.folder = String::new();
    config.dataset.file = String::new();
    config.dataset.like = String::new();
    config.pretrain.checkpoint = String::new();
    config.evaluate.sets = Vec::new();
    let config = serde_json::to_value(config)
        .context(|| "describing the configuration".to_owned())?;

    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "results": present.iter().map(result).collect::<BTreeMap<_, _>>(),
        "missing": missing,
        "config": config,
    }))
}

/// The run and the seed of a place: `sparse`, `1` of `train/sparse-s1`, and the stage in the
/// place of a run where there is none.
fn who(place: &Place) -> [String; 2] {
    let run = place.run.as_deref().unwrap_or_default();
    let (name, seed) = match run.rsplit_once("-s") {
        Some((name, seed)) => (name, seed),
        None => (place.stage.as_str(), run.trim_start_matches('s')),
    };
    [name.to_owned(), seed.to_owned()]
}

/// One value as text. Six digits are more than any interval of a study leaves certain.
fn cell(column: &Column, row: usize) -> String {
    match column {
        Column::U32(values) => values[row].to_string(),
        Column::F32(values) => number(f64::from(values[row])),
        Column::F64(values) => number(values[row]),
        Column::Bool(values) => values[row].to_string(),
        Column::Text(values) => values[row].clone(),
        Column::TextList(values) => values[row].join(" | "),
        Column::Bytes(values) => format!("{} bytes", values[row].len()),
        Column::Vectors { width, data } => {
            let vector = &data[row * width..(row + 1) * width];
            let values = vector.iter().map(|&value| number(f64::from(value)));
            values.collect::<Vec<_>>().join(" ")
        }
    }
}

/// A number with six digits.
fn number(value: f64) -> String {
    let short = format!("{value:.5e}").parse::<f64>().unwrap_or(value);
    short.to_string()
}

/// A CSV whose rows begin with a run and a seed.
struct Csv {
    path: PathBuf,
    writer: csv::Writer<std::fs::File>,
    has_head: bool,
    rows: usize,
}

impl Csv {
    fn create(path: &Path) -> Result<Self> {
        let writer = csv::Writer::from_path(path)
            .context(|| format!("writing {}", path.display()))?;
        Ok(Self { path: path.to_owned(), writer, has_head: false, rows: 0 })
    }

    /// Writes the names of the columns, if they are not there yet.
    fn head(&mut self, names: &[&str]) -> Result<()> {
        if std::mem::replace(&mut self.has_head, true) {
            return Ok(());
        }
        let names = ["run", "seed"].iter().chain(names);
        self.writer
            .write_record(names)
            .context(|| format!("writing {}", self.path.display()))
    }

    fn row(
        &mut self,
        who: &[String; 2],
        cells: impl IntoIterator<Item = String>,
    ) -> Result<()> {
        self.rows += 1;
        let cells = who.iter().cloned().chain(cells);
        self.writer
            .write_record(cells)
            .context(|| format!("writing {}", self.path.display()))
    }

    /// The number of rows.
    fn finish(mut self) -> Result<usize> {
        self.writer.flush().context(|| format!("writing {}", self.path.display()))?;
        Ok(self.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_says_whose_rows_they_are() {
        let who = |stage: &str, run: &str| who(&Place::new(stage, Some(run.to_owned())));
        assert_eq!(who("train", "cluster-aware-eesd-s12"), ["cluster-aware-eesd", "12"]);
        assert_eq!(who("pretrain", "s3"), ["pretrain", "3"]);
    }

    #[test]
    fn numbers_have_six_digits_and_no_more() {
        assert_eq!(number(0.123_456_789), "0.123457");
        assert_eq!(number(1_234_567.0), "1234570");
        assert_eq!(number(0.5), "0.5");
        assert_eq!(number(f64::NAN), "NaN");
    }
}
