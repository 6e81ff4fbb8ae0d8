//! Shards and tables of captions that lead out of their folder, lie about sizes, or are cut.

use std::path::Path;

use crate::targets::Target;
use crate::{refusal, survives};

/// A member by name, kind, size that it claims, and content.
fn member(name: &str, kind: tar::EntryType, size: u64, bytes: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    // Past the checks of the writer, which refuses `..` and absolute names.
    header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(0o644);
    if kind.is_symlink() || kind.is_hard_link() {
        header.as_old_mut().linkname[..11].copy_from_slice(b"/etc/passwd");
    }
    header.set_cksum();
    let mut out = header.as_bytes().to_vec();
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

fn file(name: &str, bytes: &[u8]) -> Vec<u8> {
    member(name, tar::EntryType::Regular, bytes.len() as u64, bytes)
}

fn good() -> Vec<u8> {
    (Target::named("shard").seeds)()[0].clone()
}

#[test]
fn members_that_lead_elsewhere_are_only_names() {
    use tar::EntryType as Kind;
    let before = listing(Path::new("/tmp"));
    for name in ["../../x.png", "/etc/x.png", "a/../../x.png", "C:\\x.png", "./.png"] {
        let mut bytes = file(name, &good()[512..900]);
        bytes.extend(file("a.txt", b"words"));
        bytes.extend(good());
        survives("shard", &bytes);
    }
    for kind in [Kind::Symlink, Kind::Link, Kind::Char, Kind::Fifo, Kind::Directory] {
        let mut bytes = member("9.png", kind, 0, b"");
        bytes.extend(file("9.txt", b"words"));
        bytes.extend(good());
        // The caption without its picture is a bad pair among good ones.
        assert!(survives("shard", &bytes), "{kind:?}");
    }
    let stray = ["/etc/x.png", "/tmp/x.png", "/x.png"];
    assert!(stray.iter().all(|path| !Path::new(path).exists()));
    drop(before);
}

fn listing(folder: &Path) -> Vec<std::path::PathBuf> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn sizes_that_are_lies_take_no_memory() {
    for size in [1_u64 << 33, 1 << 40, 0o777_7777_7777, u64::MAX >> 1, u64::MAX] {
        for kind in [
            tar::EntryType::Regular,
            tar::EntryType::GNULongName,
            tar::EntryType::XHeader,
        ] {
            let mut bytes = good();
            bytes.truncate(bytes.len() - 1024);
            bytes.extend(member("7.png", kind, size, b"few"));
            survives("shard", &bytes);
        }
    }
    let sparse = member("8.png", tar::EntryType::GNUSparse, 1 << 40, b"few");
    survives("shard", &sparse);
}

#[test]
fn a_shard_without_pairs_is_refused_by_its_name() {
    refusal("shard", b"");
    refusal("shard", &[0; 1024]);
    refusal(
        "shard",
        b"no tar at all, but more than a block of it. ".repeat(30).as_slice(),
    );
    let only_text = [file("1.txt", b"words"), vec![0; 1024]].concat();
    let error = refusal("shard", &only_text);
    assert!(error.contains("no picture"), "{error}");
    let deep =
        [file("1.json", "[".repeat(200_000).as_bytes()), file("1.png", b"x")].concat();
    refusal("shard", &deep);
}

#[test]
fn captions_that_lead_elsewhere_or_never_end_are_refused() {
    for row in
        ["../x.png,a", "/etc/passwd,a", "a.png", "a.png,b,c", "\0,a", "\"a.png,b", ",,"]
    {
        let error = refusal("captions", format!("filepath,caption\n{row}\n").as_bytes());
        assert!(error.contains("captions.csv"), "{error}");
    }
    refusal("captions", b"filepath,caption\na.png,\xff\xfe\n");
    refusal("captions", "a".repeat(1 << 20).as_bytes());
    refusal("captions", ",".repeat(1 << 18).as_bytes());
    let long = format!("filepath,caption\na.png,{}\n", "word ".repeat(400_000));
    survives("captions", long.as_bytes());
    let lines = format!("filepath,caption\n{}", "a.png,b\n".repeat(20_000));
    survives("captions", lines.as_bytes());
}
