//! The one error type: what was being done, to which file or tensor, found and expected.
//!
//! Every fallible function of the crate returns [`Result`]. An [`Error`] is a sentence for
//! a person plus a [`Kind`] for the process: the kind decides the exit code and nothing
//! else. Causes are kept in `source()`; [`Error::chain`] puts them all on one line.

use std::fmt;

/// What class of thing went wrong; it fixes the exit code of a stage binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `--check` found a stage that is not fresh, or a run failed (exit code 1).
    Failed,
    /// The command line or the configuration is wrong (exit code 2).
    Usage,
    /// A file's content is not what its digest or its format promises (exit code 4).
    Corrupt,
    /// Another process holds the lock and waiting was declined (exit code 75).
    Busy,
    /// The reader of our standard output went away (exit code 141).
    ClosedPipe,
}

impl Kind {
    /// The exit code of a process that ends with this kind of error.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Corrupt => 4,
            Self::Busy => 75,
            Self::ClosedPipe => 141,
        }
    }
}

/// Longest message in bytes; one that names fifty tensors of each kind fits.
const LONGEST: usize = 12 << 10;

type Cause = Box<dyn std::error::Error + Send + Sync + 'static>;

/// An error: one sentence, its [`Kind`], and the cause if another error led to it.
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Cause>,
}

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Makes an error of the given kind from a sentence.
    ///
    /// A sentence that quotes a hostile file may be as long as the file: it is cut.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > LONGEST {
            message.truncate(message.floor_char_boundary(LONGEST));
            message.push_str(" ..");
        }
        Self { kind, message, source: None }
    }

    /// Something could not be done: missing input, failed I/O, impossible request.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// The user asked for something that does not exist or cannot be.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// A file's content contradicts its digest, its format or its neighbors.
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, message)
    }

    /// Attaches the error that led to this one.
    #[must_use]
    pub fn caused_by(mut self, cause: impl Into<Cause>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// What class of thing went wrong.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The sentence, without the causes.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The sentence and all its causes on one line: what a person is shown.
    ///
    /// Line breaks of foreign messages become blanks.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(inner) = cause {
            let said = inner.to_string();
            // Some errors repeat their cause's sentence as their own.
            if !text.ends_with(&said) {
                text = format!("{text}: {said}");
            }

            cause = inner.source();
        }
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// The end of a sentence about an unknown name: the nearest known one, or nothing if there
/// is none.
pub fn did_you_mean<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let likeness = |known: &str| strsim::jaro_winkler(known, name);
    let nearest = known.into_iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    nearest.map_or_else(String::new, |nearest| format!("; did you mean {nearest}?"))
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Debug output is the sentence and its chain of causes: it is what a failing test prints.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.chain())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|cause| cause as &(dyn std::error::Error + 'static))
    }
}

/// Says what was being done when a foreign error, or one of ours, came up.
pub trait Context<T> {
    /// Wraps the error as [`Kind::Failed`] with a sentence made on demand; an [`Error`] of
    /// ours keeps its kind.
    fn context(self, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Cause>> Context<T> for std::result::Result<T, E> {
    fn context(self, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| {
            let cause: Cause = cause.into();
            let kind = cause.downcast_ref::<Error>().map_or(Kind::Failed, Error::kind);
            Error::new(kind, message()).caused_by(cause)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_keeps_the_kind_and_the_cause() {
        let inner: Result<()> = Err(Error::corrupt("digest differs"));
        let outer = inner.context(|| "reading a.parquet".to_owned()).unwrap_err();
        assert_eq!(outer.kind(), Kind::Corrupt);
        assert_eq!(format!("{outer:?}"), "Corrupt: reading a.parquet: digest differs");
    }

    #[test]
    fn the_chain_has_every_cause_once_and_on_one_line() {
        let inner: Result<()> = Err(Error::failed("line one\nline two"));
        let outer = inner.context(|| "in".to_owned()).context(|| "out".to_owned());
        assert_eq!(outer.unwrap_err().chain(), "out: in: line one line two");
        let twice: Result<()> = Err(Error::failed("no"));
        let error = twice.context(|| "said no".to_owned()).unwrap_err();
        assert_eq!(error.chain(), "said no");
    }

    #[test]
    fn the_nearest_name_is_offered() {
        assert_eq!(did_you_mean("spase", ["drop", "sparse"]), "; did you mean sparse?");
        assert_eq!(did_you_mean("spase", []), "");
    }

    #[test]
    fn a_message_that_quotes_a_whole_file_is_cut() {
        let message = Error::usage("ü".repeat(1 << 20)).to_string();
        assert!(message.len() <= LONGEST + 3 && message.ends_with("ü .."));
    }
}
