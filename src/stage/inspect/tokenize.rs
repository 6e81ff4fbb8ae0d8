//! `upcycle-inspect tokenize`: from texts to the ids a model sees.

use super::Answer;
use crate::error::Result;

/// The arguments of `tokenize`.
#[derive(Debug, clap::Args)]
pub(super) struct Tokenize {}

impl Tokenize {
    pub(super) fn answer(&self) -> Result<Answer> {
        Ok(Answer::new(Vec::new(), serde_json::Value::Null))
    }
}
