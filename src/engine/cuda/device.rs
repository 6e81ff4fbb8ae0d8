//! One card: its memory, its kernels, its matrix products. The only `unsafe` of the engine.
//!
//! Everything runs on one stream, in the order in which it was asked for, and later than it
//! was asked for: only [`Device::download`] and [`Pending::wait`] wait. A buffer is therefore
//! like a `Cell`: any number of [`Slice`]s may name its parts, reads and writes happen in the
//! stream's order, and memory that is dropped is freed behind the work that still uses it.
//!
//! Kernels are compiled for the card at hand by NVRTC, once: the binary is kept in the
//! user's cache folder (`~/.cache/upcycle`) under a hash of source, options and card. The
//! libraries of NVIDIA are looked for when a device is opened, never at start.
#![expect(
    unsafe_code,
    reason = "a driver is called through pointers; each call has its contract"
)]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{CString, c_void};
use std::marker::PhantomData;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use cudarc::cublas::{self, CudaBlas, sys as blas};
use cudarc::driver::{
    CudaContext, CudaEvent, CudaFunction, CudaModule, CudaSlice, CudaStream, DevicePtr,
    PinnedHostSlice, result, sys,
};
use cudarc::nvrtc;

pub use super::kind::Kind;
use super::signature::{Parameter, Signatures};
use crate::config::Precision;
use crate::error::{Context as _, Error, Result};

/// The kernels, in the order in which they build on each other.
const SOURCES: [&str; 10] = [
    include_str!("kernels/prelude.cuh"),
    include_str!("kernels/patches.cuh"),
    include_str!("kernels/embedding.cuh"),
    include_str!("kernels/norm.cuh"),
    include_str!("kernels/activation.cuh"),
    include_str!("kernels/attention.cuh"),
    include_str!("kernels/router.cuh"),
    include_str!("kernels/experts.cuh"),
    include_str!("kernels/loss.cuh"),
    include_str!("kernels/optim.cuh"),
];

/// Memory of the device.
#[derive(Debug)]
pub struct Buffer {
    memory: CudaSlice<u8>,
    pointer: u64,
    kind: Kind,
    len: usize,
}

/// A part of a buffer.
#[derive(Debug, Clone, Copy)]
pub struct Slice<'a> {
    pointer: u64,
    kind: Kind,
    len: usize,
    owner: PhantomData<&'a Buffer>,
}

impl Buffer {
    /// Values it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All of it.
    pub fn all(&self) -> Slice<'_> {
        let Self { pointer, kind, len, .. } = *self;
        Slice { pointer, kind, len, owner: PhantomData }
    }

    /// A part.
    pub fn at(&self, range: Range<usize>) -> Slice<'_> {
        self.all().at(range)
    }
}

impl Slice<'_> {
    /// A part of this part.
    ///
    /// # Panics
    /// If the range is not within it.
    #[must_use]
    pub fn at(self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "{range:?} of {}",
            self.len
        );
        let pointer = self.pointer + (range.start * self.kind.size()) as u64;
        Self { pointer, len: range.len(), ..self }
    }

    /// Values it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What its values are.
    pub fn kind(&self) -> Kind {
        self.kind
    }
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Arg<'a> {
    /// A pointer to values.
    Values(Slice<'a>),
    /// A null pointer, for what is optional.
    None,
    /// A count or an index.
    I32(i32),
    /// A number.
    F32(f32),
    /// A number.
    F64(f64),
}

impl<'a> From<Slice<'a>> for Arg<'a> {
    fn from(slice: Slice<'a>) -> Self {
        Self::Values(slice)
    }
}

impl<'a> From<&'a Buffer> for Arg<'a> {
    fn from(buffer: &'a Buffer) -> Self {
        Self::Values(buffer.all())
    }
}

impl<'a> From<Option<Slice<'a>>> for Arg<'a> {
    fn from(slice: Option<Slice<'a>>) -> Self {
        slice.map_or(Self::None, Self::Values)
    }
}

impl From<usize> for Arg<'_> {
    /// # Panics
    /// Beyond 2,147,483,647: kernels count in 32 bits, and sizes are checked before.
    fn from(count: usize) -> Self {
        Self::I32(i32::try_from(count).expect("counts of a launch are below 2^31"))
    }
}

impl From<bool> for Arg<'_> {
    fn from(flag: bool) -> Self {
        Self::I32(i32::from(flag))
    }
}

impl From<f32> for Arg<'_> {
    fn from(value: f32) -> Self {
        Self::F32(value)
    }
}

impl From<f64> for Arg<'_> {
    fn from(value: f64) -> Self {
        Self::F64(value)
    }
}

/// Blocks and threads of a launch.
#[derive(Debug, Clone, Copy)]
pub struct Grid {
    blocks: [usize; 3],
    threads: usize,
    shared: usize,
}

impl Grid {
    /// Blocks along x, y and z, of so many threads.
    pub fn new(blocks: [usize; 3], threads: usize) -> Self {
        Self { blocks, threads, shared: 0 }
    }

    /// One warp per item, eight in a block.
    pub fn warps(items: usize) -> Self {
        Self::new([items.div_ceil(8), 1, 1], 256)
    }

    /// One thread per item, so many in a block.
    pub fn threads(items: usize, threads: usize) -> Self {
        Self::new([items.div_ceil(threads), 1, 1], threads)
    }

    /// With so many bytes of dynamic shared memory per block.
    #[must_use]
    pub fn shared(self, bytes: usize) -> Self {
        Self { shared: bytes, ..self }
    }
}

/// A matrix as an operand of a product: rows `pitch` values apart; `turned` takes its
/// transpose.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a> {
    values: Slice<'a>,
    pitch: usize,
    turned: bool,
}

impl<'a> Operand<'a> {
    /// A matrix whose rows lie `pitch` values apart.
    pub fn new(values: Slice<'a>, pitch: usize) -> Self {
        Self { values, pitch, turned: false }
    }

    /// Its transpose.
    #[must_use]
    pub fn turned(self) -> Self {
        Self { turned: !self.turned, ..self }
    }
}

/// Rows, columns and inner extent of a product.
#[derive(Debug, Clone, Copy)]
pub struct Extents {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
}

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
        self.device.idle.borrow_mut().push(self.pinned);
        Ok(numbers)
    }
}

/// Bytes of page-locked memory for numbers that are read back: enough for those of a step.
const NUMBERS: usize = 64 << 10;

/// An opened card.
#[derive(Debug)]
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    module: Arc<CudaModule>,
    functions: RefCell<BTreeMap<String, CudaFunction>>,
    signatures: Signatures,
    blas: CudaBlas,
    precision: Precision,
    /// Page-locked memory that waits for its next numbers: making it takes longer than a
    /// kernel runs.
    idle: RefCell<Vec<PinnedHostSlice<u8>>>,
    /// Names and bounds of everything that ran, while somebody wants to know.
    profile: RefCell<Option<Vec<(String, CudaEvent, CudaEvent)>>>,
}

/// How often something ran, and how long in all.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Spent {
    /// Launches or products.
    pub calls: usize,
    /// Their time on the device.
    pub milliseconds: f64,
}

/// The oldest compute capability: bf16 on tensor cores begins there.
const OLDEST: (i32, i32) = (8, 0);

/// Whether `device: auto` means a card: whether the first one can be opened. It is asked once
/// per process, which costs machines without a driver a search for one library.
pub fn available() -> bool {
    static FIRST: LazyLock<bool> = LazyLock::new(|| require(0).is_ok());
    *FIRST
}

/// Says in one sentence why a card cannot be opened, without opening it: no context is made
/// and no kernel compiled.
pub fn require(ordinal: usize) -> Result<()> {
    let refused = |reason: &str| {
        Error::usage(format!(
            "device: found cuda:{ordinal}, but {reason}, or set `device: cpu`"
        ))
    };
    if load("cuda").is_none() {
        return Err(refused(
            "no NVIDIA driver (libcuda.so) was found; install the driver of the card",
        ));
    }
    let libraries = [
        ("nvrtc", "NVRTC (libnvrtc.so)", "nvidia-cuda-nvrtc"),
        ("cublas", "cuBLAS (libcublas.so)", "nvidia-cublas"),
    ];
    for (library, name, wheel) in libraries {
        load(library).ok_or_else(|| {
            refused(&format!(
                "{name} was not found; install the CUDA toolkit, or the Python wheel {wheel} \
                 and name its folder of libraries in LD_LIBRARY_PATH"
            ))
        })?;
    }

    result::init().map_err(|e| failed("the driver's initialization", &e))?;
    let cards = CudaContext::device_count().map_err(|e| failed("counting cards", &e))?;
    let number = i32::try_from(ordinal).unwrap_or(i32::MAX);
    if number >= cards {
        return Err(refused(&format!(
            "the number of CUDA devices of this machine is {cards}; choose a smaller number"
        )));
    }
    let (major, minor) =
        capability(number).map_err(|e| failed("reading its compute capability", &e))?;
    if (major, minor) < OLDEST {
        return Err(refused(&format!(
            "its compute capability is {major}.{minor}, expected {}.{} or later; choose \
             another card",
            OLDEST.0, OLDEST.1
        )));
    }
    Ok(())
}

/// The compute capability of a card, which need not be open.
fn capability(number: i32) -> std::result::Result<(i32, i32), result::DriverError> {
    use sys::CUdevice_attribute as Attribute;
    let device = result::device::get(number)?;
    // SAFETY: the driver has just named this device.
    let read = |attribute| unsafe { result::device::get_attribute(device, attribute) };
    let major = read(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    Ok((major, read(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
}

/// Loads a library of NVIDIA's for good. A library that is unloaded and loaded again, as
/// cudarc's own check does it, crashes in NVRTC's case.
fn load(name: &str) -> Option<()> {
    cudarc::get_lib_name_candidates(name).iter().find_map(|file| {
        // SAFETY: initializers of NVIDIA's libraries may run at any time and have no
        // preconditions.
        let library = unsafe { libloading::Library::new(file) }.ok()?;
        std::mem::forget(library);
        Some(())
    })
}

fn failed(doing: &str, error: &dyn std::fmt::Display) -> Error {
    Error::failed(format!("the CUDA device failed at {doing}: {error}"))
}

impl Device {
    /// Opens card `ordinal` and makes its kernels ready.
    pub fn open(ordinal: usize, precision: Precision) -> Result<Self> {
        require(ordinal)?;
        let context = CudaContext::new(ordinal).map_err(|e| failed("opening it", &e))?;
        // SAFETY: all work of this engine runs on one stream, so no event is needed to order
        // streams among each other.
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

    /// Records from now on when every kernel and product begins and ends.
    pub fn start_profile(&self) {
        *self.profile.borrow_mut() = Some(Vec::new());
    }

    /// The time of every kernel since [`Self::start_profile`], by name; ends the recording.
    pub fn profile(&self) -> Result<BTreeMap<String, Spent>> {
        self.wait()?;
        let mut all: BTreeMap<String, Spent> = BTreeMap::new();
        for (name, begin, end) in self.profile.borrow_mut().take().unwrap_or_default() {
            let time =
                begin.elapsed_ms(&end).map_err(|e| failed("timing a kernel", &e))?;
            let spent = all.entry(name).or_default();
            spent.calls += 1;
            spent.milliseconds += f64::from(time);
        }
        Ok(all)
    }

    /// Runs work that is recorded under a name while a profile is taken.
    fn timed(
        &self,
        name: impl FnOnce() -> String,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        if self.profile.borrow().is_none() {
            return work();
        }
        let begin = self.mark()?;
        work()?;
        let end = self.mark()?;
        if let Some(profile) = self.profile.borrow_mut().as_mut() {
            profile.push((name(), begin, end));
        }
        Ok(())
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
        buffer.len = len;
        Ok(())
    }

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

    /// Writes many values through page-locked memory, which the card reads at full speed
    /// while the host goes on; `staging` is kept from call to call.
    pub fn stream_in(
        &self,
        buffer: &mut Buffer,
        values: &[f32],
        staging: &mut Option<PinnedHostSlice<u8>>,
    ) -> Result<()> {
        self.fit(buffer, values.len())?;
        let bytes: &[u8] = bytemuck::cast_slice(values);
        if staging.as_ref().is_none_or(|own| own.len() != bytes.len()) {
            *staging = Some(self.pinned(bytes.len())?);
        }
        let Some(pinned) = staging else { return Ok(()) };
        // Waits until the transfer of the last call is through.
        let own =
            pinned.as_mut_slice().map_err(|e| failed("waiting for an upload", &e))?;
        crate::par::for_each_chunk(own, 1 << 22, |index, piece| {
            piece.copy_from_slice(&bytes[index << 22..(index << 22) + piece.len()]);
        });
        let mut into = buffer.memory.slice_mut(..bytes.len());
        self.stream.memcpy_htod(pinned, &mut into).map_err(|e| failed("an upload", &e))
    }

    fn pinned(&self, bytes: usize) -> Result<PinnedHostSlice<u8>> {
        // SAFETY: the memory is written, by the host or by a transfer, before it is read.
        unsafe { self.context.alloc_pinned_with_flags::<u8>(bytes.max(1), 0) }
            .map_err(|e| failed("page-locking memory", &e))
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

    /// Waits for all work.
    pub fn wait(&self) -> Result<()> {
        self.stream.synchronize().map_err(|e| failed("running kernels", &e))
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

    /// Marks this point of the stream, for timings.
    fn mark(&self) -> Result<CudaEvent> {
        let flags = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        self.stream.record_event(flags).map_err(|e| failed("recording an event", &e))
    }

    /// Launches a kernel. Number and types of the arguments are checked against the
    /// kernel's signature as it stands in the source; extents are the caller's to know.
    ///
    /// # Panics
    /// If the kernel does not exist or its arguments do not fit: that is a bug here.
    pub fn launch(&self, name: &str, grid: Grid, args: &[Arg<'_>]) -> Result<()> {
        if grid.blocks.contains(&0) {
            return Ok(());
        }
        self.check(name, args);
        let function = self.function(name)?;
        // Each argument in a cell of its own; a kernel reads as many bytes as its type has,
        // and the low bytes come first.
        let mut cells: Vec<u64> = args
            .iter()
            .map(|arg| match *arg {
                Arg::Values(slice) => slice.pointer,
                Arg::None => 0,
                Arg::I32(value) => u64::from(value.cast_unsigned()),
                Arg::F32(value) => u64::from(value.to_bits()),
                Arg::F64(value) => value.to_bits(),
            })
            .collect();
        let mut pointers: Vec<*mut c_void> =
            cells.iter_mut().map(|cell| std::ptr::from_mut(cell).cast()).collect();
        let blocks = grid.blocks.map(crate::num::index_u32);
        let threads = crate::num::index_u32(grid.threads);
        let shared = crate::num::index_u32(grid.shared);
        let work = || {
            // SAFETY: number and types of the arguments were checked; pointers name live
            // buffers of this device, whose memory is freed behind this work. That kernels
            // stay within the extents they are told is what the tests under ASan hold them to.
            unsafe {
                result::launch_kernel(
                    function.cu_function(),
                    blocks.into(),
                    (threads, 1, 1),
                    shared,
                    self.stream.cu_stream(),
                    &mut pointers,
                )
            }
            .map_err(|e| failed(name, &e))
        };
        self.timed(|| name.to_owned(), work)
    }

    fn check(&self, name: &str, args: &[Arg<'_>]) {
        let expected = self.signatures.of(name);
        assert_eq!(expected.len(), args.len(), "arguments of {name}");
        for (at, (expected, arg)) in expected.iter().zip(args).enumerate() {
            let fits = match (*expected, *arg) {
                (Parameter::Real, Arg::Values(slice)) => slice.kind == self.real(),
                (Parameter::Values(kind), Arg::Values(slice)) => slice.kind == kind,
                (Parameter::Real | Parameter::Values(_), Arg::None)
                | (Parameter::I32, Arg::I32(_))
                | (Parameter::F32, Arg::F32(_))
                | (Parameter::F64, Arg::F64(_)) => true,
                _ => false,
            };
            assert!(fits, "argument {at} of {name} is {arg:?}, expected {expected:?}");
        }
    }

    fn function(&self, name: &str) -> Result<CudaFunction> {
        let mut functions = self.functions.borrow_mut();
        if let Some(function) = functions.get(name) {
            return Ok(function.clone());
        }
        let function = self.module.load_function(name).map_err(|e| failed(name, &e))?;
        functions.insert(name.to_owned(), function.clone());
        Ok(function)
    }

    /// Row-major `c` [m, n] = a b + beta c, summed in f32. `c` is f32 or of the operands'
    /// type; its rows lie `pitch` values apart. The same bits in every run: cuBLAS uses no
    /// atomics unless asked to.
    ///
    /// # Panics
    /// If an operand is too small for its extents: that is a bug here.
    pub fn gemm(
        &self,
        (c, pitch): (Slice<'_>, usize),
        (a, b): (Operand<'_>, Operand<'_>),
        Extents { m, n, k }: Extents,
        beta: f32,
    ) -> Result<()> {
        if m == 0 || n == 0 {
            return Ok(());
        }
        if k == 0 {
            return if beta == 0.0 { self.clear(c.at(0..m * n)) } else { Ok(()) };
        }
        let held = |slice: Slice<'_>, pitch: usize, rows: usize, columns: usize| {
            columns <= pitch && (rows - 1) * pitch + columns <= slice.len
        };
        let (a_rows, a_columns) = if a.turned { (k, m) } else { (m, k) };
        let (b_rows, b_columns) = if b.turned { (n, k) } else { (k, n) };
        assert!(
            held(a.values, a.pitch, a_rows, a_columns),
            "the left operand of {m} {n} {k}"
        );
        assert!(
            held(b.values, b.pitch, b_rows, b_columns),
            "the right operand of {m} {n} {k}"
        );
        assert!(held(c, pitch, m, n), "the result of {m} {n} {k}");
        let op = |turned| {
            if turned {
                blas::cublasOperation_t::CUBLAS_OP_T
            } else {
                blas::cublasOperation_t::CUBLAS_OP_N
            }
        };
        let int = |n: usize| i32::try_from(n).expect("extents are below 2^31");
        let alpha = 1.0_f32;
        let work = || {
            // cuBLAS is column-major: cᵀ = op(b)ᵀ op(a)ᵀ.
            // SAFETY: all three matrices lie within live buffers, as was checked above, and
            // the factors are read before the call returns.
            unsafe {
                cublas::result::gemm_ex(
                    *self.blas.handle(),
                    op(b.turned),
                    op(a.turned),
                    int(n),
                    int(m),
                    int(k),
                    (&raw const alpha).cast(),
                    b.values.pointer as *const c_void,
                    blas_type(b.values.kind),
                    int(b.pitch),
                    a.values.pointer as *const c_void,
                    blas_type(a.values.kind),
                    int(a.pitch),
                    (&raw const beta).cast(),
                    c.pointer as *mut c_void,
                    blas_type(c.kind),
                    int(pitch),
                    blas::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                    blas::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
                )
            }
            .map_err(|e| failed("a matrix product", &format!("{e:?}")))
        };
        self.timed(|| format!("product {m} x {n} x {k}"), work)
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

fn blas_type(kind: Kind) -> blas::cudaDataType {
    match kind {
        Kind::F32 => blas::cudaDataType::CUDA_R_32F,
        Kind::Bf16 => blas::cudaDataType::CUDA_R_16BF,
        other => panic!("no matrix product of {other:?}"),
    }
}

/// The kernels for a card: from the cache, or compiled.
fn kernels(context: &Arc<CudaContext>, precision: Precision) -> Result<Arc<CudaModule>> {
    let (major, minor) = context
        .compute_capability()
        .map_err(|e| failed("reading its compute capability", &e))?;
    let mut options = vec![format!("--gpu-architecture=sm_{major}{minor}")];
    options.extend(["--std=c++17", "-default-device"].map(str::to_owned));
    if precision == Precision::Bf16 {
        options.push("-DREAL_BF16".to_owned());
    }
    let source = SOURCES.concat().replace("#pragma once", "");
    let card = context.name().map_err(|e| failed("reading its name", &e))?;
    let mut key = blake3::Hasher::new();
    for part in [source.as_str(), card.as_str()]
        .into_iter()
        .chain(options.iter().map(String::as_str))
    {
        key.update(part.as_bytes());
        key.update(&[0]);
    }
    let file =
        cache().map(|folder| folder.join(format!("{}.cubin", key.finalize().to_hex())));
    let kept = file.as_ref().and_then(|file| std::fs::read(file).ok());
    if let Some(kept) = kept
        && let Ok(module) = context.load_module(nvrtc::Ptx::from_binary(kept))
    {
        return Ok(module);
    }
    let cubin = compile(&source, &options)?;
    if let Some(file) = file {
        keep(&file, &cubin);
    }
    let module = context.load_module(nvrtc::Ptx::from_binary(cubin));
    module.map_err(|e| failed("loading the kernels", &e))
}

/// Where compiled kernels are kept; nowhere for a user without a home.
fn cache() -> Option<PathBuf> {
    Some(std::env::home_dir()?.join(".cache").join("upcycle"))
}

/// Keeps a compiled module; a cache that cannot be written costs seconds, no results.
fn keep(file: &Path, cubin: &[u8]) {
    let Some(folder) = file.parent() else { return };
    let scratch = file.with_extension(format!("{}.tmp", std::process::id()));
    let written = std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(&scratch, cubin))
        .and_then(|()| std::fs::rename(&scratch, file));
    if written.is_err() {
        let _ = std::fs::remove_file(&scratch);
    }
}

/// Compiles CUDA C++ to a binary of the card.
fn compile(source: &str, options: &[String]) -> Result<Vec<u8>> {
    let text =
        CString::new(source).context(|| "reading the kernels' source".to_owned())?;
    let program = nvrtc::result::create_program(&text, None)
        .map_err(|e| failed("starting NVRTC", &format!("{e:?}")))?;
    // SAFETY: the program was made above and is destroyed below.
    let compiled = unsafe { nvrtc::result::compile_program(program, options) };
    if compiled.is_err() {
        // SAFETY: the program is alive.
        let log = unsafe { nvrtc::result::get_program_log(program) }.unwrap_or_default();
        let log: Vec<u8> = log.iter().map(|c| c.cast_unsigned()).collect();
        let log = String::from_utf8_lossy(&log);
        return Err(Error::failed(format!("NVRTC refused the kernels: {log}")));
    }
    let mut size = 0;
    // SAFETY: the program is alive, and `size` is written before the call returns.
    let asked = unsafe { nvrtc::sys::nvrtcGetCUBINSize(program, &raw mut size) };
    asked.result().map_err(|e| failed("asking NVRTC for a size", &format!("{e:?}")))?;
    let mut cubin = vec![0_u8; size];
    // SAFETY: the binary has as many bytes as NVRTC said.
    let read = unsafe { nvrtc::sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()) };
    read.result().map_err(|e| failed("reading NVRTC's result", &format!("{e:?}")))?;
    // SAFETY: nothing uses the program any more.
    unsafe { nvrtc::result::destroy_program(program) }
        .map_err(|e| failed("ending NVRTC", &format!("{e:?}")))?;
    Ok(cubin)
}
