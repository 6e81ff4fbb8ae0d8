//! The drive: decides for every node of one stage and runs those that must.
//!
//! The nodes of one stage never read each other, so they may run side by side, each in a
//! thread pool of its own. The decision which of them run comes first, on its own, and costs
//! milliseconds.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::memory;
use super::panics::{Panics, hold};
use super::survey::{Resolved, one_line};
use super::{Console, Job, Node, Stage, Survey, Verdict, Width};
use crate::artifact::{Draft, Notice, Outcome, Place, Request, Store};
use crate::error::{Context, Error, Result, did_you_mean};

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
    /// Where a panic leaves its message and its place in the code.
    pub panics: Panics,
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
                self.console.line(&describe(&node.place, &verdict));
            }
        }
        if stale == 0 {
            return Ok(Vec::new());
        }

        let (name, count) = (self.stage.name, nodes.len());
        Err(Error::failed(format!("{name}: {stale} of {count} are not fresh")))
    }

    /// A line for each node that a run would make.
    fn dry_run<'n>(
        &self,
        survey: &Survey<'n>,
        nodes: &[&'n Node],
    ) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for node in nodes {
            // What waits or is blocked has its own line, forced or not.
            let verdict = match survey.verdict(node)? {
                Verdict::Fresh if self.orders.force => {
                    Verdict::Runs(vec!["forced".to_owned()])
                }
                verdict => verdict,
            };

            if verdict != Verdict::Fresh {
                lines.push(describe(&node.place, &verdict));
            }
        }
        Ok(lines)
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
        let queue = Mutex::new(VecDeque::from(tasks));
        let failure = Mutex::new(None);

        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some(task) = next(&queue, &failure) {
                        // The first error is reported; later ones often follow from it.
                        if let Err(error) = self.make(&task, threads) {
                            hold(&failure).get_or_insert(error);
                        }
                    }
                });
            }
        });

        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// How many nodes run side by side: as many as were asked for, or as memory allows.
    fn workers(&self, tasks: usize) -> usize {
        let Orders { threads, jobs, need, .. } = *self.orders;
        let workers = match (self.stage.width, jobs) {
            (Width::Whole, _) => 1,
            (Width::Shared, 0) => memory::fitting(threads, need, memory::free()),
            (Width::Shared, jobs) => jobs,
        };
        workers.min(tasks).max(1)
    }

    /// Makes one result and says how it ended.
    fn make(&self, task: &Task<'_>, threads: usize) -> Result<()> {
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
            &|notice| self.notify(place, &notice),
            |draft| self.compute(task, draft, threads),
        );

        let text = match outcome.context(|| named(place, "failed"))? {
            Outcome::Fresh => "was built by another process".to_owned(),
            Outcome::Reused => {
                format!("reuses {} ({})", expected.key.short(), task.reason)
            }
            Outcome::Ran(_) => format!("done in {:.1} s", clock.elapsed().as_secs_f64()),
        };
        self.console.line(&named(place, &text));
        Ok(())
    }

    /// Runs the stage's own code in a thread pool of its own.
    fn compute(&self, task: &Task<'_>, draft: &mut Draft, threads: usize) -> Result<()> {
        let place = &task.node.place;
        self.console.line(&task.announcement);
        let progress = self.console.bar(&place.to_string());
        let bar = progress.clone();

        let outside = &task.resolved.externals;
        let externals: Vec<_> = outside.iter().map(|(file, _)| file.clone()).collect();
        let mut job = Job {
            node: task.node,
            inputs: &task.resolved.inputs,
            externals: &externals,
            draft,
            progress,
            threads,
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

    /// Tells people what happened on the way to a result.
    fn notify(&self, place: &Place, notice: &Notice) {
        let text = match notice {
            Notice::Waiting { holder } => {
                format!("waiting for {holder}, which is building it")
            }
            Notice::Quarantined { damage, moved_to } => {
                let (damage, moved_to) = (one_line(damage), moved_to.display());
                format!("was damaged ({damage}); moved to {moved_to}")
            }

            // Equal keys promise equal bytes, but for the last bits of another processor.
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
        self.console.line(&named(place, &text));
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
