//! Stage `multiplet`: FFNs fine-tuned on hard negatives, the experts of CLIP-MoE (METHOD §3.1).
//!
//! ```text
//! dense model ─ cluster pictures, captions ─► groups 1 ─ fine-tune the dense FFNs ─► model 1
//! model 1     ─ cluster pictures, captions ─► groups 2 ─ fine-tune the dense FFNs ─► model 2
//! ..          groups s: samples that models 0 to s - 1 all put into the same clusters
//! ```
//!
//! Writes `ffns.safetensors`, `centroids.safetensors`, `groups.parquet`, and for every round s
//! `log-s.parquet` and `validation-s.parquet`.

use std::path::PathBuf;
use std::sync::Arc;

use linfa::ParamGuard;
use serde::{Deserialize, Serialize};

use super::{files, training};
use crate::cluster::{RowSlice, SphericalKMeans};
use crate::config::{ClusterConfig, MultipletConfig};
use crate::data::{BatchSettings, Batches, Dataset, Grouped, Split, refined};
use crate::engine::{self, Backend, Objective, Trainable, Training};
use crate::error::{Context as _, Error, Result};
use crate::ffn::Ffn;
use crate::io::tensors::{self, Tensor, TensorFile, Tensors};
use crate::linalg::Matrix;
use crate::model::names::{ParameterId, Part};
use crate::model::{Checkpoint, Tower};
use crate::num::{index_u32, widen};
use crate::pipeline::{Job, Reach, Stage, Width};
use crate::ranks::Alone;
use crate::rng::{self, RngExt};
use crate::tables::{self, GroupRow, Row as _};
use crate::train::{self, Trained, Watcher};

/// This stage.
pub const STAGE: Stage = Stage {
    name: "multiplet",
    version: 1,
    width: Width::Whole,
    reach: Reach::Process,
    about: "Fine-tunes FFNs on samples that look alike: the experts of CLIP-MoE.",
    run,
};

/// Samples that are embedded at a time.
const BATCH: usize = 256;

/// Stage `multiplet`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MultipletParams {
    /// Section `multiplet`.
    pub multiplet: MultipletConfig,
    /// Section `cluster`: how k-means runs.
    pub cluster: ClusterConfig,
    /// Experts E; one of them is the dense FFN.
    pub experts: usize,
    /// Blocks of the image tower whose FFNs become experts.
    pub vision_blocks: Vec<usize>,
    /// Blocks of the text tower whose FFNs become experts.
    pub text_blocks: Vec<usize>,
    /// Seed of this base.
    pub seed: u64,
}

impl MultipletParams {
    fn blocks(&self, tower: Tower) -> &[usize] {
        match tower {
            Tower::Vision => &self.vision_blocks,
            Tower::Text => &self.text_blocks,
        }
    }

    /// A seed for each purpose and round.
    fn seed(&self, name: &str, round: usize) -> u64 {
        rng::stream(self.seed, &format!("multiplet/{name}/{round}")).random()
    }
}

/// Does the work of one node.
pub fn run(job: &mut Job<'_>) -> Result<()> {
    let params: MultipletParams = job.params()?;
    let pictures = training::open(job)?;
    let data = &pictures.dataset;
    let split = Arc::new(data.split("train")?);
    let dense = Checkpoint::read(files::folder(job, "pretrain")?, "model.safetensors")?;
    let backend = files::backend(job)?;
    let scratch = job.draft.scratch()?;

    // Before any model has looked at them, all samples are of one group.
    let mut out = Outputs::default();
    let mut groups = vec![0; split.len()];
    let mut former = dense.clone();
    for round in 1..params.experts {
        let found = lookalikes(&former, backend, (data, &split), (&params, round))?;
        groups = refined(&groups, &found.labels(params.multiplet.text_clusters));
        out.add_groups(round, &split, &found, &groups)?;

        let seed = params.seed("order", round);
        let sampler = sampler(&params, &split, &groups, seed).context(|| {
            format!("drawing the batches of round {round} of the multiplet")
        })?;

        // What is left out trains no expert of this round, so nobody should have to guess it.
        let left_out: usize = sampler.left_out().values().sum();
        let left_out_share = left_out as f64 / split.len() as f64;
        let n_groups = groups.iter().max().map_or(0, |&last| widen(last) + 1);
        job.draft.metric(&format!("groups_{round}"), n_groups as f64);
        job.draft.metric(&format!("left_out_share_{round}"), left_out_share);
        job.progress.line(&format!(
            "round {round}: {n_groups} groups, {:.1} % of the samples in groups too small \
             for a batch",
            100.0 * left_out_share
        ));

        // Every round starts from the dense model and resumes from a folder of its own.
        let tuning = Tuning {
            params: &params,
            data,
            split: &split,
            sampler,
            seed,
            backend,
            scratch: Some(scratch.join(round.to_string())),
        };
        let steps = params.multiplet.optim.steps;
        let mut watch = training::Watch::new(&pictures, job.progress.clone(), steps);
        let tuned = fine_tune(&dense, tuning, &mut watch)?;

        out.add_ffns(round, &params, &tuned.checkpoint)?;
        tuned
            .record
            .write(|file| job.output(&file.replacen('.', &format!("-{round}."), 1)))?;
        job.draft.metric(&format!("loss_{round}"), tuned.record.recent_loss(50));
        former = tuned.checkpoint;
    }
    out.write(job)
}

/// The fine-tuned FFNs of one layer, for `experts` experts: E - 1 of them.
pub(crate) fn read(file: &TensorFile, layer: &str, experts: usize) -> Result<Vec<Ffn>> {
    let part = |round: usize, part: &str| -> Result<Vec<f32>> {
        let name = format!("{layer}.{round}.{part}");
        let tensor = file.read(&name)?.ok_or_else(|| {
            Error::corrupt(format!(
                "ffns.safetensors has no tensor {name}, expected one per MoE layer and \
                 round; make the stage multiplet again"
            ))
        })?;
        Ok(tensor.data)
    };

    // Round 0 would be the dense FFN, which the reader has.
    let ffn = |round| {
        Ok(Ffn {
            fc1: part(round, "fc1")?,
            fc1_bias: part(round, "fc1_bias")?,
            fc2: part(round, "fc2")?,
            fc2_bias: part(round, "fc2_bias")?,
        })
    };
    (1..experts).map(ffn).collect()
}

/// Clusters of the samples of a split by what a model makes of them.
#[derive(Debug)]
struct Lookalikes {
    images: Clusters,
    texts: Clusters,
}

/// Labels and centroids of one side.
#[derive(Debug)]
struct Clusters {
    labels: Vec<u32>,
    centroids: Matrix,
}

impl Lookalikes {
    /// One label for both sides.
    fn labels(&self, text_clusters: usize) -> Vec<u32> {
        let both = self.images.labels.iter().zip(&self.texts.labels);
        both.map(|(image, text)| image * index_u32(text_clusters) + text).collect()
    }
}

/// Embeds every sample with `model`, pictures and first captions, and clusters both sides.
fn lookalikes(
    model: &Checkpoint,
    backend: Backend,
    (data, split): (&Dataset, &Split),
    (params, round): (&MultipletParams, usize),
) -> Result<Lookalikes> {
    let mut engine = engine::open_model(model.clone(), backend)?;
    let width = engine.config().embed_dim;

    // Pictures are read batch by batch: only embeddings stay in memory.
    let (mut images, mut texts) = (Vec::new(), Vec::new());
    let all: Vec<usize> = (0..split.len()).collect();
    for rows in all.chunks(BATCH) {
        images.extend(engine.encode_images(split.pixels(rows)?.view())?);

        let first = |&row: &usize| split.rows[row].captions.first().map(String::as_str);
        let captions: Vec<&str> = rows.iter().filter_map(first).collect();
        let ids = data.tokenizer.encode_all(&captions, data.meta.context)?;
        texts.extend(engine.encode_texts(&ids)?);
    }

    let cluster = |side: &str, clusters: usize, rows: Vec<f32>| {
        let checked = SphericalKMeans::params(clusters)
            .iterations(params.cluster.iterations)
            .restarts(params.cluster.restarts)
            .tolerance(params.cluster.tolerance)
            .seed(params.seed(side, round))
            .check()?;
        let found = checked.fit_rows(&RowSlice::new(width, &rows)?);
        let found =
            found.context(|| format!("clustering the {side} of round {round}"))?;
        Ok::<_, Error>(Clusters { labels: found.assignments, centroids: found.centroids })
    };
    Ok(Lookalikes {
        images: cluster("images", params.multiplet.image_clusters, images)?,
        texts: cluster("texts", params.multiplet.text_clusters, texts)?,
    })
}

/// Batches of one group each, in which no concept meets itself.
fn sampler(
    params: &MultipletParams,
    split: &Split,
    groups: &[u32],
    seed: u64,
) -> Result<Grouped> {
    let concepts: Vec<u32> = split.rows.iter().map(|row| row.concept).collect();
    Grouped::new(groups, &concepts, params.multiplet.optim.batch, seed)
}

/// Everything that one fine-tuning needs besides the dense model.
struct Tuning<'a> {
    params: &'a MultipletParams,
    data: &'a Dataset,
    split: &'a Arc<Split>,
    sampler: Grouped,
    seed: u64,
    backend: Backend,
    scratch: Option<PathBuf>,
}

/// One round: the dense model with the FFNs of the MoE blocks trained. Everything else keeps
/// its bits, the logit scale included.
fn fine_tune(
    dense: &Checkpoint,
    tuning: Tuning<'_>,
    watcher: &mut dyn Watcher,
) -> Result<Trained> {
    let Tuning { params, data, split, sampler, seed, backend, scratch } = tuning;
    let optim = params.multiplet.optim.clone();
    let settings = BatchSettings {
        batch: optim.batch,
        context: data.meta.context,
        seed,
        augment: optim.augment,
    };
    let (split, sampler) = (Arc::clone(split), Box::new(sampler));
    let batches = Batches::with_sampler(split, &data.tokenizer, settings, sampler)?;

    // Only what becomes an expert trains; the rest must stay what the experts stand among.
    let is_trained = |id: ParameterId| match id {
        ParameterId::Block(tower, block, part) => {
            params.blocks(tower).contains(&block) && Part::DENSE.contains(&part)
        }
        _ => false,
    };
    let training = Training {
        optim,
        trainable: Trainable::only(&dense.config, is_trained),
        objective: Objective {
            label_smoothing: params.multiplet.label_smoothing,
            ..Objective::default()
        },
        teacher: None,
    };
    let plan = train::Plan { training, backend, scratch, ranks: Arc::new(Alone) };
    train::train(dense.clone(), &Arc::new(batches), &plan, watcher)
}

/// The results of all rounds.
#[derive(Debug, Default)]
struct Outputs {
    ffns: Tensors,
    centroids: Tensors,
    groups: Vec<GroupRow>,
}

impl Outputs {
    fn add_groups(
        &mut self,
        round: usize,
        split: &Split,
        found: &Lookalikes,
        groups: &[u32],
    ) -> Result<()> {
        for (side, clusters) in [("images", &found.images), ("texts", &found.texts)] {
            let Clusters { centroids, .. } = clusters;
            let shape = vec![centroids.rows(), centroids.cols()];
            let tensor = Tensor::new(shape, centroids.data().to_vec())?;
            self.centroids.insert(format!("{side}.{round}"), tensor);
        }

        // One row per sample, so that anybody can check a batch's group.
        let rows = split.rows.iter().zip(groups).enumerate();
        self.groups.extend(rows.map(|(index, (row, &group))| GroupRow {
            round: index_u32(round),
            sample: row.sample,
            image_cluster: found.images.labels[index],
            text_cluster: found.texts.labels[index],
            group,
        }));
        Ok(())
    }

    fn add_ffns(
        &mut self,
        round: usize,
        params: &MultipletParams,
        model: &Checkpoint,
    ) -> Result<()> {
        for tower in Tower::BOTH {
            for &block in params.blocks(tower) {
                let ffn = model.dense_ffn(tower, block)?;
                let (h, d) = (ffn.hidden(), ffn.width());

                // Named as bases are: layer, expert, matrix.
                let layer = files::layer_name(tower, block);
                for (part, shape, values) in [
                    ("fc1", vec![h, d], ffn.fc1),
                    ("fc1_bias", vec![h], ffn.fc1_bias),
                    ("fc2", vec![d, h], ffn.fc2),
                    ("fc2_bias", vec![d], ffn.fc2_bias),
                ] {
                    let tensor = Tensor::new(shape, values.to_vec())?;
                    self.ffns.insert(format!("{layer}.{round}.{part}"), tensor);
                }
            }
        }
        Ok(())
    }

    fn write(self, job: &Job<'_>) -> Result<()> {
        tensors::write(&job.output("ffns.safetensors"), &self.ffns)?;
        tensors::write(&job.output("centroids.safetensors"), &self.centroids)?;
        tables::write(&job.output(GroupRow::FILE), self.groups)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::config::{Overrides, load_default};
    use crate::data::Sampler as _;
    use crate::engine::Engine;
    use crate::model::init;
    use crate::model::params::Layout;

    struct Silent;

    impl Watcher for Silent {
        fn resumed(&mut self, _done: usize) {}

        fn stepped(&mut self, _done: usize, _loss: f64) {}

        fn validate(&mut self, _engine: &mut dyn Engine) -> Result<Vec<(String, f64)>> {
            Ok(Vec::new())
        }
    }

    /// The shapes of the smoke profile, its dense model before any training, and parameters
    /// for two rounds.
    fn world(folder: &std::path::Path) -> (Dataset, Checkpoint, MultipletParams) {
        let overrides = Overrides { profile: Some("smoke".to_owned()), set: vec![] };
        let config = load_default(&overrides).unwrap();
        let mut quiet = |_: usize, _: usize| {};
        crate::data::build(&config.dataset, folder, 0, folder, &mut quiet).unwrap();
        let data = Dataset::open(folder).unwrap();
        let sizes = [data.meta.image_size, data.meta.context, data.meta.vocabulary];
        let dense = init::dense(&crate::stage::pretrain::shape(&config.model, sizes), 1);

        let mut multiplet = config.multiplet;
        multiplet.optim.steps = 3;
        let params = MultipletParams {
            multiplet,
            cluster: config.cluster,
            experts: 3,
            vision_blocks: vec![1],
            text_blocks: vec![0],
            seed: 5,
        };
        (data, dense, params)
    }

    #[test]
    fn a_fine_tuning_moves_the_ffns_of_its_blocks_and_no_other_bit() {
        let folder = tempfile::tempdir().unwrap();
        let (data, dense, params) = world(folder.path());
        let split = Arc::new(data.split("train").unwrap());
        let groups = vec![0; split.len()];
        let tuning = Tuning {
            params: &params,
            data: &data,
            split: &split,
            sampler: sampler(&params, &split, &groups, 9).unwrap(),
            seed: 9,
            backend: Backend::Cpu,
            scratch: None,
        };
        let tuned = fine_tune(&dense, tuning, &mut Silent).unwrap().checkpoint;

        let bits =
            |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        for (parameter, range) in Layout::new(&dense.config).iter() {
            let same = bits(&dense.values[range.clone()]) == bits(&tuned.values[range]);
            let trained = match parameter.id {
                ParameterId::Block(tower, block, part) => {
                    Part::DENSE.contains(&part)
                        && (tower, block) == (tower, params.blocks(tower)[0])
                }
                _ => false,
            };
            assert_eq!(same, !trained, "{}", parameter.name);
        }
    }

    /// Labels of k-means on embeddings are those of the nearest centroid, and the batches of
    /// the second round come from samples that both rounds cluster together.
    #[test]
    fn batches_come_from_samples_that_every_round_puts_together() {
        let folder = tempfile::tempdir().unwrap();
        let (data, dense, params) = world(folder.path());
        let split = data.split("train").unwrap();
        let (mut groups, mut rounds) = (vec![0; split.len()], Vec::new());
        for (round, seed) in [(1, 1), (2, 2)] {
            let model = init::dense(&dense.config, seed);
            let found =
                lookalikes(&model, Backend::Cpu, (&data, &split), (&params, round))
                    .unwrap();
            let labels = found.labels(params.multiplet.text_clusters);
            let expected: BTreeMap<u32, (u32, u32)> = labels
                .iter()
                .zip(found.images.labels.iter().zip(&found.texts.labels))
                .map(|(label, (image, text))| (*label, (*image, *text)))
                .collect();
            let distinct: BTreeSet<_> = expected.values().collect();
            assert_eq!(distinct.len(), expected.len(), "a label is a pair of clusters");
            groups = refined(&groups, &labels);
            rounds.push(labels);
        }

        let sampler = sampler(&params, &split, &groups, 3).unwrap();
        for step in 0..2 * sampler.steps_per_epoch() {
            let rows = sampler.batch(step);
            for labels in &rounds {
                assert!(rows.iter().all(|&row| labels[row] == labels[rows[0]]));
            }
        }
    }
}
