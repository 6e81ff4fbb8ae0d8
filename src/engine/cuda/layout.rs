//! Where parameters lie on the device, and the copies that matrix products read.
//!
//! Parameters, gradient, moments and teacher are flat buffers of one layout, as on the
//! host, but every tensor starts at a page of [`PAGE`] values: vectors and cuBLAS want
//! aligned starts, and the optimizer knows by page whether values decay.

use std::collections::BTreeMap;
use std::ops::Range;

use super::device::{Buffer, Device, Grid, Kind, Slice};
use crate::error::Result;
use crate::model::ClipConfig;
use crate::model::names::ParameterId;
use crate::model::params::Layout;

/// Values of a page; `kernels/optim.cuh` has the same number.
pub(super) const PAGE: usize = 1024;

/// The ranges of all parameters.
#[derive(Debug)]
pub(super) struct Places {
    /// Ranges on the host and on the device, in the order of the model's layout.
    pairs: Vec<(Range<usize>, Range<usize>)>,
    index: BTreeMap<ParameterId, usize>,
    host_len: usize,
    len: usize,
}

impl Places {
    pub(super) fn new(config: &ClipConfig) -> Self {
        let layout = Layout::new(config);
        let (mut len, mut pairs, mut index) = (0, Vec::new(), BTreeMap::new());

        for (parameter, host) in layout.iter() {
            index.insert(parameter.id, pairs.len());
            let device = len..len + host.len();
            len = device.end.next_multiple_of(PAGE);
            pairs.push((host, device));
        }

        Self { pairs, index, host_len: layout.len(), len }
    }

    /// Values on the device, padding included.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Values on the host.
    pub(super) fn host_len(&self) -> usize {
        self.host_len
    }

    /// Pages of a buffer.
    pub(super) fn pages(&self) -> usize {
        self.len / PAGE
    }

    /// The range of a parameter on the device.
    ///
    /// # Panics
    /// If the model has no such parameter: ids come from the same configuration.
    pub(super) fn range(&self, id: ParameterId) -> Range<usize> {
        let index = self.index.get(&id).expect("the parameter belongs to this model");
        self.pairs[*index].1.clone()
    }

    /// The device's range of the parameter that owns this range on the host.
    ///
    /// # Panics
    /// If no parameter owns exactly this range: it comes from the same configuration.
    pub(super) fn on_device(&self, host: &Range<usize>) -> Range<usize> {
        let found = self.pairs.binary_search_by_key(&host.start, |(own, _)| own.start);
        let (own, device) = &self.pairs[found.expect("a parameter begins here")];
        assert_eq!(own, host, "a parameter's whole range");
        device.clone()
    }

    /// Every range on the device, in the order of the model's layout.
    pub(super) fn ranges(&self) -> impl Iterator<Item = Range<usize>> {
        self.pairs.iter().map(|(_, device)| device.clone())
    }

    /// One flag per page, from one per parameter in the order of the layout.
    pub(super) fn flags(&self, flags: impl Iterator<Item = u8>) -> Vec<u8> {
        let mut pages = vec![0; self.pages()];

        // A page never holds two parameters.
        for (range, flag) in self.ranges().zip(flags) {
            pages[range.start / PAGE..range.end.div_ceil(PAGE)].fill(flag);
        }
        pages
    }

    /// Host values with the device's padding.
    pub(super) fn spread(&self, values: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; self.len];
        for (host, device) in &self.pairs {
            out[device.clone()].copy_from_slice(&values[host.clone()]);
        }
        out
    }

    /// Device values without their padding.
    pub(super) fn gather(&self, values: &[f32]) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.host_len);
        for (_, device) in &self.pairs {
            out.extend_from_slice(&values[device.clone()]);
        }
        out
    }
}

/// Master weights in f32 and, in bf16, the copy that matrix products read.
#[derive(Debug)]
pub(super) struct Weights {
    pub(super) values: Buffer,
    pub(super) copy: Option<Buffer>,
}

impl Weights {
    /// Zeros, for [`Weights::load`].
    pub(super) fn new(device: &Device, len: usize) -> Result<Self> {
        let copy = match device.real() {
            Kind::F32 => None,
            kind => Some(device.buffer(kind, len)?),
        };
        Ok(Self { values: device.buffer(Kind::F32, len)?, copy })
    }

    /// Replaces all values, as [`Places::spread`] laid them out.
    pub(super) fn load(&mut self, device: &Device, values: &[f32]) -> Result<()> {
        device.write(&mut self.values, values)?;
        self.refresh(device)
    }

    /// Makes the copy from the master weights.
    pub(super) fn refresh(&self, device: &Device) -> Result<()> {
        let Some(copy) = &self.copy else { return Ok(()) };
        let grid = Grid::threads(self.values.len(), 256);
        device.launch("narrow_copy", grid, &[copy.into(), (&self.values).into()])
    }

    /// A parameter in f32.
    pub(super) fn master(&self, range: &Range<usize>) -> Slice<'_> {
        self.values.at(range.clone())
    }

    /// A parameter as matrix products read it.
    pub(super) fn real(&self, range: &Range<usize>) -> Slice<'_> {
        self.copy.as_ref().unwrap_or(&self.values).at(range.clone())
    }
}
