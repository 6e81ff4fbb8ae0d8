//! One folder per class: `CLASS/picture.jpg`, as `ImageNet` and its relatives come.
//!
//! As torchvision's `ImageFolder` does, folders inside of a class are read too, and classes
//! are numbered in the order of their folders' names, unless every name is a number: then it
//! is the class's own (`ImageNetV2`). `classnames.txt` beside the folders says what the
//! classes are called, one per line by number; without it the folders' names do. What is not
//! a picture by its extension is counted.

use std::path::{Path, PathBuf};

use super::files::{Listing, count, file_name, is_plain_split};
use super::picture;
use super::webdataset::{CLASSES, lines};
use super::{Counts, Fault, Found, Pair, Stream, Visit};
use crate::error::{Error, Result};

/// Deepest nesting of folders in a class. Deeper ones are a link that leads back up.
const MOST_LEVELS: usize = 32;

/// Kind under which a class is counted whose folder holds no picture.
const EMPTY: &str = "class folders without a picture";

/// Folders of pictures, one per class.
#[derive(Debug)]
pub(super) struct ClassFolders {
    /// The folder above, for names of pictures.
    base: PathBuf,
    /// What the classes are called.
    names: Vec<String>,
    pictures: Vec<Picture>,
    classes_file: Option<PathBuf>,
    left_out: Counts,
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
        let listing = Listing::of(folder)?;

        // A class may be called "test", so folders are splits only if all of them are.
        let is_split = |path: &PathBuf| SPLITS.contains(&file_name(path).as_str());
        if listing.folders.is_empty() || !listing.folders.iter().all(is_split) {
            refuse_mixture(folder, &listing)?;
            return Self::open(folder, folder);
        }

        let mut all = Self {
            base: folder.to_owned(),
            names: Vec::new(),
            pictures: Vec::new(),
            classes_file: None,
            left_out: Counts::new(),
        };
        listing.files_where(|_| false, &mut all.left_out);
        for split in &listing.folders {
            let part = Self::open(split, folder)?;
            let word = file_name(split);

            // The number of a class must mean the same in every split.
            if !all.names.is_empty() && all.names != part.names {
                let place = folder.display();
                return Err(Error::failed(format!(
                    "{place}: {word} has other classes than the splits before it"
                )));
            }
            all.names = part.names;
            all.classes_file = part.classes_file;
            for (kind, n) in part.left_out {
                *all.left_out.entry(kind).or_insert(0) += n;
            }

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
        let listing = Listing::of(folder)?;
        let folders = &listing.folders;
        if folders.is_empty() {
            return Err(Error::failed(format!("{place} holds no folder of a class")));
        }

        let words: Vec<String> = folders.iter().map(|path| file_name(path)).collect();
        let numbers: Option<Vec<usize>> =
            words.iter().map(|word| word.parse().ok()).collect();

        let listed =
            [folder, above].map(|f| f.join(CLASSES)).into_iter().find(|p| p.is_file());

        // Folders named by numbers are lines of the file; otherwise line n belongs to
        // folder n.
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

        let (mut pictures, mut left_out) = (Vec::new(), Counts::new());
        // A picture beside the folders has no class.
        listing.files_where(|_| false, &mut left_out);
        for (path, class) in folders.iter().zip(classes) {
            if class >= names.len() {
                let (word, n) = (file_name(path), names.len());
                return Err(Error::corrupt(format!(
                    "{place}: folder {word} is none of the {n} classes of {CLASSES}"
                )));
            }

            let mut paths = Vec::new();
            walk(path, MOST_LEVELS, &mut paths, &mut left_out)?;
            if paths.is_empty() {
                count(&mut left_out, EMPTY);
            }

            pictures.extend(paths.into_iter().map(|path| Picture {
                path,
                class,
                split: None,
            }));
        }

        if pictures.is_empty() {
            return Err(Error::failed(format!("{place}: its folders hold no picture")));
        }
        let base = folder.to_owned();
        Ok(Self { base, names, pictures, classes_file: listed, left_out })
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

/// Collects the pictures of a class, those of folders inside of it behind its own.
fn walk(
    folder: &Path,
    levels: usize,
    pictures: &mut Vec<PathBuf>,
    left_out: &mut Counts,
) -> Result<()> {
    if levels == 0 {
        let place = folder.display();
        return Err(Error::failed(format!(
            "{place} is nested more than {MOST_LEVELS} folders deep: does a link in it lead \
             back to a folder above?"
        )));
    }

    let listing = Listing::of(folder)?;
    pictures.extend(listing.files_where(|path| picture::is_picture(path), left_out));

    for inner in &listing.folders {
        walk(inner, levels - 1, pictures, left_out)?;
    }
    Ok(())
}

/// Refuses splits that lie beside other folders: read as classes, all of a split's classes
/// would become one.
fn refuse_mixture(folder: &Path, listing: &Listing) -> Result<()> {
    for path in &listing.folders {
        let name = file_name(path);
        if !SPLITS.contains(&name.as_str()) {
            continue;
        }

        let inner = Listing::of(path)?;
        if !inner.folders.is_empty()
            && !inner.files.iter().any(|p| picture::is_picture(p))
        {
            let others = listing.folders.iter().map(|path| file_name(path));
            let others: Vec<String> =
                others.filter(|name| !SPLITS.contains(&name.as_str())).collect();
            return Err(Error::failed(format!(
                "{}: {name} looks like a split, but beside it there are the folders {}, \
                 which are not splits: move them away, or name one split as the folder",
                folder.display(),
                others.join(", ")
            )));
        }
    }
    Ok(())
}

impl Stream for ClassFolders {
    fn each(&self, visit: Visit<'_>) -> Result<()> {
        for picture in &self.pictures {
            let key = self.name(picture);

            let class = &self.names[picture.class];
            visit(match picture::read(&picture.path) {
                Err(error) => Found::bad(Fault::NoPicture, key, error.chain()),
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

    fn left_out(&self) -> Counts {
        self.left_out.clone()
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
    fn folders_in_a_class_are_read_and_the_rest_is_counted() {
        let base = folder(&[
            "ant/2.jpg",
            "ant/10.jpg",
            "ant/more/b.bmp",
            "ant/more/deep/a.TIFF",
            "ant/more/x.mp4",
            "bee/1.gif",
            "bee/2.svg",
            "cow/note",
            "stray.png",
            "classnames.tsv",
        ]);
        let stream = ClassFolders::splits(base.path()).unwrap();
        let keys: Vec<String> = found(&stream).into_iter().map(|f| f.0).collect();
        assert_eq!(
            keys,
            [
                "ant/2.jpg",
                "ant/10.jpg",
                "ant/more/b.bmp",
                "ant/more/deep/a.TIFF",
                "bee/1.gif"
            ]
        );
        assert_eq!(
            super::super::files::told(&stream.left_out()),
            "1 .mp4, 1 .png, 1 .svg, 1 .tsv, 1 class folders without a picture, 1 files \
             without extension"
        );
        std::os::unix::fs::symlink(
            base.path().join("bee"),
            base.path().join("bee/again"),
        )
        .unwrap();
        let error = ClassFolders::splits(base.path()).unwrap_err().to_string();
        assert!(error.contains("lead back"), "{error}");
    }

    #[test]
    fn splits_beside_other_folders_do_not_become_classes() {
        let base = folder(&["train/cat/1.jpg", "val/cat/1.jpg", "devkit/x.txt"]);
        let error = ClassFolders::splits(base.path()).unwrap_err().to_string();
        assert!(
            error.contains("looks like a split") && error.contains("devkit"),
            "{error}"
        );
        // A class may well be called train.
        let base = folder(&["train/1.jpg", "bus/1.jpg"]);
        let stream = ClassFolders::splits(base.path()).unwrap();
        assert_eq!(stream.names(), ["bus", "train"]);
    }

    #[test]
    fn class_names_meet_their_folders_in_the_order_of_names() {
        let base =
            folder(&["1/a.jpg", "2/a.jpg", "9/a.jpg", "10/a.jpg", "unknown/a.jpg"]);
        let names = "name of 1\nname of 10\nname of 2\nname of 9\nname of unknown\n";
        std::fs::write(base.path().join(CLASSES), names).unwrap();
        let stream = ClassFolders::splits(base.path()).unwrap();
        for (key, _, caption) in found(&stream) {
            let folder = key.split('/').next().unwrap();
            assert_eq!(caption, format!("name of {folder}"));
        }
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
