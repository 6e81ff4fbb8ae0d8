//! The pinned npm packages: what must be in the cache, and whether it is.
//!
//! This crate does not fetch anything. The `packages.lock` of a source names each package, the
//! file that `npm pack NAME@VERSION --pack-destination CACHE` writes, and the SHA-512 that npm
//! itself records as `integrity`.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::Path;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use sha2::{Digest, Sha512};

use crate::config::Source;
use crate::error::{Context, Error, Result};

/// A package of a lock file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Package {
    /// Name on npm.
    pub name: String,
    /// Exact version.
    pub version: String,
    /// File name in the cache, as `npm pack` writes it.
    pub file: String,
    /// `sha512-` and the base64 of the file's digest.
    pub integrity: String,
    /// Size of the file.
    pub bytes: u64,
}

static EMOJI: LazyLock<Vec<Package>> =
    LazyLock::new(|| parsed(include_str!("../emoji/packages.lock")));

static ICONS: LazyLock<Vec<Package>> =
    LazyLock::new(|| parsed(include_str!("../icons/packages.lock")));

fn parsed(lock: &str) -> Vec<Package> {
    serde_json::from_str(lock).expect("a test parses the lock files")
}

/// Bytes of a file that are hashed at a time.
const BLOCK: usize = 1 << 20;

/// Every package that a source needs; most need none.
#[must_use]
pub fn of(source: Source) -> &'static [Package] {
    match source {
        Source::Emoji => &EMOJI,
        Source::Icons => &ICONS,
        Source::Folder
        | Source::Csv
        | Source::Parquet
        | Source::Coco
        | Source::Webdataset
        | Source::Shapes => &[],
    }
}

/// The packages of a source whose file is not in `cache`.
#[must_use]
pub fn missing(source: Source, cache: &Path) -> Vec<Package> {
    of(source).iter().filter(|p| !cache.join(&p.file).is_file()).cloned().collect()
}

/// All packages of a source are there, or the error says how to get them.
pub(in crate::data) fn require(source: Source, cache: &Path) -> Result<()> {
    let missing = missing(source, cache);
    if missing.is_empty() {
        return Ok(());
    }

    let specs: Vec<_> =
        missing.iter().map(|p| format!("{}@{}", p.name, p.version)).collect();
    let place = cache.display();
    Err(Error::failed(format!(
        "{} packages are not in {place}: npm pack --pack-destination {place} {}",
        missing.len(),
        specs.join(" ")
    )))
}

/// Opens the file of the package `name` of a source, after comparing it with the lock.
///
/// The file is hashed as a stream: a package may be larger than what should be in memory.
pub(in crate::data) fn open(source: Source, name: &str, cache: &Path) -> Result<File> {
    let package = of(source).iter().find(|p| p.name == name).ok_or_else(|| {
        Error::failed(format!("packages.lock has no entry for {name}, expected one"))
    })?;
    verified(package, cache)
}

/// The file of a package, at its beginning.
fn verified(package: &Package, cache: &Path) -> Result<File> {
    let path = cache.join(&package.file);
    let place = path.display();
    let reading = || format!("reading package {place}");

    let size = std::fs::metadata(&path)
        .context(|| {
            format!(
                "package {}@{} is not at {place}: fetch it with `npm pack`",
                package.name, package.version
            )
        })?
        .len();

    // The size tells a cut download at once, without reading the file.
    if size != package.bytes {
        return Err(Error::corrupt(format!(
            "{place}: expected {} bytes, found {size}: delete it and fetch it again",
            package.bytes
        )));
    }

    let mut file = File::open(&path).context(reading)?;
    let mut hash = Sha512::new();
    let mut block = vec![0; BLOCK];
    loop {
        let count = file.read(&mut block).context(reading)?;
        if count == 0 {
            break;
        }
        hash.update(&block[..count]);
    }

    let found = format!("sha512-{}", STANDARD.encode(hash.finalize()));
    if found != package.integrity {
        return Err(Error::corrupt(format!(
            "{place}: expected {}, found {found}: delete it and fetch it again",
            package.integrity
        )));
    }

    file.rewind().context(reading)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_locks_name_the_packages_of_both_sources() {
        assert_eq!(of(Source::Emoji).len(), 13, "twelve icon sets and the labels");
        assert_eq!(of(Source::Icons).len(), 1);
        assert_eq!(of(Source::Shapes), []);
        for package in of(Source::Emoji).iter().chain(of(Source::Icons)) {
            assert!(package.integrity.starts_with("sha512-"), "{}", package.name);
            assert!(package.file.ends_with(&format!("-{}.tgz", package.version)));
        }
    }

    #[test]
    fn missing_and_altered_files_are_named() {
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(missing(Source::Emoji, cache.path()).len(), 13);
        let error = require(Source::Icons, cache.path()).unwrap_err().to_string();
        assert!(
            error.contains("npm pack") && error.contains("@iconify/json@"),
            "{error}"
        );

        let first = &of(Source::Emoji)[0];
        let refused = || open(Source::Emoji, &first.name, cache.path()).unwrap_err();
        let error = refused().to_string();
        assert!(error.contains(&first.file) && error.contains("npm pack"), "{error}");
        let path = cache.path().join(&first.file);
        std::fs::write(&path, b"short").unwrap();
        assert_eq!(missing(Source::Emoji, cache.path()).len(), 12);
        let error = refused().to_string();
        assert!(error.contains("found 5"), "{error}");
        let size = usize::try_from(first.bytes).unwrap();
        std::fs::write(&path, vec![0; size]).unwrap();
        let error = refused().to_string();
        assert!(error.contains(&first.integrity), "{error}");
    }

    #[test]
    fn a_sound_file_is_handed_over_from_its_beginning() {
        let cache = tempfile::tempdir().unwrap();
        std::fs::write(cache.path().join("a-1.tgz"), b"content").unwrap();
        let package = Package {
            name: "a".to_owned(),
            version: "1".to_owned(),
            file: "a-1.tgz".to_owned(),
            integrity: format!("sha512-{}", STANDARD.encode(Sha512::digest(b"content"))),
            bytes: 7,
        };
        let mut found = String::new();
        verified(&package, cache.path()).unwrap().read_to_string(&mut found).unwrap();
        assert_eq!(found, "content");
    }
}
