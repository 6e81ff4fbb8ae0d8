//! A folder a class: `CLASS/picture.jpg`, as `ImageNet` and its relatives come.
//!
//! Classes are numbered in the order of their folders' names, unless every name is a number:
//! then it is the class's own (`ImageNetV2`). `classnames.txt` beside the folders says what the
//! classes are called, one a line by number; without it the folders' names do.

use std::path::{Path, PathBuf};

use super::files::{file_name, is_plain_split, sorted};
use super::picture;
use super::webdataset::{CLASSES, lines};
use super::{Found, Pair, Stream, Visit};
use crate::error::{Error, Result};

/// Folders of pictures, one a class.
#[derive(Debug)]
pub(super) struct ClassFolders {
    /// The folder above, for names of pictures.
    base: PathBuf,
    /// What the classes are called.
    names: Vec<String>,
    pictures: Vec<Picture>,
    classes_file: Option<PathBuf>,
}

#[derive(Debug)]
struct Picture {
    path: PathBuf,
    class: usize,
    split: Option<String>,
}

/// Names of folders that are splits and not classes.
pub(super) const SPLITS: [&str; 5] = ["train", "val", "validation", "test", "dev"];

/// Whether `folder` has no table but folders with pictures in them.
pub(super) fn is_layout(folder: &Path) -> bool {
    !folder.join("captions.csv").exists()
        && std::fs::read_dir(folder).is_ok_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|entry| entry.path().is_dir()))
        })
}

impl ClassFolders {
    /// `CLASS/*` below `folder`, or `SPLIT/CLASS/*` where every folder is named as a split.
    pub(super) fn splits(folder: &Path) -> Result<Self> {
        let folders = folders(folder)?;
        let is_split = |path: &PathBuf| SPLITS.contains(&file_name(path).as_str());
        if folders.is_empty() || !folders.iter().all(is_split) {
            return Self::open(folder, folder);
        }
        let mut all = Self {
            base: folder.to_owned(),
            names: Vec::new(),
            pictures: Vec::new(),
            classes_file: None,
        };
        for split in &folders {
            let part = Self::open(split, folder)?;
            let word = file_name(split);
            if !all.names.is_empty() && all.names != part.names {
                let place = folder.display();
                return Err(Error::failed(format!(
                    "{place}: {word} has other classes than the splits before it"
                )));
            }
            all.names = part.names;
            all.classes_file = part.classes_file;
            let split = is_plain_split(&word).then_some(word);
            all.pictures.extend(
                part.pictures.into_iter().map(|p| Picture { split: split.clone(), ..p }),
            );
        }
        Ok(all)
    }

    /// `CLASS/*` below `folder`; `classnames.txt` is there or in `above`.
    pub(super) fn open(folder: &Path, above: &Path) -> Result<Self> {
        let place = folder.display();
        let folders = folders(folder)?;
        if folders.is_empty() {
            return Err(Error::failed(format!("{place} holds no folder of a class")));
        }
        let words: Vec<String> = folders.iter().map(|path| file_name(path)).collect();
        let numbers: Option<Vec<usize>> =
            words.iter().map(|word| word.parse().ok()).collect();
        let listed =
            [folder, above].map(|f| f.join(CLASSES)).into_iter().find(|p| p.is_file());
        let (names, classes) = match (&listed, numbers) {
            (Some(path), Some(numbers)) => (lines(path)?, numbers),
            (Some(path), None) => {
                let names = lines(path)?;
                if names.len() != words.len() {
                    let (found, expected) = (names.len(), words.len());
                    let path = path.display();
                    return Err(Error::corrupt(format!(
                        "{path} names {found} classes, {place} has {expected} folders"
                    )));
                }
                (names, (0..words.len()).collect())
            }
            (None, _) => {
                let names = words.iter().map(|word| word.replace('_', " ")).collect();
                (names, (0..words.len()).collect())
            }
        };
        let mut pictures = Vec::new();
        for (path, class) in folders.iter().zip(classes) {
            if class >= names.len() {
                let (word, count) = (file_name(path), names.len());
                return Err(Error::corrupt(format!(
                    "{place}: folder {word} is none of the {count} classes of {CLASSES}"
                )));
            }
            let paths =
                sorted(path)?.into_iter().filter(|path| picture::is_picture(path));
            pictures.extend(paths.map(|path| Picture { path, class, split: None }));
        }
        if pictures.is_empty() {
            return Err(Error::failed(format!("{place}: its folders hold no picture")));
        }
        let base = folder.to_owned();
        Ok(Self { base, names, pictures, classes_file: listed })
    }

    /// What the classes are called, by number.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    fn name(&self, picture: &Picture) -> String {
        let path = picture.path.strip_prefix(&self.base).unwrap_or(&picture.path);
        path.to_string_lossy().into_owned()
    }
}

fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(sorted(folder)?.into_iter().filter(|path| path.is_dir()).collect())
}

impl Stream for ClassFolders {
    fn each(&self, visit: Visit<'_>) -> Result<()> {
        for picture in &self.pictures {
            let key = self.name(picture);
            let class = &self.names[picture.class];
            visit(match picture::read(&picture.path) {
                Err(error) => Found::bad(key, picture::chain(&error)),
                Ok(image) => Found::Pair(Pair {
                    key,
                    split: picture.split.clone(),
                    image,
                    captions: vec![class.clone()],
                    class: Some(class.clone()),
                    label: Some(picture.class),
                    weight: 1.0,
                }),
            })?;
        }
        Ok(())
    }

    fn files(&self) -> Vec<(String, PathBuf)> {
        let pictures = self.pictures.iter().map(|p| (self.name(p), p.path.clone()));
        let classes = self.classes_file.iter().map(|p| (CLASSES.to_owned(), p.clone()));
        pictures.chain(classes).collect()
    }

    fn total(&self) -> Option<usize> {
        Some(self.pictures.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[&str]) -> tempfile::TempDir {
        let base = tempfile::tempdir().unwrap();
        for file in files {
            let path = base.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x\n").unwrap();
        }
        base
    }

    fn found(stream: &ClassFolders) -> Vec<(String, usize, String)> {
        let mut found = Vec::new();
        let mut visit = |pair| {
            let Found::Pair(pair) = pair else { panic!("a bad pair") };
            found.push((pair.key, pair.label.unwrap(), pair.captions[0].clone()));
            Ok(())
        };
        stream.each(&mut visit).unwrap();
        found
    }

    #[test]
    fn folders_are_numbered_by_name_or_by_their_number() {
        let base = folder(&["n02/a.jpg", "n01/b.PNG", "n01/note.txt"]);
        let stream = ClassFolders::open(base.path(), base.path()).unwrap();
        let expected = [("n01/b.PNG", 0, "n01"), ("n02/a.jpg", 1, "n02")];
        let expected = expected.map(|(k, n, c)| (k.to_owned(), n, c.to_owned()));
        assert_eq!(found(&stream), expected);
        std::fs::write(base.path().join(CLASSES), "tench\nshark\n").unwrap();
        let stream = ClassFolders::open(base.path(), base.path()).unwrap();
        assert_eq!(found(&stream)[1].2, "shark");
        assert_eq!(stream.files().len(), 3);
        let base = folder(&["10/a.jpg", "2/b.jpg"]);
        std::fs::write(base.path().join(CLASSES), "c\n".repeat(11)).unwrap();
        let stream = ClassFolders::open(base.path(), base.path()).unwrap();
        assert_eq!(found(&stream).iter().map(|f| f.1).collect::<Vec<_>>(), [2, 10]);
    }

    #[test]
    fn names_that_do_not_fit_the_folders_are_refused() {
        let base = folder(&["a/1.jpg", "b/1.jpg"]);
        std::fs::write(base.path().join(CLASSES), "one\ntwo\nthree\n").unwrap();
        let error = ClassFolders::open(base.path(), base.path()).unwrap_err().to_string();
        assert!(
            error.contains("names 3 classes") && error.contains("2 folders"),
            "{error}"
        );
        let base = folder(&["0/1.jpg", "7/1.jpg"]);
        std::fs::write(base.path().join(CLASSES), "one\ntwo\n").unwrap();
        let error = ClassFolders::open(base.path(), base.path()).unwrap_err().to_string();
        assert!(error.contains("folder 7 is none of the 2"), "{error}");
        assert!(ClassFolders::open(folder(&[]).path(), Path::new("")).is_err());
    }

    #[test]
    fn folders_named_as_splits_are_splits() {
        let base = folder(&["train/cat/1.jpg", "train/dog/1.jpg", "test/cat/1.jpg"]);
        let error = ClassFolders::splits(base.path()).unwrap_err().to_string();
        assert!(error.contains("other classes"), "{error}");
        std::fs::create_dir_all(base.path().join("test/dog")).unwrap();
        let stream = ClassFolders::splits(base.path()).unwrap();
        let keys: Vec<String> = found(&stream).into_iter().map(|f| f.0).collect();
        assert_eq!(keys, ["test/cat/1.jpg", "train/cat/1.jpg", "train/dog/1.jpg"]);
    }
}
