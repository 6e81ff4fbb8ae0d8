//! `upcycle-inspect tokenize`: from texts to the ids a model sees.

use std::io::Read as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::Answer;
use crate::error::{Context as _, Error, Result};
use crate::text::Tokenizer;

/// The arguments of `tokenize`.
#[derive(Debug, clap::Args)]
pub(super) struct Tokenize {
    /// `tokenizer.json`, `vocab.json` beside `merges.txt`, `bpe_simple_vocab_16e6.txt.gz`, or
    /// a folder with one of them.
    #[arg(long, value_name = "FILE")]
    tokenizer: PathBuf,
    /// Number of tokens of a caption, start and end included.
    #[arg(long, value_name = "N", default_value_t = 77,
          value_parser = clap::value_parser!(u16).range(2..))]
    context: u16,
    /// Fill up to the context with zeros.
    #[arg(long)]
    pad: bool,
    /// The texts; lines of standard input if there are none.
    text: Vec<String>,
}

impl Tokenize {
    /// The ids of every text, a list for each.
    pub(super) fn answer(&self) -> Result<Answer> {
        let tokenizer = Tokenizer::open(&self.tokenizer)?;
        let typed = if self.text.is_empty() { lines()? } else { self.text.clone() };
        let context = usize::from(self.context);
        let all = tokenizer.encode_all(&typed, context)?;

        // Padding is not told from a token by its id, so the length comes from the words.
        let mut rows = Vec::new();
        for (text, ids) in typed.iter().zip(all.chunks_exact(context)) {
            let length = (tokenizer.words(text)?.len() + 2).min(context);
            let ids = if self.pad { ids } else { &ids[..length] };
            rows.push(json!(ids));
        }

        let lines = rows.iter().map(ToString::to_string).collect();
        Ok(Answer::new(lines, Value::Array(rows)))
    }
}

/// The lines of standard input.
fn lines() -> Result<Vec<String>> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .context(|| "cannot read standard input".to_owned())?;
    if text.is_empty() {
        return Err(Error::usage(
            "there is no text: give texts as arguments, or lines on standard input",
        ));
    }
    Ok(text.lines().map(str::to_owned).collect())
}
