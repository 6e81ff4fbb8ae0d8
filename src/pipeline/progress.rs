//! What people see while a stage works: bars on a terminal, plain lines elsewhere, and events
//! for programs.
//!
//! Bars and lines go to standard error; standard output is for results, and for events where
//! they are asked for. A closed or full standard error is not a reason to stop working, so
//! failures to print are ignored.

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::events::Event;
use super::overall::{Overall, Part};
use super::panics::hold;
use crate::num::truncate_usize;

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volume {
    /// Errors only.
    Quiet,
    /// Decisions and results.
    Normal,
    /// The same as events on standard output.
    Events,
}

/// Without a terminal, people are told how far the work is whenever this much time has passed
/// in silence.
const PULSE: Duration = Duration::from_secs(30);

/// Positions of the bar of all nodes together: more than a terminal has columns.
const TOTAL: u64 = 1000;

/// Where messages and bars of one process go.
#[derive(Debug, Clone)]
pub struct Console {
    bars: Option<MultiProgress>,
    volume: Volume,
    pulse: Duration,
    overall: Arc<Mutex<Overall>>,
    /// The bar of all nodes together, below those of single nodes.
    total: Option<ProgressBar>,
}

impl Console {
    /// A console that draws bars if standard error is a terminal.
    pub fn new(volume: Volume) -> Self {
        let bars = volume == Volume::Normal && std::io::stderr().is_terminal();
        // Eight pictures a second look alive and cost nothing beside the work.
        let target = ProgressDrawTarget::stderr_with_hz(8);
        Self {
            bars: bars.then(|| MultiProgress::with_draw_target(target)),
            volume,
            pulse: PULSE,
            overall: Arc::new(Mutex::new(Overall::new("", 0))),
            total: None,
        }
    }

    /// The same with another time between two lines about the progress.
    #[must_use]
    pub fn with_pulse(self, pulse: Duration) -> Self {
        Self { pulse, ..self }
    }

    /// Whether bars are drawn, so that somebody may be watching.
    pub fn is_live(&self) -> bool {
        self.bars.is_some()
    }

    /// Whether programs are told instead of people.
    pub fn is_for_programs(&self) -> bool {
        self.volume == Volume::Events
    }

    /// The same console for `nodes` nodes of a stage, whose progress is shown together.
    #[must_use]
    pub(super) fn of_stage(&self, stage: &str, nodes: usize) -> Self {
        let total = self.bars.as_ref().filter(|_| nodes > 1).map(|bars| {
            let bar = bars.add(ProgressBar::new(TOTAL).with_prefix(stage.to_owned()));
            bar.set_style(style("{prefix:<28!} {bar:24.green/dim} {wide_msg}"));
            bar.enable_steady_tick(Duration::from_secs(1));
            bar
        });
        let overall = Arc::new(Mutex::new(Overall::new(stage, nodes)));
        let console = Self { overall, total, ..self.clone() };
        // The first picture of the bar says already how many nodes there are.
        console.show();
        console
    }

    /// Counts a node that is done without any work.
    pub(super) fn pass(&self) {
        hold(&self.overall).pass();
        self.show();
    }

    /// Removes the bar of all nodes together.
    pub(super) fn end(&self) {
        if let Some(total) = &self.total {
            total.finish_and_clear();
        }
    }

    /// Prints one line, above the bars.
    pub fn line(&self, text: &str) {
        self.say(&Event::Message { text }, text);
    }

    /// Tells people a line, or programs the event behind it.
    pub fn say(&self, event: &Event<'_>, text: &str) {
        hold(&self.overall).said = Instant::now();
        match self.volume {
            Volume::Quiet => return,
            Volume::Events => return event.print(),
            Volume::Normal => {}
        }

        let print = || {
            // A message that cannot be printed is dropped, as the module's documentation says.
            let _ = writeln!(std::io::stderr().lock(), "{text}");
        };
        match &self.bars {
            // Bars are redrawn in place: a line printed between them would be overwritten.
            Some(bars) => bars.suspend(print),
            None => print(),
        }
    }

    /// Says how far the work is if nothing has been said for a while; how long to wait until
    /// the next look.
    pub(super) fn beat(&self) -> Duration {
        // Bars say it all the time.
        if self.volume == Volume::Quiet || self.bars.is_some() {
            return self.pulse;
        }
        let silence = hold(&self.overall).said.elapsed();
        if let Some(rest) = self.pulse.checked_sub(silence).filter(|rest| !rest.is_zero())
        {
            return rest;
        }

        let (stage, done, of, left, line) = {
            let overall = hold(&self.overall);
            let stage = overall.stage.clone();
            (stage, overall.done, overall.of, overall.left(), overall.line())
        };
        self.say(&Event::Overall { stage: &stage, done, of, left }, &line);
        self.pulse
    }

    /// Begins a bar; without a terminal it draws nothing.
    pub fn bar(&self, name: &str) -> Progress {
        let node = Some((self.clone(), name.to_owned()));
        let Some(bars) = &self.bars else {
            return Progress { node, ..Progress::silent() };
        };
        let bar = ProgressBar::no_length().with_prefix(name.to_owned());
        let bar = match &self.total {
            Some(total) => bars.insert_before(total, bar),
            None => bars.add(bar),
        };

        // How long the work takes is not known yet, so the bar begins as a spinner.
        bar.set_style(style("{prefix:<28!} {spinner} {elapsed} {wide_msg:.dim}"));
        Progress { bar, node }
    }

    /// Shows the progress of all nodes.
    fn show(&self) {
        if let Some(total) = &self.total {
            let overall = hold(&self.overall);
            total.set_position(truncate_usize(overall.fraction() * TOTAL as f64) as u64);
            total.set_message(overall.summary());
        }
    }
}

/// The progress of one node. Cheap to clone, safe to use from any thread.
#[derive(Debug, Clone)]
pub struct Progress {
    bar: ProgressBar,
    /// Who is told, and the name of the node.
    node: Option<(Console, String)>,
}

impl Progress {
    /// A bar that draws nothing, for tests.
    pub fn silent() -> Self {
        Self { bar: ProgressBar::hidden(), node: None }
    }

    /// Begins a phase of `total` steps.
    pub fn start(&self, total: usize, what: &str) {
        // The remaining time is estimated from this phase alone. The length comes before the
        // style that shows it: a change of style draws the bar.
        self.bar.reset();
        self.bar.set_length(total as u64);
        self.bar.set_message(what.to_owned());
        let form = "{prefix:<28!} {bar:24.cyan/dim} {pos}/{len} {eta:>4} {wide_msg:.dim}";
        self.bar.set_style(style(form));
        if let Some((console, name)) = &self.node {
            hold(&console.overall).start(name, total, what);
        }
    }

    /// Says that `count` more steps are done.
    pub fn advance(&self, count: usize) {
        self.bar.inc(count as u64);
        self.tell(|overall, name| overall.advance(name, count));
    }

    /// Says that `done` steps are done in all, for a run that resumes.
    pub fn set(&self, done: usize) {
        self.bar.set_position(done as u64);
        self.tell(|overall, name| overall.set(name, done));
    }

    /// Notes a change; programs are told where it is time.
    fn tell(&self, change: impl FnOnce(&mut Overall, &str) -> Option<Part>) {
        let Some((console, node)) = &self.node else { return };
        let part = change(&mut hold(&console.overall), node);
        if let Some(Part { done, of, what, message, .. }) = part
            && console.is_for_programs()
        {
            Event::Progress { node, done, of, what: &what, message: &message }.print();
        }
        console.show();
    }

    /// Shows a short message at the end of the bar, for example the loss.
    pub fn message(&self, text: impl Into<String>) {
        let text = text.into();
        if let Some((console, name)) = &self.node {
            hold(&console.overall).message(name, &text);
        }
        self.bar.set_message(text);
    }

    /// Prints a line that stays, for what people have to know about a result.
    pub fn line(&self, text: &str) {
        if let Some((console, name)) = &self.node {
            console.line(&format!("{name}: {text}"));
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
        if let Some((console, name)) = &self.node {
            hold(&console.overall).finish(name);
            console.show();
        }
    }
}

/// A style by its template. The templates stand in this file, so a bad one is a slip of ours and
/// not worth ending a run for: the default bar is drawn instead.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─")
}
