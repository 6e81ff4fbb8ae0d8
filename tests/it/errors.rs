//! Every kind of error a person can reach, as it is printed: the wording is reviewed here.
//!
//! A changed sentence changes a file of `snapshots/`; run the tests with
//! `INSTA_UPDATE=always` to accept it, and read what you accept.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use upcycle::io::table::{Column, Table};
use upcycle::io::tensors::{self, Tensor, Tensors};

use crate::interop::fixture;

const IMPORT: &str = env!("CARGO_BIN_EXE_upcycle-import");
const EXPORT: &str = env!("CARGO_BIN_EXE_upcycle-export");
const DATASET: &str = env!("CARGO_BIN_EXE_upcycle-dataset");
const CLUSTER: &str = env!("CARGO_BIN_EXE_upcycle-cluster");
const UPCYCLE: &str = env!("CARGO_BIN_EXE_upcycle-upcycle");
const EVALUATE: &str = env!("CARGO_BIN_EXE_upcycle-evaluate");
const INSPECT: &str = env!("CARGO_BIN_EXE_upcycle-inspect");

/// Runs every command line in `here`, all of which must fail; what each of them prints.
fn catalog(here: &Path, cases: &[(&str, &[&str])]) -> String {
    let mut text = String::new();
    for (program, args) in cases {
        let output =
            Command::new(program).args(*args).current_dir(here).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        let name = Path::new(program).file_name().unwrap().to_string_lossy();
        let code = output.status.code().unwrap();
        assert!(code != 0 && !errors.contains("panicked"), "{name} {args:?}: {errors}");
        assert!(errors.lines().filter(|line| line.starts_with("error: ")).count() == 1);
        writeln!(
            text,
            "$ {name} {}\n{}\nexit code {code}\n",
            args.join(" "),
            errors.trim()
        )
        .unwrap();
    }
    text
}

/// A folder with the configuration, so that messages name no folder of this machine.
fn place() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("pipeline.yaml");
    fs::copy(shipped, folder.path().join("pipeline.yaml")).unwrap();
    folder
}

/// A copy of a fixture's folder, one of whose files is changed.
fn copy(from: &str, to: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(fixture(from)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
    let text = fs::read_to_string(to.join(file)).unwrap_or_else(|_| "{}".to_owned());
    let mut json = serde_json::from_str(&text).unwrap();
    change(&mut json);
    fs::write(to.join(file), json.to_string()).unwrap();
}

#[test]
fn errors_of_the_configuration() {
    let folder = place();
    let text = catalog(
        folder.path(),
        &[
            (CLUSTER, &["--config", "missing.yaml"]),
            (CLUSTER, &["--profile", "smok"]),
            (CLUSTER, &["--set", "train.balanse=1"]),
            (CLUSTER, &["--set", "train.balance"]),
            (CLUSTER, &["--set", "train.balance=[1"]),
            (CLUSTER, &["--set", "train.optim.steps=many"]),
            (CLUSTER, &["--set", "seeds=[]"]),
            (CLUSTER, &["--set", "seeds=[1, 1]"]),
            (CLUSTER, &["--set", "evaluate.recall_at=[1, 1]"]),
            (CLUSTER, &["--set", "moe.top_k=9"]),
            (CLUSTER, &["--set", "dataset.image_size=33"]),
            (CLUSTER, &["--set", "runs.sparse.init=spase"]),
            (CLUSTER, &["--set", "inits.sparse.method=spase"]),
            (CLUSTER, &["--set", "inits.drop.ratio=-1.5"]),
            (CLUSTER, &["--only", "s9"]),
            (UPCYCLE, &["--only", "sparce"]),
            (DATASET, &["--only", "s1"]),
            (CLUSTER, &["--profile", "smoke"]),
            (INSPECT, &["show", "trian/sparse-s1"]),
            (INSPECT, &["show", "train"]),
            (INSPECT, &["show", "dataset"]),
            (CLUSTER, &["--threads", "0"]),
            (CLUSTER, &["--set", "train.optim.lanes=3"]),
            (CLUSTER, &["--ranks", "2"]),
        ],
    );
    insta::assert_snapshot!(text);
}

#[expect(clippy::too_many_lines, reason = "a catalogue, one entry after the other")]
#[test]
fn errors_of_checkpoints() {
    let folder = place();
    let here = folder.path();
    let config = "open_clip_config.json";
    let oc = |name: &str, change: fn(&mut Value)| {
        copy("clip-tiny-gelu/open_clip", &here.join(name), config, change);
    };
    oc("pooled", |json| {
        json["model_cfg"]["vision_cfg"]["attentional_pool"] = json!(true);
    });
    oc("random", |json| {
        json["model_cfg"]["text_cfg"]["tokenizer_kwargs"] =
            json!({"reduction_mask": "random"});
    });
    oc("stretched", |json| json["preprocess_cfg"] = json!({"resize_mode": "stretch"}));
    oc("good", |_| ());
    oc("silent", |json| drop(json.as_object_mut().unwrap().remove("preprocess_cfg")));
    let hf = |name: &str, file: &str, change: fn(&mut Value)| {
        copy("clip-tiny-gelu/hf", &here.join(name), file, change);
    };
    hf("siglip", "config.json", |json| json["model_type"] = json!("siglip"));
    hf("uncropped", "preprocessor_config.json", |json| {
        *json = json!({"size": {"shortest_edge": 32}, "do_center_crop": false});
    });
    hf("larger", "preprocessor_config.json", |json| *json = json!({"do_resize": true}));
    fs::create_dir(here.join("empty")).unwrap();
    fs::create_dir(here.join("half")).unwrap();
    fs::write(here.join("half/config.json"), "{}").unwrap();
    fs::write(here.join("notes.txt"), "").unwrap();
    fs::write(here.join("torn.pt"), "PK").unwrap();

    for file in ["plain.safetensors", "protocol4.pt", "scripted.pt", "two.pt"] {
        fs::copy(fixture("containers").join(file), here.join(file)).unwrap();
    }
    let mut part = tensors::read(&here.join("plain.safetensors")).unwrap();
    part.retain(|name, _| name.starts_with("visual."));
    tensors::write(&here.join("tower.safetensors"), &part).unwrap();
    let bert = part.into_iter().map(|(n, t)| (n.replace("visual", "bert"), t)).collect();
    tensors::write(&here.join("bert.safetensors"), &bert).unwrap();
    let path = here.join("good/open_clip_model.safetensors");
    let mut more = tensors::read(&path).unwrap();
    more.remove("ln_final.bias");
    more.insert("head.weight".to_owned(), more["logit_scale"].clone());
    fs::create_dir(here.join("mixed")).unwrap();
    fs::copy(here.join("good").join(config), here.join("mixed").join(config)).unwrap();
    tensors::write(&here.join("mixed/open_clip_model.safetensors"), &more).unwrap();

    let toy = fixture("tokenizer/toy_bpe.txt.gz");
    fs::copy(toy, here.join("toy_bpe.txt.gz")).unwrap();
    let from = |path: &'static str| ["--from", path, "--out", "x"];
    let with = |path, more: &'static [&'static str]| [&from(path)[..], more].concat();
    let tokenizer = with("good", &["--tokenizer", "toy_bpe.txt.gz"]);
    let said = with("plain.safetensors", &["--activation", "gelu", "--heads", "2"]);
    let unknown = with("plain.safetensors", &["--config", "ViT-B-33"]);
    let unsaid = with("plain.safetensors", &["--config", "ViT-B-32"]);
    let heads = with("good", &["--heads", "4"]);
    let size = with("good", &["--image-size", "33"]);
    let export = ["--checkpoint", "silent", "--layout", "hf", "--out", "x"];
    let sharded = ["--checkpoint", "good", "--layout", "open_clip", "--out", "x"];
    let sharded = [&sharded[..], &["--shard-size", "1MB"]].concat();
    let text = catalog(
        here,
        &[
            (IMPORT, &from("gone")),
            (IMPORT, &from("openai/clip-vit-base-patch32")),
            (IMPORT, &from("empty")),
            (IMPORT, &from("half")),
            (IMPORT, &from("notes.txt")),
            (IMPORT, &from("torn.pt")),
            (IMPORT, &from("protocol4.pt")),
            (IMPORT, &from("scripted.pt")),
            (IMPORT, &from("two.pt")),
            (IMPORT, &from("plain.safetensors")),
            (IMPORT, &said),
            (IMPORT, &unknown),
            (IMPORT, &unsaid),
            (IMPORT, &heads),
            (IMPORT, &from("tower.safetensors")),
            (IMPORT, &from("bert.safetensors")),
            (IMPORT, &from("siglip")),
            (IMPORT, &from("mixed")),
            (IMPORT, &from("pooled")),
            (IMPORT, &from("random")),
            (IMPORT, &from("stretched")),
            (IMPORT, &from("uncropped")),
            (IMPORT, &from("larger")),
            (IMPORT, &size),
            (IMPORT, &tokenizer),
            (IMPORT, &["--from", "good", "--out", "empty/../good"]),
            (EXPORT, &export),
            (EXPORT, &sharded),
        ],
    );
    insta::assert_snapshot!(text);
}

#[test]
fn errors_of_data() {
    let folder = place();
    let here = folder.path();
    fs::write(here.join("cut.json"), r#"{"images": [{"id": 1"#).unwrap();
    let wide: Vec<u8> =
        "filepath,title\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(here.join("wide.csv"), [&[0xff, 0xfe][..], &wide].concat()).unwrap();
    fs::write(here.join("pairs.csv"), "filepath,title\ngone.png,a cat\n").unwrap();
    fs::create_dir(here.join("empty")).unwrap();
    fs::create_dir(here.join("squash")).unwrap();
    let squash = json!({"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5],
                        "resize_mode": "squash"});
    fs::write(here.join("squash/preprocess.json"), squash.to_string()).unwrap();
    let toy = fixture("tokenizer/toy_bpe.txt.gz");
    fs::copy(toy, here.join("squash/bpe_simple_vocab_16e6.txt.gz")).unwrap();
    let set = |sets: &'static [&'static str]| {
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        ["--profile", "smoke", "--quiet"].into_iter().chain(sets).collect::<Vec<_>>()
    };
    let text = catalog(
        here,
        &[
            (DATASET, &set(&["dataset.source=folder"])),
            (DATASET, &set(&["dataset.source=folder", "dataset.folder=nowhere"])),
            (DATASET, &set(&["dataset.source=folder", "dataset.folder=empty"])),
            (DATASET, &set(&["dataset.source=coco", "dataset.file=cut.json"])),
            (DATASET, &set(&["dataset.source=csv", "dataset.file=wide.csv"])),
            (DATASET, &set(&["dataset.source=csv", "dataset.file=gone.csv"])),
            (DATASET, &set(&["dataset.source=csv", "dataset.file=pairs.csv"])),
            (DATASET, &set(&["dataset.like=nowhere"])),
            (
                DATASET,
                &set(&[
                    "dataset.source=csv",
                    "dataset.file=pairs.csv",
                    "dataset.like=squash",
                ]),
            ),
        ],
    );
    insta::assert_snapshot!(text);
}

#[test]
fn errors_of_evaluate_on() {
    let folder = place();
    let here = folder.path();
    copy(
        "clip-tiny-gelu/open_clip",
        &here.join("model"),
        "open_clip_config.json",
        |json| {
            drop(json.as_object_mut().unwrap().remove("preprocess_cfg"));
        },
    );
    fs::create_dir_all(here.join("sets/empty")).unwrap();
    let toy = fixture("tokenizer/toy_bpe.txt.gz");
    fs::copy(toy, here.join("toy_bpe.txt.gz")).unwrap();
    let on = |more: &'static [&'static str]| {
        let first = ["on", "--checkpoint", "model", "--out", "out"];
        [&first[..], more].concat()
    };
    let text = catalog(
        here,
        &[
            (EVALUATE, &on(&["--set", "toy"])),
            (EVALUATE, &on(&["--set", "toy", "--sets-root", "nowhere"])),
            (EVALUATE, &on(&["--set", "retrieval", "--sets-root", "sets"])),
            (EVALUATE, &on(&["--set", "sets/empty", "--corrupt-share", "2"])),
            (EVALUATE, &on(&["--set", "sets/empty"])),
            (EVALUATE, &on(&["--set", "sets/empty", "--tokenizer", "gone.json"])),
            (EVALUATE, &on(&["--set", "sets/empty", "--tokenizer", "toy_bpe.txt.gz"])),
            (
                EVALUATE,
                &["on", "--checkpoint", "gone", "--set", "sets/empty", "--out", "x"],
            ),
            (EVALUATE, &["on", "--set", "sets/empty", "--out", "x"]),
        ],
    );
    insta::assert_snapshot!(text);
}

#[test]
fn errors_of_fit() {
    let folder = place();
    let here = folder.path();
    let column = |data: Vec<f32>| Column::Vectors { width: 2, data };
    Table::new()
        .with("id", Column::U32(vec![0; 3]))
        .with("x", column(vec![1.0; 6]))
        .with("y", column(vec![0.0; 6]))
        .write(&here.join("x.parquet"))
        .unwrap();
    let x = Tensor::new(vec![3, 2], vec![1.0; 6]).unwrap();
    tensors::write(&here.join("x.safetensors"), &Tensors::from([("x".to_owned(), x)]))
        .unwrap();
    let bytes = [0; 48];
    let double =
        safetensors::tensor::TensorView::new(safetensors::Dtype::F64, vec![3, 2], &bytes);
    let path = here.join("double.safetensors");
    safetensors::serialize_to_file([("x", double.unwrap())], None, &path).unwrap();

    let fit = |args: &'static str| {
        ["fit"]
            .into_iter()
            .chain(args.split(' '))
            .chain(["--out", "o"])
            .collect::<Vec<_>>()
    };
    let text = catalog(
        here,
        &[
            (CLUSTER, &fit("--vectors gone.parquet --clusters 2")),
            (CLUSTER, &fit("--vectors pipeline.yaml --clusters 2")),
            (CLUSTER, &fit("--vectors x.parquet --clusters 2")),
            (CLUSTER, &fit("--vectors x.parquet --column z --clusters 2")),
            (CLUSTER, &fit("--vectors x.parquet --column id --clusters 2")),
            (CLUSTER, &fit("--vectors x.parquet --column y --clusters 2")),
            (CLUSTER, &fit("--vectors double.safetensors --clusters 2")),
            (CLUSTER, &fit("--vectors x.safetensors --clusters 4")),
            (CLUSTER, &fit("--vectors x.safetensors --clusters 0")),
            (CLUSTER, &fit("--vectors x.safetensors --clusters 2 --memory lots")),
        ],
    );
    insta::assert_snapshot!(text);
}
