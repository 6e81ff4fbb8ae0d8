//! The pinned npm packages: what must be in the cache, and whether it is.
//!
//! This crate does not fetch anything. `packages.lock` names each package, the file that
//! `npm pack NAME@VERSION --pack-destination CACHE` writes, and the SHA-512 that npm itself
//! records as `integrity`.

use std::path::Path;
use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use sha2::{Digest, Sha512};

use crate::error::{Context, Error, Result};

/// A package of the lock file.
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

static PACKAGES: LazyLock<Vec<Package>> = LazyLock::new(|| {
    serde_json::from_str(include_str!("packages.lock"))
        .expect("a test parses the lock file")
});

/// Every package that the emoji source needs.
#[must_use]
pub fn packages() -> &'static [Package] {
    &PACKAGES
}

/// The packages whose file is not in `cache`.
#[must_use]
pub fn missing(cache: &Path) -> Vec<Package> {
    packages().iter().filter(|p| !cache.join(&p.file).is_file()).cloned().collect()
}

/// Compares every file with the lock: the first that is missing or differs is the error.
pub fn verify(cache: &Path) -> Result<()> {
    packages().iter().try_for_each(|package| read(package, cache).map(drop))
}

/// The bytes of a package file, compared with the lock.
pub(super) fn read(package: &Package, cache: &Path) -> Result<Vec<u8>> {
    let path = cache.join(&package.file);
    let place = path.display();

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

    let bytes = std::fs::read(&path).context(|| format!("reading package {place}"))?;
    let found = format!("sha512-{}", STANDARD.encode(Sha512::digest(&bytes)));
    if found != package.integrity {
        return Err(Error::corrupt(format!(
            "{place}: expected {}, found {found}: delete it and fetch it again",
            package.integrity
        )));
    }

    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_names_twelve_icon_sets_and_the_labels() {
        assert_eq!(packages().len(), 13);
        for package in packages() {
            assert!(package.integrity.starts_with("sha512-"), "{}", package.name);
            assert!(package.file.ends_with(&format!("-{}.tgz", package.version)));
        }
    }

    #[test]
    fn missing_and_altered_files_are_named() {
        let cache = tempfile::tempdir().unwrap();
        assert_eq!(missing(cache.path()).len(), 13);
        let first = &packages()[0];
        let error = verify(cache.path()).unwrap_err().to_string();
        assert!(error.contains(&first.file) && error.contains("npm pack"), "{error}");
        let path = cache.path().join(&first.file);
        std::fs::write(&path, b"short").unwrap();
        assert_eq!(missing(cache.path()).len(), 12);
        let error = verify(cache.path()).unwrap_err().to_string();
        assert!(error.contains("found 5"), "{error}");
        let size = usize::try_from(first.bytes).unwrap();
        std::fs::write(&path, vec![0; size]).unwrap();
        let error = verify(cache.path()).unwrap_err().to_string();
        assert!(error.contains(&first.integrity), "{error}");
    }
}
