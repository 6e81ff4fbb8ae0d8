//! What people see while a stage works: bars on a terminal, plain lines elsewhere.
//!
//! Everything goes to standard error; standard output is for results. A closed or full
//! standard error is not a reason to stop working, so failures to print are ignored.

use std::io::{IsTerminal as _, Write as _};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How much is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volume {
    /// Errors only.
    Quiet,
    /// Decisions and results.
    Normal,
}

/// Where messages and bars of one process go.
#[derive(Debug, Clone)]
pub struct Console {
    bars: Option<MultiProgress>,
    volume: Volume,
}

impl Console {
    /// A console that draws bars if standard error is a terminal.
    pub fn new(volume: Volume) -> Self {
        let bars = volume == Volume::Normal && std::io::stderr().is_terminal();
        // Eight pictures a second look alive and cost nothing beside the work.
        let target = ProgressDrawTarget::stderr_with_hz(8);
        Self { bars: bars.then(|| MultiProgress::with_draw_target(target)), volume }
    }

    /// Whether bars are drawn, so that somebody may be watching.
    pub fn is_live(&self) -> bool {
        self.bars.is_some()
    }

    /// Prints one line, above the bars.
    pub fn line(&self, text: &str) {
        if self.volume == Volume::Quiet {
            return;
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

    /// Begins a bar with a name before it; without a terminal it draws nothing.
    pub fn bar(&self, name: &str) -> Progress {
        let lines = Some((self.clone(), name.to_owned()));
        let Some(bars) = &self.bars else {
            return Progress { lines, ..Progress::silent() };
        };

        // How long the work takes is not known yet, so the bar begins as a spinner.
        let bar = bars.add(ProgressBar::no_length().with_prefix(name.to_owned()));
        bar.set_style(style("{prefix:<28!} {spinner} {elapsed} {wide_msg:.dim}"));
        Progress { bar, lines }
    }
}

/// The progress of one node. Cheap to clone, safe to use from any thread.
#[derive(Debug, Clone)]
pub struct Progress {
    bar: ProgressBar,
    /// Where lines that stay are printed, and the name before each of them.
    lines: Option<(Console, String)>,
}

impl Progress {
    /// A bar that draws nothing, for tests.
    pub fn silent() -> Self {
        Self { bar: ProgressBar::hidden(), lines: None }
    }

    /// Begins a phase of `total` steps.
    pub fn start(&self, total: usize, what: &str) {
        let form = "{prefix:<28!} {bar:24.cyan/dim} {pos}/{len} {eta:>4} {wide_msg:.dim}";
        self.bar.set_style(style(form));

        // The remaining time is estimated from this phase alone.
        self.bar.reset();
        self.bar.set_length(total as u64);
        self.bar.set_message(what.to_owned());
    }

    /// Says that `count` more steps are done.
    pub fn advance(&self, count: usize) {
        self.bar.inc(count as u64);
    }

    /// Says that `done` steps are done in all, for a run that resumes.
    pub fn set(&self, done: usize) {
        self.bar.set_position(done as u64);
    }

    /// Shows a short message at the end of the bar, for example the loss.
    pub fn message(&self, text: impl Into<String>) {
        self.bar.set_message(text.into());
    }

    /// Prints a line that stays, for what people have to know about a result.
    pub fn line(&self, text: &str) {
        if let Some((console, name)) = &self.lines {
            console.line(&format!("{name}: {text}"));
        }
    }

    /// Removes the bar.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// A style by its template. The templates stand in this file, so a bad one is a slip of ours and
/// not worth ending a run for: the default bar is drawn instead.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─")
}
