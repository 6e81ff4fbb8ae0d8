//! Every table that a pipeline writes has the columns that `docs/artifacts.md` lists.

use std::path::{Path, PathBuf};

use upcycle::io::table::Table;

/// Compares the tables of all present results below `root` with the documentation.
pub(crate) fn are_as_documented(root: &Path) {
    let text = include_str!("../../docs/artifacts.md");
    let files = tables(root);
    assert!(files.len() > 50, "only {} tables in {}", files.len(), root.display());

    let mut kinds = std::collections::BTreeSet::new();
    for path in files {
        let heading = heading(root, &path);
        let table = Table::read(&path).unwrap();
        let columns = table.columns().iter();
        let found: Vec<_> =
            columns.map(|(name, column)| (name.as_str(), column.kind())).collect();
        assert_eq!(found, documented(text, &heading), "{}", path.display());
        kinds.insert(heading);
    }

    // All but the tables of the tools that work outside of the pipeline, and those of
    // `evaluate.sets`, which this pipeline has none of; `tests/it/init.rs` reads them.
    let headings = text.lines().filter(|line| line.ends_with(".parquet"));
    let expected = headings
        .filter_map(|line| line.strip_prefix("### "))
        .filter(|line| !line.starts_with("fit/") && *line != "evaluate/SET.parquet")
        .filter(|line| !line.starts_with("evaluate/set_"));
    assert_eq!(kinds, expected.map(str::to_owned).collect());
}

/// The Parquet files of every folder `current` points to.
fn tables(root: &Path) -> Vec<PathBuf> {
    let (mut folders, mut found) = (vec![root.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let present = folder.ends_with("current");
            if path.is_dir() && (path.ends_with("current") || !path.is_symlink()) {
                folders.push(path);
            } else if present && path.extension().is_some_and(|kind| kind == "parquet") {
                found.push(path);
            }
        }
    }
    found
}

/// How the documentation calls a file: `cluster/clusters.parquet`.
fn heading(root: &Path, path: &Path) -> String {
    let stage = path.strip_prefix(root).unwrap().iter().next().unwrap();
    let file = path.file_name().unwrap().to_str().unwrap();
    match stage.to_str().unwrap() {
        "dataset" if file.starts_with("samples-") => {
            "dataset/samples-SPLIT.parquet".to_owned()
        }
        "activations" => "activations/TOWER-LAYER.parquet".to_owned(),
        // A dense model's training is recorded like an MoE's.
        "pretrain" => format!("train/{file}"),
        // Each round of the multiplet is a training with a number.
        "multiplet" if file.starts_with("log-") => "train/log.parquet".to_owned(),
        "multiplet" if file.starts_with("validation-") => {
            "train/validation.parquet".to_owned()
        }
        stage => format!("{stage}/{file}"),
    }
}

/// Names and types listed under a heading.
fn documented<'t>(text: &'t str, heading: &str) -> Vec<(&'t str, &'t str)> {
    let part = text.split(&format!("### {heading}\n")).nth(1);
    let part = part.unwrap_or_else(|| panic!("no heading {heading}"));
    let lines = part.lines().take_while(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|');
            let name = cells.next()?.trim().trim_end_matches('`');
            // `vector [E]` names its width, which is not part of the type.
            Some((name, cells.next()?.split('[').next()?.trim()))
        })
        .collect()
}
