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
pub(super) struct NewConfiguration<'a> {
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

/// A line with a comment behind it.
fn line(out: &mut String, text: &str, comment: &str) -> std::fmt::Result {
    writeln!(out, "{text:<28} # {comment}")
}

impl NewConfiguration<'_> {
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
             # `upcycle-init` without arguments writes all of them out. Change a key and make\n\
             # again: only what depends on it runs. Paths are absolute, because make runs in\n\
             # the folder of its Makefile.\n"
        )?;
        line(out, &format!("seeds: {}", list(&recipe.seeds)), recipe.reason("seeds"))?;
        writeln!(out)?;
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
        let why =
            "fraction of pairs that may be unreadable: skipped and named, not refused";
        line(out, "  corrupt_share: 0.0", why)?;
        writeln!(out)
    }

    fn upcycling(&self, out: &mut String) -> std::fmt::Result {
        let recipe = self.recipe;
        writeln!(out, "activations:")?;
        let samples = format!("  samples: {}", recipe.samples);
        line(out, &samples, "pictures whose tokens are clustered")?;
        let tokens = format!("  tokens_per_sample: {}", recipe.tokens_per_sample);
        line(out, &tokens, "0 takes all")?;

        writeln!(out, "\nmoe:")?;
        let experts = format!("  experts: {}", recipe.experts);
        line(out, &experts, recipe.reason("moe.experts"))?;
        writeln!(
            out,
            "  top_k: {}\n  vision_blocks: every-2\n  text_blocks: every-2\n",
            recipe.top_k
        )
    }

    fn training(&self, out: &mut String) -> std::fmt::Result {
        let recipe = self.recipe;
        let micro = match recipe.reason("train.optim.micro_batch") {
            "" => "pairs in memory at a time; 0 for all",
            why => why,
        };
        writeln!(out, "train:\n  optim:")?;
        for (key, value, why) in [
            ("steps", recipe.steps.to_string(), recipe.reason("train.optim.steps")),
            ("batch", recipe.batch.to_string(), recipe.reason("train.optim.batch")),
            ("micro_batch", recipe.micro_batch.to_string(), micro),
            (
                "learning_rate",
                format!("{:.1e}", recipe.learning_rate),
                recipe.reason("train.optim.learning_rate"),
            ),
            ("warmup", recipe.warmup.to_string(), "5 % of the steps"),
            ("augment", "crop".to_owned(), "CLIP's"),
        ] {
            line(out, &format!("    {key}: {value}"), why)?;
        }
        writeln!(
            out,
            "    final_learning_rate: 0.0\n    validate_every: {0}\n    \
             checkpoint_every: {0}\n",
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
        writeln!(out, "evaluate:")?;
        let recalls = format!("  recall_at: {}", list(&self.recipe.recall_at));
        line(out, &recalls, "k beyond half of the pictures says little")?;
        line(out, "  shots: []", "your pictures have no groups of classes to probe")?;
        // Large pictures fill the memory of a large batch.
        let batch = if self.shape.vision.image_size > 100 { 64 } else { 256 };
        writeln!(out, "  batch: {batch}")?;
        if self.sets.is_empty() {
            line(out, "  sets: []", "folders as CLIP_benchmark stores them")?;
        } else {
            line(out, "  sets:", &super::set_names(self.sets).join(", "))?;
            for set in self.sets {
                writeln!(out, "    - {}", quoted(set))?;
            }
        }
        writeln!(
            out,
            "\nreport:\n  title: {}\n  reference: sparse\n  showcase: cluster-aware-eesd\n  \
             ablation: [sparse, cluster-aware, sparse-eesd, cluster-aware-eesd]",
            quoted(&self.title)
        )
    }
}
