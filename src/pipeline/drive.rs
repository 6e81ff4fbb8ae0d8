//! The drive: decides for every node of one stage and runs those that must.
//!
//! Nodes of one stage never read each other, so they may run side by side, each in a thread
//! pool of its own. Deciding comes first and alone, and costs milliseconds.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};
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
    /// Make, or plan to make, what is fresh too.
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
    /// Say that nothing was to do.
    pub verbose: bool,
    /// Where panics leave their place in the code.
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
    /// Where people look.
    pub console: &'a Console,
    /// What to do.
    pub orders: &'a Orders,
}

/// A node that must run, or whose result must become current.
struct Task<'a> {
    node: &'a Node,
    resolved: Share,
    reason: String,
    announce: String,
}

/// What a worker needs of a resolution.
struct Share {
    expected: crate::artifact::Expected,
    inputs: crate::artifact::Inputs,
    externals: Vec<(crate::artifact::External, crate::artifact::Stat)>,
}

impl Drive<'_> {
    /// Does what was ordered. Lines for standard output are returned, not printed.
    pub fn run(&self) -> Result<Vec<String>> {
        let nodes = self.select()?;
        let survey = Survey::new(self.store, self.stages, self.nodes);
        match self.orders.mode {
            Mode::Check => self.check(&survey, &nodes),
            Mode::DryRun => self.dry_run(&survey, &nodes),
            Mode::Run => {
                let tasks = self.tasks(&survey, &nodes)?;
                if tasks.is_empty() && (self.orders.verbose || self.console.is_live()) {
                    self.console.line(&format!(
                        "{}: {} fresh",
                        self.stage.name,
                        nodes.len()
                    ));
                }
                self.work(tasks).map(|()| Vec::new())
            }
        }
    }

    fn select(&self) -> Result<Vec<&Node>> {
        let mine: Vec<&Node> =
            self.nodes.iter().filter(|node| node.stage == self.stage.name).collect();
        let runs = |node: &Node| node.place.run.clone().unwrap_or_default();
        let mut chosen = Vec::new();
        for only in &self.orders.only {
            let matching = |node: &&&Node| {
                let run = runs(node);
                run == *only
                    || run.rsplit_once("-s").is_some_and(|(name, _)| name == only)
            };
            let before = chosen.len();
            chosen.extend(mine.iter().filter(matching).copied());
            if chosen.len() == before {
                return Err(self.no_run(only, &mine));
            }
        }
        Ok(if self.orders.only.is_empty() { mine } else { chosen })
    }

    /// The error for a run that the stage does not have.
    fn no_run(&self, only: &str, mine: &[&Node]) -> Error {
        let known: Vec<&str> =
            mine.iter().filter_map(|node| node.place.run.as_deref()).collect();
        let name = self.stage.name;
        if known.is_empty() {
            return Error::usage(format!(
                "--only {only}: the stage {name} has no runs, it is made as a whole: leave \
                 --only out"
            ));
        }
        let (hint, known) = (did_you_mean(only, known.iter().copied()), known.join(", "));
        Error::usage(format!(
            "--only {only}: {name} has no such run; there are: {known}{hint}"
        ))
    }

    fn check<'n>(&self, survey: &Survey<'n>, nodes: &[&'n Node]) -> Result<Vec<String>> {
        let mut stale = 0;
        for node in nodes {
            let verdict = survey.verdict(node)?;
            if verdict != Verdict::Fresh {
                stale += 1;
                self.console.line(&describe(&node.place, &verdict));
            }
        }
        match stale {
            0 => Ok(Vec::new()),
            _ => Err(Error::failed(format!(
                "{}: {stale} of {} not fresh",
                self.stage.name,
                nodes.len()
            ))),
        }
    }

    fn dry_run<'n>(
        &self,
        survey: &Survey<'n>,
        nodes: &[&'n Node],
    ) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        for node in nodes {
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

    fn tasks<'n>(
        &self,
        survey: &Survey<'n>,
        nodes: &[&'n Node],
    ) -> Result<Vec<Task<'n>>> {
        let mut tasks = Vec::new();
        for node in nodes {
            let resolved = survey.resolve(node)?;
            let verdict = survey.verdict(node)?;
            let forced = self.orders.force;
            if verdict == Verdict::Fresh && !forced {
                continue;
            }
            let reason = match &verdict {
                Verdict::Fresh => "forced".to_owned(),
                Verdict::Runs(why) | Verdict::Reusable(why) | Verdict::Damaged(why) => {
                    one_line(why)
                }
                Verdict::Waits(_) | Verdict::Blocked(_) => String::new(),
            };
            let announce = describe(&node.place, &verdict).replace("would run", "runs");
            let announce =
                if forced { named(&node.place, "runs (forced)") } else { announce };
            tasks.push(Task { node, resolved: share(&resolved), reason, announce });
        }
        Ok(tasks)
    }

    /// Runs the tasks, several at a time. After a failure nothing new begins; what runs is
    /// brought to its end.
    fn work(&self, tasks: Vec<Task<'_>>) -> Result<()> {
        let workers = match (self.stage.width, self.orders.jobs) {
            (Width::Whole, _) => 1,
            (Width::Shared, 0) => {
                let need = self.orders.need;
                memory::fitting(self.orders.threads, need, memory::free())
            }
            (Width::Shared, jobs) => jobs,
        };
        let workers = workers.min(tasks.len()).max(1);
        let threads = (self.orders.threads / workers).max(1);
        let queue = Mutex::new(VecDeque::from(tasks));
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some(task) = next(&queue, &failure) {
                        if let Err(error) = self.make(&task, threads) {
                            hold(&failure).get_or_insert(error);
                        }
                    }
                });
            }
        });
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            None => Ok(()),
            Some(error) => Err(error),
        }
    }

    fn make(&self, task: &Task<'_>, threads: usize) -> Result<()> {
        let place = &task.node.place;
        let Share { expected, inputs, externals } = &task.resolved;
        let request = Request {
            expected,
            reason: task.reason.clone(),
            inputs,
            externals,
            force: self.orders.force,
            no_wait: self.orders.no_wait,
            threads,
        };
        let clock = Instant::now();
        let outcome = self.store.produce(
            &request,
            &|notice| self.notify(place, &notice),
            |draft| self.compute(task, draft, threads),
        );
        match outcome.context(|| named(place, "failed"))? {
            Outcome::Fresh => self.console.line(&named(place, "made by another process")),
            Outcome::Reused => {
                let text = format!("reuses {} ({})", expected.key.short(), task.reason);
                self.console.line(&named(place, &text));
            }
            Outcome::Ran(_) => {
                let seconds = clock.elapsed().as_secs_f64();
                self.console.line(&named(place, &format!("done in {seconds:.1} s")));
            }
        }
        Ok(())
    }

    fn compute(&self, task: &Task<'_>, draft: &mut Draft, threads: usize) -> Result<()> {
        let place = &task.node.place;
        self.console.line(&task.announce);
        let progress = self.console.bar(&place.to_string());
        let bar = progress.clone();
        let externals: Vec<_> = task
            .resolved
            .externals
            .iter()
            .map(|(external, _)| external.clone())
            .collect();
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
        let result = catch_unwind(AssertUnwindSafe(|| pool.install(|| run(&mut job))));
        bar.finish();
        result.unwrap_or_else(|_payload| Err(self.orders.panics.take()))
    }

    fn notify(&self, place: &Place, notice: &Notice) {
        let text = match notice {
            Notice::Waiting(holder) => format!("waits for {holder}, who makes it"),
            Notice::Quarantined(what, to) => {
                format!("was damaged ({}); moved to {}", one_line(what), to.display())
            }
            Notice::Differs(files, other) => {
                let why = match other.as_deref() {
                    None => "is not deterministic".to_owned(),
                    Some("") => "was made by an older version".to_owned(),
                    Some(before) => format!("was made on another processor ({before})"),
                };
                format!("{why}: the forced run gave other bytes in {}", one_line(files))
            }
        };
        self.console.line(&named(place, &text));
    }
}

fn share(resolved: &Resolved) -> Share {
    Share {
        expected: resolved.expected.clone(),
        inputs: resolved.inputs.clone(),
        externals: resolved.externals.clone(),
    }
}

fn next<'a>(
    queue: &Mutex<VecDeque<Task<'a>>>,
    failure: &Mutex<Option<Error>>,
) -> Option<Task<'a>> {
    if hold(failure).is_some() {
        return None;
    }
    hold(queue).pop_front()
}

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
