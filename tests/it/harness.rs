//! A pipeline of three made-up stages that leave a note whenever they really run.
//!
//! `numbers` writes n plus the length of an outside file; `squares` writes its square, cut off
//! at `cap`; `total`, for two runs, adds an offset. The answer is known without any store.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use upcycle::artifact::{External, Key, Manifest, Options, Place, Store};
use upcycle::config::Compute;
use upcycle::error::{Error, Result};
use upcycle::pipeline::drive::{Drive, Mode, Orders};
use upcycle::pipeline::{
    Console, Externals, Files, Job, Node, Panics, Reach, Stage, Upstream, Volume, Width,
};
use upcycle::ranks::Alone;

const fn stage(name: &'static str, run: fn(&mut Job<'_>) -> Result<()>) -> Stage {
    Stage {
        name,
        version: 1,
        width: Width::Shared,
        reach: Reach::Process,
        about: "",
        run,
    }
}

pub(crate) const STAGES: &[Stage] =
    &[stage("numbers", numbers), stage("squares", squares), stage("total", total)];

/// A folder with a store, an outside file and the notes of the stages.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) root: PathBuf,
    _folder: Option<tempfile::TempDir>,
}

/// What may be changed.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Settings {
    pub(crate) n: Value,
    pub(crate) cap: i64,
    pub(crate) offset: i64,
    pub(crate) behavior: &'static str,
}

impl Default for Settings {
    fn default() -> Self {
        Self { n: json!(3), cap: 100, offset: 1, behavior: "good" }
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let world = Self { root: folder.path().to_owned(), _folder: Some(folder) };
        fs::write(world.outside(), "four").unwrap();
        world
    }

    /// The world of another process.
    pub(crate) fn at(root: &Path) -> Self {
        Self { root: root.to_owned(), _folder: None }
    }

    pub(crate) fn outside(&self) -> PathBuf {
        self.root.join("outside.txt")
    }

    pub(crate) fn artifacts(&self) -> PathBuf {
        self.root.join("artifacts")
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(&self.artifacts(), Options::default())
    }

    /// Makes everything; the places that really ran, in the order of the plan.
    pub(crate) fn make(&self, settings: &Settings) -> Vec<String> {
        self.try_make(settings, &orders()).unwrap()
    }

    pub(crate) fn try_make(
        &self,
        settings: &Settings,
        orders: &Orders,
    ) -> Result<Vec<String>> {
        self.make_with(settings, orders, Options::default())
    }

    pub(crate) fn make_with(
        &self,
        settings: &Settings,
        orders: &Orders,
        options: Options,
    ) -> Result<Vec<String>> {
        fs::write(self.root.join("notes"), "").unwrap();
        let nodes = self.nodes(settings);
        let store = Store::open(&self.artifacts(), options);
        for stage in STAGES {
            drive(stage, &nodes, &store, orders)?;
        }
        store.save();
        Ok(self.notes())
    }

    /// Drives one stage; its lines for standard output.
    pub(crate) fn one(
        &self,
        name: &str,
        settings: &Settings,
        orders: &Orders,
    ) -> Result<Vec<String>> {
        let stage = STAGES.iter().find(|stage| stage.name == name).unwrap();
        let store = self.store();
        let lines = drive(stage, &self.nodes(settings), &store, orders);
        store.save();
        lines
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        let text = fs::read_to_string(self.root.join("notes")).unwrap_or_default();
        let mut notes: Vec<String> = text.lines().map(str::to_owned).collect();
        notes.sort();
        notes
    }

    pub(crate) fn nodes(&self, settings: &Settings) -> Vec<Node> {
        let paths = BTreeMap::from([("notes".to_owned(), self.root.join("notes"))]);
        let node = |stage, run: Option<&str>, params, reads: &[&'static str]| Node {
            stage,
            place: Place::new(stage, run.map(str::to_owned)),
            params,
            backend: "cpu-f32",
            compute: Compute::default(),
            inputs: reads.iter().map(|stage| upstream(stage)).collect(),
            externals: Externals::None,
            paths: paths.clone(),
        };

        let behavior = settings.behavior;
        let mut numbers =
            node("numbers", None, json!({ "n": settings.n, "behavior": behavior }), &[]);
        numbers.externals = Externals::Files(vec![External {
            name: "outside.txt".to_owned(),
            path: self.outside(),
        }]);

        let squares = node("squares", None, json!({ "cap": settings.cap }), &["numbers"]);
        let total = |run: &str, offset: i64| {
            node("total", Some(run), json!({ "offset": offset }), &["squares"])
        };
        vec![numbers, squares, total("a", settings.offset), total("b", 1000)]
    }

    /// Where `current` of a place leads.
    pub(crate) fn dir(&self, stage: &str, run: Option<&str>) -> PathBuf {
        let place = Place::new(stage, run.map(str::to_owned));
        let key = self.store().current(&place).unwrap();
        self.store().dir(&place, &key)
    }

    pub(crate) fn result(&self, run: &str) -> i64 {
        read(&self.dir("total", Some(run)).join("total.txt"))
    }

    /// Names and contents of all current results, manifests reduced to what is the same in
    /// every run.
    pub(crate) fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let mut found = BTreeMap::new();
        for (stage, run) in [
            ("numbers", None),
            ("squares", None),
            ("total", Some("a")),
            ("total", Some("b")),
        ] {
            let dir = self.dir(stage, run);
            let key = Key::parse(dir.file_name().unwrap().to_str().unwrap()).unwrap();
            let manifest = Manifest::read(&dir.join("manifest.json"), &key).unwrap();
            found.insert(format!("{stage}{run:?} {key}"), manifest.tree.as_str().into());

            for output in &manifest.outputs {
                let bytes = fs::read(dir.join(&output.path)).unwrap();
                found.insert(format!("{stage}{run:?} {}", output.path), bytes);
            }
        }
        found
    }

    /// What lies in the folders of unfinished work.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut found = Vec::new();
        for stage in STAGES {
            let folder = self.artifacts().join(stage.name).join(".tmp");
            for entry in fs::read_dir(folder).into_iter().flatten() {
                found.push(entry.unwrap().file_name().to_string_lossy().into_owned());
            }
        }
        found
    }
}

/// What the pipeline computes, without a pipeline.
pub(crate) fn answer(n: i64, outside: usize, cap: i64, offset: i64) -> i64 {
    let number = n + i64::try_from(outside).unwrap();
    (number * number).min(cap) + offset
}

pub(crate) fn orders() -> Orders {
    Orders {
        mode: Mode::Run,
        force: false,
        only: vec![],
        threads: 2,
        jobs: 0,
        need: 0,
        no_wait: false,
        verbose: false,
        fetches: false,
        panics: Panics::default(),
        ranks: Arc::new(Alone),
    }
}

fn drive(
    stage: &Stage,
    nodes: &[Node],
    store: &Store,
    orders: &Orders,
) -> Result<Vec<String>> {
    let console = Console::new(Volume::Quiet);
    Drive { stage, stages: STAGES, nodes, store, console: &console, orders }.run()
}

fn upstream(stage: &'static str) -> Upstream {
    let files = match stage {
        "numbers" => Files::Listed(&["number.txt"]),
        _ => Files::All,
    };
    Upstream { name: stage.to_owned(), place: Place::new(stage, None), files }
}

fn numbers(job: &mut Job<'_>) -> Result<()> {
    note(job);
    let params: Value = job.params()?;
    let outside = &job.externals[0].path;
    let length = fs::read_to_string(outside).unwrap().len();
    let n = params["n"].as_i64().unwrap_or(0);

    // What a resumable stage does, and then everything that may go wrong.
    let scratch = job.draft.scratch()?;
    fs::write(scratch.join("checkpoint"), "half").unwrap();
    match params["behavior"].as_str().unwrap() {
        "fails" => return Err(Error::failed("it was told to fail")),
        "panics" => panic!("it was told to panic"),
        "empty" => return Ok(()),
        "edits its input" => fs::write(outside, "changed").unwrap(),
        "is slow" => std::thread::sleep(Duration::from_millis(150)),
        "draws" => {
            write(&job.output("luck.txt"), i64::from(std::process::id()) + count(job));
        }
        _ => {}
    }

    write(&job.output("number.txt"), n + i64::try_from(length).unwrap());
    // A file that no stage reads: it must not reach the keys downstream.
    write(&job.output("more/unread.txt"), n);
    job.draft.metric("n", n as f64);
    Ok(())
}

fn count(job: &Job<'_>) -> i64 {
    let notes = fs::read_to_string(job.path("notes").unwrap()).unwrap();
    i64::try_from(notes.len()).unwrap()
}

fn squares(job: &mut Job<'_>) -> Result<()> {
    note(job);
    let params: Value = job.params()?;
    let n = read(&job.input("numbers", "number.txt")?);
    assert!(job.input("numbers", "more/unread.txt").is_err(), "an unlisted file");
    write(&job.output("square.txt"), (n * n).min(params["cap"].as_i64().unwrap()));
    Ok(())
}

fn total(job: &mut Job<'_>) -> Result<()> {
    note(job);
    let params: Value = job.params()?;
    let square = read(&job.input("squares", "square.txt")?);
    write(&job.output("total.txt"), square + params["offset"].as_i64().unwrap());
    Ok(())
}

fn note(job: &Job<'_>) {
    let path = job.path("notes").unwrap();
    let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(format!("{}\n", job.node.place).as_bytes()).unwrap();
}

fn read(path: &Path) -> i64 {
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

fn write(path: &Path, value: i64) {
    fs::write(path, format!("{value}\n")).unwrap();
}
