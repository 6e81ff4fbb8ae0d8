//! Values to the card and back.
//!
//! Only [`Device::download`] and [`Pending::wait`] wait for the card.
#![expect(
    unsafe_code,
    reason = "a driver is called through pointers; each call has its contract"
)]

use cudarc::driver::{CudaEvent, PinnedHostSlice, result, sys};

use super::super::kind::Kind;
use super::card::Device;
use super::driver::failed;
use super::values::{Buffer, Slice};
use crate::error::Result;

/// Numbers on their way to the host; [`Pending::wait`] waits for them and nothing later.
#[derive(Debug)]
pub struct Pending<'a> {
    device: &'a Device,
    pinned: PinnedHostSlice<u8>,
    arrived: CudaEvent,
    bytes: usize,
}

impl Pending<'_> {
    /// The numbers.
    pub fn wait<T: bytemuck::Pod>(self) -> Result<Vec<T>> {
        let waiting = |e| failed("waiting for numbers", &e);
        self.arrived.synchronize().map_err(waiting)?;
        let bytes = self.pinned.as_slice().map_err(waiting)?;
        let numbers = bytemuck::pod_collect_to_vec(&bytes[..self.bytes]);

        // The copy is over, so the next numbers may come into this memory.
        self.device.idle.borrow_mut().push(self.pinned);
        Ok(numbers)
    }
}

/// Bytes of page-locked memory for numbers that are read back: enough for those of a step.
const NUMBERS: usize = 64 << 10;

impl Device {
    /// A buffer with these values.
    pub fn upload<T: bytemuck::NoUninit>(
        &self,
        kind: Kind,
        values: &[T],
    ) -> Result<Buffer> {
        let mut buffer = self.buffer(kind, values.len())?;
        self.write(&mut buffer, values)?;
        Ok(buffer)
    }

    /// Fits `buffer` to these values and writes them.
    ///
    /// # Panics
    /// Where the values are of another size than the kind of the buffer.
    pub fn write<T: bytemuck::NoUninit>(
        &self,
        buffer: &mut Buffer,
        values: &[T],
    ) -> Result<()> {
        assert_eq!(size_of::<T>(), buffer.kind.size(), "values fit the buffer's kind");
        self.fit(buffer, values.len())?;
        if values.is_empty() {
            return Ok(());
        }
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let mut into = buffer.memory.slice_mut(..bytes.len());
        self.stream.memcpy_htod(bytes, &mut into).map_err(|e| failed("an upload", &e))
    }

    /// The first values of a buffer, after all work before.
    ///
    /// # Panics
    /// Where the values are of another size than the kind of the buffer.
    pub fn download<T: bytemuck::Pod>(&self, buffer: &Buffer) -> Result<Vec<T>> {
        assert_eq!(size_of::<T>(), buffer.kind.size(), "values fit the buffer's kind");
        let mut values = vec![T::zeroed(); buffer.len];
        if !values.is_empty() {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
            let from = buffer.memory.slice(..bytes.len());
            self.stream
                .memcpy_dtoh(&from, bytes)
                .map_err(|e| failed("a download", &e))?;
        }

        self.wait()?;
        Ok(values)
    }

    /// Starts reading a buffer back; work that is asked for later does not delay it.
    pub fn read_back(&self, buffer: &Buffer) -> Result<Pending<'_>> {
        let bytes = buffer.len * buffer.kind.size();
        let idle = self.idle.borrow_mut().pop();
        let mut pinned = match idle {
            Some(own) if own.len() >= bytes => own,
            _ => self.pinned(bytes.max(NUMBERS))?,
        };
        let reading = |e| failed("reading numbers back", &e);

        // The driver copies as many bytes as the host's slice has, and the page-locked memory
        // is larger than the buffer: without the cut it would read past the buffer's end.
        let to = &mut pinned.as_mut_slice().map_err(reading)?[..bytes];
        // SAFETY: source and target have `bytes` bytes each; the target stays in `Pending`
        // until the event behind the copy has been waited for.
        unsafe { result::memcpy_dtoh_async(to, buffer.pointer, self.stream.cu_stream()) }
            .map_err(reading)?;
        let flags = Some(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        let arrived = self.stream.record_event(flags).map_err(reading)?;
        Ok(Pending { device: self, pinned, arrived, bytes })
    }

    /// Sets all bytes of a slice to zero.
    pub fn clear(&self, slice: Slice<'_>) -> Result<()> {
        if slice.is_empty() {
            return Ok(());
        }
        let (bytes, stream) = (slice.len * slice.kind.size(), self.stream.cu_stream());
        // SAFETY: the slice lies within a live buffer of this device, and memory that is
        // dropped later is freed behind this work.
        unsafe { result::memset_d8_async(slice.pointer, 0, bytes, stream) }
            .map_err(|e| failed("clearing memory", &e))
    }

    /// Copies values to another place of the same length and kind.
    ///
    /// # Panics
    /// Where the places differ in length or kind.
    pub fn copy(&self, to: Slice<'_>, from: Slice<'_>) -> Result<()> {
        assert!(to.len == from.len && to.kind == from.kind, "copies are of one shape");
        if from.is_empty() {
            return Ok(());
        }
        let (bytes, stream) = (from.len * from.kind.size(), self.stream.cu_stream());
        // SAFETY: both slices lie within live buffers of this device and hold so many bytes.
        unsafe { result::memcpy_dtod_async(to.pointer, from.pointer, bytes, stream) }
            .map_err(|e| failed("copying memory", &e))
    }
}
