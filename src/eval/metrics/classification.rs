//! Single-label classification: accuracy at 1 and 5, mean per-class recall.

use super::super::ranking::{rank_of, within};
use super::super::similarity;
use crate::error::{Error, Result};
use crate::linalg::Matrix;

/// The fewest classes for which accuracy at 5 says anything; below, it is absent.
pub const CLASSES_FOR_TOP_5: usize = 5;

/// Where a classifier ranked each image's own class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Classified {
    rank: Vec<u32>,
    class: Vec<usize>,
    classes: usize,
}

/// The three metrics of a set of images.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Accuracy {
    /// Fraction of the images whose own class ranks first.
    pub acc1: f64,
    /// Fraction of the images whose own class is among the first five; `None` below five
    /// classes.
    pub acc5: Option<f64>,
    /// Fraction of a class's images that rank it first, mean over the classes that occur.
    pub mean_per_class_recall: f64,
}

impl Classified {
    /// Ranks classes by the dot product of `images` [n, P] and `classifier` [C, P]; `class`
    /// is the own class of each image.
    pub fn new(images: &Matrix, classifier: &Matrix, class: &[usize]) -> Result<Self> {
        let (n, classes) = (images.rows(), classifier.rows());
        if class.len() != n {
            let found = class.len();
            return Err(Error::failed(format!(
                "found {found} labels for {n} images, expected one per image"
            )));
        }

        if n == 0 {
            return Err(Error::failed("there are no images to classify"));
        }
        if let Some(index) = class.iter().position(|&c| c >= classes) {
            let found = class[index];
            return Err(Error::failed(format!(
                "image {index} has class {found}, expected a number below {classes}"
            )));
        }

        // The rank of the own class gives accuracy at any k without keeping the scores.
        let rank = similarity::map_rows(images, classifier, |i, s| rank_of(s, class[i]))?;
        Ok(Self { rank, class: class.to_vec(), classes })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.rank.len()
    }

    /// Never true: an empty set is refused.
    pub fn is_empty(&self) -> bool {
        self.rank.is_empty()
    }

    /// Whether image `index` is ranked right at 1.
    pub fn hit(&self, index: usize) -> bool {
        self.rank[index] == 0
    }

    /// The metrics of all images.
    pub fn accuracy(&self) -> Accuracy {
        self.accuracy_over(0..self.len())
    }

    /// The metrics of the images listed, repeats counted; at least one.
    pub fn accuracy_over(&self, indices: impl IntoIterator<Item = usize>) -> Accuracy {
        // Images and hits of each class. A bootstrap resample lists images more than once.
        let mut seen = vec![(0_u32, 0_u32); self.classes];
        let (mut n, mut first, mut five) = (0_u32, 0_u32, 0_u32);
        for index in indices {
            let rank = self.rank[index];
            let (images, hits) = &mut seen[self.class[index]];
            let hit = u32::from(rank == 0);
            *images += 1;
            *hits += hit;
            n += 1;
            first += hit;
            five += u32::from(within(rank, CLASSES_FOR_TOP_5));
        }

        // Classes without an image have no recall and do not count.
        let occurring = seen.iter().filter(|(images, _)| *images > 0);
        let (classes, recall) =
            occurring.fold((0_u32, 0.0), |(c, sum), (images, hits)| {
                (c + 1, sum + f64::from(*hits) / f64::from(*images))
            });

        let fraction = |count: u32| f64::from(count) / f64::from(n);
        Accuracy {
            acc1: fraction(first),
            acc5: (self.classes >= CLASSES_FOR_TOP_5).then(|| fraction(five)),
            mean_per_class_recall: recall / f64::from(classes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::{self, SliceRandom};

    fn random(rows: usize, cols: usize, name: &str) -> Matrix {
        let mut matrix = Matrix::zeros(rows, cols);
        rng::fill_normal(&mut rng::stream(5, name), 1.0, matrix.data_mut());
        similarity::unit_rows(&matrix, name).unwrap()
    }

    #[test]
    fn perfect_embeddings_are_all_right() {
        let classifier = random(12, 16, "c");
        let class: Vec<usize> = (0..36).map(|i| i % 12).collect();
        let rows: Vec<f32> =
            class.iter().flat_map(|&c| classifier.row(c).to_vec()).collect();
        let images = Matrix::new(36, 16, rows).unwrap();
        let found = Classified::new(&images, &classifier, &class).unwrap().accuracy();
        let one = Accuracy { acc1: 1.0, acc5: Some(1.0), mean_per_class_recall: 1.0 };
        assert_eq!(found, one);
    }

    #[test]
    fn random_embeddings_are_at_chance() {
        let (n, classes) = (4000_usize, 20_usize);
        let class: Vec<usize> = (0..n).map(|i| i % classes).collect();
        let images = random(n, 32, "i");
        let found = Classified::new(&images, &random(classes, 32, "c"), &class).unwrap();
        let found = found.accuracy();
        // Four standard errors of a fraction.
        let bound = |p: f64| 4.0 * (p * (1.0 - p) / n as f64).sqrt();
        assert!((found.acc1 - 0.05).abs() < bound(0.05), "{found:?}");
        assert!((found.acc5.unwrap() - 0.25).abs() < bound(0.25), "{found:?}");
    }

    #[test]
    fn the_order_of_images_and_of_classes_does_not_matter() {
        let (n, classes) = (90, 11);
        let class: Vec<usize> = (0..n).map(|i| i * i % classes).collect();
        let (images, classifier) = (random(n, 8, "i"), random(classes, 8, "c"));
        let mut order: Vec<usize> = (0..n).collect();
        let mut renamed: Vec<usize> = (0..classes).collect();
        order.shuffle(&mut rng::stream(1, "order"));
        renamed.shuffle(&mut rng::stream(1, "renamed"));
        let mut moved_images = Matrix::zeros(n, 8);
        for (to, &from) in order.iter().enumerate() {
            moved_images.row_mut(to).copy_from_slice(images.row(from));
        }
        let mut moved_classes = Matrix::zeros(classes, 8);
        for (from, &to) in renamed.iter().enumerate() {
            moved_classes.row_mut(to).copy_from_slice(classifier.row(from));
        }
        let moved: Vec<usize> = order.iter().map(|&i| renamed[class[i]]).collect();
        let a = Classified::new(&images, &classifier, &class).unwrap().accuracy();
        let b =
            Classified::new(&moved_images, &moved_classes, &moved).unwrap().accuracy();
        assert_eq!((a.acc1, a.acc5), (b.acc1, b.acc5));
        assert!((a.mean_per_class_recall - b.mean_per_class_recall).abs() < 1e-12);
    }

    #[test]
    fn labels_that_do_not_fit_are_refused() {
        let (images, classifier) = (random(3, 4, "i"), random(2, 4, "c"));
        assert!(Classified::new(&images, &classifier, &[0, 1]).is_err());
        assert!(Classified::new(&images, &random(2, 5, "c"), &[0, 1, 1]).is_err());
        assert!(Classified::new(&Matrix::zeros(0, 4), &classifier, &[]).is_err());
        let error = Classified::new(&images, &classifier, &[0, 1, 2]).unwrap_err();
        assert!(
            error.message().contains("image 2 has class 2, expected a number below 2")
        );
    }
}
