//! `fit` on files of one's own: the same bytes however rows are held, one line of JSON, one
//! line of error, and a folder that is whole or not there.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use upcycle::io::table::{Column, Table};
use upcycle::io::tensors::{self, Tensor, Tensors};
use upcycle::rng;

const CLUSTER: &str = env!("CARGO_BIN_EXE_upcycle-cluster");
const SUBSPACES: &str = env!("CARGO_BIN_EXE_upcycle-subspaces");

fn fit(program: &str, folder: &Path, args: &[&str]) -> Output {
    Command::new(program).arg("fit").args(args).current_dir(folder).output().unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

fn refused(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    assert!(text.contains("error: ") && !text.contains("panicked"), "{text}");
    text
}

/// `x.parquet` (also with a bad column), `x.safetensors` and weights, in a new folder.
fn files(rows: usize, width: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut data = vec![0.0; rows * width];
    rng::fill_normal(&mut rng::stream(1, "test"), 1.0, &mut data);
    let mut bad = data.clone();
    bad[width + 1] = f32::NAN;
    let column = |data: &Vec<f32>| Column::Vectors { width, data: data.clone() };
    Table::new()
        .with("id", Column::U32(vec![0; rows]))
        .with("x", column(&data))
        .with("bad", column(&bad))
        .with("nothing", column(&vec![0.0; rows * width]))
        .write(&folder.path().join("x.parquet"))
        .unwrap();
    let one = Tensors::from([(
        "x".to_owned(),
        Tensor::new(vec![rows, width], data.clone()).unwrap(),
    )]);
    tensors::write(&folder.path().join("x.safetensors"), &one).unwrap();
    let tensor = |out: usize, inputs: usize| {
        Tensor::new(vec![out, inputs], data[..out * inputs].to_vec()).unwrap()
    };
    let weights = Tensors::from([
        ("tall".to_owned(), tensor(3 * width, width)),
        ("wide".to_owned(), tensor(width - 2, width)),
        ("other".to_owned(), tensor(4, width + 1)),
    ]);
    tensors::write(&folder.path().join("w.safetensors"), &weights).unwrap();
    folder
}

fn content(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(path).unwrap())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn clusters_are_the_same_bytes_from_memory_from_a_stream_and_on_any_threads() {
    let folder = files(20_000, 9);
    for dtype in ["f32", "bf16"] {
        let mut known: Option<Vec<(String, Vec<u8>)>> = None;
        for (vectors, memory, threads) in [
            ("x.parquet", "1G", "1"),
            ("x.parquet", "0", "3"),
            ("x.safetensors", "1G", "2"),
            ("x.safetensors", "0", "1"),
        ] {
            let column = ["--column", "x", "--dtype", dtype, "--memory", memory];
            let size = ["--clusters", "6", "--iterations", "9", "--restarts", "2"];
            let rest =
                ["--vectors", vectors, "--threads", threads, "--out", "o", "--force"];
            let args = [&column[..], &size, &rest].concat();
            let output = fit(CLUSTER, folder.path(), &args);
            let line = json(&output);
            assert_eq!(line["streamed"], memory == "0");
            assert_eq!((&line["n"], &line["d"]), (&20_000.into(), &9.into()));
            let objectives = line["objectives"].as_array().unwrap();
            assert!((2..=9).contains(&objectives.len()));
            assert!(line["objective"].as_f64().unwrap() > 0.3);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains("streamed") == (memory == "0"), "{said}");
            let found = content(&folder.path().join("o"));
            assert_eq!(found.len(), 4);
            assert_eq!(known.get_or_insert_with(|| found.clone()), &found);
        }
    }
}

#[test]
fn subspaces_of_the_clusters_follow_and_their_projection_has_their_rank() {
    let folder = files(3000, 8);
    let args = ["--vectors", "x.safetensors", "--clusters", "3", "--out", "c", "--quiet"];
    let output = fit(CLUSTER, folder.path(), &args);
    assert!(output.stderr.is_empty());
    json(&output);
    let common = ["--labels", "c/assignments.parquet", "--vectors", "x.parquet:x"];
    let weights = ["--weight", "w.safetensors:tall", "--weight", "w.safetensors:wide"];
    let mut known = None;
    for threads in ["1", "3"] {
        let rest = ["--rank", "4", "--project", "--threads", threads];
        let args = [&common[..], &weights, &rest, &["--out", "s", "--force"]].concat();
        let line = json(&fit(SUBSPACES, folder.path(), &args));
        assert_eq!(line["matrices"][1]["ranks"], serde_json::json!([4, 4, 4]));
        let found = content(&folder.path().join("s"));
        assert_eq!(known.get_or_insert_with(|| found.clone()), &found);
    }
    let projected =
        tensors::read(&folder.path().join("s/projected.safetensors")).unwrap();
    let bases = tensors::read(&folder.path().join("s/bases.safetensors")).unwrap();
    assert_eq!((projected.len(), bases.len()), (6, 6));
    assert_eq!(projected["tall.2"].shape, [24, 8]);
    assert_eq!(bases["wide.0"].shape, [6, 4]);
    let args = [&common[..], &weights, &["--tau", "1", "--out", "full"]].concat();
    let line = json(&fit(SUBSPACES, folder.path(), &args));
    assert_eq!(line["matrices"][0]["ranks"], serde_json::json!([8, 8, 8]));
}

#[test]
fn bad_input_is_one_clear_error_and_leaves_nothing_behind() {
    let folder = files(50, 6);
    let before = fs::read_dir(folder.path()).unwrap().count();
    for (args, told) in [
        ("--vectors x.parquet --column y --clusters 2", "no column y"),
        ("--vectors x.parquet --column id --clusters 2", "expected lists of f32"),
        ("--vectors x.parquet --clusters 2", "which column?"),
        ("--vectors x.parquet --column bad --clusters 2", "row 1 has a value"),
        ("--vectors x.parquet --column nothing --clusters 2", "all 50 rows are zero"),
        ("--vectors x.parquet --column x --clusters 51", "51 clusters from 50 rows"),
        ("--vectors x.parquet --column x --clusters 0", "clusters: found 0"),
        ("--vectors none.parquet --clusters 2", "none.parquet"),
        ("--vectors x.safetensors --clusters 2 --memory lots", "lots"),
        ("--vectors x.safetensors --clusters 2 --dtype f16", "f16"),
        ("--clusters 2", "--vectors"),
    ] {
        let args: Vec<&str> = args.split(' ').chain(["--out", "o"]).collect();
        let text = refused(&fit(CLUSTER, folder.path(), &args));
        assert!(text.contains(told), "{args:?}: {text}");
    }
    let labels = Table::new().with("cluster", Column::U32(vec![1; 49]));
    labels.write(&folder.path().join("short.parquet")).unwrap();
    let labels = Table::new().with("cluster", Column::U32(vec![u32::MAX; 50]));
    labels.write(&folder.path().join("wild.parquet")).unwrap();
    for (args, told) in [
        (
            "--weight w.safetensors:tall --labels short.parquet",
            "found 49 labels, expected 50",
        ),
        ("--weight w.safetensors:tall --labels wild.parquet", "4294967296 clusters"),
        ("--weight w.safetensors:other --labels short.parquet", "vectors of 6 values"),
        ("--weight w.safetensors:none --labels short.parquet", "no tensor none"),
        ("--weight w.safetensors --labels short.parquet", "which tensor?"),
    ] {
        let rest = ["--vectors", "x.safetensors", "--tau", "0.9", "--out", "o"];
        let args: Vec<&str> = args.split(' ').chain(rest).collect();
        let text = refused(&fit(SUBSPACES, folder.path(), &args));
        assert!(text.contains(told), "{args:?}: {text}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), before + 2);
    fs::create_dir(folder.path().join("o")).unwrap();
    fs::write(folder.path().join("o/kept"), "x").unwrap();
    let args = ["--vectors", "x.safetensors", "--clusters", "2", "--out", "o"];
    assert!(refused(&fit(CLUSTER, folder.path(), &args)).contains("--force"));
}
