//! The whole pipeline on processors and on the card, by the stage binaries beside this one.
//!
//! The graph of the stages, keys and artifacts are those of any run. What is compared are the
//! last losses of all trainings: weights drift apart from step to step, because sums are
//! rounded in another order, and losses tell whether that is all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use super::Outcome;
use crate::config::Precision;
use crate::error::{Context as _, Error, Result};
use crate::stage;

const CONFIG: &str = include_str!("pipeline.yaml");

/// Allowed difference of a loss behind some steps, relative to the loss.
const F32: f64 = 1e-3;
const BF16: f64 = 2e-2;

/// Runs the pipeline on processors, then on card `device` in both precisions; results stay in
/// `folder`.
pub(super) fn check(device: usize, folder: &Path, outcome: &mut Outcome) -> Result<()> {
    let config = folder.join("pipeline.yaml");
    let writing = || format!("writing {}", config.display());
    std::fs::create_dir_all(folder).context(writing)?;
    std::fs::write(&config, CONFIG).context(writing)?;

    let cpu = World { folder, name: "cpu", compute: vec!["device=cpu".to_owned()] };
    let truth = cpu.losses()?;
    for precision in [Precision::F32, Precision::Bf16] {
        let (name, word, limit) = match precision {
            Precision::F32 => ("cuda-f32", "f32", F32),
            Precision::Bf16 => ("cuda-bf16", "bf16", BF16),
        };
        let compute = vec![format!("device=cuda:{device}"), format!("precision={word}")];
        let found = World { folder, name, compute }.losses()?;
        compare((name, limit), (&truth, &found), outcome);
    }
    Ok(())
}

/// A loss, and the backend in the key of the result.
type Losses = BTreeMap<String, (f64, String)>;

fn compare(
    (backend, limit): (&str, f64),
    (truth, found): (&Losses, &Losses),
    outcome: &mut Outcome,
) {
    for (node, (expected, _)) in truth {
        let (loss, own) =
            found.get(node).cloned().unwrap_or((f64::NAN, "nothing".to_owned()));
        let gap = (loss - expected).abs() / expected.abs();
        // A difference that is no number is wrong too.
        let right = gap < limit && own == backend;
        outcome.wrong += usize::from(!right);
        let word = if right { "ok" } else { "WRONG" };
        outcome.row(
            format!(
                "{word:5} {own:9} {node:28} loss {loss:.6}, on processors {expected:.6}, \
                 apart {gap:.1e} of {limit:.0e}"
            ),
            json!({
                "pipeline": node, "backend": own, "loss": loss, "cpu_loss": expected,
                "loss_gap": gap, "limit": limit,
            }),
        );
    }
}

/// A run of the pipeline into an artifacts folder of its own.
struct World<'a> {
    folder: &'a Path,
    name: &'a str,
    compute: Vec<String>,
}

impl World<'_> {
    /// Runs every stage; the losses of all trainings.
    fn losses(&self) -> Result<Losses> {
        let artifacts = self.folder.join(self.name);
        for name in stage::names() {
            self.stage(name, &artifacts)?;
        }

        let mut found = BTreeMap::new();
        for manifest in manifests(&artifacts)? {
            let Some(loss) = manifest["metrics"]["loss"].as_f64() else { continue };
            let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
            let node = format!("{} {}", text(&manifest["stage"]), text(&manifest["run"]));
            found.insert(node, (loss, text(&manifest["key_preimage"]["backend"])));
        }
        Ok(found)
    }

    fn stage(&self, name: &str, artifacts: &Path) -> Result<()> {
        let program = beside(&format!("upcycle-{name}"))?;
        let mut command = Command::new(&program);
        command.arg("--quiet").arg("--config").arg(self.folder.join("pipeline.yaml"));
        command.arg("--artifacts").arg(artifacts);
        for assignment in &self.compute {
            command.args(["--set", assignment]);
        }
        let output =
            command.output().context(|| format!("starting {}", program.display()))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        Err(Error::failed(format!(
            "the stage {name} failed with {}: {}",
            self.compute.join(", "),
            said.trim()
        )))
    }
}

/// A program in this program's folder.
fn beside(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().context(|| "finding this program".to_owned())?;
    let program = own.with_file_name(name);
    if program.is_file() {
        return Ok(program);
    }
    Err(Error::usage(format!(
        "{} was not found: carry the binaries of all stages beside upcycle-gpu-check, or \
         choose other parts with --only",
        program.display()
    )))
}

/// All manifests below a folder of artifacts.
fn manifests(folder: &Path) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let reading = || format!("reading {}", folder.display());
        for entry in std::fs::read_dir(&folder).context(reading)? {
            let path = entry.context(reading)?.path();
            if path.is_dir() && !path.is_symlink() {
                folders.push(path);
            } else if path.ends_with("manifest.json") {
                let text = std::fs::read(&path).context(reading)?;
                found.push(serde_json::from_slice(&text).context(reading)?);
            }
        }
    }
    Ok(found)
}
