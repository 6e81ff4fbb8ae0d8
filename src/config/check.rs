//! What the types cannot say: ranges, divisibility, and names that must exist.

use super::{Config, EvaluateConfig, MultipletConfig, OptimConfig, SubspacesConfig};
use crate::error::{Error, Result, did_you_mean};

/// Widths and sides beyond this are slips of the keyboard, refused before memory is taken.
const MOST: usize = 1 << 16;

/// As [`MOST`], for blocks.
const MOST_LAYERS: usize = 1024;

/// As [`MOST`], for lanes.
const MOST_LANES: usize = 1024;

/// A section that can say whether it can run.
pub trait Check {
    /// Refuses impossible values, naming the key, what was found and what is expected.
    fn check(&self) -> Result<()>;
}

impl Check for Config {
    fn check(&self) -> Result<()> {
        require(!self.seeds.is_empty(), "seeds", &"[]", "at least one seed")?;
        distinct("seeds", &self.seeds)?;
        self.check_model()?;

        // A section does not know its own name, which messages need.
        self.pretrain.optim.check().map_err(|e| within("pretrain.optim", &e))?;
        self.train.optim.check().map_err(|e| within("train.optim", &e))?;
        positive("activations.samples", self.activations.samples)?;
        positive("activations.batch", self.activations.batch)?;
        positive("cluster.iterations", self.cluster.iterations)?;
        positive("cluster.restarts", self.cluster.restarts)?;
        self.multiplet.check().map_err(|e| within("multiplet", &e))?;

        for (name, variant) in &self.subspaces {
            variant.check().map_err(|e| within(&format!("subspaces.{name}"), &e))?;
        }
        self.check_moe()?;
        self.check_names()?;

        // Weights of losses, and a tolerance: zero switches them off.
        for (key, value) in [
            ("cluster.tolerance", self.cluster.tolerance),
            ("train.balance", self.train.balance),
            ("train.router_z", self.train.router_z),
        ] {
            require(value >= 0.0, key, &value, "0 or more")?;
        }
        self.check_eesd()?;
        self.check_evaluate()?;
        positive("analyze.samples", self.analyze.samples)?;

        // Last, because every value of a sweep is a whole configuration to check.
        self.check_sweep()
    }
}

impl Config {
    /// The model, and what of the data set decides its shape.
    fn check_model(&self) -> Result<()> {
        let (v, t) = (&self.model.vision, &self.model.text);
        let embed = self.model.embed_dim;
        require((1..=MOST).contains(&embed), "model.embed_dim", &embed, "1 to 65536")?;

        for (name, value) in [
            ("model.vision.patch", v.patch),
            ("model.vision.width", v.width),
            ("model.vision.layers", v.layers),
            ("model.vision.heads", v.heads),
            ("model.vision.hidden", v.hidden),
            ("model.text.width", t.width),
            ("model.text.layers", t.layers),
            ("model.text.heads", t.heads),
            ("model.text.hidden", t.hidden),
            ("dataset.image_size", self.dataset.image_size),
        ] {
            require((1..=MOST).contains(&value), name, &value, "1 to 65536")?;
        }

        for (name, layers) in
            [("model.vision.layers", v.layers), ("model.text.layers", t.layers)]
        {
            require(layers <= MOST_LAYERS, name, &layers, "1 to 1024")?;
        }

        // Heads share the width evenly, and patches cover the picture.
        divides("model.vision.heads", v.heads, "model.vision.width", v.width)?;
        divides("model.text.heads", t.heads, "model.text.width", t.width)?;
        let size = self.dataset.image_size;
        divides("model.vision.patch", v.patch, "dataset.image_size", size)?;

        let share = self.dataset.corrupt_share;
        let possible = (0.0..=1.0).contains(&share);
        require(possible, "dataset.corrupt_share", &share, "0 to 1")?;
        let weights = &self.dataset.weights;
        let fine = weights.iter().all(|weight| (0.0..=1000.0).contains(weight));
        require(fine, "dataset.weights", &format!("{weights:?}"), "0 to 1000 each")?;

        // A caption has a start, an end and at least one token between; the alphabet of bytes
        // takes 256 entries, the two marks 2 more.
        let context = self.dataset.context;
        require(context >= 3, "dataset.context", &context, "at least 3 tokens")?;
        let vocabulary = self.dataset.vocabulary;
        require(vocabulary >= 260, "dataset.vocabulary", &vocabulary, "at least 260")
    }

    fn check_eesd(&self) -> Result<()> {
        share("train.eesd.tokens", self.train.eesd.tokens)?;
        let eesd = &self.train.eesd;
        share("train.eesd.decay", eesd.decay)?;
        share("train.eesd.half_life", eesd.half_life)?;
        let teaches = eesd.half_life > 0.0 || eesd.decay > 0.0;
        let expected = "above 0, or train.eesd.decay above 0";
        require(teaches, "train.eesd.half_life", &eesd.half_life, expected)
    }

    fn check_evaluate(&self) -> Result<()> {
        positive("evaluate.batch", self.evaluate.batch)?;
        distinct("evaluate.recall_at", &self.evaluate.recall_at)?;
        distinct("evaluate.shots", &self.evaluate.shots)?;
        // No step is no fine-tuning; its other values are checked all the same.
        let tuning = &self.evaluate.fine_tuning;
        let tuning = OptimConfig { steps: tuning.steps.max(1), ..tuning.clone() };
        tuning.check().map_err(|e| within("evaluate.fine_tuning", &e))?;

        positive("evaluate.probe_draws", self.evaluate.probe_draws)?;
        let l2 = &self.evaluate.probe_l2;
        let fine = !l2.is_empty() && l2.iter().all(|&v| v > 0.0);
        require(fine, "evaluate.probe_l2", &format!("{l2:?}"), "positive numbers")?;

        // Two sets of one name would overwrite each other's results.
        let names = self.evaluate.sets.iter().map(|set| EvaluateConfig::set_name(set));
        let names: Vec<String> = names.collect();
        require(!names.contains(&String::new()), "evaluate.sets", &"\"\"", "folders")?;
        distinct("evaluate.sets", &names)
    }

    /// The mixture, and that its blocks are blocks of the model.
    fn check_moe(&self) -> Result<()> {
        let (e, k) = (self.moe.experts, self.moe.top_k);
        require((1..=256).contains(&e), "moe.experts", &e, "1 to 256")?;
        let why = "2 to moe.experts (a renormalized top-1 gives the router no gradient)";
        require(k >= 2 && k <= e, "moe.top_k", &k, why)?;

        for (key, blocks, layers) in [
            ("moe.vision_blocks", &self.moe.vision_blocks, self.model.vision.layers),
            ("moe.text_blocks", &self.moe.text_blocks, self.model.text.layers),
        ] {
            let list = blocks.indices(layers);
            let ascending = list.windows(2).all(|pair| pair[0] < pair[1]);
            let inside = list.iter().all(|&block| block < layers);
            let expected = format!("ascending indices below {layers}");
            require(ascending && inside, key, &format!("{list:?}"), &expected)?;
        }
        Ok(())
    }

    /// Names that one section uses and another defines.
    fn check_names(&self) -> Result<()> {
        for (name, init) in &self.inits {
            if let Some(variant) = &init.subspaces {
                let key = format!("inits.{name}.subspaces");
                named(&key, variant, self.subspaces.keys())?;
            }
        }

        for (name, run) in &self.runs {
            named(&format!("runs.{name}.init"), &run.init, self.inits.keys())?;
            let key = format!("runs.{name}.eesd");
            require(run.eesd >= 0.0, &key, &run.eesd, "0 or more")?;
            if let Some(tokens) = run.eesd_tokens {
                share(&format!("runs.{name}.eesd_tokens"), tokens)?;
            }
        }

        distinct("sweep.seeds", &self.sweep.seeds)?;
        let swept = !self.sweep.factors.is_empty();
        let seeded = !swept || !self.sweep.seeds.is_empty();
        require(seeded, "sweep.seeds", &"[]", "at least one seed for the factors")?;
        for (name, factor) in &self.sweep.factors {
            let key = format!("sweep.factors.{name}.run");
            named(&key, &factor.run, self.runs.keys())?;
        }

        named("report.reference", &self.report.reference, self.runs.keys())?;
        named("report.showcase", &self.report.showcase, self.runs.keys())?;
        for run in &self.report.ablation {
            named("report.ablation", run, self.runs.keys())?;
        }

        // The chart of the ablation is a square of two choices each.
        let four = [0, 4].contains(&self.report.ablation.len());
        require(four, "report.ablation", &self.report.ablation.len(), "four runs or none")
    }
}

impl Check for OptimConfig {
    fn check(&self) -> Result<()> {
        positive("steps", self.steps)?;
        require(self.batch >= 2, "batch", &self.batch, "at least 2 (contrastive)")?;

        // Groups of 16 samples are the unit of every sum (`engine/cpu`).
        let (micro, expected) = (self.micro_batch, "0 or a multiple of 16");
        require(micro.is_multiple_of(16), "micro_batch", &micro, expected)?;

        // Lanes are added pairwise, and ranks share them evenly.
        let fine = self.lanes.is_power_of_two() && self.lanes <= MOST_LANES;
        require(fine, "lanes", &self.lanes, "a power of two from 1 to 1024")?;

        require(
            self.learning_rate > 0.0,
            "learning_rate",
            &self.learning_rate,
            "above 0",
        )?;
        let floor = self.final_learning_rate;
        let fine = (0.0..=self.learning_rate).contains(&floor);
        require(fine, "final_learning_rate", &floor, "0 to learning_rate")?;

        for (key, value) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            require((0.0..1.0).contains(&value), key, &value, "0 to below 1")?;
        }

        require(self.epsilon > 0.0, "epsilon", &self.epsilon, "above 0")?;
        require(
            self.weight_decay >= 0.0,
            "weight_decay",
            &self.weight_decay,
            "0 or more",
        )?;
        require(self.clip_norm > 0.0, "clip_norm", &self.clip_norm, "above 0")
    }
}

impl Check for MultipletConfig {
    fn check(&self) -> Result<()> {
        positive("image_clusters", self.image_clusters)?;
        positive("text_clusters", self.text_clusters)?;
        share("label_smoothing", self.label_smoothing)?;
        self.optim.check().map_err(|e| within("optim", &e))
    }
}

impl Check for SubspacesConfig {
    fn check(&self) -> Result<()> {
        share("tau", self.tau)?;
        positive("min_rank", self.min_rank)?;
        share("shrinkage", self.shrinkage)
    }
}

/// An error of a section under the section's name.
fn within(section: &str, error: &Error) -> Error {
    Error::new(error.kind(), format!("{section}.{}", error.message()))
}

/// Refuses a value unless a condition holds.
fn require(
    holds: bool,
    key: &str,
    found: &dyn std::fmt::Display,
    expected: &str,
) -> Result<()> {
    if holds {
        Ok(())
    } else {
        Err(Error::usage(format!("{key}: found {found}, expected {expected}")))
    }
}

/// Refuses a list that has something twice: its second result would overwrite the first.
fn distinct<T: Ord + Clone + std::fmt::Debug>(key: &str, list: &[T]) -> Result<()> {
    let unique: std::collections::BTreeSet<&T> = list.iter().collect();
    let found = format!("{list:?}");
    require(unique.len() == list.len(), key, &found, "every entry once")
}

/// Refuses zero.
fn positive(key: &str, value: usize) -> Result<()> {
    require(value > 0, key, &value, "above 0")
}

/// Refuses what is not a fraction.
fn share(key: &str, value: f64) -> Result<()> {
    require((0.0..=1.0).contains(&value), key, &value, "0 to 1")
}

/// Refuses a number that does not divide another one.
fn divides(small_key: &str, small: usize, large_key: &str, large: usize) -> Result<()> {
    let expected = format!("a divisor of {large_key} = {large}");
    require(small > 0 && large.is_multiple_of(small), small_key, &small, &expected)
}

/// Refuses a name that is not among the known ones, with the nearest of them.
fn named<'a>(
    key: &str,
    name: &str,
    known: impl Iterator<Item = &'a String>,
) -> Result<()> {
    let known: Vec<&str> = known.map(String::as_str).collect();
    let expected = format!(
        "one of: {}{}",
        known.join(", "),
        did_you_mean(name, known.iter().copied())
    );
    require(known.contains(&name), key, &name, &expected)
}
