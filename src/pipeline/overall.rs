//! How far all nodes of a stage are together, and how long it will take yet.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::duration::{duration, grouped};

/// Below this fraction of the work nothing is said about the time that is left.
const EARLY: f64 = 0.02;

/// Time between two events about the progress of one node.
const PAUSE: Duration = Duration::from_secs(1);

/// A node that is at work.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) done: usize,
    pub(super) of: usize,
    pub(super) what: String,
    pub(super) message: String,
    /// What was done before this process, for runs that resume.
    first: Option<usize>,
    /// When an event last told of it.
    told: Option<Instant>,
}

/// The nodes of one stage in this process.
#[derive(Debug)]
pub(super) struct Overall {
    pub(super) stage: String,
    /// Nodes in all, those that are done, and those at work.
    pub(super) of: usize,
    pub(super) done: usize,
    parts: BTreeMap<String, Part>,
    /// Work that was done before this process, in nodes.
    inherited: f64,
    began: Instant,
    /// When people were last told anything.
    pub(super) said: Instant,
}

impl Overall {
    pub(super) fn new(stage: &str, of: usize) -> Self {
        let now = Instant::now();
        Self {
            stage: stage.to_owned(),
            of,
            done: 0,
            parts: BTreeMap::new(),
            inherited: 0.0,
            began: now,
            said: now,
        }
    }

    /// Begins a phase of a node.
    pub(super) fn start(&mut self, node: &str, of: usize, what: &str) {
        let (what, message) = (what.to_owned(), String::new());
        let part = Part { done: 0, of, what, message, first: None, told: None };
        self.parts.insert(node.to_owned(), part);
    }

    /// Notes how far a node is; the part, where an event is due.
    pub(super) fn set(&mut self, node: &str, done: usize) -> Option<Part> {
        let part = self.parts.get_mut(node)?;
        if part.first.is_none() {
            // The first report of a fresh run is that of its first unit.
            let before = done.saturating_sub(1);
            part.first = Some(before);
            self.inherited += before as f64 / part.of.max(1) as f64;
        }
        part.done = done.min(part.of);
        let is_due = part.told.is_none_or(|told| told.elapsed() >= PAUSE);
        is_due.then(|| {
            part.told = Some(Instant::now());
            part.clone()
        })
    }

    pub(super) fn advance(&mut self, node: &str, count: usize) -> Option<Part> {
        let done = self.parts.get(node).map_or(0, |part| part.done);
        self.set(node, done + count)
    }

    pub(super) fn message(&mut self, node: &str, text: &str) {
        if let Some(part) = self.parts.get_mut(node) {
            text.clone_into(&mut part.message);
        }
    }

    /// Takes a node out that has its result.
    pub(super) fn finish(&mut self, node: &str) {
        self.parts.remove(node);
        self.done += 1;
    }

    /// Takes a node out that needed no work.
    pub(super) fn pass(&mut self) {
        self.done += 1;
        self.inherited += 1.0;
    }

    /// Nodes that are done, with what is done of those at work.
    fn worked(&self) -> f64 {
        let partly =
            self.parts.values().map(|part| part.done as f64 / part.of.max(1) as f64);
        self.done as f64 + partly.sum::<f64>()
    }

    /// The fraction of the work that is done, 0 to 1.
    pub(super) fn fraction(&self) -> f64 {
        (self.worked() / self.of.max(1) as f64).min(1.0)
    }

    /// Seconds left, where enough is done to tell.
    pub(super) fn left(&self) -> Option<f64> {
        let done = self.worked();
        let own = done - self.inherited;
        let is_early = own < EARLY * self.of as f64 || own <= 0.0;
        let rate = own / self.began.elapsed().as_secs_f64();
        (!is_early && rate > 0.0).then(|| (self.of as f64 - done).max(0.0) / rate)
    }

    /// `run 7 of 21, 11 min left`.
    pub(super) fn summary(&self) -> String {
        let current = (self.done + 1).min(self.of);
        let left = match self.left() {
            Some(left) => format!("{} left", duration(left)),
            None => format!("{} so far", duration(self.began.elapsed().as_secs_f64())),
        };
        format!("run {current} of {}, {left}", self.of)
    }

    /// The summary with what each node at work is doing.
    pub(super) fn line(&self) -> String {
        let part = |(node, part): (&String, &Part)| {
            let (done, of) = (grouped(part.done), grouped(part.of));
            let message = match part.message.as_str() {
                "" => String::new(),
                message => format!(", {message}"),
            };
            format!("{node}: {done} of {of} {}{message}", part.what)
        };
        let parts: Vec<String> = self.parts.iter().map(part).collect();
        let parts = if parts.is_empty() {
            String::new()
        } else {
            format!(" ({})", parts.join("; "))
        };
        format!("{}: {}{parts}", self.stage, self.summary())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ago(overall: &mut Overall, seconds: u64) {
        overall.began = Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap();
    }

    #[test]
    fn the_time_left_follows_from_what_was_done_here() {
        let mut overall = Overall::new("train", 4);
        assert_eq!(overall.left(), None);
        overall.finish("a");
        overall.start("b", 100, "steps");
        overall.set("b", 1);
        overall.set("b", 50);
        ago(&mut overall, 150);
        assert!((overall.fraction() - 1.5 / 4.0).abs() < 1e-9);
        // One and a half of four took 150 s, so 250 s are left.
        let left = overall.left().unwrap();
        assert!((left - 250.0).abs() < 2.0, "{left}");
        let text = overall.line();
        assert!(
            text.starts_with("train: run 2 of 4, 4 min left (b: 50 of 100 steps"),
            "{text}"
        );
    }

    #[test]
    fn a_resumed_run_does_not_count_what_was_there() {
        let mut overall = Overall::new("train", 1);
        overall.start("a", 1000, "steps");
        overall.set("a", 501);
        overall.set("a", 600);
        ago(&mut overall, 100);
        // A hundred steps took 100 s, and 400 are left.
        let left = overall.left().unwrap();
        assert!((left - 400.0).abs() < 4.0, "{left}");
    }

    #[test]
    fn events_are_due_once_a_second() {
        let mut overall = Overall::new("train", 1);
        overall.start("a", 10, "steps");
        assert!(overall.set("a", 1).is_some());
        assert!(overall.set("a", 2).is_none());
        assert!(overall.advance("nobody", 1).is_none());
    }
}
