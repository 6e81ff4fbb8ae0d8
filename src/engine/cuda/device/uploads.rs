//! Pictures on their way in, beside the work of the card.
//!
//! They come over a stream of their own. Two places take turns: page-locked memory, which the
//! card reads at full speed while the host goes on, and memory on the card behind it.
//!
//! ```text
//!     host      fill A       | fill B       | wait until A was copied, fill A
//!     uploads     copy A     |   copy B     |   wait for the last reader of A, copy A
//!     kernels     wait for A, read A .. | wait for B, read B ..
//! ```
//!
//! So the host never writes what is still being copied, and a copy never overwrites what a
//! kernel still reads. The emulated driver of the tests runs both streams as late as it may,
//! and a wait that is missing there changes results.
#![expect(
    unsafe_code,
    reason = "a driver is called through pointers; each call has its contract"
)]

use std::collections::VecDeque;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, PinnedHostSlice, result};

use super::super::kind::Kind;
use super::card::Device;
use super::driver::failed;
use super::values::Buffer;
use crate::error::Result;

/// Places that take turns.
const PLACES: usize = 2;

/// Bytes that one thread copies into page-locked memory at a time.
const PIECE: usize = 1 << 22;

/// The stream of uploads, and the places that nobody uses.
#[derive(Debug)]
pub struct Uploads {
    stream: Arc<CudaStream>,
    idle: VecDeque<Incoming>,
}

/// Values that have been sent and may not have arrived.
#[derive(Debug)]
pub struct Incoming {
    values: Buffer,
    pinned: PinnedHostSlice<u8>,
    copied: CudaEvent,
    read: CudaEvent,
}

impl Uploads {
    /// A stream without places yet.
    pub fn new(device: &Device) -> Result<Self> {
        let stream = device.context.new_stream();
        let stream = stream.map_err(|e| failed("making a stream", &e))?;
        Ok(Self { stream, idle: VecDeque::new() })
    }

    /// Starts an upload of values of one kind.
    ///
    /// # Panics
    /// Where the values are of another size than the kind.
    pub fn send<T: bytemuck::NoUninit>(
        &mut self,
        device: &Device,
        kind: Kind,
        values: &[T],
    ) -> Result<Incoming> {
        assert_eq!(size_of::<T>(), kind.size(), "values fit the kind");
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let mut place = self.place(device, bytes.len())?;
        (place.values.kind, place.values.len) = (kind, values.len());

        let sending = |e| failed("an upload", &e);

        // The host must not write what an earlier copy still reads.
        place.copied.synchronize().map_err(sending)?;
        let pinned = place.pinned.as_mut_slice().map_err(sending)?;
        let pinned = &mut pinned[..bytes.len()];
        crate::par::for_each_chunk(pinned, PIECE, |index, piece| {
            piece.copy_from_slice(&bytes[index * PIECE..index * PIECE + piece.len()]);
        });

        self.stream.wait(&place.read).map_err(sending)?;
        let to = place.values.pointer;
        // SAFETY: both sides have so many bytes, and live until `copied` has been waited for:
        // by kernels before they read, by the host before it writes or frees.
        unsafe { result::memcpy_htod_async(to, pinned, self.stream.cu_stream()) }
            .map_err(sending)?;
        place.copied.record(&self.stream).map_err(sending)?;
        Ok(place)
    }

    /// A place of at least so many bytes: the one that was idle for longest, as long as
    /// another one stays idle, whose copy or kernels may still run.
    fn place(&mut self, device: &Device, bytes: usize) -> Result<Incoming> {
        let old = if self.idle.len() >= PLACES { self.idle.pop_front() } else { None };
        if let Some(old) = old
            && old.pinned.len() >= bytes
        {
            return Ok(old);
        }

        let event = || device.stream.record_event(None);
        let making = |e| failed("recording an event", &e);
        let values = device.buffer(Kind::U8, bytes)?;
        let pinned = device.pinned(bytes)?;
        // The memory exists for other streams from this point of its own stream on.
        let read = event().map_err(making)?;
        Ok(Incoming { values, pinned, copied: event().map_err(making)?, read })
    }

    /// Takes a place back when all its readers have been launched.
    pub fn give_back(&mut self, device: &Device, place: Incoming) -> Result<()> {
        let giving = |e| failed("recording an event", &e);
        place.read.record(&device.stream).map_err(giving)?;
        self.idle.push_back(place);
        Ok(())
    }
}

impl Incoming {
    /// The values, for work that is asked for from now on.
    pub fn arrived(&self, device: &Device) -> Result<&Buffer> {
        let waiting = |e| failed("waiting for an upload", &e);
        device.stream.wait(&self.copied).map_err(waiting)?;
        Ok(&self.values)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // The page-locked memory must outlive the copy. An error here was or will be
        // reported by the next call that waits.
        let _ = self.copied.synchronize();
    }
}
