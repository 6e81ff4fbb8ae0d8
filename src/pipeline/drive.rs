//! The drive: decides for every node of one stage and runs those that must.
//!
//! The nodes of one stage never read each other, so they may run side by side, each in a
//! thread pool of its own. The decision which of them run comes first, on its own, and costs
//! milliseconds.
//!
//! Where several ranks do the work of a node together, rank 0 drives: it decides, holds the
//! locks and publishes. The others run the nodes that it names, and refuse one whose key is
//! not theirs.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::memory;
use super::panics::{Panics, hold};
use super::survey::{Resolved, one_line};
use super::{Console, Event, Job, Node, Progress, Reach, Stage, Survey, Verdict, Width};
use crate::artifact::{Draft, Notice, Outcome, Place, Request, Store, processor};
use crate::error::{Context, Error, Result, did_you_mean};
use crate::ranks::Ranks;

/// How a stage is to be driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Make what is not fresh.
    Run,
    /// Say whether anything is not fresh.
    Check,
    /// Say what would be made.
    DryRun,
}

/// The command line, as far as the drive needs it.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[derive(Debug, Clone)]
pub struct Orders {
    /// What to do.
    pub mode: Mode,
    /// Make what is fresh too, or plan to.
    pub force: bool,
    /// Only these runs; all if empty.
    pub only: Vec<String>,
    /// Threads in all.
    pub threads: usize,
    /// Nodes at a time, at most; 0 for as many as there are threads and memory for.
    pub jobs: usize,
    /// Bytes that a node of this stage needs; 0 if unknown.
    pub need: u64,
    /// Fail instead of waiting for another process.
    pub no_wait: bool,
    /// Print a line when there was nothing to do.
    pub verbose: bool,
    /// Files from outside are fetched before the stages run: a dry run does not take one that
    /// is missing for an obstacle.
    pub fetches: bool,
    /// Where a panic leaves its message and its place in the code.
    pub panics: Panics,
    /// The processes that work together.
    pub ranks: Arc<dyn Ranks>,
}

/// One stage of a plan over a store.
#[derive(Debug)]
pub struct Drive<'a> {
    /// The stage.
    pub stage: &'a Stage,
    /// All stages, for the keys of upstream nodes.
    pub stages: &'a [Stage],
    /// All nodes of the plan.
    pub nodes: &'a [Node],
    /// Where results are.
    pub store: &'a Store,
    /// Where progress is shown.
    pub console: &'a Console,
    /// What to do.
    pub orders: &'a Orders,
}

/// A node that must run, or whose result must become current.
struct Task<'a> {
    node: &'a Node,
    resolved: Arc<Resolved>,
    /// Why it is not fresh, for the history.
    reason: String,
    /// What is printed when its work begins.
    announcement: String,
}

impl Drive<'_> {
    /// Does what was ordered. Lines for standard output are returned and not printed here.
    pub fn run(&self) -> Result<Vec<String>> {
        let ranks = &*self.orders.ranks;
        if ranks.count() == 1 {
            return self.lead();
        }

        let (name, count) = (self.stage.name, ranks.count());
        if self.stage.reach == Reach::Process {
            return Err(Error::usage(format!(
                "--ranks: found {count} ranks, but the stage {name} runs in one process; leave \
                 --ranks out"
            )));
        }
        self.compare_processors()?;
        if !ranks.leads() {
            return self.follow();
        }

        // An error is not told here: it ends all ranks.
        let lines = self.lead()?;
        ranks.tell("")?;
        Ok(lines)
    }

    /// Says so if ranks run on different processors, whose products differ in the last bits.
    fn compare_processors(&self) -> Result<()> {
        let own = processor();
        let all = self.orders.ranks.tell(&own)?;
        if let Some(rank) = all.iter().position(|other| *other != own) {
            let other = &all[rank];
            self.console.line(&format!(
                "ranks run on different processors ({own} on rank 0, {other} on rank {rank}): \
                 the last bits of the result depend on who computed what"
            ));
        }
        Ok(())
    }

    /// What every other rank does: the nodes that rank 0 names, until it names none.
    fn follow(&self) -> Result<Vec<String>> {
        loop {
            let named = self.orders.ranks.tell("")?.swap_remove(0);
            let Some((place, key)) = named.rsplit_once(' ') else {
                return Ok(Vec::new());
            };
            self.follow_to(place, key)?;
        }
    }

    /// Works on a node that rank 0 publishes.
    fn follow_to(&self, place: &str, key: &str) -> Result<()> {
        let rank = self.orders.ranks.rank();
        let is_meant = |node: &&Node| node.place.to_string() == place;
        let node = self.nodes.iter().find(is_meant).ok_or_else(|| {
            Error::usage(format!(
                "rank 0 makes {place}, which rank {rank} does not have: start all ranks with \
                 the same configuration"
            ))
        })?;

        // The keys of earlier nodes may have changed since they were looked at.
        let survey = Survey::new(self.store, self.stages, self.nodes);
        let resolved = survey.resolve(node)?;
        let own = resolved.expected.key.to_string();
        if own != key {
            return Err(Error::usage(format!(
                "{place} has the key {own} on rank {rank} and {key} on rank 0: start all ranks \
                 with the same program, configuration and files"
            )));
        }

        let folder = tempfile::tempdir()
            .context(|| "making a folder for what is thrown away".to_owned())?;
        let mut draft = self.store.follow(&resolved.expected, folder.path());
        let progress = self.console.bar(place);
        self.compute((node, &resolved), &mut draft, self.orders.threads, progress)
    }

    /// Does what was ordered, as the only rank or the first.
    fn lead(&self) -> Result<Vec<String>> {
        let nodes = self.select()?;
        let survey = Survey::new(self.store, self.stages, self.nodes);
        match self.orders.mode {
            Mode::Check => self.check(&survey, &nodes),
            Mode::DryRun => self.dry_run(&survey, &nodes),
            Mode::Run => {
                let tasks = self.tasks(&survey, &nodes)?;
                if tasks.is_empty() && (self.orders.verbose || self.console.is_live()) {
                    let (name, count) = (self.stage.name, nodes.len());
                    self.console.line(&format!("{name}: {count} fresh"));
                }

                self.work(tasks).map(|()| Vec::new())
            }
        }
    }

    /// The nodes of the stage that `--only` leaves.
    fn select(&self) -> Result<Vec<&Node>> {
        let of_stage: Vec<&Node> =
            self.nodes.iter().filter(|node| node.stage == self.stage.name).collect();
        if self.orders.only.is_empty() {
            return Ok(of_stage);
        }

        let mut chosen = Vec::new();
        for only in &self.orders.only {
            // A run is named after its configuration and its seed; the seed may be left out.
            let matching = |node: &&&Node| {
                let run = node.place.run.as_deref().unwrap_or_default();
                let unseeded = run.rsplit_once("-s").map(|(name, _)| name);
                run == only || unseeded == Some(only)
            };

            // A name that matches nothing is a slip, and not a wish to run nothing.
            let before = chosen.len();
            chosen.extend(of_stage.iter().filter(matching).copied());
            if chosen.len() == before {
                return Err(self.unknown_run(only, &of_stage));
            }
        }
        Ok(chosen)
    }

    /// The error for a run that the stage does not have.
    fn unknown_run(&self, only: &str, of_stage: &[&Node]) -> Error {
        let runs: Vec<&str> =
            of_stage.iter().filter_map(|node| node.place.run.as_deref()).collect();
        let name = self.stage.name;

        if runs.is_empty() {
            return Error::usage(format!(
                "--only {only}: the stage {name} has no runs, it is built as a whole: leave \
                 --only out"
            ));
        }

        let (hint, runs) = (did_you_mean(only, runs.iter().copied()), runs.join(", "));
        Error::usage(format!(
            "--only {only}: {name} has no such run; there are: {runs}{hint}"
        ))
    }

    /// An error if anything is not fresh, after a line for each such node.
    fn check<'n>(&self, survey: &Survey<'n>, nodes: &[&'n Node]) -> Result<Vec<String>> {
        let mut stale = 0;
        for node in nodes {
            let verdict = survey.verdict(node)?;
            if verdict != Verdict::Fresh {
                stale += 1;
                self.plan(node, &describe(&node.place, &verdict));
            }
        }
        if stale == 0 {
            return Ok(Vec::new());
        }

        let (name, count) = (self.stage.name, nodes.len());
        Err(Error::failed(format!("{name}: {stale} of {count} are not fresh")))
    }

    /// Says what would become of a node.
    fn plan(&self, node: &Node, text: &str) {
        self.console.say(&Event::Plan { node: &node.place.to_string(), text }, text);
    }

    /// A line for each node that a run would make.
    fn dry_run<'n>(
        &self,
        survey: &Survey<'n>,
        nodes: &[&'n Node],
    ) -> Result<Vec<String>> {
        let (mut lines, mut blocked) = (Vec::new(), Vec::new());
        for node in nodes {
            // What waits or is blocked has its own line, forced or not.
            let verdict = match survey.verdict(node)? {
                Verdict::Fresh if self.orders.force => {
                    Verdict::Runs(vec!["forced".to_owned()])
                }
                Verdict::Blocked(_) if self.orders.fetches => {
                    Verdict::Runs(vec!["after what is missing is fetched".to_owned()])
                }
                verdict => verdict,
            };

            let line = describe(&node.place, &verdict);
            match verdict {
                Verdict::Fresh => {}
                Verdict::Blocked(_) => blocked.push(line),
                _ if self.console.is_for_programs() => self.plan(node, &line),
                _ => lines.push(line),
            }
        }

        // A plan that cannot be carried out is not a plan: the exit code says so.
        let Some(first) = blocked.first() else { return Ok(lines) };
        for line in &lines {
            self.console.line(line);
        }
        let others = match blocked.len() - 1 {
            0 => String::new(),
            more => format!(" ({more} more of this stage cannot run either)"),
        };
        Err(Error::failed(format!("{first}{others}")))
    }

    /// The nodes that must run, with everything that running them needs.
    fn tasks<'n>(
        &self,
        survey: &Survey<'n>,
        nodes: &[&'n Node],
    ) -> Result<Vec<Task<'n>>> {
        let forced = self.orders.force;
        let mut tasks = Vec::new();
        for node in nodes {
            // A node without a key ends the run before any work begins.
            let resolved = survey.resolve(node)?;
            let verdict = survey.verdict(node)?;
            if verdict == Verdict::Fresh && !forced {
                continue;
            }

            let reason = match &verdict {
                Verdict::Fresh => "forced".to_owned(),
                Verdict::Runs(why) | Verdict::Reusable(why) | Verdict::Damaged(why) => {
                    one_line(why)
                }
                // Such nodes could not be resolved above.
                Verdict::Waits(_) | Verdict::Blocked(_) => String::new(),
            };

            // The words of a dry run, now that it is not one.
            let announcement = if forced {
                named(&node.place, "runs (forced)")
            } else {
                describe(&node.place, &verdict).replace("would run", "runs")
            };
            tasks.push(Task { node, resolved, reason, announcement });
        }
        Ok(tasks)
    }

    /// Runs the tasks, several at a time. After a failure no new task begins, and the running
    /// ones are brought to their end.
    fn work(&self, tasks: Vec<Task<'_>>) -> Result<()> {
        // Every node has its part of the threads, so that together they use what was allowed.
        let workers = self.workers(tasks.len());
        let threads = (self.orders.threads / workers).max(1);
        let console = self.console.of_stage(self.stage.name, tasks.len());
        let queue = Mutex::new(VecDeque::from(tasks));
        let failure = Mutex::new(None);
        let end = End::default();

        std::thread::scope(|scope| {
            // Long work must not look dead where nobody sees a bar.
            scope.spawn(|| {
                let mut pause = console.beat();
                while !end.wait(pause) {
                    pause = console.beat();
                }
            });

            let work = || {
                while let Some(task) = next(&queue, &failure) {
                    // The first error is reported; later ones often follow from it.
                    if let Err(error) = self.make(&task, threads, &console) {
                        hold(&failure).get_or_insert(error);
                    }
                }
            };
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            let joined: Vec<_> =
                workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
            end.announce();
            // A panic outside of a stage's own code goes on as it would without the pulse.
            if let Some(panic) = joined.into_iter().find_map(std::result::Result::err) {
                std::panic::resume_unwind(panic);
            }
        });

        console.end();
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// How many nodes run side by side: as many as were asked for, or as memory allows.
    fn workers(&self, tasks: usize) -> usize {
        let Orders { threads, jobs, need, .. } = *self.orders;
        let workers = match (self.stage.width, jobs) {
            // All ranks work on one node, with all their threads.
            _ if self.orders.ranks.count() > 1 => 1,
            (Width::Whole, _) => 1,
            (Width::Shared, 0) => memory::fitting(threads, need, memory::free()),
            (Width::Shared, jobs) => jobs,
        };
        workers.min(tasks).max(1)
    }

    /// Makes one result and says how it ended.
    fn make(&self, task: &Task<'_>, threads: usize, console: &Console) -> Result<()> {
        let place = &task.node.place;
        let Resolved { expected, inputs, externals } = &*task.resolved;
        let request = Request {
            expected,
            reason: task.reason.clone(),
            inputs,
            externals,
            force: self.orders.force,
            no_wait: self.orders.no_wait,
            threads,
        };

        // The store decides again, under a lock: another process may have been faster.
        let clock = Instant::now();
        let outcome = self.store.produce(
            &request,
            &|notice| notify(console, place, &notice),
            |draft| self.begin(task, draft, threads, console),
        );

        let text = match outcome.context(|| named(place, "failed"))? {
            Outcome::Fresh => {
                console.pass();
                "was built by another process".to_owned()
            }
            Outcome::Reused => {
                console.pass();
                format!("reuses {} ({})", expected.key.short(), task.reason)
            }
            Outcome::Ran(_) => format!("done in {:.1} s", clock.elapsed().as_secs_f64()),
        };
        let (node, seconds) = (place.to_string(), clock.elapsed().as_secs_f64());
        console.say(
            &Event::Done { node: &node, text: &text, seconds },
            &named(place, &text),
        );
        Ok(())
    }

    /// Says that a node begins, to people and to the other ranks, and works on it.
    fn begin(
        &self,
        task: &Task<'_>,
        draft: &mut Draft,
        threads: usize,
        console: &Console,
    ) -> Result<()> {
        let name = task.node.place.to_string();
        let text = task.announcement.as_str();
        console.say(&Event::Start { node: &name, text }, text);

        let ranks = &*self.orders.ranks;
        if ranks.count() > 1 {
            ranks.tell(&format!("{name} {}", task.resolved.expected.key))?;
        }
        self.compute((task.node, &task.resolved), draft, threads, console.bar(&name))
    }

    /// Runs the stage's own code in a thread pool of its own.
    fn compute(
        &self,
        (node, resolved): (&Node, &Resolved),
        draft: &mut Draft,
        threads: usize,
        progress: Progress,
    ) -> Result<()> {
        let bar = progress.clone();
        let outside = &resolved.externals;
        let externals: Vec<_> = outside.iter().map(|(file, _)| file.clone()).collect();
        let mut job = Job {
            node,
            inputs: &resolved.inputs,
            externals: &externals,
            draft,
            progress,
            threads,
            ranks: Arc::clone(&self.orders.ranks),
        };

        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .context(|| format!("cannot start {threads} threads"))?;
        let run = self.stage.run;

        // A panic ends this node with an error; the nodes beside it finish their work.
        let result = catch_unwind(AssertUnwindSafe(|| pool.install(|| run(&mut job))));
        bar.finish();
        result.unwrap_or_else(|_payload| Err(self.orders.panics.take()))
    }
}

/// Tells people what happened on the way to a result.
fn notify(console: &Console, place: &Place, notice: &Notice) {
    let text = match notice {
        Notice::Waiting { holder } => {
            format!("waiting for {holder}, which is building it")
        }
        Notice::Quarantined { damage, moved_to } => {
            let (damage, moved_to) = (one_line(damage), moved_to.display());
            format!("was damaged ({damage}); moved to {moved_to}")
        }
        Notice::Differs { files, earlier_processor } => {
            let why = match earlier_processor.as_deref() {
                None => "is not deterministic".to_owned(),
                Some("") => "was made by an older version".to_owned(),
                Some(before) => format!("was made on another processor ({before})"),
            };
            let files = one_line(files);
            format!("{why}: the forced run wrote other bytes to {files}")
        }
    };
    console.line(&named(place, &text));
}

/// The end of all work, for who waits beside it.
#[derive(Debug, Default)]
struct End {
    is_there: Mutex<bool>,
    changed: Condvar,
}

impl End {
    /// Waits for the end, but no longer than `pause`; whether it is there.
    fn wait(&self, pause: Duration) -> bool {
        let guard = hold(&self.is_there);
        let waited = self.changed.wait_timeout_while(guard, pause, |is_there| !*is_there);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn announce(&self) {
        *hold(&self.is_there) = true;
        self.changed.notify_all();
    }
}

/// The next task, unless another one has failed.
fn next<'a>(
    queue: &Mutex<VecDeque<Task<'a>>>,
    failure: &Mutex<Option<Error>>,
) -> Option<Task<'a>> {
    if hold(failure).is_some() {
        return None;
    }
    hold(queue).pop_front()
}

/// A line about a place, with a blank between stage and run.
fn named(place: &Place, text: &str) -> String {
    match &place.run {
        Some(run) => format!("{} {run}: {text}", place.stage),
        None => format!("{}: {text}", place.stage),
    }
}

/// A verdict as one line.
pub(super) fn describe(place: &Place, verdict: &Verdict) -> String {
    let text = match verdict {
        Verdict::Fresh => "fresh".to_owned(),
        Verdict::Reusable(why) => {
            format!("would reuse an earlier result ({})", one_line(why))
        }
        Verdict::Runs(why) => format!("would run ({})", one_line(why)),
        Verdict::Damaged(what) => format!("would run (damaged: {})", one_line(what)),
        Verdict::Waits(upstream) => format!("depends on {upstream}, which would run"),
        Verdict::Blocked(why) => format!("cannot run: {why}"),
    };
    named(place, &text)
}
