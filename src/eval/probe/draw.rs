//! Which training pictures a probe is fitted on: k of every class, drawn several times.

use std::collections::BTreeMap;

use crate::num;
use crate::rng::{self, RngExt};

/// How many pictures more than the most shots a class must have, so that draws can differ.
const MARGIN: usize = 5;

/// How much is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Pictures of each class in a set.
    pub shots: usize,
    /// Sets.
    pub draws: usize,
    /// Most classes; 0 for all.
    pub classes: usize,
}

/// Classes with enough training pictures, and the drawn few-shot sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FewShot {
    classes: Vec<usize>,
    most: usize,
    draws: Vec<Vec<usize>>,
}

impl FewShot {
    /// Draws sets of `size` from pictures with these labels; one without a label takes no
    /// part. Each draw has its own random stream. A set of fewer shots holds the first pictures
    /// of each class, so that more shots always mean the same pictures and further ones.
    ///
    /// Where there are too many classes, those with the most pictures stay: a choice that all
    /// seeds share, so that they are tested on the same pictures.
    pub fn draw(labels: &[Option<usize>], size: Size, seed: u64) -> Self {
        let Size { shots: most, draws, classes } = size;
        let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, label) in labels.iter().enumerate() {
            if let Some(label) = *label {
                members.entry(label).or_default().push(index);
            }
        }
        members.retain(|_, pictures| pictures.len() >= Self::needed(most));

        if classes > 0 {
            let mut order: Vec<usize> = members.keys().copied().collect();
            order.sort_by_key(|label| std::cmp::Reverse(members[label].len()));
            for label in order.into_iter().skip(classes) {
                members.remove(&label);
            }
        }

        let draw = |draw: usize| {
            let mut stream = rng::stream(seed, &format!("eval/probe/draw/{draw}"));
            members.values().flat_map(|from| choose(from, most, &mut stream)).collect()
        };
        let draws = (0..draws).map(draw).collect();
        Self { classes: members.into_keys().collect(), most, draws }
    }

    /// The number of training pictures that a class needs to take part.
    pub fn needed(most: usize) -> usize {
        most + MARGIN
    }

    /// The labels that take part, ascending; a class number is a position here.
    pub fn classes(&self) -> &[usize] {
        &self.classes
    }

    /// Number of draws.
    pub fn draws(&self) -> usize {
        self.draws.len()
    }

    /// Every picture of any draw, ascending.
    pub fn pictures(&self) -> Vec<usize> {
        let mut all: Vec<usize> = self.draws.iter().flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The pictures of a draw at `shots` per class (at most what was drawn), and their classes.
    pub fn examples(&self, draw: usize, shots: usize) -> (Vec<usize>, Vec<usize>) {
        let per_class = self.draws[draw].chunks(self.most.max(1)).enumerate();
        per_class
            .flat_map(|(class, drawn)| drawn.iter().take(shots).map(move |&p| (p, class)))
            .unzip()
    }
}

/// The first `count` of a random permutation of `from`.
fn choose(from: &[usize], count: usize, stream: &mut rng::Stream) -> Vec<usize> {
    let mut left = from.to_vec();

    // What is left needs no order, so the last picture takes the place of the drawn one.
    (0..count.min(from.len()))
        .map(|_| {
            let pick = stream.random_range(0..num::index_u32(left.len()));
            left.swap_remove(num::widen(pick))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_balanced_distinct_nested_and_skip_small_classes() {
        // Class 7 has 15 pictures, class 3 has 14: one too few for 10 shots.
        let labels: Vec<Option<usize>> = (0..60)
            .map(|i| {
                Some(if i < 15 {
                    7
                } else if i < 29 {
                    3
                } else {
                    1
                })
            })
            .collect();
        let size = Size { shots: 10, draws: 4, classes: 0 };
        let few = FewShot::draw(&labels, size, 1);
        assert_eq!(few.classes(), [1, 7]);
        for draw in 0..4 {
            let (pictures, class) = few.examples(draw, 10);
            assert_eq!(class, [[0; 10], [1; 10]].concat());
            assert!(
                pictures.iter().zip(&class).all(|(&p, &c)| labels[p] == Some([1, 7][c]))
            );
            let mut distinct = pictures.clone();
            distinct.sort_unstable();
            distinct.dedup();
            assert_eq!(distinct.len(), 20);
            let (fewer, _) = few.examples(draw, 5);
            assert_eq!(fewer, [&pictures[..5], &pictures[10..15]].concat());
        }
        assert_ne!(few.examples(0, 10), few.examples(1, 10));
        assert_eq!(few, FewShot::draw(&labels, size, 1));
        assert_ne!(few, FewShot::draw(&labels, size, 2));
    }

    #[test]
    fn of_too_many_classes_those_with_the_most_pictures_stay() {
        let counts = [(4, 20), (2, 30), (9, 20), (5, 40)];
        let labels: Vec<Option<usize>> = counts
            .iter()
            .flat_map(|&(label, count)| std::iter::repeat_n(Some(label), count))
            .chain([None; 50])
            .collect();
        let of = |classes| {
            let size = Size { shots: 10, draws: 1, classes };
            FewShot::draw(&labels, size, 1).classes().to_vec()
        };
        assert_eq!(of(0), [2, 4, 5, 9], "what has no label is no class");
        assert_eq!(of(2), [2, 5]);
        assert_eq!(of(3), [2, 4, 5], "of equals, the one with the lower number");
        assert_eq!(of(9), of(0));
    }
}
