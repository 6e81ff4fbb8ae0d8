//! Parquet that was cut or flipped: an error or other values, never a panic or a flood.

use crate::targets::Target;
use crate::{refusal, survives};

const READERS: [&str; 3] = ["table", "vectors-column", "labels-column"];

fn seeds() -> Vec<Vec<u8>> {
    (Target::named("table").seeds)()
}

#[test]
fn every_truncation_is_refused_by_every_reader() {
    for reader in READERS {
        for bytes in seeds() {
            for length in 0..bytes.len() {
                refusal(reader, &bytes[..length]);
            }
        }
    }
}

/// Nothing in the format protects the pages, so that other values may come out; the
/// manifest's digest is what protects our own tables.
#[test]
fn every_byte_of_a_table_may_be_another_one() {
    let (mut refused, mut read) = (0, 0);
    let folder = Target::named("table").folder();
    for seed in seeds() {
        for position in 0..seed.len() {
            let target = Target::named(READERS[position % 3]);
            let mut bytes = seed.clone();
            bytes[position] ^= [0x01, 0x80, 0xff, 0x40, 0x10][position % 5];
            match target.run(folder.path(), &bytes) {
                Ok(()) => read += 1,
                Err(_) => refused += 1,
            }
        }
    }
    assert!(refused > read / 10, "{refused} refused, {read} read");
}

#[test]
fn a_footer_of_any_length_is_bounded_by_the_file() {
    let bytes = &seeds()[0];
    for length in [0, 1, 7, 0x7fff_ffff, 0x8000_0000, u32::MAX] {
        let mut bytes = bytes.clone();
        let at = bytes.len() - 8;
        bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
        for reader in READERS {
            refusal(reader, &bytes);
        }
    }
    for junk in [&b"PAR1"[..], b"PAR1PAR1", b"PAR1\0\0\0\0PAR1", b"PAREPARE", b""] {
        assert!(!survives("table", junk));
    }
}

/// Found by `tests/fuzz`: the parquet crate would pass over their lists of nothings for years.
#[test]
fn lists_without_end_are_refused_at_once() {
    for name in ["nested-lists", "other-types"] {
        let path = format!("tests/fixtures/hostile/{name}.parquet");
        let bytes = std::fs::read(path).unwrap();
        for reader in READERS {
            refusal(reader, &bytes);
        }
    }
}
