//! Making a result: complete, or not at all.
//!
//! ```text
//! lock the key ─ fresh by now? ─► point current, done
//!   └► stage in .tmp/<key>.… ─ work ─ hash, sync, chmod 0444, open every file
//!        ─ inputs from outside unchanged? ─ manifest ─ rename the folder ─ sync its parent
//!        ─ point current ─ sync ─ drop the scratch
//! ```
//!
//! A process that is killed anywhere leaves either the old state or the new one, and in `.tmp`
//! something that the next run of the same key removes. There is no flag that says
//! "incomplete", and no lock that survives its process.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::crash;
use super::history::{Record, now_text};
use super::lock::{self, Guard, Try};
use super::machine::{commit, host, peak_memory, processor};
use super::{
    Digest, Draft, Expected, External, Inputs, MANIFEST, Manifest, Output, Provenance,
    Stat, State, Store, describe, files, history, store,
};
use crate::error::{Context, Error, Kind, Result};

/// What a caller wants made.
#[derive(Debug)]
pub struct Request<'a> {
    /// Place, preimage and key.
    pub expected: &'a Expected,
    /// Why it is made, for the history.
    pub reason: String,
    /// What it reads from the store.
    pub inputs: &'a Inputs,
    /// What it reads from outside, with the stats the key was made from.
    pub externals: &'a [(External, Stat)],
    /// Make it again although it is there.
    pub force: bool,
    /// Fail instead of waiting for another process that is making it.
    pub no_wait: bool,
    /// Threads of the run, for provenance.
    pub threads: usize,
}

/// Something people should hear about.
#[derive(Debug, Clone)]
pub enum Notice {
    /// Another process is making this result, and we wait for it.
    Waiting {
        /// What the lock says about that process.
        holder: String,
    },
    /// A damaged result was moved aside.
    Quarantined {
        /// What was wrong, file by file.
        damage: Vec<String>,
        /// Where the result is now.
        moved_to: PathBuf,
    },
    /// A forced run gave other bytes than the run before it.
    Differs {
        /// The files with other bytes.
        files: Vec<String>,
        /// The processor of the earlier run, if it was another one.
        earlier_processor: Option<String>,
    },
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// Nothing to do.
    Fresh,
    /// An existing result became current again.
    Reused,
    /// The work was done, in so many seconds.
    Ran(f64),
}

impl Store {
    /// Makes a result unless it is there.
    pub fn produce(
        &self,
        request: &Request<'_>,
        notice: &dyn Fn(Notice),
        work: impl FnOnce(&mut Draft) -> Result<()>,
    ) -> Result<Outcome> {
        lock::prepare(self.root())?;
        files::make_folder(&self.root().join(".state"))?;
        let _lock = self.lock_key(request, notice)?;
        self.crash("locked");

        // While we waited for the lock, its holder may have made what we want.
        if let Some(outcome) = self.settled(request, notice)? {
            return Ok(outcome);
        }

        // Inputs are held before they are checked, so that nobody sweeps them away in between.
        let _readers = self.hold_inputs(request.inputs)?;
        self.verify_inputs(request.inputs)?;

        let (clock, started) = (Instant::now(), now_text());
        let result = self.run(request, notice, work, &started);
        let wall = clock.elapsed().as_secs_f64();
        self.log(request, if result.is_ok() { "ran" } else { "failed" }, wall);
        result.map(|()| Outcome::Ran(wall))
    }

    /// A draft for a rank that works on a result which another process publishes: what is
    /// written into `folder` is nobody's, and checkpoints are read where that process has them.
    pub fn follow(&self, expected: &Expected, folder: &Path) -> Draft {
        Draft::new(folder, self.scratch(expected))
    }

    /// Under the lock: what another process may have done meanwhile, and damage.
    fn settled(
        &self,
        request: &Request<'_>,
        notice: &dyn Fn(Notice),
    ) -> Result<Option<Outcome>> {
        if request.force {
            return Ok(None);
        }

        match self.check(request.expected)? {
            State::Fresh => Ok(Some(Outcome::Fresh)),
            State::Reusable => {
                self.make_current(request.expected)?;
                self.log(request, "reused", 0.0);
                Ok(Some(Outcome::Reused))
            }
            State::Stale(_) => Ok(None),

            // A damaged result is kept for whoever wants to know why, and made again.
            State::Damaged(damage) => {
                let moved_to = self.quarantine(request.expected)?;
                notice(Notice::Quarantined { damage, moved_to });
                Ok(None)
            }
        }
    }

    /// Does the work in a staging folder and installs it; leaves nothing behind if it fails.
    fn run(
        &self,
        request: &Request<'_>,
        notice: &dyn Fn(Notice),
        work: impl FnOnce(&mut Draft) -> Result<()>,
        started: &str,
    ) -> Result<()> {
        let expected = request.expected;
        let clock = Instant::now();
        let staging = self.staging(expected)?;

        let run = || -> Result<()> {
            let mut draft = Draft::new(&staging, self.scratch(expected));
            self.crash("staged");
            work(&mut draft)?;
            self.crash("worked");

            let outputs = self.seal(&staging)?;
            self.crash("synced");
            unchanged(request.externals)?;

            // The manifest comes last: a folder that has one is complete.
            let mut manifest = Manifest::new(expected, outputs);
            manifest.metrics = draft.into_metrics();
            manifest.provenance = self.provenance(request, started);
            manifest.provenance.wall = clock.elapsed().as_secs_f64();
            manifest.write(&staging)?;
            files::sync(&staging)?;
            self.crash("manifest");

            self.install(expected, &staging, &manifest, notice)?;
            self.make_current(expected)
        };

        if let Err(error) = run() {
            // The error to report is that of the run, whatever becomes of the folder.
            let _ = files::remove_tree(&staging);
            return Err(error);
        }

        // The resumable checkpoint is needed until here: a kill before this line resumes.
        files::remove_tree(&self.scratch(expected))?;
        self.crash("cleaned");
        Ok(())
    }

    /// Takes the lock of the key, waiting for its holder unless told not to.
    fn lock_key(&self, request: &Request<'_>, notice: &dyn Fn(Notice)) -> Result<Guard> {
        let path = lock::path_of(self.root(), &request.expected.key);
        match lock::attempt(&path)? {
            Try::Held(guard) => Ok(guard),
            Try::Busy(holder) if request.no_wait => {
                let place = &request.expected.place;
                let text = format!(
                    "{place} is being built by {holder}; --no-wait forbids waiting for it"
                );
                Err(Error::new(Kind::Busy, text))
            }
            Try::Busy(holder) => {
                notice(Notice::Waiting { holder });
                lock::exclusive(&path)
            }
        }
    }

    /// Keeps what is read from being swept away while it is read.
    fn hold_inputs(&self, inputs: &Inputs) -> Result<Vec<Guard>> {
        inputs.iter().map(|i| lock::shared(&lock::path_of(self.root(), &i.key))).collect()
    }

    /// Refuses to compute from damaged files.
    fn verify_inputs(&self, inputs: &Inputs) -> Result<()> {
        for input in inputs {
            for (name, digest) in &*input.files {
                let path = input.dir.join(name);
                if self.digest(&path, Some(digest))? != *digest {
                    let (place, stage) = (&input.place, &input.place.stage);
                    return Err(Error::corrupt(format!(
                        "{place}: {name} was changed after it was written; `make {stage}` \
                         builds it again"
                    )));
                }
            }
        }
        Ok(())
    }

    /// An empty folder to write into.
    fn staging(&self, expected: &Expected) -> Result<PathBuf> {
        let folder = self.unfinished(expected);
        files::make_folder(&folder)?;
        let prefix = format!("{}.", staging_name(expected));

        // We hold the lock of the key, so what other runs of the key left behind is dead.
        let unreadable = || format!("cannot list {}", folder.display());
        for entry in fs::read_dir(&folder).context(unreadable)? {
            let entry = entry.context(unreadable)?;
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                files::remove_tree(&entry.path())?;
            }
        }

        let staging = folder.join(format!("{prefix}{}", files::unique()));
        files::make_folder(&staging)?;
        Ok(staging)
    }

    /// Where resumable checkpoints of this key lie.
    fn scratch(&self, expected: &Expected) -> PathBuf {
        self.unfinished(expected).join(format!("scratch-{}", staging_name(expected)))
    }

    /// The folder of a stage's unfinished work.
    fn unfinished(&self, expected: &Expected) -> PathBuf {
        self.root().join(&expected.place.stage).join(".tmp")
    }

    /// Opens, hashes, syncs and closes for writing every file of the staging folder.
    fn seal(&self, staging: &Path) -> Result<Vec<Output>> {
        let names = files::list(staging)?;
        if names.is_empty() {
            return Err(Error::failed("the stage did not write any file"));
        }
        if names.iter().any(|name| name == MANIFEST) {
            return Err(Error::failed("a stage must not write manifest.json"));
        }
        crate::par::try_map(names.len(), |index| self.seal_file(staging, &names[index]))
    }

    /// Describes one file and makes it final. What does not open as what its name says fails here.
    fn seal_file(&self, staging: &Path, name: &str) -> Result<Output> {
        let path = staging.join(name);
        let described = describe::describe(&path)?;
        files::sync(&path)?;
        files::make_read_only(&path)?;

        // The stat is taken after the change of mode, which changes the file's times.
        let stat = store::stat_of(&path)?;
        let digest = Digest::of_file(&path)?;
        self.remember(&path, stat, &digest);
        Ok(Output {
            path: name.to_owned(),
            bytes: stat.size(),
            blake3: digest,
            kind: described.kind,
            rows: described.rows,
            schema: described.schema,
        })
    }

    /// Renames the staging folder to its place.
    fn install(
        &self,
        expected: &Expected,
        staging: &Path,
        manifest: &Manifest,
        notice: &dyn Fn(Notice),
    ) -> Result<()> {
        let target = self.dir(&expected.place, &expected.key);
        let parent = expected.place.folder(self.root());
        files::make_folder(&parent)?;

        // A rename onto a folder that is not empty fails, so an old result makes room first.
        let aside = self.move_aside(expected, manifest, notice)?;
        self.crash("moved-aside");
        let renamed = fs::rename(staging, &target)
            .context(|| format!("cannot rename the result to {}", target.display()));
        match (&renamed, &aside) {
            (Ok(()), Some(aside)) => files::remove_tree(aside)?,
            (Err(_), Some(aside)) => {
                // Put the old result back; the error to report is that of the rename.
                let _ = fs::rename(aside, &target);
            }
            (_, None) => {}
        }
        renamed?;

        self.forget(&target);
        self.crash("renamed");
        files::sync(&parent)
    }

    /// Moves the result of an earlier run of the same key aside: only a forced run meets one.
    fn move_aside(
        &self,
        expected: &Expected,
        manifest: &Manifest,
        notice: &dyn Fn(Notice),
    ) -> Result<Option<PathBuf>> {
        let target = self.dir(&expected.place, &expected.key);
        if !target.exists() {
            return Ok(None);
        }

        // Equal keys promise equal bytes; a broken promise is worth a word.
        if let Ok(Some(old)) = self.manifest(&expected.place, &expected.key) {
            let files = differing(&old, manifest);
            if !files.is_empty() {
                let earlier = old.provenance.processor;
                let earlier_processor = (earlier != processor()).then_some(earlier);
                notice(Notice::Differs { files, earlier_processor });
            }
        }

        let name = format!("{}.{}", staging_name(expected), files::unique());
        let aside = self.unfinished(expected).join(name);
        fs::rename(&target, &aside)
            .context(|| format!("cannot move {} aside", target.display()))?;
        Ok(Some(aside))
    }

    /// Points `current` at the result.
    pub(super) fn make_current(&self, expected: &Expected) -> Result<()> {
        let folder = expected.place.folder(self.root());
        files::point(&folder.join("current"), expected.key.as_str())?;
        self.crash("pointed");
        files::sync(&folder)
    }

    /// Blesses the current result under a new key without running: for a change of code that
    /// changes no bytes. The files are shared by hard links.
    pub fn accept(&self, expected: &Expected) -> Result<()> {
        let place = &expected.place;
        let none = || Error::failed(format!("{place} does not have a result to accept"));
        let from = self.current(place).ok_or_else(none)?;
        let manifest = self.manifest(place, &from)?.ok_or_else(none)?;
        let source = self.dir(place, &from);

        // What is damaged must not become a result that nobody would check the cause of.
        let damage = self.damage(&source, &manifest.digests())?;
        if let Some(what) = damage.first() {
            return Err(Error::corrupt(format!("{place} cannot be accepted: {what}")));
        }

        lock::prepare(self.root())?;
        let _lock = lock::exclusive(&lock::path_of(self.root(), &expected.key))?;

        let staging = self.staging(expected)?;
        let draft = Draft::new(&staging, self.scratch(expected));
        for output in &manifest.outputs {
            fs::hard_link(source.join(&output.path), draft.path(&output.path))
                .context(|| format!("cannot link {} of {place}", output.path))?;
        }

        // The provenance stays that of the run which made the bytes.
        let mut blessed = Manifest::new(expected, manifest.outputs);
        blessed.metrics = manifest.metrics;
        blessed.provenance = manifest.provenance;
        blessed.provenance.accepted_from = Some(from.as_str().to_owned());
        blessed.write(&staging)?;
        files::sync(&staging)?;

        self.install(expected, &staging, &blessed, &|_| {})?;
        self.make_current(expected)
    }

    /// The circumstances of a run that ends now; its length is filled in by the caller.
    fn provenance(&self, request: &Request<'_>, started: &str) -> Provenance {
        let inputs: BTreeMap<String, String> = request
            .inputs
            .iter()
            .map(|input| (input.name.clone(), format!("{}/{}", input.place, input.key)))
            .collect();

        Provenance {
            started: started.to_owned(),
            finished: now_text(),
            wall: 0.0,
            host: host(),
            argv: self.options.argv.clone(),
            git: commit(),
            rustc: self.options.rustc.clone(),
            device: request.expected.preimage.backend.clone(),
            processor: processor(),
            threads: request.threads,
            peak_rss: peak_memory().unwrap_or(0),
            inputs,
            accepted_from: None,
        }
    }

    /// Adds a line to the history.
    fn log(&self, request: &Request<'_>, outcome: &str, wall: f64) {
        let record = Record {
            time: now_text(),
            place: request.expected.place.to_string(),
            key: request.expected.key.as_str(),
            outcome,
            reason: request.reason.clone(),
            wall,
        };
        history::append(self.root(), &record);
    }

    /// Dies here if a test has armed this point.
    fn crash(&self, step: &str) {
        crash::point(self.options.crash_at.as_deref(), step);
    }
}

/// The name of a result's folder in `.tmp`: run names are unique inside a stage, and keys
/// inside a run.
fn staging_name(expected: &Expected) -> String {
    match &expected.place.run {
        Some(run) => format!("{run}-{}", expected.key),
        None => expected.key.to_string(),
    }
}

/// Refuses to publish what was made from files that changed meanwhile.
fn unchanged(externals: &[(External, Stat)]) -> Result<()> {
    for (external, before) in externals {
        if store::stat_of(&external.path).is_ok_and(|now| now == *before) {
            continue;
        }
        let path = external.path.display();
        return Err(Error::failed(format!(
            "{path} changed while the stage read it; run the stage again"
        )));
    }
    Ok(())
}

/// The files whose bytes two results of one key do not share.
fn differing(old: &Manifest, new: &Manifest) -> Vec<String> {
    let (old, new) = (old.digests(), new.digests());
    let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    names.into_iter().filter(|name| old.get(*name) != new.get(*name)).cloned().collect()
}
