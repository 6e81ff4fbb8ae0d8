//! A few text queries with the pictures they find, for the report's picture sheet.
//!
//! The queries are drawn by the run's seed before any model is seen: nothing is picked for
//! its result, and every model of a seed gets the same queries.

use super::ranking::{rank_of, top_k};
use super::{Bundle, Encoder, embed, similarity};
use crate::error::Result;
use crate::rng::{self, SliceRandom};

/// Pictures shown for a query.
const SHOWN: usize = 5;

/// One text query and its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// The caption asked with: the first of its picture.
    pub text: String,
    /// Sample number of the picture it belongs to.
    pub sample: u32,
    /// Rank of that picture, 0 the best.
    pub own_rank: u32,
    /// The five best pictures, best first.
    pub retrieved: Vec<Retrieved>,
}

/// A retrieved picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Retrieved {
    /// Its sample number.
    pub sample: u32,
    /// Its cosine with the query.
    pub score: f32,
}

/// `count` text queries (fewer if the retrieval split is smaller), each for another picture.
pub fn example_retrievals(
    encoder: &mut dyn Encoder,
    bundle: &Bundle<'_>,
    count: usize,
    batch: usize,
    seed: u64,
) -> Result<Vec<Example>> {
    let split = bundle.test(&bundle.retrieval)?;
    let mut order: Vec<usize> = (0..split.len()).collect();
    order.shuffle(&mut rng::stream(seed, "eval/examples"));
    order.truncate(count);

    let images = embed::split(encoder, split, batch)?;
    let (texts, owner) =
        embed::captions(encoder, &bundle.vocabulary, split, &order, batch)?;

    // Only the first caption of each picture is asked with: its owner appears there for the
    // first time.
    let first: Vec<usize> =
        (0..order.len()).map(|i| owner.partition_point(|&o| o < i)).collect();
    let queries = texts.select(&first)?;

    let captions = split.captions.as_slice();
    similarity::map_rows(&queries, &images.embeddings, |query, scores| {
        let picture = order[query];
        let shown = top_k(scores, SHOWN).into_iter();
        Example {
            text: captions[picture][0].clone(),
            sample: images.sample[picture],
            own_rank: rank_of(scores, picture),
            retrieved: shown
                .map(|i| Retrieved { sample: images.sample[i], score: scores[i] })
                .collect(),
        }
    })
}
