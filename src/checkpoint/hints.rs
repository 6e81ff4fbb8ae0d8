//! What a person says about a checkpoint whose files do not say it.

use std::path::PathBuf;

use crate::config::Activation;
use crate::error::{Error, Result};
use crate::model::{ClipConfig, Tower};

/// What a file of weights alone cannot tell.
///
/// A wrong activation or a wrong number of heads silently lowers accuracy, so neither is ever
/// guessed; where a configuration states them, another value is refused.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Hints {
    /// The activation, where the checkpoint does not say.
    #[arg(long, value_enum)]
    pub activation: Option<Activation>,
    /// Attention heads of the image tower, where the checkpoint does not say.
    #[arg(long, value_name = "N")]
    pub heads: Option<usize>,
    /// Attention heads of the text tower, where the checkpoint does not say.
    #[arg(long, value_name = "N")]
    pub text_heads: Option<usize>,
    /// `open_clip`'s configuration of the model, where the checkpoint has none beside it: an
    /// `open_clip_config.json`, or the name of an architecture such as ViT-B-32.
    #[arg(long, value_name = "FILE|NAME")]
    pub config: Option<PathBuf>,
}

/// An activation, and whether the file names it or the format has it as its default.
#[derive(Debug, Clone, Copy)]
pub(super) enum Stated {
    Named(Activation),
    Default(Activation),
}

impl Hints {
    /// Decides the activation, or says why it cannot.
    pub(super) fn activation(&self, stated: Stated) -> Result<Activation> {
        match (stated, self.activation) {
            (Stated::Named(named), Some(asked)) if named != asked => {
                Err(Error::usage(format!(
                    "the configuration says activation {}, but {} was asked for",
                    named.name(),
                    asked.name()
                )))
            }
            (Stated::Named(named), _) => Ok(named),
            (Stated::Default(_), Some(asked)) => Ok(asked),
            (Stated::Default(default), None) => Ok(default),
        }
    }

    /// Refuses heads that contradict a configuration.
    pub(super) fn agree(&self, config: &ClipConfig) -> Result<()> {
        for tower in Tower::BOTH {
            let (flag, asked) = self.heads_of(tower);
            let stated = config.tower(tower).heads;

            if asked.is_some_and(|asked| asked != stated) {
                let asked = asked.unwrap_or_default();
                return Err(Error::usage(format!(
                    "{flag} {asked}: the configuration says {stated} heads"
                )));
            }
        }
        Ok(())
    }

    /// The flag for the heads of a tower, and its value.
    pub(super) fn heads_of(&self, tower: Tower) -> (&'static str, Option<usize>) {
        match tower {
            Tower::Vision => ("--heads", self.heads),
            Tower::Text => ("--text-heads", self.text_heads),
        }
    }
}
