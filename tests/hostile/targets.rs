//! Every parser of the crate as a function of a file, with good files to start from.
//!
//! The property tests and the coverage-guided driver in `tests/fuzz` share this list. Paths
//! are relative to the root of the repository, where both are run.

use std::fs;
use std::path::Path;

use upcycle::artifact::{Digest, Expected, Manifest, Place, Preimage};
use upcycle::checkpoint::{self, Hints, Preprocessing};
use upcycle::config::{Activation, DatasetConfig, Overrides, Source, load, load_default};
use upcycle::data::pairs::EvaluationSet;
use upcycle::data::{self, Dataset};
use upcycle::error::Result;
use upcycle::image::{self, Fit, Picture};
use upcycle::io::table::{Column, Table};
use upcycle::io::tensors::{self, Tensor, Tensors};
use upcycle::io::vectors::VectorFile;
use upcycle::io::{foreign, labels};
use upcycle::text::Tokenizer;

const FIXTURES: &str = "tests/fixtures";

/// A parser under test.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    /// Name that the hostile bytes get in a fresh folder.
    pub(crate) file: &'static str,
    /// Good files.
    pub(crate) seeds: fn() -> Vec<Vec<u8>>,
    /// What has to lie beside the file.
    pub(crate) around: fn(&Path),
    /// Reads the file, given its path.
    pub(crate) read: fn(&Path) -> Result<()>,
}

fn nothing(_: &Path) {}

/// All parsers.
pub(crate) const TARGETS: &[Target] = &[
    target("config", "pipeline.yaml", config_seeds, |path| {
        load(path, &Overrides::default()).map(drop)
    }),
    target("tensors", "x.safetensors", tensor_seeds, |path| {
        tensors::read(path).map(drop)
    }),
    target("foreign", "x.safetensors", tensor_seeds, |path| {
        foreign::read(path).map(drop)
    }),
    target("vectors-tensor", "x.safetensors", tensor_seeds, vectors),
    target("labels-tensor", "x.safetensors", tensor_seeds, |path| {
        labels::read(path, None).map(drop)
    }),
    target("table", "x.parquet", table_seeds, |path| Table::read(path).map(drop)),
    target("vectors-column", "x.parquet", table_seeds, vectors),
    target("labels-column", "x.parquet", table_seeds, |path| {
        labels::read(path, None).map(drop)
    }),
    target("picture", "x.png", picture_seeds, picture),
    target("drawing", "x.svg", drawing_seeds, drawing),
    target("tokenizer", "tokenizer.json", tokenizer_seeds, tokenizer),
    target("merges", "merges.txt", merges_seeds, tokenizer),
    target("merges-packed", "bpe.txt.gz", packed_merges_seeds, tokenizer),
    Target {
        around: merges_beside,
        ..target("vocabulary", "vocab.json", vocabulary_seeds, tokenizer)
    },
    Target {
        around: |folder| beside(folder, "clip-tiny-gelu/open_clip/open_clip_config.json"),
        ..target("pickle", "x.pt", pickle_seeds, weights)
    },
    target("weights", "model.safetensors", weights_seeds, weights),
    Target {
        around: |folder| beside(folder, "clip-tiny-gelu/hf/model.safetensors"),
        ..target("hugging-face-config", "config.json", hugging_face_seeds, folder)
    },
    Target {
        around: |folder| {
            beside(folder, "clip-tiny-gelu/open_clip/open_clip_model.safetensors");
        },
        ..target("open-clip-config", "open_clip_config.json", open_clip_seeds, folder)
    },
    Target {
        around: |folder| {
            beside(folder, "clip-tiny-gelu/hf/config.json");
            beside(folder, "clip-tiny-gelu/hf/model.safetensors");
        },
        ..target("shards", "model.safetensors.index.json", shards_seeds, weights)
    },
    target("preprocess", "preprocess.json", preprocess_seeds, |path| {
        Preprocessing::read(path).map(drop)
    }),
    target("manifest", "manifest.json", manifest_seeds, manifest),
    target("shard", "0.tar", archive_seeds, |path| dataset(path, Source::Webdataset)),
    Target {
        around: a_picture,
        ..target("captions", "captions.csv", captions_seeds, |path| {
            dataset(path, Source::Folder)
        })
    },
    Target {
        around: a_picture,
        ..target("listing", "pairs.csv", captions_seeds, |path| {
            dataset(path, Source::Csv)
        })
    },
    Target {
        around: a_picture,
        ..target("coco", "pairs.json", coco_seeds, |path| dataset(path, Source::Coco))
    },
    target("pictures", "0.parquet", pictures_seeds, |path| {
        dataset(path, Source::Parquet)
    }),
    Target {
        around: evaluation_set,
        ..target("evaluation-shard", "test/0.tar", archive_seeds, evaluated)
    },
    Target {
        around: evaluation_set,
        ..target("templates", TEMPLATES, templates_seeds, evaluated)
    },
    Target {
        around: |folder| shapes(folder),
        ..target("data-set", "dataset.json", data_set_seeds, |path| {
            Dataset::open(path.parent().expect("a folder")).map(drop)
        })
    },
];

const fn target(
    name: &'static str,
    file: &'static str,
    seeds: fn() -> Vec<Vec<u8>>,
    read: fn(&Path) -> Result<()>,
) -> Target {
    Target { name, file, seeds, around: nothing, read }
}

impl Target {
    /// The target of this name.
    pub(crate) fn named(name: &str) -> &'static Self {
        let found = TARGETS.iter().find(|target| target.name == name);
        found.unwrap_or_else(|| panic!("no target {name}"))
    }

    /// A fresh folder with everything but the hostile file.
    pub(crate) fn folder(&self) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        (self.around)(folder.path());
        folder
    }

    /// Reads `bytes` as the file; an error has to name the file and a reason.
    pub(crate) fn run(&self, folder: &Path, bytes: &[u8]) -> Result<()> {
        let path = folder.join(self.file);
        fs::write(&path, bytes).expect("a file");
        let result = (self.read)(&path);
        if let Err(error) = &result {
            let said = format!("{error:?}");
            let place = folder.display().to_string();
            let named = said.contains(self.file) || said.contains(&place);
            assert!(named, "the file is not named: {said}");
            assert!(said.len() > self.file.len() + 10, "no reason: {said}");
            assert!(said.len() < 20_000, "a message of {} bytes", said.len());
        }
        result
    }
}

fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(FIXTURES).join(name)).expect(name)
}

fn beside(folder: &Path, name: &str) {
    let file = Path::new(name).file_name().expect("a file");
    fs::write(folder.join(file), fixture(name)).expect("a file");
}

/// The bytes that `write` leaves in a file of this name.
fn written(name: &str, write: impl FnOnce(&Path)) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    write(&path);
    fs::read(path).expect("what was written")
}

fn config_seeds() -> Vec<Vec<u8>> {
    let shipped = fs::read("pipeline.yaml").expect("the shipped configuration");
    let small = "seeds: [1]\ntrain: {optim: {steps: 5, batch: 8}}\nprofiles:\n  a: &x\n    \
                 moe: {experts: 8}\n  b: *x\nmoe: {text_blocks: {list: [1]}}\n";
    vec![small.into(), shipped]
}

fn tensor_seeds() -> Vec<Vec<u8>> {
    let mut some = Tensors::new();
    let matrix = Tensor::new(vec![2, 3], (0..6_u8).map(f32::from).collect());
    some.insert("b".to_owned(), matrix.expect("six values"));
    some.insert("a".to_owned(), Tensor::new(vec![], vec![1.0]).expect("one value"));
    let ours = written("x", |path| tensors::write(path, &some).expect("tensors"));
    let theirs = br#"{"l":{"dtype":"I64","shape":[2],"data_offsets":[0,16]},"h":{"dtype":"F16","shape":[2,1],"data_offsets":[16,20]}}"#;
    let size = (theirs.len() as u64).to_le_bytes();
    vec![
        ours,
        [&size[..], theirs, &[0; 20]].concat(),
        fixture("kmeans/planted.safetensors"),
    ]
}

fn vectors(path: &Path) -> Result<()> {
    let file = VectorFile::open(path, None)?;
    file.stream(2, &mut |_| Ok(()))?;
    file.fetch(&[0, file.rows().saturating_sub(1)]).map(drop)
}

fn table_seeds() -> Vec<Vec<u8>> {
    let table = Table::new()
        .with("cluster", Column::U32(vec![3, 1, 2]))
        .with("x", Column::Vectors { width: 2, data: vec![0.5; 6] })
        .with("share", Column::F64(vec![0.1, 0.2, 0.3]))
        .with("held_out", Column::Bool(vec![true, false, true]))
        .with("name", Column::Text(["a", "b", "a"].map(str::to_owned).to_vec()))
        .with("tags", Column::TextList(vec![vec!["t".to_owned()], vec![], vec![]]))
        .with("image", Column::Bytes(vec![vec![1, 2], vec![], vec![3]]));
    let small = Table::new().with("label", Column::U32(vec![7; 40]));
    let empty = Table::new().with("x", Column::Vectors { width: 4, data: vec![] });
    let bytes =
        |table: &Table| written("x.parquet", |path| table.write(path).expect("a table"));
    vec![bytes(&table), bytes(&small), bytes(&empty)]
}

fn png(width: usize, height: usize) -> Vec<u8> {
    image::encode_png(&Picture::filled(width, height, [9, 8, 7])).expect("a picture")
}

fn picture_seeds() -> Vec<Vec<u8>> {
    let files = ["rgba.png", "palette.png", "exif.jpg", "lossy.webp", "lossless.webp"];
    let mut seeds: Vec<Vec<u8>> =
        files.iter().map(|file| fixture(&format!("preprocess/images/{file}"))).collect();
    let forms = [
        "progressive.jpg",
        "restarts.jpg",
        "inks.jpg",
        "rgb16.png",
        "one_bit.png",
        "animated.gif",
        "color.bmp",
        "bilevel.tif",
        "color.tif",
        "gray.pgm",
    ];
    seeds.extend(forms.iter().map(|file| fixture(&format!("pixels/{file}"))));
    seeds.push(png(3, 2));
    seeds
}

fn picture(path: &Path) -> Result<()> {
    let (bytes, name) = (fs::read(path).expect("a file"), path.display().to_string());
    image::decode(&bytes, &name)?;
    for fit in [Fit::Shortest, Fit::Longest, Fit::Squash] {
        image::square(&bytes, &name, 8, fit)?;
    }
    Ok(())
}

fn drawing_seeds() -> Vec<Vec<u8>> {
    let open = r#"<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 64 64">"#;
    let bodies = [
        r##"<defs><linearGradient id="a"><stop offset="0" stop-color="#f00"/><stop offset="1"/></linearGradient><clipPath id="c"><circle cx="9" cy="9" r="8"/></clipPath></defs><g clip-path="url(#c)" opacity=".5"><rect width="40" height="20" fill="url(#a)"/></g>"##,
        r##"<path d="M1 2h30v9q3 4 5 6A5 5 0 0 1 9 9z" stroke="#000" stroke-dasharray="3 1" transform="rotate(5)"/><use xlink:href="#p"/><g id="p"><ellipse cx="30" cy="30" rx="9" ry="4"/></g>"##,
        r##"<mask id="m"><rect width="9" height="9" fill="#fff"/></mask><pattern id="q" width="4" height="4" patternUnits="userSpaceOnUse"><path d="M0 0h2v2z"/></pattern><filter id="f"><feGaussianBlur stdDeviation="2"/></filter><path mask="url(#m)" filter="url(#f)" fill="url(#q)" d="M0 0h60v60z"/>"##,
    ];
    bodies.iter().map(|body| format!("{open}{body}</svg>").into_bytes()).collect()
}

fn drawing(path: &Path) -> Result<()> {
    use upcycle::error::Context as _;
    let text = String::from_utf8_lossy(&fs::read(path).expect("a file")).into_owned();
    let name = || path.display().to_string();
    image::rasterise(&text, 8).context(name)?;
    image::render(&text, 8).context(name).map(drop)
}

fn tokenizer(path: &Path) -> Result<()> {
    let tokenizer = Tokenizer::open(path)?;
    for text in ["", "a red dog", "<end_of_text> \u{301}é 1234 's", "\u{1f600}\u{fe0f}!!"]
    {
        let ids = tokenizer.encode(text, 16)?;
        assert_eq!(ids.len(), 16, "{text}");
        let vocabulary = u32::try_from(tokenizer.vocabulary()).expect("a small one");
        assert!(ids.iter().all(|&id| id < vocabulary), "{ids:?} of {vocabulary}");
    }
    tokenizer.json().map(drop)
}

fn unpack(bytes: &[u8]) -> Vec<u8> {
    use std::io::Read as _;
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(bytes).read_to_end(&mut out).expect("gzip");
    out
}

fn clip() -> Tokenizer {
    Tokenizer::open(&Path::new(FIXTURES).join("tokenizer/toy_bpe.txt.gz"))
        .expect("merges")
}

fn tokenizer_seeds() -> Vec<Vec<u8>> {
    let texts = ["a red dog", "the red dogs", "a dog is red"].map(str::to_owned);
    let own = upcycle::text::train(&texts, 270).expect("a vocabulary");
    vec![own.into_bytes(), clip().json().expect("json").into_bytes()]
}

fn merges_seeds() -> Vec<Vec<u8>> {
    vec![
        b"#version\nr e\nre d</w>\na b\n".to_vec(),
        unpack(&fixture("tokenizer/toy_bpe.txt.gz")),
    ]
}

fn packed_merges_seeds() -> Vec<Vec<u8>> {
    vec![fixture("tokenizer/toy_bpe.txt.gz")]
}

fn merges_beside(folder: &Path) {
    let merges = unpack(&fixture("tokenizer/toy_bpe.txt.gz"));
    fs::write(folder.join("merges.txt"), merges).expect("merges");
}

fn vocabulary_seeds() -> Vec<Vec<u8>> {
    let json: serde_json::Value =
        serde_json::from_str(&clip().json().expect("json")).expect("JSON");
    vec![json["model"]["vocab"].to_string().into_bytes()]
}

fn weights(path: &Path) -> Result<()> {
    let activation = Some(Activation::Gelu);
    checkpoint::read(path, &Hints { activation, ..Hints::default() }).map(drop)
}

fn folder(path: &Path) -> Result<()> {
    let folder = path.parent().expect("a folder");
    checkpoint::shape(folder, &Hints::default())?;
    checkpoint::read(folder, &Hints::default()).map(drop)
}

fn pickle_seeds() -> Vec<Vec<u8>> {
    vec![fixture("clip-tiny-gelu/open_clip/checkpoint.pt")]
}

fn weights_seeds() -> Vec<Vec<u8>> {
    let width = |shape: &[usize]| (shape.to_vec(), vec![0.5; shape.iter().product()]);
    let names = [
        ("visual.conv1.weight", width(&[64, 3, 2, 2])),
        ("visual.positional_embedding", width(&[5, 64])),
        ("token_embedding.weight", width(&[9, 64])),
        ("positional_embedding", width(&[4, 64])),
        ("text_projection", width(&[64, 8])),
        ("visual.transformer.resblocks.0.ln_1.weight", width(&[64])),
        ("visual.transformer.resblocks.0.mlp.c_fc.bias", width(&[8])),
        ("transformer.resblocks.0.ln_1.weight", width(&[64])),
        ("transformer.resblocks.0.mlp.c_fc.bias", width(&[8])),
    ];
    let tensor = |(name, (shape, data)): (&str, (Vec<usize>, Vec<f32>))| {
        (name.to_owned(), Tensor::new(shape, data).expect("a tensor"))
    };
    let some: Tensors = names.into_iter().map(tensor).collect();
    vec![written("x", |path| tensors::write(path, &some).expect("tensors"))]
}

fn hugging_face_seeds() -> Vec<Vec<u8>> {
    vec![fixture("clip-tiny-gelu/hf/config.json")]
}

fn open_clip_seeds() -> Vec<Vec<u8>> {
    vec![fixture("clip-tiny-gelu/open_clip/open_clip_config.json")]
}

fn shards_seeds() -> Vec<Vec<u8>> {
    let model = Path::new(FIXTURES).join("clip-tiny-gelu/hf/model.safetensors");
    let names = foreign::read(&model).expect("a model").into_keys();
    let map: serde_json::Map<String, serde_json::Value> =
        names.map(|name| (name, "model.safetensors".into())).collect();
    let good = serde_json::json!({"metadata": {"total_size": 8}, "weight_map": map});
    let outside = r#"{"weight_map": {"a": "../x.safetensors", "b": "/etc/passwd"}}"#;
    vec![good.to_string().into_bytes(), outside.into()]
}

fn preprocess_seeds() -> Vec<Vec<u8>> {
    vec![Preprocessing::OPENAI.json().expect("text").into_bytes()]
}

fn expected() -> Expected {
    let preimage = Preimage {
        stage: "train".to_owned(),
        version: 1,
        source: String::new(),
        formats: std::collections::BTreeMap::new(),
        backend: "cpu-f32".to_owned(),
        params: serde_json::json!({"steps": 3, "rate": 0.5}),
        inputs: std::collections::BTreeMap::new(),
        externals: std::collections::BTreeMap::new(),
    };
    Expected::new(Place::new("train", None), preimage)
}

fn manifest_seeds() -> Vec<Vec<u8>> {
    let output = upcycle::artifact::Output {
        path: "a.json".to_owned(),
        bytes: 2,
        blake3: Digest::of_bytes(b"{}"),
        kind: "json".to_owned(),
        rows: Some(1),
        schema: Some(vec!["a: u32".to_owned()]),
    };
    let text = Manifest::new(&expected(), vec![output]).render().expect("a manifest");
    vec![text.into_bytes()]
}

/// Reads a manifest as it is, and once more with its digest put right, which lets the bytes
/// further in.
fn manifest(path: &Path) -> Result<()> {
    let key = expected().key;
    Manifest::read(path, &key)?;
    let mut bytes = fs::read(path).expect("a file");
    let digits = 15..79;
    if bytes.len() > digits.end {
        bytes[digits.clone()].fill(b'0');
        let digest = Digest::of_bytes(&bytes);
        bytes[digits].copy_from_slice(digest.as_str().as_bytes());
        fs::write(path, bytes).expect("a file");
        Manifest::read(path, &key)?;
    }
    Ok(())
}

/// Pairs in a tar, the last member a link.
fn archive_seeds() -> Vec<Vec<u8>> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut append = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, name, bytes).expect("a member");
    };
    for key in ["a/1", "a/2", "3", "4"] {
        append(&format!("{key}.png"), &png(4, 4));
        append(&format!("{key}.txt"), b"one\ntwo\n");
    }
    append("5.json", br#"{"caption": "three", "captions": ["four"]}"#);
    append("5.png", &png(5, 4));
    let mut link = tar::Header::new_gnu();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    link.set_cksum();
    builder.append_link(&mut link, "6.png", "/etc/passwd").expect("a link");
    vec![builder.into_inner().expect("a tar")]
}

fn dataset(path: &Path, source: Source) -> Result<()> {
    let out = tempfile::tempdir().expect("a folder");
    let mut folder = path.parent().expect("a folder").display().to_string();
    let mut file = String::new();
    if matches!(source, Source::Csv | Source::Coco | Source::Parquet) {
        file = path.display().to_string();
    }
    if source == Source::Parquet {
        folder.clear();
    }
    let shipped = load_default(&Overrides::default()).expect("the shipped configuration");
    let config = DatasetConfig {
        source,
        folder,
        file,
        image_size: 4,
        vocabulary: 260,
        corrupt_share: 0.5,
        ..shipped.dataset
    };
    data::build(&config, Path::new("/nowhere"), 1, out.path(), &mut |_, _| ()).map(drop)
}

fn a_picture(folder: &Path) {
    fs::write(folder.join("a.png"), png(9, 9)).expect("a picture");
}

fn coco_seeds() -> Vec<Vec<u8>> {
    let coco = r#"{"images": [{"id": 1, "file_name": "a.png"}], "annotations": [{"image_id": 1, "caption": "red"}]}"#;
    let karpathy = r#"{"images": [{"filename": "a.png", "split": "restval", "sentences": [{"raw": "red"}]}]}"#;
    vec![coco.into(), karpathy.into()]
}

/// Hugging Face's layout as pyarrow writes it, and ours.
fn pictures_seeds() -> Vec<Vec<u8>> {
    let table = Table::new()
        .with("image", Column::Bytes(vec![png(4, 4), png(5, 4)]))
        .with("caption", Column::Text(vec!["red".to_owned(), "blue".to_owned()]));
    let ours = written("x.parquet", |path| table.write(path).expect("a table"));
    vec![fixture("hostile/hugging-face.parquet"), ours]
}

const TEMPLATES: &str = "zeroshot_classification_templates.txt";

fn evaluation_set(folder: &Path) {
    let inner = folder.join("test");
    fs::create_dir(&inner).expect("a folder");
    fs::write(inner.join("nshards.txt"), "1").expect("a number");
    fs::write(inner.join("0.tar"), &archive_seeds()[0]).expect("a shard");
    fs::write(folder.join("classnames.txt"), "dog\ncat\n").expect("names");
    fs::write(folder.join(TEMPLATES), &templates_seeds()[0]).expect("templates");
}

fn evaluated(path: &Path) -> Result<()> {
    let folder = path.ancestors().find(|folder| folder.join(TEMPLATES).is_file());
    let set = EvaluationSet::open(folder.expect("a set"), "test")?;
    set.each(&mut |_| Ok(()))
}

fn templates_seeds() -> Vec<Vec<u8>> {
    vec![b"a photo of a {c}.\n{c}, drawn\n".to_vec()]
}

fn captions_seeds() -> Vec<Vec<u8>> {
    vec![
        b"filepath,caption\na.png,red\na.png,\"all, red\"\n".to_vec(),
        b"\xef\xbb\xbffilepath,caption,concept,split\na.png,red,x,train\n".to_vec(),
    ]
}

fn shapes(folder: &Path) {
    let smoke = Overrides { profile: Some("smoke".to_owned()), set: Vec::new() };
    let config = load_default(&smoke).expect("the shipped configuration").dataset;
    data::build(&config, folder, 1, folder, &mut |_, _| ()).expect("shapes");
}

fn data_set_seeds() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().expect("a folder");
    shapes(folder.path());
    vec![fs::read(folder.path().join("dataset.json")).expect("a description")]
}
