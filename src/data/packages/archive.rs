//! Reading files out of a `.tgz` as it streams by, without unpacking anything to disk.

use std::collections::BTreeMap;
use std::io::Read;
use std::ops::ControlFlow;

use flate2::read::GzDecoder;

use crate::error::{Context, Error, Result};

/// Largest file taken from an archive: the biggest icon set has 104 MB of SVG.
const LIMIT: u64 = 256 << 20;

/// What is done with the path and the content of a file; it may end the reading.
type Visit<'a> = &'a mut dyn FnMut(&str, Vec<u8>) -> Result<ControlFlow<()>>;

/// Hands the files whose path is `wanted` to `visit`, one after the other.
///
/// Memory: one file at a time.
pub(in crate::data) fn each(
    archive: impl Read,
    what: &str,
    wanted: impl Fn(&str) -> bool,
    visit: Visit<'_>,
) -> Result<()> {
    let context = || format!("reading package {what}");

    let mut archive = tar::Archive::new(GzDecoder::new(archive));
    for entry in archive.entries().context(context)? {
        let mut entry = entry.context(context)?;
        let path = entry.path().context(context)?.to_string_lossy().into_owned();

        if !wanted(&path) {
            continue;
        }

        // The size is read from the header, before memory is taken for the file.
        let size = entry.size();
        if size > LIMIT {
            return Err(Error::corrupt(format!(
                "package {what}: {path} has {size} bytes, accepted are {LIMIT}"
            )));
        }

        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        entry.by_ref().take(LIMIT).read_to_end(&mut bytes).context(context)?;
        if visit(&path, bytes)?.is_break() {
            break;
        }
    }
    Ok(())
}

/// The files `names` of the archive; one that is not there is an error.
pub(in crate::data) fn extract(
    archive: impl Read,
    names: &[&str],
    what: &str,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    each(archive, what, |path| names.contains(&path), &mut |path, bytes| {
        found.insert(path.to_owned(), bytes);

        // The rest of the archive may be long, and is not needed.
        let all = found.len() == names.len();
        Ok(if all { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })?;

    let missing = names.iter().find(|name| !found.contains_key(**name));
    match missing {
        Some(name) => Err(Error::corrupt(format!("package {what} has no file {name}"))),
        None => Ok(found),
    }
}

#[cfg(test)]
pub(in crate::data) mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    /// A package of these files.
    pub(in crate::data) fn pack(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, bytes) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            builder.append_data(&mut header, path, *bytes).unwrap();
        }
        let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
        gz.write_all(&builder.into_inner().unwrap()).unwrap();
        gz.finish().unwrap()
    }

    #[test]
    fn named_files_come_out_whole() {
        let bytes = pack(&[("package/a", b"1"), ("package/b", b"22"), ("c", b"3")]);
        let found = extract(&bytes[..], &["package/b", "c"], "x").unwrap();
        assert_eq!(found["package/b"], b"22");
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn a_missing_file_and_a_cut_archive_are_errors() {
        let bytes = pack(&[("package/a", b"1")]);
        let error = extract(&bytes[..], &["package/z"], "noto").unwrap_err().to_string();
        assert_eq!(error, "package noto has no file package/z");
        for len in 0..bytes.len() - 8 {
            assert!(extract(&bytes[..len], &["z"], "noto").is_err(), "{len}");
        }
    }
}
