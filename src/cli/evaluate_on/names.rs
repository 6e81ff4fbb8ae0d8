//! From the names people use to folders: sets, collections of them, and what they are called
//! in results.
//!
//! `CLIP_benchmark` calls a set `wds/vtab/caltech101`, its folder `wds_vtab-caltech101` and
//! its file of results without slashes; all three are understood.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Sets that are reported together, under `CLIP_benchmark`'s names. The first one's mean acc1
/// is the paper's "`ImageNet` Avg".
pub(super) const COLLECTIONS: [(&str, &[&str]); 3] = [
    (
        "imagenet-robustness",
        &[
            "imagenet1k",
            "imagenetv2",
            "imagenet_sketch",
            "imagenet-a",
            "imagenet-r",
            "objectnet",
        ],
    ),
    (
        "vtab-natural",
        &[
            "vtab/caltech101",
            "vtab/cifar100",
            "vtab/dtd",
            "vtab/flowers",
            "vtab/pets",
            "vtab/svhn",
            "sun397",
        ],
    ),
    ("retrieval", &["mscoco_captions", "flickr8k", "flickr30k"]),
];

/// A set whose folder was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// What results call it, such as `vtab/caltech101`.
    pub name: String,
    pub folder: PathBuf,
}

impl Found {
    /// The name without slashes, for files.
    pub(super) fn slug(&self) -> String {
        self.name.replace('/', "-")
    }
}

/// The sets that were asked for, and the members of collections that are not there.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Resolved {
    pub sets: Vec<Found>,
    pub missing: Vec<String>,
}

/// The members of a collection; `None` for the name of a set.
pub(super) fn collection(name: &str) -> Option<&'static [&'static str]> {
    let name = name.replace('_', "-");
    COLLECTIONS.iter().find(|(known, _)| *known == name).map(|(_, members)| *members)
}

/// Finds every set. A set asked for by its own name must be there. Members of a collection may
/// be missing as long as one of them is there, because few people have all of them.
pub(super) fn resolve(asked: &[String], root: Option<&Path>) -> Result<Resolved> {
    if let Some(root) = root.filter(|root| !root.is_dir()) {
        let (place, what) = (
            root.display(),
            if root.exists() { "is not a folder" } else { "does not exist" },
        );
        return Err(Error::usage(format!("--sets-root: {place} {what}")));
    }

    let mut resolved = Resolved::default();
    for name in asked {
        let Some(members) = collection(name) else {
            let found = set(name, root)?.ok_or_else(|| unknown(name, root))?;
            add(&mut resolved.sets, found)?;
            continue;
        };

        // Missing members are reported by name, so that a mean over the rest misleads nobody.
        let before = resolved.sets.len();
        for member in members {
            match set(member, root)? {
                Some(found) => add(&mut resolved.sets, found)?,
                None => resolved.missing.push((*member).to_owned()),
            }
        }

        if resolved.sets.len() == before {
            return Err(unknown(name, root));
        }
    }
    Ok(resolved)
}

/// Adds a set unless it is there already. Two folders of one name are refused, because they
/// would overwrite each other's results.
fn add(sets: &mut Vec<Found>, found: Found) -> Result<()> {
    match sets.iter().find(|other| other.slug() == found.slug()) {
        None => sets.push(found),
        Some(other) if other.folder == found.folder => {}
        Some(other) => {
            let (name, a, b) =
                (found.slug(), other.folder.display(), found.folder.display());
            return Err(Error::usage(format!("two sets are called {name}: {a} and {b}")));
        }
    }
    Ok(())
}

/// Finds one set, below `root` first and then as a path of its own.
fn set(name: &str, root: Option<&Path>) -> Result<Option<Found>> {
    let name = name.trim_end_matches('/');
    let name = name.strip_prefix("wds/").unwrap_or(name);
    if name.is_empty() {
        return Err(Error::usage("--set: a name is empty"));
    }

    // `CLIP_benchmark` writes its own prefix and dashes; people who unpack archives often do not.
    if let Some(root) = root {
        let clean = name.replace('/', "-");
        let folders = [format!("wds_{clean}"), clean, name.to_owned()];
        if let Some(folder) = folders.iter().map(|f| root.join(f)).find(|f| f.is_dir()) {
            return Ok(Some(Found { name: called(&folder, Some(name)), folder }));
        }
    }

    let folder = PathBuf::from(name);
    let found = folder.is_dir().then(|| Found { name: called(&folder, None), folder });
    Ok(found)
}

/// What results call a set: the name it was asked for by, or the name of its folder.
fn called(folder: &Path, name: Option<&str>) -> String {
    // A path says where a set lies on this machine, which is no name for a result.
    let own = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = match name {
        Some(name) if !Path::new(name).is_absolute() && !name.contains("..") => {
            name.to_owned()
        }
        _ => own,
    };

    let name = name.strip_prefix("wds_").unwrap_or(&name).to_owned();
    match name.strip_prefix("vtab-") {
        Some(rest) => format!("vtab/{rest}"),
        None => name,
    }
}

/// The error for a name that no folder was found for.
fn unknown(name: &str, root: Option<&Path>) -> Error {
    let known: Vec<&str> = COLLECTIONS.iter().map(|(name, _)| *name).collect();
    let known = known.join(", ");

    let place = match root {
        Some(root) => format!("below {}", root.display()),
        None => "here, and no --sets-root is given".to_owned(),
    };
    let what =
        if collection(name).is_some() { "no set of the collection" } else { "no set" };
    Error::usage(format!(
        "--set {name}: there is {what} {name} {place}; collections are {known}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_folders_and_collections_lead_to_the_same_sets() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path();
        for folder in ["wds_imagenet1k", "wds_vtab-dtd", "imagenet-a", "deep/er"] {
            std::fs::create_dir_all(root.join(folder)).unwrap();
        }
        let find = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
            resolve(&names, Some(root))
        };
        let names = |found: Resolved| -> Vec<(String, String)> {
            found.sets.into_iter().map(|f| (f.name.clone(), f.slug())).collect()
        };
        let dtd = vec![("vtab/dtd".to_owned(), "vtab-dtd".to_owned())];
        let path = root.join("wds_vtab-dtd").display().to_string();
        for name in
            ["vtab/dtd", "wds/vtab/dtd", "wds_vtab-dtd", "vtab-dtd", path.as_str()]
        {
            assert_eq!(names(find(&[name, "vtab/dtd"]).unwrap()), dtd, "{name}");
        }
        let found = find(&["imagenet_robustness"]).unwrap();
        assert_eq!(
            found.missing,
            ["imagenetv2", "imagenet_sketch", "imagenet-r", "objectnet"]
        );
        assert_eq!(found.sets.len(), 2);
        assert_eq!(find(&["deep/er"]).unwrap().sets[0].slug(), "deep-er");
        for (name, why) in [
            ("nothing", "no set nothing below"),
            ("retrieval", "no set of the collection retrieval"),
        ] {
            let error = find(&[name]).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("vtab-natural"), "{error}");
        }
        std::fs::create_dir_all(root.join("other/imagenet1k")).unwrap();
        let other = root.join("other/imagenet1k").display().to_string();
        let error = find(&["imagenet1k", &other]).unwrap_err().to_string();
        assert!(error.contains("two sets are called imagenet1k"), "{error}");
    }
}
