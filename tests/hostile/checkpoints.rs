//! PyTorch archives with anything but tensors, and configurations of impossible models.

use std::io::Write as _;

use serde_json::{Value, json};

use crate::refusal;
use crate::targets::Target;

/// A zip of these members, stored.
fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let plain = zip::write::SimpleFileOptions::default()
        .compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in members {
        zip.start_file(*name, plain).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn pickle(program: &[u8]) -> Vec<u8> {
    archive(&[("archive/data.pkl", program), ("archive/data/0", &[0; 16])])
}

/// A program that rebuilds one tensor `w` from these arguments, each a piece of program.
fn tensor(
    class: &str,
    offset: &[u8],
    size: &[u8],
    stride: &[u8],
    count: &[u8],
) -> Vec<u8> {
    let text = |text: &str| {
        let length = u32::try_from(text.len()).unwrap();
        [b"X", &length.to_le_bytes()[..], text.as_bytes()].concat()
    };
    let storage = [
        b"((".to_vec(),
        text("storage"),
        format!("ctorch\n{class}\n").into_bytes(),
        text("0"),
        text("cpu"),
        count.to_vec(),
        b"tQ".to_vec(),
    ];
    [
        b"\x80\x02}".to_vec(),
        text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n".to_vec(),
        storage.concat(),
        offset.to_vec(),
        size.to_vec(),
        stride.to_vec(),
        b"\x89}tRs.".to_vec(),
    ]
    .concat()
}

#[test]
fn programs_that_build_no_tensors_are_refused() {
    let mut doubling = b"\x80\x02]q\x00".to_vec();
    for _ in 0..64 {
        doubling.extend_from_slice(b"](h\x00h\x00eq\x00");
    }
    doubling.push(b'.');
    let deep = [b"\x80\x02)".to_vec(), vec![0x85; 1 << 20], b".".to_vec()].concat();
    for (what, program, reason) in [
        ("nothing", b"".to_vec(), "ends too early"),
        ("no end", b"\x80\x02}".to_vec(), "ends too early"),
        ("an empty state dict", b"\x80\x02}.".to_vec(), "no state dict"),
        ("a number", b"\x80\x02K\x01.".to_vec(), "no state dict"),
        (
            "a command",
            b"cposix\nsystem\nX\x02\x00\x00\x00ls\x85R.".to_vec(),
            "no state dict",
        ),
        ("an instance", b"(i__main__\nEvil\n.".to_vec(), "operation 0x69"),
        ("protocol 4", b"\x80\x04\x95\x01\0\0\0\0\0\0\0}.".to_vec(), "protocol 4"),
        ("a huge text", b"X\xff\xff\xff\xff".to_vec(), "ends too early"),
        ("a copy of a copy", doubling, "more than 4000000 objects"),
        ("a deep nest", deep, "nested deeper"),
        ("a hole in the memo", b"h\x07.".to_vec(), "never kept"),
        ("an empty stack", b"\x80\x02R.".to_vec(), "missing"),
    ] {
        let error = refusal("pickle", &pickle(&program));
        assert!(error.contains(reason), "{what}: {error}");
    }
}

#[test]
fn tensors_that_are_not_in_the_archive_are_refused() {
    let one = b"K\x01\x85";
    let fine = tensor("FloatStorage", b"K\x00", b"K\x04\x85", one, b"K\x04");
    // It is read, and then misses the rest of the model.
    let error = refusal("pickle", &pickle(&fine));
    assert!(error.contains("its tensors begin with w"), "{error}");
    let huge = b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f";
    for (what, program) in [
        (
            "a huge size",
            tensor("FloatStorage", b"K\x00", b"J\xff\xff\xff\x7f\x85", one, b"K\x04"),
        ),
        (
            "a size that overflows",
            tensor(
                "FloatStorage",
                b"K\x00",
                b"J\0\0\0\x40J\0\0\0\x40J\0\0\0\x40\x87",
                b"K\x01K\x01K\x01\x87",
                b"K\x04",
            ),
        ),
        (
            "a negative size",
            tensor("FloatStorage", b"K\x00", b"J\xff\xff\xff\xff\x85", one, b"K\x04"),
        ),
        ("a huge offset", tensor("FloatStorage", huge, b"K\x04\x85", one, b"K\x04")),
        (
            "a stride beyond the file",
            tensor("FloatStorage", b"K\x00", b"K\x04\x85", b"M\xff\xff\x85", b"K\x04"),
        ),
        (
            "a missing stride",
            tensor("FloatStorage", b"K\x00", b"K\x04\x85", b")", b"K\x04"),
        ),
        (
            "an unknown storage",
            tensor("QInt8Storage", b"K\x00", b"K\x04\x85", one, b"K\x04"),
        ),
        ("whole numbers", tensor("LongStorage", b"K\x00", b"K\x02\x85", one, b"K\x02")),
        ("text for a size", tensor("FloatStorage", b"K\x00", b"N\x85", one, b"K\x04")),
    ] {
        let error = refusal("pickle", &pickle(&program));
        assert!(!error.contains("visual"), "{what} was read: {error}");
    }
    // A thousand names of one storage.
    let mut many = b"\x80\x02}".to_vec();
    let one = &fine[3..fine.len() - 1];
    for index in 0..1000_u32 {
        let name = format!("{index:01}");
        let length = u32::try_from(name.len()).unwrap();
        many.extend([b"X", &length.to_le_bytes()[..], name.as_bytes()].concat());
        many.extend_from_slice(&one[6..]);
    }
    many.push(b'.');
    let mut storage = vec![0; 1 << 16];
    storage.resize(1 << 16, 0);
    let big = many.windows(3).any(|w| w == b"K\x04\x85");
    assert!(big);
    refusal("pickle", &archive(&[("a/data.pkl", &many), ("a/data/0", &storage)]));
}

#[test]
fn archives_that_are_none_are_refused() {
    let fixture = &(Target::named("pickle").seeds)()[0];
    for length in (0..fixture.len()).step_by(1 + fixture.len() / 200) {
        refusal("pickle", &fixture[..length]);
    }
    refusal("pickle", b"");
    refusal("pickle", b"PK\x05\x06");
    refusal("pickle", &archive(&[]));
    refusal("pickle", &archive(&[("archive/other.pkl", b".")]));
    let two = archive(&[("a/data.pkl", b"}."), ("b/data.pkl", b"}.")]);
    assert!(refusal("pickle", &two).contains("more than one"));
    // The old format of PyTorch, cut after its version; with a list of storages that nothing
    // names; and with a storage that is longer than the file.
    let old = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.";
    assert!(refusal("pickle", old).contains("ends too early"));
    let keys = b"\x80\x02}.\x80\x02}.\x80\x02]X\x01\0\0\0".to_vec();
    let unnamed = [&old[..], &keys, b"0a.", &[9; 40]].concat();
    assert!(refusal("pickle", &unnamed).contains("unknown type"));
    let one = b"K\x01\x85";
    let mut object = tensor("FloatStorage", b"K\x00", b"K\x04\x85", one, b"K\x04");
    object.splice(..0, *b"\x80\x02}.");
    let long = [&old[..], &object, b"\x80\x02]X\x01\0\0\0", b"0a.", &[0xff; 8]].concat();
    assert!(refusal("pickle", &long).contains('w'));
    // A count of entries that is a lie.
    let mut lie = archive(&[("archive/data.pkl", b"}.")]);
    let end = lie.len() - 22;
    lie[end + 8..end + 12].copy_from_slice(&[0xff; 4]);
    refusal("pickle", &lie);
}

#[test]
fn configurations_of_impossible_models_are_refused() {
    for (target, numbers) in [
        (
            "hugging-face-config",
            vec![
                "/vision_config/image_size",
                "/vision_config/patch_size",
                "/vision_config/hidden_size",
                "/vision_config/num_hidden_layers",
                "/vision_config/num_attention_heads",
                "/vision_config/intermediate_size",
                "/text_config/hidden_size",
                "/text_config/num_hidden_layers",
                "/text_config/vocab_size",
                "/text_config/max_position_embeddings",
                "/projection_dim",
            ],
        ),
        (
            "open-clip-config",
            vec![
                "/model_cfg/embed_dim",
                "/model_cfg/vision_cfg/layers",
                "/model_cfg/vision_cfg/width",
                "/model_cfg/text_cfg/heads",
                "/model_cfg/text_cfg/vocab_size",
                "/model_cfg/text_cfg/context_length",
            ],
        ),
    ] {
        let seed: Value =
            serde_json::from_slice(&(Target::named(target).seeds)()[0]).unwrap();
        for path in numbers {
            for wrong in [
                json!(0),
                json!(-1),
                json!(1.5),
                json!("9"),
                json!([1, 2]),
                json!({}),
                json!(u64::MAX),
                json!(1_u64 << 24),
                json!(1_000_003),
            ] {
                let mut json = seed.clone();
                let slot = json.pointer_mut(path).unwrap_or_else(|| panic!("{path}"));
                *slot = wrong.clone();
                let error = refusal(target, json.to_string().as_bytes());
                assert!(error.len() < 20_000, "{path}={wrong}: {}", error.len());
            }
        }
        for junk in ["", "{}", "[]", "null", "{\"model_cfg\": 3}", "\u{feff}{}"] {
            refusal(target, junk.as_bytes());
        }
    }
}
