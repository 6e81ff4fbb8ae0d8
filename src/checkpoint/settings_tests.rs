//! Every setting of a foreign configuration is applied exactly or refused by its name.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tempfile::TempDir;

use super::section::{Rule, Rules};
use super::*;
use crate::image::{Convention, Filter, Fit, Picture};
use crate::io::foreign::{self, Values};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A copy of a published folder whose file is changed.
fn folder(layout: &str, file: &str, change: impl FnOnce(&mut Value)) -> TempDir {
    let target = tempfile::tempdir().unwrap();
    let source = fixtures().join("clip-tiny-gelu").join(layout);
    for entry in fs::read_dir(source).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), target.path().join(entry.file_name())).unwrap();
    }
    let path = target.path().join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|_| "{}".to_owned());
    let mut json = serde_json::from_str(&text).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
    target
}

fn open_clip_folder(change: impl FnOnce(&mut Value)) -> TempDir {
    folder("open_clip", "open_clip_config.json", change)
}

/// What `open_clip`'s configuration says with these fields of `preprocess_cfg`.
fn preprocess_cfg(fields: &Value) -> Result<Preprocessing> {
    let found = open_clip_folder(|json| json["preprocess_cfg"] = fields.clone());
    Preprocessing::of_checkpoint(found.path()).map(Option::unwrap)
}

/// What Hugging Face's file says with these fields beside the usual ones.
fn processor(fields: &Value) -> Result<Preprocessing> {
    let found = folder("hf", "preprocessor_config.json", |json| {
        *json = json!({
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 32},
            "crop_size": {"height": 32, "width": 32},
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.25, 0.25, 0.25],
        });
        let map = json.as_object_mut().unwrap();
        map.extend(fields.as_object().unwrap().clone());
    });
    Preprocessing::of_checkpoint(found.path()).map(Option::unwrap)
}

const SECTIONS: [(&str, &[&Rules]); 5] = [
    ("model_cfg", &[open_clip::MODEL]),
    ("vision_cfg", &[open_clip::VISION, open_clip::TOWER]),
    ("text_cfg", &[open_clip::TEXT, open_clip::TOWER]),
    ("tokenizer_kwargs", &[open_clip::TOKENIZER]),
    ("preprocess_cfg", &[preprocess_files::OPEN_CLIP]),
];

fn fields() -> BTreeMap<String, Map<String, Value>> {
    let text = fs::read_to_string(fixtures().join("open_clip/fields.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The list is `open_clip`'s own: a new release with a new field needs a rule for it.
#[test]
fn every_field_of_open_clip_has_a_rule_and_stands_in_the_documentation() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/checkpoints.md");
    let docs = fs::read_to_string(docs).unwrap();
    let all = fields();
    assert_eq!(all.len(), SECTIONS.len());
    for (section, rules) in SECTIONS {
        for field in all[section].keys() {
            let known = rules.iter().copied().flatten().any(|(name, _)| name == field);
            assert!(known, "{section}.{field} has no rule");
        }
        for (field, _) in rules.iter().copied().flatten() {
            assert!(docs.contains(&format!("`{field}`")), "{section}.{field}");
        }
    }
    for (field, _) in image_processor::CLIP.iter().chain(image_processor::OWN) {
        assert!(docs.contains(&format!("`{field}`")), "{field}");
    }
}

/// What changes a result is never dropped: an odd value is refused under the field's name.
#[test]
fn an_odd_value_of_any_field_is_refused_by_name_or_changes_nothing() {
    let odd = json!({"odd": 1});
    for (section, rules) in SECTIONS {
        for (field, rule) in rules.iter().copied().flatten() {
            let path = match section {
                "model_cfg" => format!("/model_cfg/{field}"),
                "preprocess_cfg" => format!("/preprocess_cfg/{field}"),
                "tokenizer_kwargs" => {
                    format!("/model_cfg/text_cfg/tokenizer_kwargs/{field}")
                }
                section => format!("/model_cfg/{section}/{field}"),
            };
            let found = open_clip_folder(|json| {
                json["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = json!({});
                json["preprocess_cfg"] = json!({});
                let (above, _) = path.rsplit_once('/').unwrap();
                json.pointer_mut(above).unwrap()[*field] = odd.clone();
            });
            let read = import(found.path(), &Hints::default())
                .and_then(|_| Preprocessing::of_checkpoint(found.path()));
            match (rule, read) {
                (Rule::Ignored, read) => assert!(read.is_ok(), "{path}: {read:?}"),
                (_, Err(error)) => {
                    let error = error.chain();
                    assert!(error.contains(field), "{path}: {error}");
                }
                (_, Ok(_)) => panic!("{path} is dropped"),
            }
        }
    }
    for section in ["", "/vision_cfg", "/text_cfg"] {
        let found = open_clip_folder(|json| {
            let path = format!("/model_cfg{section}");
            json.pointer_mut(&path).unwrap()["brand_new"] = json!(true);
        });
        let error = import(found.path(), &Hints::default()).unwrap_err().chain();
        assert!(error.contains("brand_new = true is not supported"), "{error}");
    }
}

/// The default of every field written out, as `asdict` of `open_clip`'s classes gives it.
#[test]
fn defaults_that_are_spelled_out_change_nothing() {
    let plain = fixtures().join("clip-tiny-gelu/open_clip");
    let plain = import(&plain, &Hints::default()).unwrap();
    let found = open_clip_folder(|json| {
        let all = fields();
        for section in ["vision_cfg", "text_cfg"] {
            let stated = json["model_cfg"][section].as_object().unwrap().clone();
            let mut spelled = all[section].clone();
            spelled.extend(stated);
            json["model_cfg"][section] = Value::Object(spelled);
        }
        json["model_cfg"]["vision_cfg"]["norm_kwargs"] = json!({});
        json["model_cfg"]["text_cfg"]["norm_kwargs"] = json!({"eps": 1e-5});
        json["preprocess_cfg"] = Value::Object(all["preprocess_cfg"].clone());
    });
    assert!(import(found.path(), &Hints::default()).unwrap() == plain);
    let pictures = Preprocessing::of_checkpoint(found.path()).unwrap().unwrap();
    assert_eq!(pictures, Preprocessing::OPENAI);
}

#[test]
fn preprocess_cfg_is_applied_field_by_field() {
    let usual = Preprocessing::OPENAI;
    for (fields, expected) in [
        (json!({}), usual),
        (json!({"mean": null, "interpolation": "random", "size": 40}), usual),
        (json!({"mean": 0.5, "std": [0.1, 0.2, 0.3]}), {
            Preprocessing { mean: [0.5; 3], std: [0.1, 0.2, 0.3], ..usual }
        }),
        (json!({"resize_mode": "squash", "interpolation": "bilinear"}), {
            let (resize_mode, interpolation) = (Fit::Squash, Filter::Bilinear);
            Preprocessing { resize_mode, interpolation, ..usual }
        }),
        (json!({"resize_mode": "longest", "fill_color": 7}), {
            Preprocessing { resize_mode: Fit::Longest, fill_color: 7, ..usual }
        }),
    ] {
        assert_eq!(preprocess_cfg(&fields).unwrap(), expected, "{fields}");
    }
    for (fields, word) in [
        (json!({"interpolation": "nearest"}), "interpolation is \"nearest\""),
        (json!({"resize_mode": "crop"}), "resize_mode is \"crop\", expected shortest"),
        (json!({"fill_color": 256}), "fill_color is 256"),
        (json!({"mode": "L"}), "mode = \"L\""),
        (json!({"mean": [0.5, 0.5]}), "mean is [0.5,0.5], expected three numbers"),
        (json!({"std": [0.5, 0, 0.5]}), "std above 0"),
        (json!({"crop": 3}), "crop = 3 is not supported"),
    ] {
        let error = preprocess_cfg(&fields).unwrap_err().chain();
        assert!(error.contains(word), "{fields}: {error}");
    }
}

#[test]
fn the_image_processor_is_applied_field_by_field() {
    let usual = Preprocessing {
        size: Some(32),
        convention: Convention::HuggingFace,
        ..Preprocessing::new([0.5; 3], [0.25; 3])
    };
    let squash = Preprocessing { resize_mode: Fit::Squash, ..usual };
    for (fields, expected) in [
        (json!({}), usual),
        (json!({"size": 32, "crop_size": 32, "resample": 3}), usual),
        (json!({"feature_extractor_type": "CLIPFeatureExtractor"}), usual),
        (json!({"rescale_factor": 0.003_921_569}), usual),
        (json!({"size": 40}), Preprocessing { resized: Some(40), ..usual }),
        (json!({"size": {"height": 32, "width": 32}}), squash),
        (json!({"size": {"height": 32, "width": 32}, "do_center_crop": false}), squash),
        (
            json!({"resample": 2}),
            Preprocessing { interpolation: Filter::Bilinear, ..usual },
        ),
        // Twice the levels: half the mean and half the deviation of what x / 255 is.
        (json!({"rescale_factor": 2.0 / 255.0}), {
            Preprocessing { mean: [0.25; 3], std: [0.125; 3], ..usual }
        }),
        (json!({"do_normalize": false}), {
            Preprocessing { mean: [0.0; 3], std: [1.0; 3], ..usual }
        }),
        (json!({"do_rescale": false, "do_normalize": false}), {
            Preprocessing { mean: [0.0; 3], std: [1.0 / 255.0; 3], ..usual }
        }),
    ] {
        let found = processor(&fields).unwrap();
        assert_eq!(
            (found.size, found.resized),
            (expected.size, expected.resized),
            "{fields}"
        );
        assert_eq!(found.resize_mode, expected.resize_mode, "{fields}");
        assert_eq!(found.interpolation, expected.interpolation, "{fields}");
        let close = |a: [f64; 3], b: [f64; 3]| {
            a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12)
        };
        assert!(
            close(found.mean, expected.mean) && close(found.std, expected.std),
            "{fields}"
        );
    }
    for (fields, word) in [
        (json!({"do_center_crop": false}), "do_center_crop is false"),
        (json!({"do_resize": false}), "do_resize = false is not supported"),
        (json!({"size": {"longest_edge": 32}}), "size is {\"longest_edge\":32}"),
        (json!({"size": {"height": 32, "width": 48}}), "size is {\"height\":32"),
        (json!({"crop_size": {"height": 32, "width": 48}}), "crop_size is"),
        (json!({"size": 24}), "crop_size is"),
        (json!({"resample": 1}), "resample is 1, expected 3"),
        (json!({"do_pad": true}), "do_pad = true"),
        (json!({"do_rescale": "yes"}), "do_rescale is \"yes\", expected true or false"),
        (json!({"rescale_factor": 0}), "rescale_factor is 0"),
        (json!({"image_processor_type": "SiglipImageProcessor"}), "SiglipImageProcessor"),
        (json!({"do_sharpen": true}), "do_sharpen = true is not supported"),
    ] {
        let error = processor(&fields).unwrap_err().chain();
        assert!(error.contains(word), "{fields}: {error}");
    }
    // A square that is not the model's is refused before anything is computed.
    let other = processor(&json!({"size": 48, "crop_size": 48})).unwrap();
    let error = other.framing(32).unwrap_err().to_string();
    assert!(error.contains("48 x 48 pixels, but the model sees 32 x 32"), "{error}");
}

/// Pixels of `open_clip` and of Hugging Face's Pillow processor, bit for bit.
#[test]
fn pictures_are_those_of_the_libraries_under_every_setting() {
    let expected =
        foreign::read(&fixtures().join("preprocess_cfg/expected.safetensors")).unwrap();
    let cases = [
        ("bilinear", preprocess_cfg(&json!({"interpolation": "bilinear"}))),
        ("squash", preprocess_cfg(&json!({"resize_mode": "squash"}))),
        (
            "squash_bilinear",
            preprocess_cfg(
                &json!({"resize_mode": "squash", "interpolation": "bilinear"}),
            ),
        ),
        (
            "longest_fill",
            preprocess_cfg(&json!({"resize_mode": "longest", "fill_color": 128})),
        ),
        ("random", preprocess_cfg(&json!({"interpolation": "random"}))),
        ("hf_default", processor(&json!({}))),
        ("hf_size_40", processor(&json!({"size": {"shortest_edge": 40}}))),
        ("hf_squash_40", processor(&json!({"size": {"height": 40, "width": 40}}))),
        (
            "hf_squash",
            processor(
                &json!({"size": {"height": 32, "width": 32}, "do_center_crop": false}),
            ),
        ),
        ("hf_bilinear", processor(&json!({"resample": 2}))),
    ];
    for (case, pictures) in cases {
        let framing = pictures.unwrap().framing(32).unwrap();
        for file in ["rgb.png", "rgba.png"] {
            let bytes =
                fs::read(fixtures().join("preprocess/images").join(file)).unwrap();
            let Picture { rgb, .. } = framing.square(&bytes, file).unwrap();
            let Values::Integers(truth) = &expected[&format!("{file}.{case}")].values
            else {
                panic!("levels")
            };
            let gaps = rgb.iter().zip(truth).map(|(a, b)| (i64::from(*a) - b).abs());
            assert_eq!(gaps.max(), Some(0), "{file} {case}");
        }
    }
}

#[test]
fn a_cleaning_of_captions_reaches_the_tokenizer() {
    let toy = fixtures().join("tokenizer/toy_bpe.txt.gz");
    let of = |kwargs: Value| {
        let found = open_clip_folder(|json| {
            json["model_cfg"]["text_cfg"]["tokenizer_kwargs"] = kwargs;
        });
        let tokenizer = Tokenizer::open(&toy).unwrap();
        cleaned(tokenizer, found.path(), &Hints::default())
    };
    let text = "A Red_Dog, don't!";
    let words = |kwargs: Value| of(kwargs).unwrap().words(text).unwrap();
    let lower = Tokenizer::open(&toy).unwrap();
    assert_eq!(words(json!(null)), lower.words(text).unwrap());
    assert_eq!(words(json!({"clean": "lower"})), lower.words(text).unwrap());
    assert_eq!(
        words(json!({"clean": "canonicalize"})),
        lower.words("a red dog dont").unwrap()
    );
    assert!(words(json!({"clean": "whitespace"})) != lower.words(text).unwrap());
    for (kwargs, word) in [
        (json!({"clean": "shout"}), "clean is \"shout\""),
        (json!({"reduction_mask": "syntax"}), "reduction_mask = \"syntax\""),
        (json!({"strip_sep_token": true}), "strip_sep_token = true"),
    ] {
        let error = of(kwargs).unwrap_err().chain();
        assert!(error.contains(word), "{error}");
    }
}

/// What is written is what is read, in every layout that can say it.
#[test]
fn exports_say_how_pictures_are_prepared() {
    let model = read(&fixtures().join("clip-tiny-gelu/hf"), &Hints::default()).unwrap();
    let (config, tensors) = (&model.config, model.tensors());
    let base = tempfile::tempdir().unwrap();
    let usual = Preprocessing::new([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]);
    let squash = Preprocessing {
        resize_mode: Fit::Squash,
        interpolation: Filter::Bilinear,
        ..usual
    };
    let longest = Preprocessing { resize_mode: Fit::Longest, fill_color: 9, ..usual };
    let cut = Preprocessing { size: Some(32), resized: Some(40), ..usual };
    for (index, pictures) in [usual, squash, longest, cut].iter().enumerate() {
        let out = |layout: &str| base.path().join(format!("{layout}{index}"));
        let (oc, hf, own) = (out("oc"), out("hf"), out("own"));
        let back = |folder: &Path| Preprocessing::of_checkpoint(folder).unwrap().unwrap();

        let written = export_open_clip(&oc, config, &tensors, pictures);
        if pictures == &cut {
            let error = written.unwrap_err().to_string();
            assert!(error.contains("cannot cut 32 pixels out of 40"), "{error}");
        } else {
            written.unwrap();
            assert_eq!(back(&oc), Preprocessing { size: None, ..*pictures });
        }
        let written = export_hugging_face(&hf, config, &tensors, pictures, None);
        if pictures == &longest {
            let error = written.unwrap_err().to_string();
            assert!(error.contains("cannot resize the longest side"), "{error}");
        } else {
            written.unwrap();
            let (size, convention) = (Some(32), Convention::HuggingFace);
            assert_eq!(back(&hf), Preprocessing { size, convention, ..*pictures });
        }
        export_upcycle(&own, &model, Some(pictures), None).unwrap();
        assert_eq!(back(&own), Preprocessing { size: Some(32), ..*pictures });
    }
}

/// A package says twice how pictures are prepared; either file alone says it all.
#[test]
fn a_package_without_its_preprocess_json_is_read_by_its_processor_file() {
    let model = read(&fixtures().join("clip-tiny-gelu/hf"), &Hints::default()).unwrap();
    let tokenizer =
        Tokenizer::open(&fixtures().join("tokenizer/toy_bpe.txt.gz")).unwrap();
    let (base, card) = (tempfile::tempdir().unwrap(), Card::default());

    let usual = Preprocessing {
        size: Some(32),
        ..Preprocessing::new([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    };
    let (fill_color, interpolation) = (9, Filter::Bilinear);
    let convention = Convention::HuggingFace;
    for (index, pictures) in [
        usual,
        Preprocessing { convention, ..usual },
        Preprocessing { resize_mode: Fit::Squash, interpolation, ..usual },
        Preprocessing { resize_mode: Fit::Longest, fill_color, ..usual },
        Preprocessing { resized: Some(40), ..usual },
    ]
    .iter()
    .enumerate()
    {
        let folder = base.path().join(index.to_string());
        let package =
            Package { model: &model, tokenizer: &tokenizer, pictures, card: &card };
        export_package(&folder, &package, None).unwrap();
        assert_eq!(Preprocessing::of_checkpoint(&folder).unwrap(), Some(*pictures));
        fs::remove_file(folder.join(PREPROCESS)).unwrap();
        assert_eq!(Preprocessing::of_checkpoint(&folder).unwrap(), Some(*pictures));
    }
}

/// Only our own code is known to do what the file says; it has no switches.
#[test]
fn a_processor_file_for_unknown_code_or_with_a_switch_of_ours_off_is_refused() {
    let own =
        json!({"AutoImageProcessor": "image_processing_upcycle.UpcycleImageProcessor"});
    let other = json!({"AutoImageProcessor": "image_processing_other.Other"});
    assert!(processor(&json!({"auto_map": own})).is_ok());
    for (fields, word) in [
        (json!({"auto_map": other}), "auto_map = "),
        (json!({"fill_color": 7}), "fill_color = 7 is not supported"),
        (json!({"convention": "open_clip"}), "convention = "),
        (json!({"auto_map": own, "do_normalize": false}), "do_normalize = false"),
        (json!({"auto_map": own, "rescale_factor": 1.0}), "rescale_factor = 1.0"),
        (json!({"auto_map": own, "convention": "mine"}), "convention is \"mine\""),
        (json!({"auto_map": own, "fill_color": 256}), "fill_color is 256"),
        (json!({"auto_map": own, "size": {"longest_edge": 24}}), "crop_size is"),
    ] {
        let error = processor(&fields).unwrap_err().chain();
        assert!(error.contains(word), "{fields}: {error}");
    }
}
