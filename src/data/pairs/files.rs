//! Which files a configuration names: a folder's, or a list as `open_clip` writes it.
//!
//! ```text
//! shards/{00000..00099}.tar              zero-padded range
//! {train,val}/{0..3}.tar                 list, and both together
//! cc3m/{000..331}.tar::sbu/{00..09}.tar  several parts, each with its own weight
//! ```
//!
//! Within a part files are read in the order of their names, so that a result follows from the
//! names and contents that stand in its key and not from how the list was written.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::Counts;
use crate::error::{Context, Error, Result};

/// Most files a list may mean: a range is short to write.
const MOST: usize = 1 << 20;

/// One file to read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Input {
    /// Its name below the folder that all files of its part share; with several parts the
    /// part's number stands before it.
    pub name: String,
    pub path: PathBuf,
    /// Split that its name or folder says.
    pub split: Option<String>,
    /// Weight of its part.
    pub weight: f64,
}

/// The files of a list; every one must be there. `weights` has one entry a part or none.
pub(super) fn listed(list: &str, weights: &[f64]) -> Result<Vec<Input>> {
    let parts: Vec<&str> = list.split("::").collect();
    if !weights.is_empty() && weights.len() != parts.len() {
        let (found, expected) = (weights.len(), parts.len());
        return Err(Error::usage(format!(
            "dataset.weights: found {found}, expected one for each of the {expected} parts \
             of dataset.file"
        )));
    }

    let mut inputs = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        let weight = weights.get(index).copied().unwrap_or(1.0);
        for (name, path) in named(expand(part)?)? {
            let split = split_of(&name);

            // Parts may hold files of one name; the number of the part keeps them apart.
            let name = if parts.len() > 1 { format!("{index}/{name}") } else { name };
            inputs.push(Input { name, path, split, weight });
        }
    }
    Ok(inputs)
}

/// Files of a folder, with a count of what else lies there.
#[derive(Debug)]
pub(super) struct Inputs {
    pub inputs: Vec<Input>,
    pub left_out: Counts,
}

/// `*.<extension>` and `SPLIT/*.<extension>` of a folder, for any of the extensions.
pub(super) fn in_folder(folder: &Path, extensions: &[&str]) -> Result<Inputs> {
    let (mut paths, mut left_out) = (Vec::new(), Counts::new());
    let is_one = |path: &PathBuf| {
        let name = file_name(path).to_lowercase();
        extensions.iter().any(|extension| name.ends_with(&format!(".{extension}")))
    };

    let listing = Listing::of(folder)?;
    paths.extend(listing.files_where(is_one, &mut left_out));
    for inner in &listing.folders {
        if is_plain_split(&file_name(inner)) {
            let listing = Listing::of(inner)?;
            paths.extend(listing.files_where(is_one, &mut left_out));
            listing.folders.iter().for_each(|_| count(&mut left_out, FOLDERS));
        } else {
            count(&mut left_out, FOLDERS);
        }
    }

    if paths.is_empty() {
        let (place, there) = (folder.display(), told(&left_out));
        let known = |start: &str| -> Vec<String> {
            extensions.iter().map(|extension| format!("{start}*.{extension}")).collect()
        };
        let (here, inside) = (known("").join(", "), known("SPLIT/").join(", "));
        return Err(Error::failed(format!(
            "{place} holds no file to read: expected {here} or {inside}; there are {there}"
        )));
    }

    let input = |path: PathBuf| {
        let name = path.strip_prefix(folder).unwrap_or(&path);
        let name = name.to_string_lossy().into_owned();
        Input { split: split_of(&name), name, path, weight: 1.0 }
    };
    Ok(Inputs { inputs: paths.into_iter().map(input).collect(), left_out })
}

/// Kind under which folders are counted that are not looked into.
const FOLDERS: &str = "folders";

/// Files that say something about the others, and are no pairs left out.
const COMPANIONS: [&str; 5] = [
    "classnames.txt",
    "zeroshot_classification_templates.txt",
    "dataset_type.txt",
    "nshards.txt",
    "README.md",
];

/// Counts one more of a kind.
pub(super) fn count(counts: &mut Counts, kind: &str) {
    *counts.entry(kind.to_owned()).or_insert(0) += 1;
}

/// Counts as a person reads them: `3 .gif, 1 folders`.
pub(super) fn told(counts: &Counts) -> String {
    if counts.is_empty() {
        return "none".to_owned();
    }
    let each = counts.iter().map(|(kind, count)| format!("{count} {kind}"));
    each.collect::<Vec<_>>().join(", ")
}

/// The entries of a folder in their order. A link counts as what it leads to.
#[derive(Debug, Default)]
pub(super) struct Listing {
    pub files: Vec<PathBuf>,
    pub folders: Vec<PathBuf>,
    hidden: usize,
}

impl Listing {
    /// Lists a folder; entries whose names begin with a dot are only counted.
    pub(super) fn of(folder: &Path) -> Result<Self> {
        require_folder(folder)?;
        let unreadable = || format!("listing {}", folder.display());

        let mut listing = Self::default();
        for entry in std::fs::read_dir(folder).context(unreadable)? {
            let path = entry.context(unreadable)?.path();
            if file_name(&path).starts_with('.') {
                listing.hidden += 1;
            } else if path.is_dir() {
                listing.folders.push(path);
            } else {
                listing.files.push(path);
            }
        }

        // The order of a folder's entries is the file system's, and must not reach a
        // result.
        sort(&mut listing.files);
        sort(&mut listing.folders);
        Ok(listing)
    }

    /// The files that are wanted; the others are counted by their extensions.
    pub(super) fn files_where(
        &self,
        is_wanted: impl Fn(&PathBuf) -> bool,
        left_out: &mut Counts,
    ) -> Vec<PathBuf> {
        (0..self.hidden).for_each(|_| count(left_out, "hidden"));

        let (wanted, others): (Vec<_>, Vec<_>) =
            self.files.iter().cloned().partition(is_wanted);
        for path in others {
            if COMPANIONS.contains(&file_name(&path).as_str()) {
                continue;
            }

            match path.extension() {
                None => count(left_out, "files without extension"),
                Some(extension) => {
                    let extension = extension.to_string_lossy().to_lowercase();
                    count(left_out, &format!(".{extension}"));
                }
            }
        }
        wanted
    }
}

/// Refuses a path that is not a folder, and says whether it is there at all.
pub(super) fn require_folder(folder: &Path) -> Result<()> {
    let place = folder.display();
    match std::fs::metadata(folder) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Error::failed(format!("{place} is a file, expected a folder"))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            Err(Error::failed(format!("the folder {place} does not exist")))
        }
        Err(e) => Err(e).context(|| format!("looking for the folder {place}")),
    }
}

/// Whether a word can name a split: lower-case letters, digits and dashes.
pub(super) fn is_plain_split(split: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !split.is_empty() && split.bytes().all(plain)
}

/// The last part of a path.
pub(super) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Sorts by folder and then by name, byte by byte, as torchvision does. Where every name in a
/// folder is a number, numbers count as numbers (`2.tar` before `10.tar`).
fn sort(paths: &mut [PathBuf]) {
    let folder = |path: &PathBuf| path.parent().map(Path::to_owned);
    let number = |path: &PathBuf| stem(path).parse::<u64>().ok();

    let named: BTreeSet<Option<PathBuf>> =
        paths.iter().filter(|path| number(path).is_none()).map(folder).collect();

    paths.sort_by_key(|path| {
        let place = folder(path);
        let number = number(path).filter(|_| !named.contains(&place));
        (place, number, path.clone().into_os_string())
    });
}

/// The name of a file up to its extension; `0.tar.gz` has two.
fn stem(path: &Path) -> String {
    let name = file_name(path);
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    Path::new(name).file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// The split that a name says: `train-00000-of-00002.parquet`, `test.parquet`, or the folder
/// in `test/0.tar`. A folder `data` says nothing.
fn split_of(name: &str) -> Option<String> {
    let path = Path::new(name);
    let stem = stem(path);
    let stem = stem.as_str();
    let words: Vec<&str> = stem.rsplitn(4, '-').collect();

    // `train-00000-of-00004`, as Hugging Face names its files.
    let number = |word: &str| word.bytes().all(|b| b.is_ascii_digit());
    if let [of, "of", index, split] = words[..]
        && number(of)
        && number(index)
        && is_plain_split(split)
    {
        return Some(split.to_owned());
    }

    if ["train", "training", "validation", "valid", "val", "dev", "test"].contains(&stem)
    {
        return Some(stem.to_owned());
    }

    let folder = path.components().next()?.as_os_str().to_str()?;
    let inside = path.components().count() > 1 && folder != "data";
    (inside && is_plain_split(folder)).then(|| folder.to_owned())
}

/// Paths in order, with their names below the folder they share.
fn named(paths: Vec<String>) -> Result<Vec<(String, PathBuf)>> {
    let mut paths: Vec<PathBuf> = paths.into_iter().map(PathBuf::from).collect();
    sort(&mut paths);

    let mut seen = BTreeSet::new();
    for path in &paths {
        let place = path.display();
        if !path.is_file() {
            return Err(Error::failed(format!(
                "dataset.file names {place}, but there is no such file"
            )));
        }
        if !seen.insert(path) {
            return Err(Error::usage(format!("dataset.file names {place} twice")));
        }
    }

    // Names are paths below the folder that all files share: moving that folder changes
    // no name.
    let mut shared = paths[0].parent().unwrap_or_else(|| Path::new(""));
    while !paths.iter().all(|path| path.starts_with(shared)) {
        shared = shared.parent().unwrap_or_else(|| Path::new(""));
    }

    let name = |path: &PathBuf| {
        path.strip_prefix(shared).unwrap_or(path).to_string_lossy().into_owned()
    };
    Ok(paths.iter().map(|path| (name(path), path.clone())).collect())
}

/// Opens the braces of one part, the first group outermost.
fn expand(part: &str) -> Result<Vec<String>> {
    let wrong = |why: &str| Error::usage(format!("dataset.file: {part:?}: {why}"));
    if part.is_empty() {
        return Err(wrong("a part is empty"));
    }
    if part.starts_with("pipe:") || part.contains("://") {
        return Err(wrong("only local files are read; fetch them first"));
    }

    let mut done = vec![String::new()];
    let mut rest = part;
    while let Some((before, after)) = rest.split_once('{') {
        let Some((group, behind)) = after.split_once('}') else {
            return Err(wrong("a brace is not closed"));
        };

        let choices = choices(group).map_err(|why| wrong(&why))?;
        if done.len().saturating_mul(choices.len()) > MOST {
            return Err(wrong(&format!("more than {MOST} files")));
        }

        let longer = |start: &String| -> Vec<String> {
            choices.iter().map(|choice| format!("{start}{before}{choice}")).collect()
        };
        done = done.iter().flat_map(longer).collect();
        rest = behind;
    }

    if rest.contains('}') {
        return Err(wrong("a brace is not opened"));
    }
    Ok(done.into_iter().map(|start| start + rest).collect())
}

/// What stands between two braces: `000..331` or `a,b,c`.
fn choices(group: &str) -> std::result::Result<Vec<String>, String> {
    if group.contains('{') {
        return Err("braces within braces are not understood".to_owned());
    }
    let Some((first, last)) = group.split_once("..") else {
        return Ok(group.split(',').map(str::to_owned).collect());
    };

    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u64>().ok()).flatten()
    };

    let (Some(from), Some(to)) = (number(first), number(last)) else {
        return Err(format!("{{{group}}} is not a range of numbers"));
    };
    if from > to || to - from >= MOST as u64 {
        return Err(format!("{{{group}}} is not a range of 1 to {MOST} numbers"));
    }

    // As the shell does: the width of the first number is kept where it says that it is
    // padded.
    let padded = first.len() > 1 && first.starts_with('0') || first.len() == last.len();
    let width = if padded { first.len() } else { 0 };
    Ok((from..=to).map(|n| format!("{n:0width$}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_open_as_a_shell_opens_them() {
        let open = |part: &str| expand(part).unwrap();
        assert_eq!(
            open("a/{08..11}.tar"),
            ["a/08.tar", "a/09.tar", "a/10.tar", "a/11.tar"]
        );
        assert_eq!(open("{9..11}"), ["9", "10", "11"]);
        assert_eq!(open("{x,y}-{0..1}"), ["x-0", "x-1", "y-0", "y-1"]);
        assert_eq!(open("plain.tar"), ["plain.tar"]);
    }

    #[test]
    fn what_is_no_list_is_refused_before_memory_is_taken() {
        for (part, why) in [
            ("", "empty"),
            ("a{0..9", "not closed"),
            ("a}b", "not opened"),
            ("{3..1}", "not a range"),
            ("{a..c}", "not a range of numbers"),
            ("{0..99999999999}", "not a range of 1"),
            ("{0..9999}{0..9999}", "more than"),
            ("{a,{b,c}}", "within braces"),
            ("pipe:aws s3 cp x -", "local files"),
            ("s3://bucket/{0..9}.tar", "local files"),
        ] {
            let error = expand(part).unwrap_err().to_string();
            assert!(error.contains(why), "{part}: {error}");
        }
    }

    #[test]
    fn names_do_not_depend_on_the_place_and_say_the_split() {
        let base = tempfile::tempdir().unwrap();
        let place = base.path().display();
        for file in ["a/train/0.tar", "a/train/10.tar", "a/train/2.tar", "a/test/0.tar"] {
            let path = base.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let list =
            format!("{place}/a/train/{{0,10,2}}.tar::{place}/a/{{train,test}}/0.tar");
        let inputs = listed(&list, &[2.0, 0.5]).unwrap();
        let found: Vec<_> = inputs
            .iter()
            .map(|i| (i.name.as_str(), i.split.as_deref(), i.weight))
            .collect();
        assert_eq!(
            found,
            [
                ("0/0.tar", None, 2.0),
                ("0/2.tar", None, 2.0),
                ("0/10.tar", None, 2.0),
                ("1/test/0.tar", Some("test"), 0.5),
                ("1/train/0.tar", Some("train"), 0.5),
            ]
        );
        for (list, weights, why) in [
            (format!("{place}/none.tar"), vec![], "no such file"),
            (format!("{place}/a/test/{{0,0}}.tar"), vec![], "twice"),
            (format!("{place}/a/test/0.tar"), vec![1.0, 2.0], "found 2"),
        ] {
            let error = listed(&list, &weights).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        let names = |folder: &str| -> Vec<String> {
            let found = in_folder(&base.path().join(folder), &["tar"]).unwrap();
            found.inputs.into_iter().map(|i| i.name).collect()
        };
        assert_eq!(
            names("a"),
            ["test/0.tar", "train/0.tar", "train/2.tar", "train/10.tar"]
        );
    }

    #[test]
    fn numbers_order_a_folder_only_where_all_names_are_numbers() {
        let order = |names: &[&str]| -> Vec<String> {
            let base = tempfile::tempdir().unwrap();
            for name in names {
                std::fs::create_dir(base.path().join(name)).unwrap();
            }
            let listing = Listing::of(base.path()).unwrap();
            listing.folders.iter().map(|path| file_name(path)).collect()
        };
        assert_eq!(order(&["10", "9", "1", "2"]), ["1", "2", "9", "10"]);
        assert_eq!(
            order(&["10", "unknown", "9", "1", "2"]),
            ["1", "10", "2", "9", "unknown"]
        );
        assert_eq!(order(&["b", "B", "a-1", "a"]), ["B", "a", "a-1", "b"]);
        assert_eq!(order(&["01", "1", "0"]), ["0", "01", "1"]);
    }

    #[test]
    fn what_lies_in_a_folder_and_is_not_read_is_counted() {
        let base = tempfile::tempdir().unwrap();
        let files = [
            "0.tar",
            "1.TAR",
            "2.tar.gz",
            "a.zip",
            "b.ZIP",
            "c",
            "classnames.txt",
            ".x",
            "test/0.tgz",
            "test/x.txt",
            "Train/0.tar",
            "test/more/0.tar",
        ];
        for file in files {
            let path = base.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let found = in_folder(base.path(), &["tar", "tar.gz", "tgz"]).unwrap();
        let names: Vec<_> =
            found.inputs.iter().map(|input| input.name.as_str()).collect();
        assert_eq!(names, ["0.tar", "1.TAR", "2.tar.gz", "test/0.tgz"]);
        assert_eq!(
            told(&found.left_out),
            "1 .txt, 2 .zip, 1 files without extension, 2 folders, 1 hidden"
        );
        let error = in_folder(base.path(), &["parquet"]).unwrap_err().to_string();
        assert!(
            error.contains("expected *.parquet") && error.contains("2 .zip"),
            "{error}"
        );
        let error = Listing::of(&base.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("does not exist"), "{error}");
        let error = Listing::of(&base.path().join("c")).unwrap_err().to_string();
        assert!(error.contains("expected a folder"), "{error}");
    }

    #[test]
    fn file_names_of_hugging_face_say_their_split() {
        let split = |name: &str| split_of(name);
        assert_eq!(split("train-00000-of-00002.parquet").as_deref(), Some("train"));
        assert_eq!(split("data/test-00000-of-00001-ab12.parquet"), None);
        assert_eq!(split("data/test-00000-of-00001.parquet").as_deref(), Some("test"));
        assert_eq!(split("data/0001.parquet"), None);
        assert_eq!(split("validation.parquet").as_deref(), Some("validation"));
        assert_eq!(split("heldout/0.tar").as_deref(), Some("heldout"));
        assert_eq!(split("0.tar"), None);
    }
}
