//! The text of a new `pipeline.yaml`: only what differs from the defaults, each with its
//! reason.

use std::fmt::Write as _;
use std::path::Path;

use serde_json::Value;

use super::recipe::Recipe;
use crate::config::DatasetConfig;
use crate::error::{Context as _, Result};
use crate::model::ClipConfig;

/// Everything that the file says.
#[derive(Debug)]
pub(super) struct Plan<'a> {
    pub(super) title: String,
    pub(super) checkpoint: &'a Path,
    pub(super) shape: &'a ClipConfig,
    pub(super) dataset: &'a DatasetConfig,
    pub(super) recipe: &'a Recipe,
    pub(super) sets: &'a [String],
}

impl Recipe {
    /// The chosen values by their keys, as the file and people read them.
    pub(super) fn values(&self) -> Vec<(&'static str, String)> {
        let mut values = vec![
            ("seeds", list(&self.seeds)),
            ("moe.experts", self.experts.to_string()),
            ("train.optim.batch", self.batch.to_string()),
            ("train.optim.steps", self.steps.to_string()),
            ("train.optim.learning_rate", format!("{:.1e}", self.learning_rate)),
        ];
        if self.micro_batch > 0 {
            values.push(("train.optim.micro_batch", self.micro_batch.to_string()));
        }
        values
    }
}

fn list<T: ToString>(values: &[T]) -> String {
    let texts: Vec<String> = values.iter().map(ToString::to_string).collect();
    format!("[{}]", texts.join(", "))
}

/// A text as YAML takes it whatever is in it: JSON's strings are YAML's.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

impl Plan<'_> {
    /// The file.
    pub(super) fn text(&self) -> Result<String> {
        let mut text = String::new();
        self.write(&mut text).context(|| "writing the configuration".to_owned())?;
        Ok(text)
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let recipe = self.recipe;
        writeln!(
            out,
            "# Written by upcycle-init. Everything that is not here has its default;\n\
             # `upcycle-init` without arguments writes all of them out. Change a key and type\n\
             # make again: only what depends on it runs. Paths are absolute, because make runs\n\
             # in the folder of its Makefile.\n"
        )?;
        writeln!(out, "# {}.", recipe.reason("seeds"))?;
        writeln!(out, "seeds: {}\n", list(&recipe.seeds))?;
        self.dataset(out)?;
        writeln!(
            out,
            "# The model, its activation, its tokenizer and the way of its pictures are read\n\
             # from the checkpoint and need not be said here.\n\
             pretrain:\n  bases: shared\n  checkpoint: {}\n",
            quoted(&self.checkpoint.display().to_string())
        )?;
        self.upcycling(out)?;
        self.training(out)?;
        self.measuring(out)
    }

    fn dataset(&self, out: &mut String) -> std::fmt::Result {
        let data = self.dataset;
        writeln!(out, "dataset:\n  source: {}", data.source.name())?;
        for (key, value) in [("folder", &data.folder), ("file", &data.file)] {
            if !value.is_empty() {
                writeln!(out, "  {key}: {}", quoted(value))?;
            }
        }
        let columns = &data.columns;
        let named: Vec<String> = [
            ("image", &columns.image),
            ("caption", &columns.caption),
            ("label", &columns.label),
        ]
        .iter()
        .filter(|(_, name)| !name.is_empty())
        .map(|(key, name)| format!("{key}: {}", quoted(name)))
        .collect();
        if !named.is_empty() {
            writeln!(out, "  columns: {{{}}}", named.join(", "))?;
        }
        writeln!(
            out,
            "  corrupt_share: 0.0        # share of pairs that may be unreadable: skipped and \
             named instead of refused\n"
        )
    }

    fn upcycling(&self, out: &mut String) -> std::fmt::Result {
        let recipe = self.recipe;
        let (samples, tokens) = (recipe.samples, recipe.tokens_per_sample);
        writeln!(
            out,
            "activations:\n  samples: {samples}           # pictures whose tokens are \
             clustered\n  tokens_per_sample: {tokens}  # 0 takes all\n"
        )?;
        writeln!(
            out,
            "moe:\n  experts: {}                # {}\n  top_k: {}\n  vision_blocks: every-2\n  \
             text_blocks: every-2\n",
            recipe.experts,
            recipe.reason("moe.experts"),
            recipe.top_k
        )
    }

    fn training(&self, out: &mut String) -> std::fmt::Result {
        let recipe = self.recipe;
        let micro = match recipe.reason("train.optim.micro_batch") {
            "" => "pairs in memory at a time; 0 for all",
            why => why,
        };
        writeln!(
            out,
            "train:\n  optim:\n    steps: {}             # {}\n    batch: {}              # {}\n    \
             micro_batch: {}        # {micro}\n    learning_rate: {:.1e}  # {}\n    \
             final_learning_rate: 0.0\n    warmup: {}              # 5 % of the steps\n    \
             augment: crop           # CLIP's\n    validate_every: {}\n    checkpoint_every: {}\n",
            recipe.steps,
            recipe.reason("train.optim.steps"),
            recipe.batch,
            recipe.reason("train.optim.batch"),
            recipe.micro_batch,
            recipe.learning_rate,
            recipe.reason("train.optim.learning_rate"),
            recipe.warmup,
            recipe.every,
            recipe.every
        )?;
        writeln!(
            out,
            "# Dense training on at the same budget, exact copies, and the method, each with\n\
             # and without self-distillation.\n\
             runs:\n  dense: {{init: dense}}\n  sparse: {{init: sparse}}\n  \
             sparse-eesd: {{init: sparse, eesd: 0.1}}\n  \
             cluster-aware: {{init: cluster-aware}}\n  \
             cluster-aware-eesd: {{init: cluster-aware, eesd: 0.1}}\n"
        )
    }

    fn measuring(&self, out: &mut String) -> std::fmt::Result {
        let shape = &self.shape.vision;
        // Large pictures fill the memory of a large batch.
        let batch = if shape.image_size > 100 { 64 } else { 256 };
        writeln!(
            out,
            "evaluate:\n  recall_at: {}        # k beyond half of the pictures says little\n  \
             shots: []                 # your pictures have no groups of classes to probe\n  \
             batch: {batch}",
            list(&self.recipe.recall_at)
        )?;
        if self.sets.is_empty() {
            writeln!(
                out,
                "  sets: []                  # folders as CLIP_benchmark stores them\n"
            )?;
        } else {
            writeln!(
                out,
                "  sets:                     # {}",
                super::set_names(self.sets).join(", ")
            )?;
            for set in self.sets {
                writeln!(out, "    - {}", quoted(set))?;
            }
            writeln!(out)?;
        }
        writeln!(
            out,
            "report:\n  title: {}\n  reference: sparse\n  showcase: cluster-aware-eesd\n  \
             ablation: [sparse, cluster-aware, sparse-eesd, cluster-aware-eesd]",
            quoted(&self.title)
        )
    }
}
