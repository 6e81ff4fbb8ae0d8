//! Retrieval between images and captions, where an image may have several captions.
//!
//! The names are `clip_benchmark`'s and say what is retrieved: `image_retrieval_recall@k` asks
//! with a text, `text_retrieval_recall@k` with an image. The headings of the paper's columns
//! are the other way round. "Recall" is the hit rate: the fraction of queries with at least
//! one right answer in the top k.

use super::super::ranking::{best_rank, rank_of, within};
use super::super::similarity;
use crate::error::{Error, Result};
use crate::linalg::Matrix;

/// The rank of the right answer of every query, both ways.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retrieval {
    /// Of each caption as a query: the rank of its image.
    text_query: Vec<u32>,
    /// Of each image as a query: the best rank of one of its captions.
    image_query: Vec<u32>,
    /// The captions of each image.
    captions: Vec<Vec<usize>>,
}

impl Retrieval {
    /// Ranks by the dot product of `images` `[n, P]` and `texts` `[m, P]`; `owner` `[m]` is
    /// the image of each caption. Every image needs a caption.
    pub fn new(images: &Matrix, texts: &Matrix, owner: &[usize]) -> Result<Self> {
        let captions = captions_of(owner, texts.rows(), images.rows())?;

        // Of an image with several captions, the best-ranked one counts.
        let text_query =
            similarity::map_rows(texts, images, |t, s| rank_of(s, owner[t]))?;
        let best =
            similarity::map_rows(images, texts, |i, s| best_rank(s, &captions[i]))?;
        let image_query = best.into_iter().flatten().collect();
        Ok(Self { text_query, image_query, captions })
    }

    /// Number of images.
    pub fn images(&self) -> usize {
        self.image_query.len()
    }

    /// Number of captions.
    pub fn texts(&self) -> usize {
        self.text_query.len()
    }

    /// `image_retrieval_recall@k`: the mean over all captions of "its image is in the top k".
    pub fn image_retrieval_recall(&self, k: usize) -> Result<f64> {
        check_k(k, self.images(), "images")?;
        Ok(self.image_retrieval_recall_over(k, 0..self.images()))
    }

    /// `text_retrieval_recall@k`: the mean over images of "a caption of it is in the top k".
    pub fn text_retrieval_recall(&self, k: usize) -> Result<f64> {
        check_k(k, self.texts(), "captions")?;
        Ok(self.text_retrieval_recall_over(k, 0..self.images()))
    }

    /// Hit rate of the captions of the images listed (at least one), repeats counted: the
    /// captions of an image stay together, being anything but independent.
    pub(in super::super) fn image_retrieval_recall_over(
        &self,
        k: usize,
        images: impl IntoIterator<Item = usize>,
    ) -> f64 {
        let (mut hits, mut n) = (0_u32, 0_u32);

        for image in images {
            for &caption in &self.captions[image] {
                hits += u32::from(within(self.text_query[caption], k));
                n += 1;
            }
        }
        f64::from(hits) / f64::from(n)
    }

    /// Hit rate of the images listed (at least one), repeats counted.
    pub(in super::super) fn text_retrieval_recall_over(
        &self,
        k: usize,
        images: impl IntoIterator<Item = usize>,
    ) -> f64 {
        let (mut hits, mut n) = (0_u32, 0_u32);
        for image in images {
            hits += u32::from(within(self.image_query[image], k));
            n += 1;
        }
        f64::from(hits) / f64::from(n)
    }
    /// What the captions of each image add to `image_retrieval_recall@k`: their hits over the
    /// mean number of captions, so that the mean over images is the recall.
    pub(in super::super) fn caption_hits(&self, k: usize) -> Vec<f64> {
        let mean = self.texts() as f64 / self.images() as f64;
        let hits = |captions: &Vec<usize>| -> f64 {
            let hit = |&caption: &usize| u32::from(within(self.text_query[caption], k));
            f64::from(captions.iter().map(hit).sum::<u32>()) / mean
        };
        self.captions.iter().map(hits).collect()
    }

    /// Whether one of each image's captions is among the first k: its mean over images is
    /// `text_retrieval_recall@k`.
    pub(in super::super) fn image_hits(&self, k: usize) -> Vec<f64> {
        let hit = |&rank: &u32| f64::from(u8::from(within(rank, k)));
        self.image_query.iter().map(hit).collect()
    }
}

/// Refuses a `k` that every query would pass, or none.
fn check_k(k: usize, candidates: usize, what: &str) -> Result<()> {
    if (1..=candidates).contains(&k) {
        return Ok(());
    }
    Err(Error::usage(format!(
        "evaluate.recall_at: recall at {k} among {candidates} {what} says nothing, expected \
         1 to {candidates}"
    )))
}

/// The captions of each image, which needs at least one.
fn captions_of(owner: &[usize], texts: usize, images: usize) -> Result<Vec<Vec<usize>>> {
    let found = owner.len();
    if found != texts {
        return Err(Error::failed(format!(
            "found {found} owners for {texts} captions, expected one per caption"
        )));
    }

    let mut captions = vec![Vec::new(); images];
    for (caption, &image) in owner.iter().enumerate() {
        let Some(list) = captions.get_mut(image) else {
            return Err(Error::failed(format!(
                "caption {caption} belongs to image {image}, expected a number below {images}"
            )));
        };
        list.push(caption);
    }

    if let Some(image) = captions.iter().position(Vec::is_empty) {
        return Err(Error::failed(format!("image {image} has no caption")));
    }
    if images == 0 {
        return Err(Error::failed("there are no images to retrieve"));
    }
    Ok(captions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng;
    use proptest::prelude::*;

    fn random(rows: usize, cols: usize, name: &str) -> Matrix {
        let mut matrix = Matrix::zeros(rows, cols);
        rng::fill_normal(&mut rng::stream(9, name), 1.0, matrix.data_mut());
        similarity::unit_rows(&matrix, name).unwrap()
    }

    #[test]
    fn perfect_embeddings_retrieve_everything() {
        let images = random(7, 6, "i");
        let owner = [0, 1, 2, 3, 4, 5, 6, 3, 3, 0];
        let rows: Vec<f32> = owner.iter().flat_map(|&i| images.row(i).to_vec()).collect();
        let texts = Matrix::new(10, 6, rows).unwrap();
        let found = Retrieval::new(&images, &texts, &owner).unwrap();
        for k in [1, 5, 7] {
            assert!((found.image_retrieval_recall(k).unwrap() - 1.0).abs() < 1e-12);
            assert!((found.text_retrieval_recall(k).unwrap() - 1.0).abs() < 1e-12);
        }
    }

    #[test]
    fn random_embeddings_are_at_chance() {
        let (n, k) = (600_usize, 10);
        let owner: Vec<usize> = (0..2 * n).map(|t| t / 2).collect();
        let found =
            Retrieval::new(&random(n, 48, "i"), &random(2 * n, 48, "t"), &owner).unwrap();
        let text_query = found.image_retrieval_recall(k).unwrap();
        let image_query = found.text_retrieval_recall(k).unwrap();
        // Chance is k/n for a text; an image has two captions among 2n. Five standard errors.
        let chance = k as f64 / n as f64;
        let bound = 5.0 * (chance / n as f64).sqrt();
        assert!((text_query - chance).abs() < bound, "{text_query}");
        assert!((image_query - chance).abs() < bound, "{image_query}");
    }

    proptest! {
        /// Embeddings with few distinct rows, so ties and duplicates abound, against counting.
        #[test]
        fn recalls_equal_the_slow_count(
            image_kinds in prop::collection::vec(0_usize..4, 2..12),
            text_kinds in prop::collection::vec(0_usize..4, 0..12),
            k in 1_usize..5,
        ) {
            let kinds = random(4, 3, "kinds");
            let n = image_kinds.len();
            let mut owner: Vec<usize> = (0..n).collect();
            owner.extend(text_kinds.iter().enumerate().map(|(t, kind)| (t + kind) % n));
            let mut text_of: Vec<usize> = image_kinds.iter().map(|kind| (kind + 1) % 4).collect();
            text_of.extend(&text_kinds);
            let rows = |kind: &[usize]| -> Matrix {
                let data = kind.iter().flat_map(|&c| kinds.row(c).to_vec()).collect();
                Matrix::new(kind.len(), 3, data).unwrap()
            };
            let (images, texts) = (rows(&image_kinds), rows(&text_of));
            let dot = |t: usize, i: usize| texts.row(t).iter().zip(images.row(i))
                .fold(0.0_f32, |sum, (a, b)| sum + a * b);
            let top = |count: usize, score: &dyn Fn(usize) -> f32| -> Vec<usize> {
                let mut order: Vec<usize> = (0..count).collect();
                order.sort_by(|&a, &b| score(b).partial_cmp(&score(a)).unwrap());
                order.truncate(k);
                order
            };
            let text_hits = (0..owner.len())
                .filter(|&t| top(n, &|i| dot(t, i)).contains(&owner[t])).count();
            let image_hits = (0..n)
                .filter(|&i| top(owner.len(), &|t| dot(t, i)).iter().any(|&t| owner[t] == i))
                .count();
            let found = Retrieval::new(&images, &texts, &owner).unwrap();
            let slow = text_hits as f64 / owner.len() as f64;
            let k_images = k.min(n);
            if k_images == k {
                prop_assert!((found.image_retrieval_recall(k).unwrap() - slow).abs() < 1e-12);
                let slow = image_hits as f64 / n as f64;
                prop_assert!((found.text_retrieval_recall(k).unwrap() - slow).abs() < 1e-12);
            } else {
                prop_assert!(found.image_retrieval_recall(k).is_err());
            }
        }
    }

    #[test]
    fn impossible_requests_are_refused_by_name() {
        let (images, texts) = (random(3, 4, "i"), random(4, 4, "t"));
        let found = Retrieval::new(&images, &texts, &[0, 1, 2, 2]).unwrap();
        let error = found.image_retrieval_recall(4).unwrap_err();
        assert!(error.message().contains("recall at 4 among 3 images"));
        assert!(found.text_retrieval_recall(4).is_ok());
        assert!(found.text_retrieval_recall(0).is_err());
        for (owner, says) in [
            (vec![0, 1, 1, 1], "image 2 has no caption"),
            (vec![0, 1, 2, 3], "caption 3 belongs to image 3, expected a number below 3"),
            (vec![0, 1, 2], "found 3 owners for 4 captions"),
        ] {
            let error = Retrieval::new(&images, &texts, &owner).unwrap_err();
            assert!(error.message().contains(says), "{error:?}");
        }
    }
}
