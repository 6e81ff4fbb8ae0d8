//! Stage `dataset`: pictures and captions from their source to Parquet.
//!
//! Writes what `docs/artifacts.md` says under *dataset*.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::adopted::Adopted;
use crate::artifact::External;
use crate::config::{DatasetConfig, Source};
use crate::data::packages::{self, Package};
use crate::data::{self, Reading, Summary};
use crate::error::{Context as _, Result};
use crate::pipeline::{Job, Reach, Stage, Width};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "dataset",
    version: 1,
    width: Width::Whole,
    reach: Reach::Process,
    about: "Builds the picture-text data set: samples, concepts, labels, tokenizer.",
    run,
};

/// Stage `dataset`. `folder` and `file` are blank: paths do not enter keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetParams {
    /// Section `dataset`.
    pub dataset: DatasetConfig,
}

/// The seed of the data set, which every run shares: captions and drawn shapes are the same in
/// all of them.
const SEED: u64 = 0;

/// Number of skipped pictures that are named while the stage runs.
const SHOWN: usize = 10;

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    // Paths come beside the parameters, because they must not reach the key.
    let mut params: DatasetParams = job.params()?;
    params.dataset.folder = job.path("folder")?.display().to_string();
    params.dataset.file = job.path("file")?.display().to_string();

    // How many pictures there are is known when the first one is done.
    let progress = job.progress.clone();
    let mut started = false;
    let mut told = |done: usize, total: usize| {
        if !started {
            progress.start(total, "pictures");
            started = true;
        }
        progress.set(done);
    };

    // A model that frames its pictures otherwise is refused before any work.
    let like = Some(job.path("like")?).filter(|like| !like.as_os_str().is_empty());
    let adopted = like.map(Adopted::read).transpose()?;
    if let Some(adopted) =
        adopted.as_ref().filter(|_| params.dataset.source.reads_pairs())
    {
        adopted.pictures.check_usual().context(|| "dataset.like".to_owned())?;
    }

    let out = job.draft.folder().to_owned();
    let cache = job.path("cache")?.to_owned();
    let summary = data::build(&params.dataset, &cache, SEED, &out, &mut told)?;
    if let Some(Adopted { tokenizer, pictures }) = adopted {
        data::adopt(&out, &tokenizer, pictures.normalise())?;
    }

    // What people compare between results, and then what they have to know about this one.
    for (split, count) in &summary.splits {
        job.draft.metric(&format!("pictures_{split}"), *count as f64);
    }
    if params.dataset.source.reads_pairs() || params.dataset.source == Source::Icons {
        job.draft.metric("pictures_skipped", summary.skipped.len() as f64);
    }
    job.draft.metric("concepts", summary.concepts as f64);
    job.draft.metric("vocabulary", summary.vocabulary as f64);

    for bad in summary.skipped.iter().take(SHOWN) {
        job.progress.line(&format!("skipped {}: {}", bad.key, bad.reason));
    }
    job.progress.line(&counts(&summary));
    Ok(())
}

/// What became of everything in the source, in one line.
fn counts(summary: &Summary) -> String {
    let each = |counts: &BTreeMap<String, usize>| -> String {
        let each = counts.iter().map(|(name, count)| format!("{count} {name}"));
        each.collect::<Vec<_>>().join(", ")
    };
    let total = |counts: &BTreeMap<String, usize>| counts.values().sum::<usize>();

    let Reading { read, skipped, left_out } = &summary.reading;
    let kept = format!("kept {} ({})", total(&summary.splits), each(&summary.splits));
    let mut line = format!("read {read} pictures, {kept}, skipped {}", total(skipped));

    if !skipped.is_empty() {
        line = format!("{line} ({})", each(skipped));
    }
    if !left_out.is_empty() {
        line = format!("{line}; left out, not read: {}", each(left_out));
    }

    // The numbers of a line should add up, or the line should say why they do not.
    if total(&summary.splits) + total(skipped) != *read {
        line = format!("{line}; dataset.weights repeat or drop training pictures");
    }
    line
}

/// The files from outside that a source reads whose packages are in `cache`: their archives.
pub fn externals(source: Source, cache: &Path) -> Vec<External> {
    let file = |package: &Package| External {
        name: package.file.clone(),
        path: cache.join(&package.file),
    };
    packages::of(source).iter().map(file).collect()
}

/// The files from outside that a source of pairs reads.
pub fn pairs(config: &DatasetConfig) -> Result<Vec<External>> {
    let files = data::pairs::open(config)?.map(|stream| stream.files());
    let file = |(name, path)| External { name, path };
    Ok(files.unwrap_or_default().into_iter().map(file).collect())
}

/// The packages that must be fetched before this stage can run: `name version file` each.
pub fn missing_packages(config: &DatasetConfig, cache: &Path) -> Vec<String> {
    let line = |p: Package| format!("{} {} {}", p.name, p.version, p.file);
    packages::missing(config.source, cache).into_iter().map(line).collect()
}
