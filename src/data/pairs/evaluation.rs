//! Folders to evaluate on, in `CLIP_benchmark`'s layout or as pictures lie.
//!
//! ```text
//! classnames.txt                         one class per line
//! zeroshot_classification_templates.txt  one prompt per line, {c} for the class
//! dataset_type.txt                       `retrieval`; classification without it
//! SPLIT/nshards.txt, SPLIT/0.tar …       pictures with .cls, or .txt of one caption per line
//! ```
//!
//! Without shards: one folder per class (`SPLIT/CLASS/*` or `CLASS/*`), or for retrieval
//! Karpathy's `dataset_*.json` or a `captions.csv`, of which the split is taken.

use std::path::{Path, PathBuf};

use super::classes::{ClassFolders, SPLITS};
use super::coco::Annotations;
use super::files::{self, Input, Listing, file_name};
use super::table::Tables;
use super::webdataset::{CLASSES, SHARDS, Shards, lines};
use super::{Counts, Stream, Visit};
use crate::error::{Context, Error, Result};

/// Prompts, one per line.
const TEMPLATES: &str = "zeroshot_classification_templates.txt";
/// The task, where it is not classification.
const TYPE: &str = "dataset_type.txt";
/// Number of shards of a split.
const COUNT: &str = "nshards.txt";
/// The prompt of a set that brings none.
const PROMPT: &str = "a photo of a {c}.";

/// What is measured on a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Every picture has a class.
    Classification {
        /// What the classes are called, by number.
        classes: Vec<String>,
        /// Prompts with `{}` for the class.
        templates: Vec<String>,
    },
    /// Every picture has captions.
    Retrieval,
}

/// One set of pictures to evaluate on.
#[derive(Debug)]
pub struct EvaluationSet {
    task: Task,
    sharded: bool,
    stream: Box<dyn Stream>,
}

impl EvaluationSet {
    /// Opens `split` of the set in `folder`; pictures are read by [`Self::each`].
    pub fn open(folder: &Path, split: &str) -> Result<Self> {
        let retrieval = is_retrieval(folder)?;

        if let Some(paths) = shards(folder, split)? {
            let stream = Box::new(Shards::numbered(paths));
            let task = if retrieval {
                Task::Retrieval
            } else {
                let path = folder.join(CLASSES);
                classification(folder, lines(&path)?)?
            };
            return Ok(Self { task, sharded: true, stream });
        }

        if let Some(stream) = captioned(folder, split)? {
            return Ok(Self { task: Task::Retrieval, sharded: false, stream });
        }

        let place = folder.display();
        if retrieval {
            return Err(Error::failed(format!(
                "{place} holds no captions of split {split}: expected {split}/{COUNT}, \
                 dataset_*.json or captions.csv"
            )));
        }

        // What is left is one folder per class: below the split, or in the set itself if
        // it has no
        // splits.
        let inner = folder.join(split);
        let other = || SPLITS.iter().find(|other| folder.join(other).is_dir());
        let inner = match (inner.is_dir(), other()) {
            (true, _) => inner.as_path(),
            (false, None) => folder,
            (false, Some(other)) => {
                return Err(Error::failed(format!(
                    "{place} does not have the split {split}, but it has {other}"
                )));
            }
        };

        let stream = ClassFolders::open(inner, folder).context(|| {
            format!("{place} has neither shards nor a folder for each class")
        })?;
        let task = classification(folder, stream.names().to_vec())?;
        Ok(Self { task, sharded: false, stream: Box::new(stream) })
    }

    /// What is measured.
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// Whether it is tar shards, what `CLIP_benchmark` calls `wds/…`.
    pub fn is_sharded(&self) -> bool {
        self.sharded
    }

    /// Other prompts and class names than the set's own, from files of the same form.
    pub fn rename(
        &mut self,
        new_classes: Option<&Path>,
        new_templates: Option<&Path>,
    ) -> Result<()> {
        let Task::Classification { classes, templates } = &mut self.task else {
            return Ok(());
        };

        if let Some(path) = new_classes {
            let names = lines(path)?;
            if names.len() != classes.len() {
                let (found, expected) = (names.len(), classes.len());
                return Err(Error::usage(format!(
                    "{} names {found} classes, the set has {expected}",
                    path.display()
                )));
            }
            *classes = names;
        }

        if let Some(path) = new_templates {
            *templates = prompts(path)?;
        }
        Ok(())
    }

    /// What lies beside the set's files and is not read, by kind.
    pub fn left_out(&self) -> Counts {
        self.stream.left_out()
    }

    /// Hands every pair to `visit`.
    pub fn each(&self, visit: Visit<'_>) -> Result<()> {
        self.stream.each(visit)
    }
}

fn is_retrieval(folder: &Path) -> Result<bool> {
    let path = folder.join(TYPE);
    if !path.is_file() {
        return Ok(false);
    }

    let place = path.display();
    let text = std::fs::read_to_string(&path).context(|| format!("reading {place}"))?;
    match text.trim() {
        "retrieval" => Ok(true),
        "classification" => Ok(false),
        other => Err(Error::failed(format!(
            "{place} says {other:?}, supported are retrieval and classification"
        ))),
    }
}

fn classification(folder: &Path, classes: Vec<String>) -> Result<Task> {
    if classes.is_empty() {
        return Err(Error::corrupt(format!("{} names no class", folder.display())));
    }

    let path = folder.join(TEMPLATES);
    let templates =
        if path.is_file() { prompts(&path)? } else { vec![PROMPT.replace("{c}", "{}")] };
    Ok(Task::Classification { classes, templates })
}

/// Prompts of a file, with `{}` for the class.
fn prompts(path: &Path) -> Result<Vec<String>> {
    let place = path.display();
    let prompts = lines(path)?;
    if prompts.is_empty() {
        return Err(Error::corrupt(format!("{place} holds no prompt")));
    }

    if let Some(bad) = prompts.iter().find(|prompt| !prompt.contains("{c}")) {
        let message = format!("{place}: prompt {bad:?} has no {{c}} for the class");
        return Err(Error::corrupt(message));
    }
    Ok(prompts.into_iter().map(|prompt| prompt.replace("{c}", "{}")).collect())
}

/// The shards of a split, as many as `nshards.txt` says; `None` if there are none.
fn shards(folder: &Path, split: &str) -> Result<Option<Vec<PathBuf>>> {
    let inner = folder.join(split);
    let counted = [inner.as_path(), folder].map(|f| (f.to_owned(), f.join(COUNT)));
    let Some((place, path)) = counted.into_iter().find(|(_, path)| path.is_file()) else {
        // A split without shards may hold folders of classes instead.
        let found =
            if inner.is_dir() { files::in_folder(&inner, &SHARDS).ok() } else { None };
        return Ok(
            found.map(|found| found.inputs.into_iter().map(|input| input.path).collect())
        );
    };

    let text = std::fs::read_to_string(&path)
        .context(|| format!("reading {}", path.display()))?;

    // The limit keeps a hostile number from filling the memory with names.
    let count =
        text.trim().parse::<u32>().ok().filter(|count| (1..1 << 20).contains(count));
    let Some(count) = count else {
        let (path, text) = (path.display(), text.trim());
        return Err(Error::corrupt(format!("{path} says {text:?}, expected a number")));
    };

    let shard = |i: u32| {
        let forms = SHARDS.map(|extension| place.join(format!("{i}.{extension}")));
        forms.iter().find(|path| path.is_file()).unwrap_or(&forms[0]).clone()
    };

    let paths: Vec<PathBuf> = (0..count).map(shard).collect();
    match paths.iter().find(|path| !path.is_file()) {
        None => Ok(Some(paths)),
        Some(missing) => {
            let (path, name) = (path.display(), file_name(missing));
            Err(Error::corrupt(format!("{path} says {count} shards, {name} is missing")))
        }
    }
}

/// Karpathy's JSON or a table, reduced to a split.
fn captioned(folder: &Path, split: &str) -> Result<Option<Box<dyn Stream>>> {
    if folder.join("captions.csv").is_file() {
        let tables = Tables::in_folder(folder)?.only(split)?;
        return Ok(Some(Box::new(tables)));
    }

    let is_karpathy = |path: &&PathBuf| {
        let json = path.extension().is_some_and(|extension| extension == "json");
        json && file_name(path).starts_with("dataset_")
    };

    let listing = Listing::of(folder)?;
    let Some(path) = listing.files.iter().find(is_karpathy).cloned() else {
        return Ok(None);
    };

    let input = Input { name: file_name(&path), path, split: None, weight: 1.0 };
    let pictures = [folder.join("images"), folder.to_owned()];
    let pictures = pictures.iter().find(|folder| folder.is_dir()).map_or(folder, |p| p);

    let found = Annotations::open(&[input], pictures)?.only(split)?;
    Ok(Some(Box::new(found)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let base = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = base.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        base
    }

    fn open(files: &[(&str, &str)]) -> Result<EvaluationSet> {
        EvaluationSet::open(folder(files).path(), "test")
    }

    #[test]
    fn each_layout_is_told_by_its_files() {
        let names = (CLASSES, "cat\nhot dog\n");
        let tar = [("test/nshards.txt", "1\n"), ("test/0.tar", "")];
        let templates = (TEMPLATES, "a {c}.\nthe {c}!\n");
        let classes = vec!["cat".to_owned(), "hot dog".to_owned()];
        let found = open(&[tar[0], tar[1], names, templates]).unwrap();
        let templates = vec!["a {}.".to_owned(), "the {}!".to_owned()];
        assert!(found.is_sharded());
        let expected = Task::Classification { classes: classes.clone(), templates };
        assert_eq!(*found.task(), expected);
        let found = open(&[tar[0], tar[1], (TYPE, "retrieval\n")]).unwrap();
        assert_eq!(*found.task(), Task::Retrieval);
        let found = open(&[("test/b/1.jpg", ""), ("test/a/1.jpg", ""), names]).unwrap();
        let templates = vec!["a photo of a {}.".to_owned()];
        assert_eq!(*found.task(), Task::Classification { classes, templates });
        assert!(open(&[("a/1.jpg", ""), ("b/1.jpg", "")]).is_ok());
        let table = "filepath,caption,split\na.png,x,test\nb.png,y,train\n";
        let found = open(&[("captions.csv", table)]).unwrap();
        assert_eq!(found.stream.total(), Some(1));
        let json = r#"{"images": [{"filename": "a.png", "split": "test",
            "sentences": [{"raw": "x"}]}, {"filename": "b.png", "split": "train"}]}"#;
        let found = open(&[("dataset_toy.json", json)]).unwrap();
        assert_eq!((found.task(), found.stream.total()), (&Task::Retrieval, Some(1)));
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let tar = ("test/0.tar", "");
        for (files, why) in [
            (vec![tar], "classnames.txt"),
            (vec![tar, (CLASSES, "\n")], "names no class"),
            (vec![tar, (CLASSES, "a"), (TEMPLATES, "no place\n")], "no {c}"),
            (vec![tar, ("test/nshards.txt", "2")], "1.tar is missing"),
            (vec![tar, ("test/nshards.txt", "many")], "expected a number"),
            (vec![tar, (TYPE, "multilabel")], "multilabel"),
            (vec![(TYPE, "retrieval")], "holds no captions"),
            (vec![("captions.csv", "filepath,caption,split\na,x,train\n")], "split test"),
            (vec![("train/a/1.jpg", "")], "the split test, but it has train"),
            (vec![("readme", "")], "neither shards nor a folder"),
        ] {
            let error = format!("{:?}", open(&files).unwrap_err());
            assert!(error.contains(why), "{files:?}: {error}");
        }
    }
}
