//! The weights in the form in which they train and the form in which towers read them.
//!
//! The two differ for experts of low rank only (`model/low_rank.rs`): those are merged on the
//! card whenever they change, and the gradient is pulled back through the same products
//! after a backward.
//!
//! ```text
//!     W_e = W + B_e A_e        dW = Σ_e G_e     dA_e = B_eᵀ G_e     dB_e = G_e A_eᵀ
//! ```
//!
//! All of it is f32 in both precisions: the products are small beside a step's, and what is
//! merged here is the master copy.

use std::ops::Range;

use super::device::{Buffer, Device, Extents, Kind, Operand};
use super::layout::{Places, Weights};
use super::ops;
use crate::error::{Error, Result};
use crate::model::ClipConfig;
use crate::model::low_rank::{LowRank, Made, Pulled};

/// All weights of a model on a card.
#[derive(Debug)]
pub(super) struct Store {
    /// Where the weights lie that towers read, and their gradients.
    pub(super) places: Places,
    /// The weights that towers read: all experts whole.
    pub(super) weights: Weights,
    low_rank: Option<Kept>,
    loaded: bool,
}

/// Weights of low rank, as they train.
#[derive(Debug)]
struct Kept {
    form: LowRank,
    places: Places,
    values: Buffer,
}

impl Store {
    /// Room for the weights of a model.
    pub(super) fn new(device: &Device, config: &ClipConfig) -> Result<Self> {
        let places = Places::new(&config.merged());
        let kept = |form| -> Result<Kept> {
            let places = Places::new(config);
            let values = device.buffer(Kind::F32, places.len())?;
            Ok(Kept { form, places, values })
        };

        Ok(Self {
            weights: Weights::new(device, places.len())?,
            low_rank: LowRank::of(config).map(kept).transpose()?,
            places,
            loaded: false,
        })
    }

    /// Refuses to run before the first load.
    pub(super) fn need_weights(&self) -> Result<()> {
        if self.loaded {
            return Ok(());
        }
        Err(Error::failed("the engine has no weights yet: call load first"))
    }

    /// Replaces all weights; `values` are in the order of the model's layout.
    pub(super) fn load(&mut self, device: &Device, values: &[f32]) -> Result<()> {
        let (found, expected) = (values.len(), self.trained_places().host_len());
        if found != expected {
            return Err(Error::failed(format!(
                "the engine was given {found} weights, expected {expected}: they belong to \
                 another model"
            )));
        }

        let spread = self.trained_places().spread(values);
        self.loaded = true;
        match &mut self.low_rank {
            Some(kept) => {
                device.write(&mut kept.values, &spread)?;
                self.trained_changed(device)
            }
            None => self.weights.load(device, &spread),
        }
    }

    /// Where the weights lie in the form in which they train.
    pub(super) fn trained_places(&self) -> &Places {
        self.low_rank.as_ref().map_or(&self.places, |kept| &kept.places)
    }

    /// The weights in the form in which they train, in f32.
    pub(super) fn trained(&self) -> &Buffer {
        self.low_rank.as_ref().map_or(&self.weights.values, |kept| &kept.values)
    }

    /// Whether the weights train in another form than towers read them in.
    pub(super) fn is_low_rank(&self) -> bool {
        self.low_rank.is_some()
    }

    /// Makes what towers read from the weights of low rank; nothing where there are none.
    pub(super) fn trained_changed(&self, device: &Device) -> Result<()> {
        let Some(kept) = &self.low_rank else { return Ok(()) };
        for (range, made) in kept.form.made() {
            kept.merge(device, self, (range, made))?;
        }
        self.weights.refresh(device)
    }

    /// The gradient in the form in which the weights train, from the one that towers leave.
    pub(super) fn pull_back(
        &self,
        device: &Device,
        into: &Buffer,
        gradient: &Buffer,
    ) -> Result<()> {
        let Some(kept) = &self.low_rank else { return Ok(()) };
        for (range, pulled) in kept.form.pulled() {
            let gradient = (&self.places, gradient);
            kept.pull(device, (into, gradient), (range, pulled))?;
        }
        Ok(())
    }
}

impl Kept {
    /// One expert's part of a stack.
    fn part(&self, stack: &Range<usize>, expert: usize) -> Range<usize> {
        let size = stack.len() / self.form.experts();
        stack.start + expert * size..stack.start + (expert + 1) * size
    }

    fn merge(
        &self,
        device: &Device,
        store: &Store,
        (range, made): (&Range<usize>, &Made),
    ) -> Result<()> {
        let target = store.places.on_device(range);
        let whole = &store.weights.values;
        let at = |host: &Range<usize>| self.places.on_device(host);

        match made {
            Made::Copy(from) => {
                device.copy(whole.at(target), self.values.at(at(from)))?;
            }
            Made::Repeated(from) => {
                for e in 0..self.form.experts() {
                    let own = whole.at(self.part(&target, e));
                    device.copy(own, self.values.at(at(from)))?;
                }
            }
            Made::Sum { base, down, up } => {
                let (base, down, up) = (at(base), at(down), at(up));
                let rank = self.form.rank();
                for e in 0..self.form.experts() {
                    let own = whole.at(self.part(&target, e));
                    device.copy(own, self.values.at(base.clone()))?;

                    let (a, b) = (self.part(&down, e), self.part(&up, e));
                    let (rows, columns) = (b.len() / rank, a.len() / rank);

                    // The product adds to the base, which was copied above.
                    let b = Operand::new(self.values.at(b), rank);
                    let a = Operand::new(self.values.at(a), columns);
                    let extents = Extents { m: rows, n: columns, k: rank };
                    device.gemm((own, columns), (b, a), extents, 1.0)?;
                }
            }
        }
        Ok(())
    }

    fn pull(
        &self,
        device: &Device,
        (into, (whole_places, gradient)): (&Buffer, (&Places, &Buffer)),
        (range, pulled): (&Range<usize>, &Pulled),
    ) -> Result<()> {
        let target = self.places.on_device(range);
        let (rank, experts) = (self.form.rank(), self.form.experts());

        // All of it replaces what was there: micro-batches have added up before.
        match pulled {
            Pulled::Copy(from) => {
                let from = gradient.at(whole_places.on_device(from));
                device.copy(into.at(target), from)
            }
            Pulled::Shared(of) => {
                let of = gradient.at(whole_places.on_device(of));

                // Every expert contains the base, so its gradient is the sum over them.
                let stride = target.len();
                ops::sum_partials(device, into.at(target), of, (experts, stride))
            }
            Pulled::Down { up, of } => {
                let (up, of) = (self.places.on_device(up), whole_places.on_device(of));
                for e in 0..experts {
                    let (a, b) = (self.part(&target, e), self.part(&up, e));
                    let (rows, columns) = (b.len() / rank, a.len() / rank);

                    let b = Operand::new(self.values.at(b), rank).turned();
                    let g = Operand::new(gradient.at(self.part(&of, e)), columns);
                    let extents = Extents { m: rank, n: columns, k: rows };
                    device.gemm((into.at(a), columns), (b, g), extents, 0.0)?;
                }
                Ok(())
            }
            Pulled::Up { down, of } => {
                let (down, of) =
                    (self.places.on_device(down), whole_places.on_device(of));
                for e in 0..experts {
                    let (b, a) = (self.part(&target, e), self.part(&down, e));
                    let (rows, columns) = (b.len() / rank, a.len() / rank);

                    let a = Operand::new(self.values.at(a), columns).turned();
                    let g = Operand::new(gradient.at(self.part(&of, e)), columns);
                    let extents = Extents { m: rows, n: rank, k: columns };
                    device.gemm((into.at(b), rank), (g, a), extents, 0.0)?;
                }
                Ok(())
            }
        }
    }
}
