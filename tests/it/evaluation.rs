//! Other people's data and evaluation sets, through the binaries.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;
use upcycle::checkpoint::{self, Card, Package};
use upcycle::engine::cpu::clip::Clip;
use upcycle::image::{self, Fit, Normalise, Picture, Pixels};
use upcycle::io::table::{Column, Table};
use upcycle::model::{Checkpoint, Moe, init};
use upcycle::text::Tokenizer;

use crate::interop::{bad, fixture, good, run, toy};

const EVALUATE: &str = env!("CARGO_BIN_EXE_upcycle-evaluate");
const DATASET: &str = env!("CARGO_BIN_EXE_upcycle-dataset");

const CLASSES: [&str; 6] = ["cat", "dog", "hot dog", "car", "tree", "red square"];
const TEMPLATES: [&str; 2] = ["a photo of a {c}.", "the {c}"];

/// A picture of stripes that differ from all others.
fn png(index: usize) -> Vec<u8> {
    let (width, height) = (20 + index % 5, 24);
    let level = |i: usize| {
        u8::try_from((i * (3 + index) + 31 * index + i * i / 7) % 256).unwrap()
    };
    let rgb = (0..width * height * 3).map(level).collect();
    image::encode_png(&Picture { width, height, rgb }).unwrap()
}

fn shard(path: &Path, members: &[(String, Vec<u8>)]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut builder = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, name, bytes.as_slice()).unwrap();
    }
    builder.finish().unwrap();
}

/// 24 pictures of six classes in two shards, as `CLIP_benchmark` exports them.
fn classification(folder: &Path) {
    for part in 0..2 {
        let members: Vec<_> = (part * 12..part * 12 + 12)
            .flat_map(|i| {
                let label = (i % 6).to_string().into_bytes();
                [(format!("s{i:07}.png"), png(i)), (format!("s{i:07}.cls"), label)]
            })
            .collect();
        shard(&folder.join(format!("test/{part}.tar")), &members);
    }
    fs::write(folder.join("test/nshards.txt"), "2\n").unwrap();
    fs::write(folder.join("classnames.txt"), CLASSES.join("\n") + "\n").unwrap();
    let templates = TEMPLATES.join("\n");
    fs::write(folder.join("zeroshot_classification_templates.txt"), templates).unwrap();
}

/// The same pictures, one folder a class.
fn folders(folder: &Path) {
    for i in 0..24 {
        let class = folder.join(format!("n{:02}", i % 6));
        fs::create_dir_all(&class).unwrap();
        fs::write(class.join(format!("{i:02}.png")), png(i)).unwrap();
    }
    fs::write(folder.join("classnames.txt"), CLASSES.join("\n")).unwrap();
    let templates = TEMPLATES.join("\n");
    fs::write(folder.join("zeroshot_classification_templates.txt"), templates).unwrap();
}

/// Told apart by their first words: the toy's context is short.
fn captions(i: usize) -> Vec<String> {
    (0..=i % 3).map(|k| format!("{i} {k} {}", CLASSES[i % 6])).collect()
}

/// 15 pictures with one to three captions.
fn retrieval(folder: &Path) {
    let members: Vec<_> = (0..15)
        .flat_map(|i| {
            let text = captions(i).join("\n").into_bytes();
            [(format!("s{i:07}.png"), png(i)), (format!("s{i:07}.txt"), text)]
        })
        .collect();
    shard(&folder.join("test/0.tar"), &members);
    fs::write(folder.join("test/nshards.txt"), "1").unwrap();
    fs::write(folder.join("dataset_type.txt"), "retrieval").unwrap();
}

/// A dense and an MoE checkpoint with tokenizer and normalization beside them.
fn checkpoints(here: &Path) -> [Checkpoint; 2] {
    let dense = init::dense(&toy(), 3);
    let moe = Moe {
        experts: 4,
        top_k: 2,
        rank: None,
        vision_blocks: vec![1],
        text_blocks: vec![1],
    };
    let mut config = toy();
    config.moe = Some(moe);
    let mut mixture = init::dense(&config, 4);
    // Fresh experts and routers are zero: fill them.
    for (i, value) in
        mixture.values.iter_mut().enumerate().filter(|(_, v)| v.abs() < f32::MIN_POSITIVE)
    {
        *value = f32::from(u8::try_from(i * 7919 % 101).unwrap()) / 400.0 - 0.125;
    }
    let pictures = checkpoint::Preprocessing::new([0.5; 3], [0.25; 3]);
    for (name, model) in [("dense", &dense), ("moe", &mixture)] {
        let folder = here.join(name);
        let tokenizer = Tokenizer::open(&fixture("tokenizer/toy_bpe.txt.gz")).unwrap();
        let (pictures, card) = (&pictures, &Card::default());
        let package = Package { model, tokenizer: &tokenizer, pictures, card };
        checkpoint::export_package(&folder, &package, None).unwrap();
    }
    [dense, mixture]
}

/// Every picture and text on its own, in f64 from the embeddings on.
struct Truth<'a> {
    model: &'a Checkpoint,
    clip: Clip,
    tokenizer: Tokenizer,
}

impl<'a> Truth<'a> {
    fn new(model: &'a Checkpoint) -> Self {
        let tokenizer = Tokenizer::open(&fixture("tokenizer/toy_bpe.txt.gz")).unwrap();
        Self { model, clip: Clip::new(&model.config), tokenizer }
    }

    fn picture(&self, i: usize) -> Vec<f64> {
        let picture = image::square(&png(i), "x", 16, Fit::Shortest).unwrap();
        let pixels = Normalise { mean: [0.5; 3], std: [0.25; 3] }.planes(&picture);
        unit(&self.clip.encode_images(&self.model.values, Pixels::Values(&pixels)))
    }

    fn text(&self, text: &str) -> Vec<f64> {
        let ids = self.tokenizer.encode_all(&[text], 16).unwrap();
        unit(&self.clip.encode_texts(&self.model.values, &ids))
    }

    fn class(&self, name: &str) -> Vec<f64> {
        let texts = TEMPLATES.map(|t| self.text(&t.replace("{c}", name)));
        let sums = texts[0].iter().zip(&texts[1]).map(|(a, b)| a + b);
        let sums: Vec<f64> = sums.collect();
        let norm = dot(&sums, &sums).sqrt();
        sums.iter().map(|v| v / norm).collect()
    }

    /// acc1, acc5 and mean per-class recall.
    fn classified(&self) -> [f64; 3] {
        let classes: Vec<_> = CLASSES.iter().map(|name| self.class(name)).collect();
        let ranks: Vec<usize> =
            (0..24).map(|i| rank(&self.picture(i), &classes, i % 6)).collect();
        let share = |k: usize| ranks.iter().filter(|r| **r < k).count() as f64 / 24.0;
        // All classes have as many pictures.
        [share(1), share(5), share(1)]
    }

    /// Recall at 1 of the text query and of the picture query.
    fn retrieved(&self) -> [f64; 2] {
        let pictures: Vec<_> = (0..15).map(|i| self.picture(i)).collect();
        let texts: Vec<(usize, Vec<f64>)> = (0..15)
            .flat_map(|i| captions(i).into_iter().map(move |text| (i, text)))
            .map(|(i, text)| (i, self.text(&text)))
            .collect();
        let hits =
            texts.iter().filter(|(i, text)| rank(text, &pictures, *i) == 0).count();
        let best = |picture: &Vec<f64>| {
            let score = |(_, text): &&(usize, Vec<f64>)| dot(picture, text);
            texts.iter().max_by(|a, b| score(a).total_cmp(&score(b))).unwrap().0
        };
        let own = (0..15).filter(|&i| best(&pictures[i]) == i).count();
        [hits as f64 / texts.len() as f64, own as f64 / 15.0]
    }
}

fn unit(values: &[f32]) -> Vec<f64> {
    let norm = values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
    values.iter().map(|&v| f64::from(v) / norm).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn rank(query: &[f64], candidates: &[Vec<f64>], own: usize) -> usize {
    let score = dot(query, &candidates[own]);
    candidates.iter().filter(|candidate| dot(query, candidate) > score).count()
}

fn result(here: &Path, path: &str) -> BTreeMap<String, Value> {
    serde_json::from_slice(&fs::read(here.join(path)).unwrap()).unwrap()
}

#[test]
fn dense_and_moe_models_get_the_numbers_of_one_picture_at_a_time() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path();
    let models = checkpoints(here);
    classification(&here.join("sets/wds_vtab-toy"));
    folders(&here.join("sets/imagenet-a"));
    retrieval(&here.join("sets/wds_flickr8k"));
    for (name, model) in ["dense", "moe"].into_iter().zip(&models) {
        let truth = Truth::new(model);
        let out = format!("out-{name}");
        let mut args = vec!["on", "--checkpoint", name, "--sets-root", "sets"];
        args.extend(["--out", &out, "--batch", "7", "--bootstrap", "50"]);
        args.extend(["--recall-at", "1,5", "--set", "vtab/toy"]);
        args.extend(["--set", "imagenet_robustness", "--set", "sets/wds_flickr8k"]);
        let lines = good(here, EVALUATE, &args);
        assert!(lines.contains("vtab/toy: acc1"), "{lines}");
        assert!(!lines.contains("mean of"), "a collection that is not complete");
        let [acc1, acc5, recall] = truth.classified();
        for (file, dataset) in
            [("vtab-toy", "wds/vtab/toy"), ("imagenet-a", "imagenet-a")]
        {
            let found = result(here, &format!("{out}/{file}.json"));
            let keys: BTreeSet<&str> = found.keys().map(String::as_str).collect();
            let fields = ["dataset", "language", "metrics", "model", "pretrained"];
            assert!(keys.is_superset(&BTreeSet::from(fields)), "{keys:?}");
            assert_eq!(found["dataset"], dataset);
            assert_eq!(found["model"], name);
            assert_eq!(found["task"], "zeroshot_classification");
            for (metric, expected) in
                [("acc1", acc1), ("acc5", acc5), ("mean_per_class_recall", recall)]
            {
                let found = found["metrics"][metric].as_f64().unwrap();
                assert!((found - expected).abs() < 1e-9, "{name} {file} {metric}");
            }
        }
        let found = result(here, &format!("{out}/flickr8k.json"));
        assert_eq!(found["task"], "zeroshot_retrieval");
        let [by_text, by_picture] = truth.retrieved();
        for (metric, expected) in [
            ("image_retrieval_recall@1", by_text),
            ("text_retrieval_recall@1", by_picture),
        ] {
            let found = found["metrics"][metric].as_f64().unwrap();
            assert!((found - expected).abs() < 1e-9, "{metric} {found} {expected}");
        }
        let table = Table::read(&here.join(out).join("flickr8k.parquet")).unwrap();
        assert_eq!(table.rows(), 4);
        let Column::F64(low) = table.column("low").unwrap() else { panic!() };
        let Column::F64(value) = table.column("value").unwrap() else { panic!() };
        assert!(low.iter().zip(value).all(|(low, value)| low <= value));
    }
}

#[test]
fn what_was_measured_is_skipped_and_what_changed_is_not() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path();
    checkpoints(here);
    classification(&here.join("toy"));
    let common = ["--set", "toy", "--out", "out", "--bootstrap", "20"];
    let on = |checkpoint: &str, more: &[&str]| {
        let first = ["on", "--checkpoint", checkpoint];
        good(here, EVALUATE, &[&first[..], &common[..], more].concat())
    };
    assert!(on("dense", &["--skip-existing"]).contains("acc1"));
    let bytes = fs::read(here.join("out/toy.json")).unwrap();
    // Nothing of the set is read: it may even be damaged by now.
    fs::write(here.join("toy/classnames.txt"), "one\n").unwrap();
    assert_eq!(on("dense", &["--skip-existing"]), "toy: there already\n");
    assert_eq!(fs::read(here.join("out/toy.json")).unwrap(), bytes);
    classification(&here.join("toy"));
    assert!(on("moe", &["--skip-existing"]).contains("acc1"), "another model");
    assert_eq!(on("moe", &["--skip-existing", "--quiet"]), "");
    assert!(on("moe", &["--skip-existing", "--seed", "1"]).contains("acc1"));
    assert!(on("moe", &["--seed", "1"]).contains("acc1"), "without the flag");
    fs::remove_file(here.join("out/toy.parquet")).unwrap();
    assert!(on("moe", &["--skip-existing", "--seed", "1"]).contains("acc1"));
}

#[test]
fn a_damaged_set_is_named_and_does_not_take_the_others_with_it() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path();
    checkpoints(here);
    classification(&here.join("sets/wds_torn"));
    classification(&here.join("sets/wds_mismatch"));
    classification(&here.join("sets/wds_whole"));
    let tar = here.join("sets/wds_torn/test/1.tar");
    let bytes = fs::read(&tar).unwrap();
    fs::write(&tar, &bytes[..bytes.len() / 2]).unwrap();
    fs::write(here.join("sets/wds_mismatch/classnames.txt"), "cat\ndog\n").unwrap();
    let on = |sets: &[&'static str], more: &[&'static str]| {
        let mut args = vec!["on", "--checkpoint", "dense", "--sets-root", "sets"];
        args.extend(["--out", "out", "--bootstrap", "20"]);
        args.extend(sets.iter().flat_map(|set| ["--set", *set]));
        args.extend(more);
        args
    };
    let (code, error) = bad(here, EVALUATE, &on(&["torn", "mismatch", "whole"], &[]));
    assert_eq!(code, 1);
    assert!(error.contains("2 of 3 sets failed, the first is torn"), "{error}");
    assert!(error.contains("also mismatch") && error.contains("1.tar"), "{error}");
    assert!(here.join("out/whole.json").exists() && !here.join("out/torn.json").exists());
    let (code, error) = bad(here, EVALUATE, &on(&["mismatch"], &[]));
    assert_eq!(code, 4, "{error}");
    assert!(
        error.contains("class 2, but classnames.txt has 2 names, for classes 0 to 1"),
        "{error}"
    );
    let lines = good(here, EVALUATE, &on(&["torn"], &["--corrupt-share", "0.2"]));
    assert!(lines.contains("skipped)"), "{lines}");
    let found = result(here, "out/torn.json");
    let skipped = found["upcycle"]["skipped"].as_array().unwrap();
    assert!(skipped.iter().any(|key| key.as_str().unwrap().starts_with("1.tar")));
    assert!(found["upcycle"]["pictures"].as_u64().unwrap() >= 12);
    for (args, code, why) in [
        (on(&["none"], &[]), 2, "no set none below sets"),
        (on(&["whole"], &["--corrupt-share", "2"]), 2, "expected a fraction from 0 to 1"),
        (on(&["whole"], &["--split", "train"]), 1, "does not have the split train"),
        (
            on(&["whole"], &["--classnames", "sets/wds_mismatch/classnames.txt"]),
            2,
            "has 6",
        ),
        (on(&["whole"], &["--tokenizer", "nowhere"]), 1, "nowhere"),
    ] {
        let (found, error) = bad(here, EVALUATE, &args);
        assert!(error.contains(why) && found == code, "{args:?}: {found} {error}");
    }
    for file in ["preprocess.json", "preprocessor_config.json"] {
        fs::remove_file(here.join("dense").join(file)).unwrap();
    }
    let (_, error) = bad(here, EVALUATE, &on(&["whole"], &[]));
    assert!(error.contains("give --preprocess"), "{error}");
}

/// 40 pictures of two colors to train on, 20 a class, and ten to test on.
fn two_colors(folder: &Path) {
    let png = |label: usize, index: usize| {
        let level = |i: usize| u8::try_from((i * (7 + index) + i * i / 5) % 40).unwrap();
        let rgb = (0..20 * 20 * 3).map(|i| {
            // Class 0 is red and class 1 is blue, with texture that differs by picture.
            if i % 3 == 2 * label { 200 + level(i) } else { level(i) }
        });
        image::encode_png(&Picture { width: 20, height: 20, rgb: rgb.collect() }).unwrap()
    };
    for (split, count) in [("train", 40), ("test", 10)] {
        let members: Vec<_> = (0..count)
            .flat_map(|i| {
                let label = i % 2;
                let picture = png(label, i + 100 * usize::from(split == "test"));
                let class = label.to_string().into_bytes();
                [(format!("s{i:04}.png"), picture), (format!("s{i:04}.cls"), class)]
            })
            .collect();
        shard(&folder.join(format!("{split}/0.tar")), &members);
        fs::write(folder.join(format!("{split}/nshards.txt")), "1\n").unwrap();
    }
    fs::write(folder.join("classnames.txt"), "red\nblue\n").unwrap();
}

#[test]
fn probes_learn_what_few_pictures_show_and_refuse_what_is_too_few() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path();
    checkpoints(here);
    two_colors(&here.join("colors"));
    retrieval(&here.join("captions"));
    let on = |more: &[&'static str]| {
        let mut args = vec!["on", "--checkpoint", "dense", "--out", "out"];
        args.extend(["--bootstrap", "20", "--set", "colors"]);
        args.extend(more);
        args
    };

    // Red and blue are one direction apart even in a model that learned nothing.
    let lines = good(
        here,
        EVALUATE,
        &on(&["--shots", "2,5", "--set", "captions", "--batch", "3"]),
    );
    assert!(lines.contains("logistic-5 1.0000"), "{lines}");
    let metrics = &result(here, "out/colors.json")["metrics"];
    for probe in ["logistic-2", "logistic-5", "ridge-2", "ridge-5"] {
        assert!(metrics[probe].as_f64().unwrap() > 0.9, "{probe}: {metrics}");
    }
    let table = Table::read(&here.join("out/colors.parquet")).unwrap();
    let Column::Text(task) = table.column("task").unwrap() else { panic!() };
    assert_eq!(task.iter().filter(|task| *task == "few_shot").count(), 4);
    let retrieved = result(here, "out/captions.json");
    assert!(retrieved["metrics"].get("logistic-5").is_none());

    // Other shots are another result; without any, a set needs no training split.
    let again = good(here, EVALUATE, &on(&["--shots", "2", "--skip-existing"]));
    assert!(again.contains("logistic-2") && !again.contains("logistic-5"), "{again}");

    for (args, why) in [
        (&["--shots", "20"][..], "0 classes have 30 training pictures"),
        (&["--shots", "2", "--train-split", "test"], "are both test"),
        (&["--shots", "2", "--train-split", "val"], "--train-split val"),
        (&["--shots", "2", "--probe-l2", "0"], "expected numbers above 0"),
    ] {
        let (_, error) = bad(here, EVALUATE, &on(args));
        assert!(error.contains(why), "{args:?}: {error}");
    }

    // A training label that is wrong shows: the probe learns the opposite.
    let tar = here.join("colors/train/0.tar");
    let bytes = fs::read(&tar).unwrap();
    let mut archive = tar::Archive::new(bytes.as_slice());
    let members: Vec<(String, Vec<u8>)> = archive
        .entries()
        .unwrap()
        .map(|entry| {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes).unwrap();
            if Path::new(&name).extension().is_some_and(|kind| kind == "cls") {
                bytes[0] ^= 1;
            }
            (name, bytes)
        })
        .collect();
    shard(&tar, &members);
    let lines = good(here, EVALUATE, &on(&["--shots", "5"]));
    assert!(lines.contains("logistic-5 0.0000"), "{lines}");
}

/// The stage `dataset` on the same pairs as a table, as Parquet and as shards.
#[test]
fn a_data_set_is_built_from_tables_parquet_and_shards_and_sees_its_files_change() {
    let base = tempfile::tempdir().unwrap();
    let here = base.path();
    let (mut rows, mut members) = (vec!["filepath\ttitle".to_owned()], Vec::new());
    fs::create_dir(here.join("pictures")).unwrap();
    for i in 0..30 {
        fs::write(here.join(format!("pictures/{i}.png")), png(i)).unwrap();
        members.push((format!("{i}.png"), png(i)));
        members.push((format!("{i}.txt"), captions(i).join("\n").into_bytes()));
        for caption in captions(i) {
            rows.push(format!("{i}.png\t{caption}"));
        }
    }
    fs::write(here.join("pairs.csv"), rows.join("\n")).unwrap();
    shard(&here.join("shards/part-0.tar"), &members[..40]);
    shard(&here.join("shards/part-1.tar"), &members[40..]);
    let parquet = Table::new()
        .with("image", Column::Bytes((0..30).map(png).collect()))
        .with("captions", Column::TextList((0..30).map(captions).collect()));
    parquet.write(&here.join("all.parquet")).unwrap();
    let config = concat!(env!("CARGO_MANIFEST_DIR"), "/pipeline.yaml");
    let build = |source: &str, sets: &[&str]| {
        let mut args =
            vec!["--config", config, "--profile", "smoke", "--artifacts", source];
        let source = format!("dataset.source={source}");
        args.extend(["--set", &source]);
        args.extend(sets.iter().flat_map(|set| ["--set", *set]));
        let args: Vec<String> = args.into_iter().map(str::to_owned).collect();
        args
    };
    let samples = |source: &str| {
        let folder = here.join(source).join("dataset/current");
        let mut found = Vec::new();
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if !path.to_string_lossy().contains("samples-") {
                continue;
            }
            let table = Table::read(&path).unwrap();
            let Column::Bytes(images) = table.column("image").unwrap() else { panic!() };
            let Column::TextList(texts) = table.column("captions").unwrap() else {
                panic!()
            };
            found.extend(images.iter().cloned().zip(texts.iter().cloned()));
        }
        found.sort();
        found
    };
    let jobs = [
        ("csv", vec!["dataset.file=pairs.csv", "dataset.folder=pictures"]),
        ("parquet", vec!["dataset.file=all.parquet"]),
        ("webdataset", vec!["dataset.file=shards/part-{0..1}.tar"]),
    ];
    for (source, sets) in &jobs {
        let args = build(source, sets);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        good(here, DATASET, &args);
        assert_eq!(samples(source).len(), 30, "{source}");
        assert!(samples(source) == samples("csv"), "{source}");
        let check = [&args[..], &["--check"]].concat();
        good(here, DATASET, &check);
        let touched = match *source {
            "csv" => "pictures/7.png",
            "parquet" => "all.parquet",
            _ => "shards/part-1.tar",
        };
        let path = here.join(touched);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, png(99)).unwrap();
        assert_eq!(run(here, DATASET, &check).status.code(), Some(1), "{source}");
        fs::write(&path, bytes).unwrap();
        good(here, DATASET, &check);
    }
    // A folder of another name with the same content is the same input.
    fs::rename(here.join("shards"), here.join("moved")).unwrap();
    let args = build("webdataset", &["dataset.file=moved/part-{0..1}.tar"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    good(here, DATASET, &[&args[..], &["--check"]].concat());
    let args = build("csv", &["dataset.file=pairs.csv", "dataset.columns.captoin=x"]);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (code, error) = bad(here, DATASET, &args);
    assert!(code == 2 && error.contains("did you mean caption"), "{error}");
}
