//! Reading a picture file that a table or a JSON names, and nothing else than that.
//!
//! The name comes out of somebody else's file: one that leads out of the folder of pictures is
//! an error and not a bad pair, and only ordinary files of a bearable size are opened.

use std::path::{Component, Path, PathBuf};

use crate::error::{Context, Error, Result};

/// Largest picture file read.
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// The path of picture `name` below `folder`. An absolute name must already be inside.
pub(super) fn below(folder: &Path, name: &str) -> Result<PathBuf> {
    let path = Path::new(name);
    let inner = path.strip_prefix(folder).ok().filter(|_| path.is_absolute());
    let inner = inner.unwrap_or(path);
    let stays = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if !inner.components().all(stays) {
        let place = folder.display();
        return Err(Error::failed(format!("{name} leads out of the folder {place}")));
    }
    Ok(folder.join(inner))
}

/// The bytes of a picture file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let place = || format!("reading picture {}", path.display());
    let metadata = std::fs::metadata(path).context(place)?;
    if !metadata.is_file() {
        return Err(Error::failed(format!("picture {} is no file", path.display())));
    }
    let size = metadata.len();
    if size > MAX_BYTES {
        let name = path.display();
        return Err(Error::failed(format!(
            "picture {name} has {size} bytes; accepted are {MAX_BYTES}"
        )));
    }
    std::fs::read(path).context(place)
}

/// Whether a name is that of a picture this crate can decode.
pub(super) fn is_picture(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    ["jpg", "jpeg", "png", "webp"].contains(&extension.as_str())
}

/// An error with its causes in one line.
pub(super) fn chain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_inside_of_the_folder_are_paths() {
        let folder = Path::new("/data/set");
        for (name, path) in [
            ("a/b.jpg", "/data/set/a/b.jpg"),
            ("./b.jpg", "/data/set/b.jpg"),
            ("/data/set/c.jpg", "/data/set/c.jpg"),
        ] {
            assert_eq!(below(folder, name).unwrap(), Path::new(path));
        }
        for name in ["../x.jpg", "a/../../x.jpg", "/etc/passwd", "/data/set/../x"] {
            let error = below(folder, name).unwrap_err().to_string();
            assert!(error.contains("leads out"), "{name}: {error}");
        }
    }

    #[test]
    fn a_folder_is_no_picture() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read(folder.path()).unwrap_err().to_string().contains("no file"));
        assert!(read(&folder.path().join("none.png")).is_err());
    }
}
