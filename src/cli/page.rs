//! What an installation puts beside a binary: its shell completion and its man page.
//!
//! Every binary prints its own, from the command that it parses its arguments with, so that
//! they cannot disagree with it: `make install` calls `--print-completion SHELL` and
//! `--print-man`. Both flags are no use to people and therefore not in `--help`.

use std::ffi::OsString;

use clap::{Command, ValueEnum as _};
use clap_complete::Shell;

use crate::error::{Context as _, Error, Result};

/// The page that the arguments ask for, if they ask for one.
pub(super) fn asked(command: &Command, args: &[OsString]) -> Result<Option<Vec<u8>>> {
    let flag = args.get(1).and_then(|flag| flag.to_str());
    match flag {
        Some("--print-man") => man(command).map(Some),
        Some("--print-completion") => {
            let name = args.get(2).and_then(|name| name.to_str()).unwrap_or_default();
            let shell = Shell::from_str(name, true).ok().ok_or_else(|| {
                Error::usage(format!(
                    "--print-completion {name:?}, expected bash, elvish, fish, powershell or zsh"
                ))
            })?;
            Ok(Some(completion(command, shell)))
        }
        _ => Ok(None),
    }
}

/// The command as pages show it: with the subcommand that takes over the whole command line, and
/// therefore none of the arguments beside it.
pub(super) fn with(command: &Command, inner: Option<Command>) -> Command {
    let Some(inner) = inner else { return command.clone() };
    let alone = command.clone().mut_args(|arg| arg.global(false));
    alone.disable_help_subcommand(true).subcommand(inner)
}

/// The name that a person types: that of the program, with a subcommand behind a dash.
fn name(command: &Command) -> String {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    name.replace(' ', "-")
}

fn completion(command: &Command, shell: Shell) -> Vec<u8> {
    let (name, mut text) = (name(command), Vec::new());
    clap_complete::generate(shell, &mut command.clone(), name, &mut text);
    text
}

fn man(command: &Command) -> Result<Vec<u8>> {
    let name = name(command);
    let mut text = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(name.clone())
        .render(&mut text)
        .context(|| format!("writing the man page of {name}"))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        Command::new("do")
            .bin_name("upcycle-do it")
            .about("Does it.")
            .arg(clap::Arg::new("loud").long("loud").global(true).help("Say more."))
    }

    fn page(args: &[&str]) -> Result<Option<Vec<u8>>> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        asked(&command(), &args)
    }

    #[test]
    fn pages_say_what_the_command_says() {
        let man =
            String::from_utf8(page(&["x", "--print-man"]).unwrap().unwrap()).unwrap();
        assert!(man.contains(".TH upcycle-do-it") && man.contains("Say more."), "{man}");
        for shell in ["bash", "zsh", "fish"] {
            let text = page(&["x", "--print-completion", shell]).unwrap().unwrap();
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains("upcycle-do-it") && text.contains("loud"), "{text}");
        }
        assert_eq!(page(&["x", "--loud", "--print-man"]).unwrap(), None);

        // A subcommand is named, with its own arguments and none of those beside it.
        let inner = Command::new("on").arg(clap::Arg::new("far").long("far"));
        let args = ["x", "--print-completion", "fish"].map(OsString::from);
        let text = asked(&with(&command(), Some(inner)), &args).unwrap().unwrap();
        let text = String::from_utf8(text).unwrap();
        let of_on: Vec<&str> =
            text.lines().filter(|line| line.contains("using_subcommand on\"")).collect();
        assert!(text.contains("-a \"on\""), "{text}");
        assert!(of_on.iter().any(|line| line.contains("-l far")), "{text}");
        assert!(!of_on.iter().any(|line| line.contains("-l loud")), "{text}");

        assert!(
            page(&["x", "--print-completion", "cmd"]).unwrap_err().kind().exit_code()
                == 2
        );
    }
}
