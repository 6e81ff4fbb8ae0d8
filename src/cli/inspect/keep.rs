//! Keeping the store in order: verify, collect garbage, accept.

use std::path::Path;

use serde_json::{Value, json};

use super::{Answer, View};
use crate::artifact::{Digest, Expected, MANIFEST, Manifest, Output, changes};
use crate::error::{Error, Result};
use crate::io;
use crate::pipeline::Verdict;
use crate::pipeline::memory::size;

/// Rehashes every file of every result, trusting no cache; `deep` also decodes them.
pub(super) fn verify(view: &View, deep: bool) -> Result<Answer> {
    let (mut lines, mut json) = (Vec::new(), Vec::new());
    let (mut files, mut bytes, mut damaged) = (0, 0, 0);

    for (dir, key) in view.store.results() {
        let mut wrong = Vec::new();
        match Manifest::read(&dir.join(MANIFEST), &key) {
            Ok(manifest) => {
                // Missing and extra files first, then the content of those that are listed.
                wrong.extend(view.store.damage(&dir, &manifest.digests())?);
                for output in &manifest.outputs {
                    files += 1;
                    bytes += output.bytes;
                    wrong.extend(damage(&dir, output, deep));
                }
            }
            Err(error) => wrong.push(error.message().to_owned()),
        }

        // A file that was cut short is found both by its size and by its digest.
        wrong.sort();
        wrong.dedup();

        damaged += usize::from(!wrong.is_empty());
        lines.extend(wrong.iter().map(|what| format!("{}: {what}", dir.display())));
        json.push(json!({ "result": dir.display().to_string(), "damage": wrong }));
    }

    let results = json.len();
    lines.push(format!("{results} results, {files} files, {} checked", size(bytes)));

    // Damage is an answer like any other, and it also sets the exit code.
    let mut answer = Answer::new(lines, Value::Array(json));
    if damaged > 0 {
        answer.trouble = Some(Error::corrupt(format!(
            "{damaged} of {results} results are damaged; `make` builds them again"
        )));
    }
    Ok(answer)
}

/// What is wrong with the content of one file, read anew.
fn damage(dir: &Path, output: &Output, deep: bool) -> Option<String> {
    let path = dir.join(&output.path);
    match Digest::of_file(&path) {
        Ok(digest) if digest == output.blake3 => deep.then(|| decode(&path)).flatten(),
        _ => Some(format!("{} does not have its digest", output.path)),
    }
}

/// Reads a whole file as the format that its name claims; returns what is wrong with it. A
/// damaged file may make a decoder panic.
fn decode(path: &Path) -> Option<String> {
    let read = || -> Result<()> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("parquet") => {
                let mut reader = io::table::TableReader::open(path)?;
                while reader.next()?.is_some() {}
            }
            Some("safetensors") => drop(io::tensors::read(path)?),
            _ => {}
        }
        Ok(())
    };

    match std::panic::catch_unwind(read) {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(format!("cannot be decoded: {error}")),
        Err(_) => Some(format!("{} makes its decoder panic", path.display())),
    }
}

/// Lists the results that no current result was made from; removes them only if `yes`.
pub(super) fn collect(view: &View, yes: bool) -> Result<Answer> {
    let garbage = view.store.garbage();
    let (mut lines, mut json) = (Vec::new(), Vec::new());
    let mut total = 0;

    for item in &garbage {
        // What came into use since it was listed is kept.
        let gone = yes && view.store.remove(item)?;
        total += if gone || !yes { item.bytes } else { 0 };

        let word = match (yes, gone) {
            (false, _) => "would remove",
            (true, true) => "removed",
            (true, false) => "in use, kept",
        };
        let path = item.path.display().to_string();
        lines.push(format!("{word} {path} ({})", size(item.bytes)));
        json.push(json!({ "path": path, "bytes": item.bytes, "removed": gone }));
    }

    lines.push(match (garbage.is_empty(), yes) {
        (true, _) => "nothing to remove".to_owned(),
        (_, true) => format!("{} freed", size(total)),
        (_, false) => format!("{} could be freed: --yes removes them", size(total)),
    });
    Ok(Answer::new(lines, Value::Array(json)))
}

/// Gives the current results of a stage the keys the present code asks for, where only the
/// code differs.
pub(super) fn accept(view: &View, stage: &str) -> Result<Answer> {
    let survey = view.survey();
    let (mut lines, mut json) = (Vec::new(), Vec::new());

    // A node that is fresh, waits or is damaged has nothing to accept.
    for node in view.named(stage)? {
        let Verdict::Runs(reasons) = survey.verdict(node)? else { continue };
        let expected = &survey.resolve(node)?.expected;
        if !differs_in_code_only(view, expected)? {
            let (place, why) = (&node.place, reasons.join(", "));
            lines.push(format!("{place}: not accepted, more than code differs: {why}"));
            continue;
        }

        view.store.accept(expected)?;
        lines.push(format!("{}: accepted as {}", node.place, expected.key.short()));
        json.push(
            json!({ "node": node.place.to_string(), "key": expected.key.as_str() }),
        );
    }

    if lines.is_empty() {
        lines.push(format!("{stage}: nothing to accept"));
    }
    Ok(Answer::new(lines, Value::Array(json)))
}

/// Whether only code, its version or the packages below it changed since the current result.
fn differs_in_code_only(view: &View, expected: &Expected) -> Result<bool> {
    let place = &expected.place;
    let Some(key) = view.store.current(place) else { return Ok(false) };
    let Some(old) = view.store.manifest(place, &key)? else { return Ok(false) };

    let changes = changes(&old.key_preimage, &expected.preimage.to_json());
    let code =
        |path: &str| path == "source" || path == "version" || path.starts_with("formats");
    Ok(!changes.is_empty() && changes.iter().all(|change| code(&change.path)))
}
