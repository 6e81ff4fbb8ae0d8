//! Reading a picture file that a table or a JSON names, and nothing else than that.
//!
//! The name comes out of somebody else's file: one that leads out of the folder of pictures is
//! an error and not a bad pair, and only ordinary files of a bearable size are opened.

use std::path::{Component, Path, PathBuf};

use crate::error::{Context, Error, Result};

/// Extensions of pictures: torchvision's, and GIF.
pub(super) const EXTENSIONS: [&str; 12] = [
    "jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm", "pbm", "pnm",
];

/// Largest picture file read.
pub(super) const MAX_BYTES: u64 = 64 << 20;

/// A picture's place below the folder of pictures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Located {
    /// Its name below the folder, the same wherever the folder lies.
    pub name: String,
    pub path: PathBuf,
}

/// Where picture `name` lies below `folder`. An absolute name must already be inside, whether
/// the folder itself is named by an absolute path, by a relative one, or through a link.
pub(super) fn below(folder: &Path, name: &str) -> Result<Located> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let path = Path::new(name);

    let inner = if path.is_absolute() { inside(folder, path) } else { Some(path) };
    let stays = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    let Some(inner) = inner.filter(|inner| inner.components().all(stays)) else {
        let place = folder.display();
        return Err(Error::failed(format!("{name} leads out of the folder {place}")));
    };

    let name = inner.to_string_lossy().into_owned();
    Ok(Located { name, path: folder.join(inner) })
}

/// What is left of an absolute path below a folder.
fn inside<'a>(folder: &Path, path: &'a Path) -> Option<&'a Path> {
    let absolute = std::path::absolute(folder).ok();
    let forms = [Some(folder.to_owned()), absolute, folder.canonicalize().ok()];
    forms.iter().flatten().find_map(|form| path.strip_prefix(form).ok())
}

/// The bytes of a picture file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>> {
    let place = || format!("reading picture {}", path.display());
    let metadata = std::fs::metadata(path).context(place)?;
    if !metadata.is_file() {
        return Err(Error::failed(format!(
            "picture {} is not an ordinary file",
            path.display()
        )));
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
    EXTENSIONS.contains(&extension.as_str())
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
            assert_eq!(below(folder, name).unwrap().path, Path::new(path));
        }
        for name in ["../x.jpg", "a/../../x.jpg", "/etc/passwd", "/data/set/../x"] {
            let error = below(folder, name).unwrap_err().to_string();
            assert!(error.contains("leads out"), "{name}: {error}");
        }
    }

    #[test]
    fn absolute_names_are_inside_of_a_folder_however_it_is_named() {
        let here = std::env::current_dir().unwrap();
        let name = here.join("tests/a/b.png").display().to_string();
        for (folder, expected) in
            [("", "tests/a/b.png"), (".", "tests/a/b.png"), ("tests", "a/b.png")]
        {
            let found = below(Path::new(folder), &name).unwrap();
            assert_eq!(found.name, expected, "{folder:?}");
            assert_eq!(std::path::absolute(found.path).unwrap(), Path::new(&name));
        }
        let error = below(Path::new(""), "/etc/passwd").unwrap_err().to_string();
        assert!(error.ends_with("leads out of the folder ."), "{error}");

        // Through a link, as the folders of data on a shared file system are named.
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir(base.path().join("real")).unwrap();
        std::os::unix::fs::symlink(base.path().join("real"), base.path().join("link"))
            .unwrap();
        let name = base.path().canonicalize().unwrap().join("real/c.png");
        let name = name.display().to_string();
        assert_eq!(below(&base.path().join("link"), &name).unwrap().name, "c.png");
    }

    #[test]
    fn a_folder_is_not_a_picture() {
        let folder = tempfile::tempdir().unwrap();
        assert!(
            read(folder.path()).unwrap_err().to_string().contains("not an ordinary file")
        );
        assert!(read(&folder.path().join("none.png")).is_err());
    }
}
