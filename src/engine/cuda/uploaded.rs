//! What the towers read of a micro-batch, on its way to the card: pictures as rows of patches,
//! captions as packed rows of token ids.
//!
//! Pictures travel on a stream of their own, because they are most of the bytes; what belongs
//! to captions is small and goes with the kernels.

use std::collections::BTreeMap;

use super::device::{Buffer, Device, Incoming, Kind, Uploads};
use super::pass::{Batch, ints};
use crate::error::{Error, Result};
use crate::image::Pixels;
use crate::model::{ClipConfig, Tower};
use crate::num::widen;

/// One tower's rows over a micro-batch, uploaded.
#[derive(Debug)]
pub(super) struct Uploaded {
    pub(super) batch: Batch,
    pub(super) input: Input,
}

/// What the first kernel of a tower reads.
#[derive(Debug)]
pub(super) enum Input {
    Pictures(Box<Pictures>),
    Captions(Box<Captions>),
}

/// Pixels, and where they are levels the lines that normalize them.
#[derive(Debug)]
pub(super) struct Pictures {
    pub(super) pixels: Incoming,
    pub(super) lines: Option<Buffer>,
}

/// Token ids by row, their positions, and the rows sorted by id: the order in which the
/// token embedding's gradient is summed.
#[derive(Debug)]
pub(super) struct Captions {
    pub(super) ids: Buffer,
    pub(super) places: Buffer,
    pub(super) unique: Buffer,
    pub(super) firsts: Buffer,
    pub(super) rows: Buffer,
}

impl Uploaded {
    /// Starts the upload of pictures [n, 3, S, S].
    pub(super) fn pictures(
        device: &Device,
        config: &ClipConfig,
        pixels: Pixels<'_>,
        taught: Option<f64>,
        uploads: &mut Uploads,
    ) -> Result<Self> {
        let size = sizes(config).0;
        if !pixels.len().is_multiple_of(size) {
            return Err(Error::failed(format!(
                "a batch of pictures has {} values, expected a multiple of {size}",
                pixels.len()
            )));
        }

        let (pixels, samples) = match pixels {
            Pixels::Values(values) => {
                let pixels = uploads.send(device, Kind::F32, values)?;
                (Pictures { pixels, lines: None }, values.len() / size)
            }
            Pixels::Levels(levels, normalise) => {
                let lines = [0, 1, 2].map(|c| normalise.line(c));
                let lines: Vec<f32> = lines.iter().flat_map(|&(a, b)| [a, b]).collect();
                let lines = Some(device.upload(Kind::F32, &lines)?);
                let pixels = uploads.send(device, Kind::U8, levels)?;
                (Pictures { pixels, lines }, levels.len() / size)
            }
        };

        // Pictures have one length; their first row, the class token's, pools.
        let tokens = config.tower(Tower::Vision).tokens;
        let starts: Vec<usize> = (0..=samples).map(|s| s * tokens).collect();
        let counted = vec![true; samples * tokens];
        let pooled = starts[..samples].to_vec();
        let batch = Batch::new(device, (starts, counted), &pooled, taught)?;
        Ok(Self { batch, input: Input::Pictures(Box::new(pixels)) })
    }

    /// Uploads captions [n, T]; rows behind the end of text are left out, because they
    /// cannot reach the embedding.
    pub(super) fn captions(
        device: &Device,
        config: &ClipConfig,
        ids: &[u32],
        taught: Option<f64>,
    ) -> Result<Self> {
        let (context, vocabulary) = (sizes(config).1, config.text.vocabulary);
        if !ids.len().is_multiple_of(context) {
            return Err(Error::failed(format!(
                "a batch of captions has {} ids, expected a multiple of {context}",
                ids.len()
            )));
        }

        // The kernel looks ids up unchecked: a wrong one is refused here.
        if let Some(id) = ids.iter().find(|id| widen(**id) >= vocabulary) {
            return Err(Error::failed(format!(
                "a caption holds the id {id}, expected ids below {vocabulary}"
            )));
        }

        let Packed { ids, places, starts, counted, pooled } = pack(ids, context);
        let sorted = Sorted::new(&ids);
        let upload = |values: &[usize]| device.upload(Kind::I32, &ints(values));
        let captions = Captions {
            ids: upload(&ids)?,
            places: upload(&places)?,
            unique: upload(&sorted.unique)?,
            firsts: upload(&sorted.firsts)?,
            rows: upload(&sorted.rows)?,
        };
        let batch = Batch::new(device, (starts, counted), &pooled, taught)?;
        Ok(Self { batch, input: Input::Captions(Box::new(captions)) })
    }

    /// Gives back what the next micro-batch can use, when all work that reads these rows has
    /// been launched.
    pub(super) fn release(self, device: &Device, uploads: &mut Uploads) -> Result<()> {
        match self.input {
            Input::Pictures(own) => uploads.give_back(device, own.pixels),
            Input::Captions(_) => Ok(()),
        }
    }
}

/// Values of one picture and of one caption.
pub(super) fn sizes(config: &ClipConfig) -> (usize, usize) {
    (3 * config.vision.image_size.pow(2), config.text.context)
}

/// Captions in packed rows: each owns those from its start token to its end of text.
struct Packed {
    /// Id and position of each row.
    ids: Vec<usize>,
    places: Vec<usize>,
    /// The first row of each caption, and the end.
    starts: Vec<usize>,
    /// Whether each row counts.
    counted: Vec<bool>,
    /// The row that makes each caption's embedding.
    pooled: Vec<usize>,
}

fn pack(ids: &[u32], context: usize) -> Packed {
    let (mut starts, mut counted, mut pooled) = (vec![0], Vec::new(), Vec::new());
    let (mut kept, mut places) = (Vec::new(), Vec::new());
    for caption in ids.chunks_exact(context) {
        let end = end_of_text(caption);
        pooled.push(kept.len() + end);
        for (place, &id) in caption[..=end].iter().enumerate() {
            kept.push(widen(id));
            places.push(place);
            // The start token is the same in every caption: it does not count.
            counted.push(place > 0);
        }
        starts.push(kept.len());
    }
    Packed { ids: kept, places, starts, counted, pooled }
}

/// Rows by their id: one block of threads owns one id, whose rows ascend, so that every sum
/// of the token embedding's gradient has one order.
struct Sorted {
    /// The ids that occur, ascending.
    unique: Vec<usize>,
    /// Where the rows of each begin, and the end.
    firsts: Vec<usize>,
    rows: Vec<usize>,
}

impl Sorted {
    fn new(ids: &[usize]) -> Self {
        let mut by_id: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (row, id) in ids.iter().enumerate() {
            by_id.entry(*id).or_default().push(row);
        }
        let unique = by_id.keys().copied().collect();
        let mut firsts = vec![0];
        firsts.extend(by_id.values().scan(0, |sum, rows| {
            *sum += rows.len();
            Some(*sum)
        }));
        Self { unique, firsts, rows: by_id.into_values().flatten().collect() }
    }
}

/// The first position of the largest id: the end-of-text token has the largest.
fn end_of_text(caption: &[u32]) -> usize {
    let largest = caption.iter().copied().max().unwrap_or(0);
    caption.iter().position(|&id| id == largest).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_lie_packed_and_their_rows_by_id_ascend() {
        // Two captions of four tokens, start 8 and end 9; the second has room behind its end.
        let packed = pack(&[8, 5, 6, 9, 8, 5, 9, 0], 4);
        assert_eq!(packed.ids, [8, 5, 6, 9, 8, 5, 9]);
        assert_eq!(packed.places, [0, 1, 2, 3, 0, 1, 2]);
        assert_eq!(packed.starts, [0, 4, 7]);
        assert_eq!(packed.pooled, [3, 6]);
        assert_eq!(packed.counted, [false, true, true, true, false, true, true]);

        let sorted = Sorted::new(&packed.ids);
        assert_eq!(sorted.unique, [5, 6, 8, 9]);
        assert_eq!(sorted.firsts, [0, 2, 3, 5, 7]);
        assert_eq!(sorted.rows, [1, 5, 2, 0, 4, 3, 6]);
    }
}
