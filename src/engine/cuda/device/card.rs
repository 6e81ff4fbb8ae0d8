//! An opened card and its memory.
//!
//! Everything runs on one stream, in the order in which it was asked for, and later than it
//! was asked for; memory that is dropped is freed behind the work that still uses it.
#![expect(
    unsafe_code,
    reason = "a driver is called through pointers; each call has its contract"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use cudarc::cublas::CudaBlas;
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaModule, CudaStream, DevicePtr,
    PinnedHostSlice, result, sys,
};

use super::super::kind::Kind;
use super::super::signature::Signatures;
use super::compiler::{SOURCES, kernels};
use super::driver::{failed, require};
use super::values::Buffer;
use crate::config::Precision;
use crate::error::{Error, Result};

/// An opened card.
#[derive(Debug)]
pub struct Device {
    pub(super) context: Arc<CudaContext>,
    pub(super) stream: Arc<CudaStream>,
    pub(super) module: Arc<CudaModule>,
    pub(super) functions: RefCell<BTreeMap<String, CudaFunction>>,
    pub(super) signatures: Signatures,
    pub(super) blas: CudaBlas,
    pub(super) precision: Precision,
    /// Page-locked memory that waits for its next numbers: making it takes longer than a
    /// kernel runs.
    pub(super) idle: RefCell<Vec<PinnedHostSlice<u8>>>,
    /// Names and bounds of everything that ran, while somebody wants to know.
    pub(super) profile: RefCell<Option<Vec<Recorded>>>,
}

/// A launch or a product of a profile.
#[derive(Debug)]
pub(super) struct Recorded {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) begin: CudaEvent,
    pub(super) end: CudaEvent,
}

impl Device {
    /// Opens card `ordinal` and makes its kernels ready.
    pub fn open(ordinal: usize, precision: Precision) -> Result<Self> {
        require(ordinal)?;
        let context = CudaContext::new(ordinal).map_err(|e| failed("opening it", &e))?;
        // SAFETY: work is ordered by one stream, and where a second one brings pictures in, by
        // the events of `Uploads`; cudarc's own events are not needed.
        unsafe { context.disable_event_tracking() };

        let stream = context.new_stream().map_err(|e| failed("making a stream", &e))?;
        let module = kernels(&context, precision)?;
        let blas = CudaBlas::new(Arc::clone(&stream))
            .map_err(|e| failed("starting cuBLAS", &format!("{e:?}")))?;

        let functions = RefCell::default();
        let signatures = Signatures::parse(&SOURCES);
        let (idle, profile) = (RefCell::default(), RefCell::default());

        keep_memory(&context)?;
        Ok(Self {
            context,
            stream,
            module,
            functions,
            signatures,
            blas,
            precision,
            idle,
            profile,
        })
    }

    /// The type of activations: f32 or bf16.
    pub fn real(&self) -> Kind {
        self.precision.into()
    }

    /// The name of the card.
    pub fn name(&self) -> Result<String> {
        self.context.name().map_err(|e| failed("reading its name", &e))
    }

    /// Free and total bytes of its memory.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context.mem_get_info().map_err(|e| failed("asking for free memory", &e))
    }

    /// Gives the card back what no buffer uses any more, so that [`Self::memory`] tells what
    /// is in use. Freed memory is otherwise kept for the next buffers.
    pub fn trim(&self) -> Result<()> {
        self.wait()?;
        // SAFETY: the device is open.
        let pool =
            unsafe { result::device::get_default_mem_pool(self.context.cu_device()) };
        let pool = pool.map_err(|e| failed("asking for its memory", &e))?;
        // SAFETY: the default pool of an open device is valid.
        let trimmed = unsafe { result::mem_pool::trim_to(pool, 0) };
        trimmed.map_err(|e| failed("giving back memory", &e))
    }

    /// A buffer of zeros.
    pub fn buffer(&self, kind: Kind, len: usize) -> Result<Buffer> {
        let bytes = len * kind.size();
        // A pointer of nothing is no pointer: kernels never read it, cuBLAS refuses null.
        let memory = self.stream.alloc_zeros::<u8>(bytes.max(256)).map_err(|e| {
            let left = self.context.mem_get_info().map_or(0, |(left, _)| left >> 20);
            let wanted = bytes >> 20;
            Error::failed(format!(
                "the CUDA device has no {wanted} MiB left ({left} MiB are free): choose a \
                 smaller batch"
            ))
            .caused_by(e)
        })?;

        let pointer = memory.device_ptr(&self.stream).0;
        Ok(Buffer { memory, pointer, kind, len })
    }

    /// Makes `buffer` hold `len` values of its kind; their content is not defined where it
    /// grows.
    pub fn fit(&self, buffer: &mut Buffer, len: usize) -> Result<()> {
        if buffer.memory.len() < len * buffer.kind.size() {
            // The old memory goes first: both together might not fit.
            *buffer = self.buffer(buffer.kind, 0)?;
            *buffer = self.buffer(buffer.kind, len)?;
        }

        // Memory that is large enough stays: extents differ from batch to batch.
        buffer.len = len;
        Ok(())
    }

    /// Waits for all work.
    pub fn wait(&self) -> Result<()> {
        self.stream.synchronize().map_err(|e| failed("running kernels", &e))
    }

    /// Page-locked memory of so many bytes.
    pub(super) fn pinned(&self, bytes: usize) -> Result<PinnedHostSlice<u8>> {
        // SAFETY: the memory is written, by the host or by a transfer, before it is read.
        unsafe { self.context.alloc_pinned_with_flags::<u8>(bytes.max(1), 0) }
            .map_err(|e| failed("page-locking memory", &e))
    }
}

/// Lets the driver keep memory that is freed: what a step frees, the next one asks for.
fn keep_memory(context: &Arc<CudaContext>) -> Result<()> {
    if !context.has_async_alloc() {
        return Ok(());
    }

    let keeping = |e| failed("asking for a memory pool", &e);
    // SAFETY: the device was opened.
    let pool = unsafe { result::device::get_default_mem_pool(context.cu_device()) };
    let pool = pool.map_err(keeping)?;

    let mut all = u64::MAX;
    let threshold = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: this attribute is read from 64 bits, before the call returns.
    unsafe { result::mem_pool::set_attribute(pool, threshold, (&raw mut all).cast()) }
        .map_err(keeping)
}
