//! `upcycle-inspect`: looking at the pipeline and its results without running anything.
//!
//! Every command has two forms of an answer: lines for people and, with `--json`, one JSON
//! value for programs.

mod dag;
mod experts;
mod forward;
mod keep;
mod metrics;
mod moe;
mod preprocess;
mod show;
mod speed;
mod status;
mod study;
mod tokenize;

use std::path::Path;
use std::process::ExitCode;

use clap::{Command, Subcommand};
use serde_json::{Value, json};

use crate::artifact::{Manifest, Place, Store};
use crate::cli::{self, Location, output};
use crate::config::Config;
use crate::error::{Error, Result, did_you_mean};
use crate::io::tensors::{self, Tensor, Tensors};
use crate::pipeline::{Node, Panics, Survey};
use crate::stage::{ALL, plan};

const EXAMPLES: &str = "\
Examples:
  upcycle-inspect status                       every node, fresh or not
  upcycle-inspect why train/sparse-s1          what changed, key by key
  upcycle-inspect dag --format mermaid
  upcycle-inspect show cluster/s1              manifest and files
  upcycle-inspect show cluster/s1 clusters.parquet
  upcycle-inspect diff train/sparse-s1 train/cluster-aware-s1
  upcycle-inspect verify --deep
  upcycle-inspect gc --yes
  upcycle-inspect speed moe --threads 2        milliseconds per training step
  upcycle-inspect accept report                bless results after a cosmetic change of code
  upcycle-inspect study --out docs/study/icons small tables of all results, to be kept
  upcycle-inspect forward --checkpoint DIR --inputs in.safetensors --output out.safetensors
  upcycle-inspect experts --ffn ffn.safetensors --init '{method: drop, ratio: 0.25}' \
      --experts 4 --output experts.safetensors
  upcycle-inspect moe --layer experts.safetensors --rows rows.safetensors \
      --output moe.safetensors
  upcycle-inspect metrics --embeddings embeddings.safetensors
  upcycle-inspect tokenize --tokenizer bpe_simple_vocab_16e6.txt.gz 'a photo of a cat'
  upcycle-inspect preprocess --image cat.jpg --size 224 --output cat.safetensors";

/// The arguments of `upcycle-inspect`.
#[derive(Debug, clap::Args)]
struct InspectArgs {
    #[command(subcommand)]
    ask: Ask,
    #[command(flatten)]
    location: Location,
    /// Answer in JSON.
    #[arg(long, global = true)]
    json: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
enum Ask {
    /// The state of every node.
    Status,
    /// Why nodes are not fresh, every reason.
    Why {
        /// A stage, or stage/run; all if absent.
        node: Option<String>,
    },
    /// The graph of stages.
    Dag {
        /// How it is drawn.
        #[arg(long, value_enum, default_value = "ascii")]
        format: dag::Format,
    },
    /// A result's manifest, or the head of one of its files.
    Show {
        /// A stage, or stage/run.
        node: String,
        /// A file of the result.
        file: Option<String>,
        /// Rows of a table to show.
        #[arg(long, default_value_t = 10)]
        rows: usize,
    },
    /// What a result was made from, up to the data.
    Lineage {
        /// A stage, or stage/run.
        node: String,
    },
    /// Parameters and figures of two results side by side.
    Diff {
        /// A stage/run.
        left: String,
        /// Another stage/run.
        right: String,
    },
    /// Rehash every file of every result.
    Verify {
        /// Also decode every table and checkpoint.
        #[arg(long)]
        deep: bool,
    },
    /// List what nothing current was made from.
    Gc {
        /// Remove it.
        #[arg(long)]
        yes: bool,
    },
    /// Time training steps of the configured model on random data.
    Speed {
        /// What to time; everything if absent.
        #[arg(value_enum)]
        variants: Vec<speed::Variant>,
        /// Number of steps of each that are timed.
        #[arg(long, default_value_t = 20)]
        steps: usize,
        /// Number of threads [default: all cores].
        #[arg(long)]
        threads: Option<usize>,
    },
    /// Bless the current results of a stage after a change of code that changes no bytes.
    Accept {
        /// A stage.
        stage: String,
    },
    /// Write the small tables of all present results as CSV, to keep them when the machine goes.
    Study(study::Export),
    /// Run a model, dense or MoE, on given pixels and token ids.
    Forward(forward::Forward),
    /// Turn an FFN in a file into experts, by any method that makes whole ones.
    Experts(experts::MakeExperts),
    /// Run one MoE layer on rows in a file: routing, gates and outputs.
    Moe(moe::MoeLayer),
    /// Measure embeddings in a file: classification and retrieval.
    Metrics(metrics::Metrics),
    /// Turn texts into token ids, one JSON list per line.
    Tokenize(tokenize::Tokenize),
    /// Turn a picture into the tensor a model sees.
    Preprocess(preprocess::Preprocess),
}

/// The answer of a command, in both of its forms.
#[derive(Debug)]
struct Answer {
    lines: Vec<String>,
    json: Value,
    /// What is wrong, if anything. It is printed after the answer and sets the exit code.
    trouble: Option<Error>,
}

impl Answer {
    /// An answer without trouble.
    fn new(lines: Vec<String>, json: Value) -> Self {
        Self { lines, json, trouble: None }
    }

    /// Writes tensors to a file; what is said are their names and shapes.
    fn written(made: &Tensors, file: &Path) -> Result<Self> {
        output::file(file, |path: &Path| tensors::write(path, made))?;

        let line =
            |(name, tensor): (&String, &Tensor)| format!("{name} {:?}", tensor.shape);
        let shapes = made.iter().map(|(name, t)| (name.clone(), json!(t.shape)));
        Ok(Self::new(made.iter().map(line).collect(), Value::Object(shapes.collect())))
    }
}

/// The pipeline as it is configured, and its store.
#[derive(Debug)]
struct View {
    config: Config,
    nodes: Vec<Node>,
    store: Store,
}

/// Runs `upcycle-inspect`.
pub fn main() -> ExitCode {
    let panics = Panics::default();
    panics.install();
    cli::exit(run, &panics)
}

fn run() -> Result<()> {
    let command = Command::new("inspect")
        .bin_name("upcycle-inspect")
        .display_name("upcycle-inspect")
        .about("Looks at the pipeline and its results without running anything.")
        .version(env!("CARGO_PKG_VERSION"))
        .after_help(EXAMPLES);
    let Some(args) = cli::parse::<InspectArgs>(command, std::env::args_os())? else {
        return Ok(());
    };

    // Some commands work on files of the user's own and need neither configuration nor store.
    let answer = match &args.ask {
        Ask::Forward(forward) => forward.answer()?,
        Ask::Experts(experts) => experts.answer()?,
        Ask::Moe(layer) => layer.answer()?,
        Ask::Metrics(metrics) => metrics.answer()?,
        Ask::Tokenize(tokenize) => tokenize.answer()?,
        Ask::Preprocess(preprocess) => preprocess.answer()?,
        ask => {
            let view = View::open(&args.location)?;
            let answer = view.answer(ask);
            // What was learned about files is worth keeping although the command failed.
            view.store.save();
            answer?
        }
    };

    if args.json {
        cli::print(&[format!("{:#}", answer.json)])?;
    } else {
        cli::print(&answer.lines)?;
    }
    answer.trouble.map_or(Ok(()), Err)
}

impl View {
    /// Loads the configuration, plans the nodes and opens the store.
    fn open(location: &Location) -> Result<Self> {
        let config = location.load()?;
        let nodes = plan(&config, &location.cache)?;
        Ok(Self { config, nodes, store: location.store() })
    }

    /// Asks the module that knows.
    fn answer(&self, ask: &Ask) -> Result<Answer> {
        match ask {
            Ask::Status => status::status(self),
            Ask::Why { node } => status::why(self, node.as_deref()),
            Ask::Dag { format } => Ok(dag::draw(&self.nodes, *format)),
            Ask::Show { node, file, rows } => {
                show::show(self, node, file.as_deref(), *rows)
            }
            Ask::Lineage { node } => show::lineage(self, node),
            Ask::Diff { left, right } => show::diff(self, left, right),

            // These two need the store alone, and rehash or remove what is in it.
            Ask::Verify { deep } => keep::verify(self, *deep),
            Ask::Gc { yes } => keep::collect(self, *yes),

            Ask::Speed { variants, steps, threads } => {
                speed::speed(&self.config, variants, *steps, *threads)
            }
            Ask::Accept { stage } => keep::accept(self, stage),
            Ask::Study(ask) => study::export(self, ask),

            // `run` answers these without a view; they are here because the list is one.
            Ask::Forward(ask) => ask.answer(),
            Ask::Experts(ask) => ask.answer(),
            Ask::Moe(ask) => ask.answer(),
            Ask::Metrics(ask) => ask.answer(),
            Ask::Tokenize(ask) => ask.answer(),
            Ask::Preprocess(ask) => ask.answer(),
        }
    }

    /// A survey of the configured nodes.
    fn survey(&self) -> Survey<'_> {
        Survey::new(&self.store, ALL, &self.nodes)
    }

    /// The nodes a person names by `stage` or `stage/run`.
    fn named(&self, name: &str) -> Result<Vec<&Node>> {
        let name = name.trim_end_matches('/');
        let found: Vec<&Node> = self
            .nodes
            .iter()
            .filter(|node| node.stage == name || node.place.to_string() == name)
            .collect();
        if !found.is_empty() {
            return Ok(found);
        }

        let known: Vec<String> =
            self.nodes.iter().map(|node| node.place.to_string()).collect();
        let hint = did_you_mean(name, known.iter().map(String::as_str));
        Err(Error::usage(format!("there is no node named {name}{hint}")))
    }

    /// The current result of the one node a person names.
    fn result(&self, name: &str) -> Result<(Place, Manifest)> {
        let place = match self.named(name)?.as_slice() {
            [node] => node.place.clone(),
            many => {
                let known: Vec<String> =
                    many.iter().map(|n| n.place.to_string()).collect();
                let known = known.join(", ");
                return Err(Error::usage(format!(
                    "{name} has several runs; name one of: {known}"
                )));
            }
        };

        let none = || Error::failed(format!("{place} does not have a result yet"));
        let key = self.store.current(&place).ok_or_else(none)?;
        let manifest = self.store.manifest(&place, &key)?.ok_or_else(none)?;
        Ok((place, manifest))
    }
}
