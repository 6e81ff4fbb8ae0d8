//! Picture-text pairs as they stream out of other people's files, good ones and bad ones.
//!
//! A source hands over bytes and captions and does not decode; a bad pair is an ordinary
//! event with a name and a reason. How many of them are borne is decided once, here.

use crate::error::{Error, Result};

/// Bad pairs that an error names.
const NAMED: usize = 5;
/// Pairs below which the share of bad ones is not judged before the end.
const EARLY: usize = 1000;

/// One picture file with what is said about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pair {
    /// Name for messages, unique within a source.
    pub key: String,
    /// Split it belongs to, where the source says so.
    pub split: Option<String>,
    /// The picture's file, not yet decoded.
    pub image: Vec<u8>,
    /// At least one caption.
    pub captions: Vec<String>,
    /// The class's name, where there is one.
    pub class: Option<String>,
}

/// A pair that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Skipped {
    /// Its name.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What a source comes upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    Pair(Pair),
    Bad(Skipped),
}

/// A source of pairs in a fixed order. Memory: one pair at a time.
pub(super) trait Stream: std::fmt::Debug {
    /// Hands every pair to `visit`, and stops at its first error.
    fn each(&self, visit: &mut dyn FnMut(Found) -> Result<()>) -> Result<()>;
}

/// Counts pairs and bears bad ones up to a share of all.
#[derive(Debug)]
pub(super) struct Tolerance {
    share: f64,
    seen: usize,
    skipped: Vec<Skipped>,
}

impl Tolerance {
    /// Bears at most this share, 0 to 1.
    pub(super) fn new(share: f64) -> Self {
        Self { share, seen: 0, skipped: Vec::new() }
    }

    /// Counts a good pair.
    pub(super) fn accept(&mut self) {
        self.seen += 1;
    }

    /// Counts a bad pair; an error once there are too many.
    pub(super) fn reject(&mut self, bad: Skipped) -> Result<()> {
        self.seen += 1;
        self.skipped.push(bad);
        self.judge(self.seen.max(if self.share > 0.0 { EARLY } else { 0 }))
    }

    /// The bad pairs, if they are few enough.
    pub(super) fn finish(self) -> Result<Vec<Skipped>> {
        self.judge(self.seen)?;
        Ok(self.skipped)
    }

    fn judge(&self, of: usize) -> Result<()> {
        let bad = self.skipped.len();
        if bad as f64 <= self.share * of as f64 {
            return Ok(());
        }
        let named = self.skipped.iter().take(NAMED);
        let named: Vec<String> =
            named.map(|bad| format!("{}: {}", bad.key, bad.reason)).collect();
        let (seen, share, named) = (self.seen, self.share, named.join("; "));
        Err(Error::failed(format!(
            "{bad} of {seen} pairs are unusable, more than dataset.corrupt_share = {share} \
             allows: {named}"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bad(key: usize) -> Skipped {
        Skipped { key: format!("k{key}"), reason: "torn".to_owned() }
    }

    #[test]
    fn a_share_of_bad_pairs_is_borne_and_not_one_more() {
        let mut tolerance = Tolerance::new(0.1);
        for key in 0..3 {
            tolerance.reject(bad(key)).unwrap();
        }
        (0..27).for_each(|_| tolerance.accept());
        assert_eq!(tolerance.finish().unwrap().len(), 3);
        let mut tolerance = Tolerance::new(0.1);
        (0..3).for_each(|key| tolerance.reject(bad(key)).unwrap());
        (0..26).for_each(|_| tolerance.accept());
        let error = tolerance.finish().unwrap_err().to_string();
        assert!(error.contains("3 of 29") && error.contains("k0: torn"), "{error}");
    }

    #[test]
    fn without_tolerance_the_first_bad_pair_stops() {
        let mut tolerance = Tolerance::new(0.0);
        tolerance.accept();
        assert!(tolerance.reject(bad(7)).unwrap_err().to_string().contains("k7"));
    }
}
