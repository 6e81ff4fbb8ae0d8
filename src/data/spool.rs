//! Pictures on their way from a source to the files of the data set: on disk, so that memory
//! grows with the captions only.
//!
//! A source may see a picture long before it is known which split it belongs to, how often its
//! weight repeats it, or which concepts there are. The file has no name: it ends with the
//! process, whatever happens to it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Context, Result};

/// Where encoded pictures wait.
#[derive(Debug)]
pub(super) struct Spool {
    file: Arc<File>,
    end: u64,
}

/// A picture that waits.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    file: Arc<File>,
    start: u64,
    len: usize,
}

impl Spool {
    /// An empty one on the file system of `folder`.
    pub(super) fn beside(folder: &Path) -> Result<Self> {
        let file = tempfile::tempfile_in(folder)
            .context(|| format!("making a temporary file in {}", folder.display()))?;
        Ok(Self { file: Arc::new(file), end: 0 })
    }

    /// Takes a picture.
    pub(super) fn store(&mut self, picture: &[u8]) -> Result<Stored> {
        let (file, start, len) = (Arc::clone(&self.file), self.end, picture.len());
        file.write_all_at(picture, start).context(|| "keeping a picture".to_owned())?;
        self.end += len as u64;
        Ok(Stored { file, start, len })
    }
}

impl Stored {
    /// The picture.
    pub(super) fn read(&self) -> Result<Vec<u8>> {
        let mut picture = vec![0; self.len];
        self.file
            .read_exact_at(&mut picture, self.start)
            .context(|| "reading a picture back".to_owned())?;
        Ok(picture)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_comes_back_in_any_order_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::beside(folder.path()).unwrap();
        let pictures: [&[u8]; 4] = [b"one", b"", b"three", b"4"];
        let stored = pictures.map(|picture| spool.store(picture).unwrap());
        drop(spool);
        for (stored, picture) in stored.iter().zip(pictures).rev() {
            assert_eq!(stored.clone().read().unwrap(), picture);
        }
        assert_eq!(folder.path().read_dir().unwrap().count(), 0);
        assert!(Spool::beside(&folder.path().join("none")).is_err());
    }
}
