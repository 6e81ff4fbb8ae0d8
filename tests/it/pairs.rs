//! What the data of other people brings is read right or refused, through the binaries.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;
use upcycle::checkpoint::{self, Preprocessing};
use upcycle::model::init;
use upcycle::text::Tokenizer;

use crate::interop::{bad, fixture, good, run, toy};

const DATASET: &str = env!("CARGO_BIN_EXE_upcycle-dataset");
const EVALUATE: &str = env!("CARGO_BIN_EXE_upcycle-evaluate");

/// The arguments of `upcycle-dataset` with these settings.
fn arguments(settings: &[&str]) -> Vec<String> {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipeline.yaml");
    let config = config.display().to_string();
    let mut arguments: Vec<String> =
        ["--config", &config, "--artifacts", "artifacts"].map(str::to_owned).to_vec();
    let common = ["dataset.image_size=16", "dataset.vocabulary=600", "seeds=[1]"];
    for setting in common.iter().chain(settings) {
        arguments.extend(["--set".to_owned(), (*setting).to_owned()]);
    }
    arguments
}

fn refused(here: &Path, settings: &[&str]) -> (i32, String) {
    let arguments = arguments(settings);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = run(here, DATASET, &arguments);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{errors}");
    (output.status.code().unwrap(), errors)
}

/// Runs the stage, and gives what it says and its `dataset.json`.
fn read(here: &Path, settings: &[&str]) -> (String, BTreeMap<String, Value>) {
    let arguments = arguments(settings);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = run(here, DATASET, &arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let path = here.join("artifacts/dataset/current/dataset.json");
    (said, serde_json::from_slice(&fs::read(path).unwrap()).unwrap())
}

/// 24 sound pictures in three classes, two of them in folders within.
fn pictures(folder: &Path) {
    for (class, file) in
        [("ant", "baseline.jpg"), ("bee", "color.bmp"), ("cow", "rgb_trns.png")]
    {
        let bytes = fs::read(fixture("pixels").join(file)).unwrap();
        let extension = file.rsplit('.').next().unwrap();
        for i in 0..8 {
            let inner = if i % 2 == 0 {
                folder.join(class)
            } else {
                folder.join(class).join("more")
            };
            fs::create_dir_all(&inner).unwrap();
            fs::write(inner.join(format!("{i}.{extension}")), &bytes).unwrap();
        }
    }
}

#[test]
fn a_run_ends_with_what_became_of_every_file() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path();
    pictures(&here.join("set"));
    let whole = fs::read(fixture("pixels/progressive.jpg")).unwrap();
    fs::write(here.join("set/ant/torn.jpg"), &whole[..whole.len() / 2]).unwrap();
    fs::write(here.join("set/ant/film.mp4"), "").unwrap();
    let folder = ["dataset.source=folder", "dataset.folder=set"];

    let (code, error) = refused(here, &folder);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("ant/torn.jpg: decoding picture"), "{error}");

    let tolerant = [&folder[..], &["dataset.corrupt_share=0.1"]].concat();
    let (said, json) = read(here, &tolerant);
    let line = said.lines().find(|line| line.contains("read 25 pictures")).expect(&said);
    assert!(line.contains("kept 24 ("), "{line}");
    assert!(line.contains("skipped 1 (1 torn picture)"), "{line}");
    assert!(line.ends_with("left out, not read: 1 .mp4"), "{line}");
    assert!(said.contains("skipped ant/torn.jpg: "), "{said}");
    assert_eq!(json["read"], 25);
    assert_eq!(json["skipped"], serde_json::json!({ "torn picture": 1 }));
    assert_eq!(json["left_out"], serde_json::json!({ ".mp4": 1 }));
    let kept: u64 =
        json["splits"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    assert_eq!(kept, 24);
}

#[test]
fn a_table_named_by_a_relative_path_may_hold_absolute_ones() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path().canonicalize().unwrap();
    pictures(&here.join("set"));
    let mut table = "filepath,caption\n".to_owned();
    for i in [0, 2, 4, 6] {
        let path = here.join(format!("set/bee/{i}.bmp"));
        table.push_str(&[path.display().to_string(), format!(",bee {i}\n")].concat());
    }
    fs::write(here.join("pairs.csv"), &table).unwrap();
    let file = ["dataset.source=csv", "dataset.file=pairs.csv"];
    let (said, json) = read(&here, &file);
    assert!(said.contains("read 4 pictures, kept 4"), "{said}");
    assert_eq!(json["skipped"], serde_json::json!({}));

    // The same table with relative paths is the same data set.
    let splits = json["splits"].clone();
    let place = format!("{}/", here.display());
    fs::write(here.join("pairs.csv"), table.replace(&place, "")).unwrap();
    assert_eq!(read(&here, &file).1["splits"], splits);
}

#[test]
fn a_quotation_mark_that_is_never_closed_is_an_error_with_its_line() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path();
    pictures(&here.join("set"));
    let row = |i: usize, caption: &str| format!("set/bee/{i}.bmp\t{caption}\n");
    let head = "filepath\tcaption\n";
    for (rows, line) in [
        ([row(0, "a"), row(2, "\"b"), row(4, "c"), row(6, "d")], "line 3"),
        ([row(0, "a"), row(2, "\"b"), row(4, "\"c\""), row(6, "d")], "line 3"),
        // Closed by the end of another caption: no strict reader would notice.
        ([row(0, "a"), row(2, "\"b"), row(4, "5\""), row(6, "d")], "line 3"),
        ([row(0, "a"), row(2, "b"), row(4, "c"), row(6, "\"d")], "line 5"),
    ] {
        fs::write(here.join("pairs.tsv"), head.to_owned() + &rows.concat()).unwrap();
        let (_, error) = refused(
            here,
            &["dataset.source=csv", "dataset.file=pairs.tsv", "dataset.corrupt_share=1"],
        );
        assert!(error.contains(line) && error.contains("quotation mark"), "{error}");
    }
    let rows =
        [row(0, "5\" wide"), row(2, "\"say \"\"b\"\"\""), row(4, "\"two\nlines\"")];
    fs::write(here.join("pairs.tsv"), head.to_owned() + &rows.concat()).unwrap();
    let (said, _) = read(here, &["dataset.source=csv", "dataset.file=pairs.tsv"]);
    assert!(said.contains("read 3 pictures, kept 3"), "{said}");
}

#[test]
fn a_torn_picture_of_an_evaluation_set_is_named() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path();
    checkpoint::export_upcycle(&here.join("dense"), &init::dense(&toy(), 3), None, None)
        .unwrap();
    let pictures_of = Preprocessing::new([0.5; 3], [0.25; 3]);
    fs::write(here.join("dense/preprocess.json"), pictures_of.json().unwrap()).unwrap();
    let json =
        Tokenizer::open(&fixture("tokenizer/toy_bpe.txt.gz")).unwrap().json().unwrap();
    fs::write(here.join("dense/tokenizer.json"), json).unwrap();
    pictures(&here.join("set"));
    let whole = fs::read(fixture("pixels/baseline.jpg")).unwrap();
    fs::write(here.join("set/ant/more/torn.jpg"), &whole[..whole.len() - 40]).unwrap();

    let on = [
        "on",
        "--checkpoint",
        "dense",
        "--set",
        "set",
        "--out",
        "out",
        "--bootstrap",
        "9",
    ];
    let (code, error) = bad(here, EVALUATE, &on);
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("ant/more/torn.jpg"), "{error}");
    let lines = good(here, EVALUATE, &[&on[..], &["--corrupt-share", "0.1"]].concat());
    assert!(lines.contains("24 pictures (1 skipped)"), "{lines}");
}
