//! What `--json` prints: one JSON object a line on standard output, for programs.
//!
//! The objects are documented in docs/console.md. A reader that is gone is not a reason to
//! stop working, so failures to print are ignored.

use std::io::Write as _;

use serde::Serialize;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event<'a> {
    /// A node that would run, or is not fresh (`--dry-run`, `--check`).
    Plan {
        /// Stage and run: `train/sparse-s1`.
        node: &'a str,
        /// What would happen and why, as people read it.
        text: &'a str,
    },
    /// A node begins its work.
    Start {
        /// Stage and run.
        node: &'a str,
        /// Why it runs, as people read it.
        text: &'a str,
    },
    /// How far a node is; at most one a second and node.
    Progress {
        /// Stage and run.
        node: &'a str,
        /// Units done.
        done: usize,
        /// Units in all.
        of: usize,
        /// What is counted: `steps`, `pictures`.
        what: &'a str,
        /// More, for example the loss.
        message: &'a str,
    },
    /// How far all nodes of the stage are together, every half minute.
    Overall {
        /// Name of the stage.
        stage: &'a str,
        /// Nodes done.
        done: usize,
        /// Nodes in all.
        of: usize,
        /// Seconds left, where they can be told.
        left: Option<f64>,
    },
    /// A node has its result.
    Done {
        /// Stage and run.
        node: &'a str,
        /// How it ended, as people read it.
        text: &'a str,
        /// Seconds that it took.
        seconds: f64,
    },
    /// Anything else that people are told.
    Message {
        /// The words.
        text: &'a str,
    },
    /// The report is there.
    Answer {
        /// Its verdict in one sentence.
        answer: &'a str,
        /// Where the page is.
        report: &'a str,
    },
    /// The program ends with an error.
    Failed {
        /// The error with its causes.
        error: &'a str,
    },
}

impl Event<'_> {
    /// Prints the event.
    pub(super) fn print(&self) {
        // An event has no value that JSON cannot write.
        if let Ok(text) = serde_json::to_string(self) {
            let _ = writeln!(std::io::stdout().lock(), "{text}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_object_that_names_itself() {
        let event = Event::Progress {
            node: "train/sparse-s1",
            done: 3,
            of: 40,
            what: "steps",
            message: "loss \"1\"",
        };
        let text = serde_json::to_string(&event).unwrap();
        assert!(text.starts_with("{\"event\":\"progress\",\"node\":\"train/sparse-s1\""));
        assert!(!text.contains('\n'));
    }
}
