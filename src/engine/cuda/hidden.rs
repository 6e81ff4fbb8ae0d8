//! Between the two linear layers of an FFN, dense or by expert: bias and activation.

use super::device::{Buffer, Device, Grid, Slice};
use super::ops::{self, Linear, Segments};
use crate::error::Result;

/// Extents of an FFN.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub(super) width: usize,
    pub(super) hidden: usize,
    /// QuickGELU instead of GELU.
    pub(super) quick: bool,
}

impl Shape {
    pub(super) fn fc1(self, rows: usize) -> Linear {
        Linear { rows, inputs: self.width, outputs: self.hidden }
    }

    pub(super) fn fc2(self, rows: usize) -> Linear {
        Linear { rows, inputs: self.hidden, outputs: self.width }
    }

    /// `hidden` = act(`pre` + bias), by segments.
    pub(super) fn activate(
        self,
        device: &Device,
        (hidden, pre): (Slice<'_>, Slice<'_>),
        bias: Slice<'_>,
        (segments, rows): (Segments<'_>, usize),
    ) -> Result<()> {
        let args = [
            hidden.into(),
            pre.into(),
            bias.into(),
            segments.starts.into(),
            segments.experts.into(),
            self.hidden.into(),
            self.quick.into(),
            None.into(),
            0_usize.into(),
        ];

        device.launch("bias_activation", Grid::new([rows, 1, 1], 128), &args)
    }

    /// `dh` becomes the gradient in front of the activation, `pre` the hidden rows; the
    /// biases' gradient goes to `into`.
    pub(super) fn activate_backward(
        self,
        device: &Device,
        (dh, pre): (Slice<'_>, Slice<'_>),
        (bias, into): (Slice<'_>, Slice<'_>),
        (segments, partial): (Segments<'_>, &Buffer),
    ) -> Result<()> {
        let args = [
            dh.into(),
            pre.into(),
            partial.into(),
            bias.into(),
            segments.starts.into(),
            self.hidden.into(),
            self.quick.into(),
        ];

        device.launch("bias_activation_backward", segments.grid(self.hidden), &args)?;
        ops::sum_chunks(device, into, segments, partial)
    }
}
