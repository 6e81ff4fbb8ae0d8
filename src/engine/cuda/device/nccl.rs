//! Cards that work together: NCCL's gather and its exchange between two ranks.
//!
//! NCCL only moves values here, as [`Ranks`] does on the host. Its reductions add in an order
//! that the algorithm decides, and with it the last bits.
//!
//! The library is looked for when a second rank joins. It is called through symbols of our own:
//! its packages bring `libnccl.so.2` alone, a name that cudarc 0.19 does not look for. The
//! functions used here have had these signatures since NCCL 2.7.
#![expect(
    unsafe_code,
    reason = "a library is called through pointers; each call has its contract"
)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Arc, LazyLock};

use cudarc::driver::CudaStream;
use libloading::Library;

use super::super::kind::Kind;
use super::card::Device;
use super::driver::{failed, find};
use super::values::Slice;
use crate::error::{Error, Result};
use crate::ranks::Ranks;

/// The names under which packages install NCCL: that of its headers, and that of the library.
const NAMES: [&str; 2] = ["libnccl.so", "libnccl.so.2"];

/// Bytes of the number that ranks find each other by.
const ID: usize = 128;

/// The number that ranks find each other by, as C passes it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Id([u8; ID]);

/// A communicator: what NCCL keeps about the ranks.
type Handle = *mut c_void;
type Stream = *mut c_void;

/// The functions that are called.
#[derive(Debug, Clone, Copy)]
struct Functions {
    make_id: unsafe extern "C" fn(*mut Id) -> c_int,
    join: unsafe extern "C" fn(*mut Handle, c_int, Id, c_int) -> c_int,
    leave: unsafe extern "C" fn(Handle) -> c_int,
    gather: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        c_int,
        Handle,
        Stream,
    ) -> c_int,
    send:
        unsafe extern "C" fn(*const c_void, usize, c_int, c_int, Handle, Stream) -> c_int,
    receive:
        unsafe extern "C" fn(*mut c_void, usize, c_int, c_int, Handle, Stream) -> c_int,
    begin: unsafe extern "C" fn() -> c_int,
    end: unsafe extern "C" fn() -> c_int,
    describe: unsafe extern "C" fn(c_int) -> *const c_char,
}

impl Functions {
    /// Loads NCCL for good, once per process.
    fn load() -> Option<Self> {
        static LOADED: LazyLock<Option<Functions>> =
            LazyLock::new(|| Functions::of(find(&NAMES)?));
        *LOADED
    }

    fn of(library: &'static Library) -> Option<Self> {
        Some(Self {
            make_id: symbol(library, b"ncclGetUniqueId")?,
            join: symbol(library, b"ncclCommInitRank")?,
            leave: symbol(library, b"ncclCommDestroy")?,
            gather: symbol(library, b"ncclAllGather")?,
            send: symbol(library, b"ncclSend")?,
            receive: symbol(library, b"ncclRecv")?,
            begin: symbol(library, b"ncclGroupStart")?,
            end: symbol(library, b"ncclGroupEnd")?,
            describe: symbol(library, b"ncclGetErrorString")?,
        })
    }

    /// What a call's code says, where it is no success.
    fn check(self, doing: &str, code: c_int) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: every code may be asked for.
        let text = unsafe { (self.describe)(code) };
        // SAFETY: the answer is a constant of the library.
        let text = unsafe { CStr::from_ptr(text) };
        let text = format!("NCCL says {} ({code})", text.to_string_lossy());
        Err(failed(doing, &text))
    }
}

/// One card's connection to those of the other ranks; work goes onto the card's stream.
#[derive(Debug)]
pub struct Link {
    functions: Functions,
    /// The communicator. A number, because it may go to another thread with its engine.
    handle: u64,
    /// The card's stream, whose context must outlive the communicator.
    stream: Arc<CudaStream>,
    rank: usize,
    count: usize,
}

impl Link {
    /// Connects the card with those of all `ranks`, each of which has another one; all ranks
    /// call it. Rank 0 makes the number by which they find each other, and `ranks` carry it.
    pub fn join(device: &Device, ranks: &dyn Ranks) -> Result<Self> {
        let (rank, count) = (ranks.rank(), ranks.count());
        let functions = Functions::load().ok_or_else(|| {
            Error::usage(format!(
                "--ranks: found {count} ranks on cards, but NCCL (libnccl.so.2) was not found; \
                 install the system package libnccl2, or the Python wheel nvidia-nccl-cu13 and \
                 name its folder of libraries in LD_LIBRARY_PATH, or set `device: cpu`"
            ))
        })?;

        let mut id = Id([0; ID]);
        if rank == 0 {
            // SAFETY: the function writes as many bytes as the type has.
            let code = unsafe { (functions.make_id)(&raw mut id) };
            functions.check("naming its ranks", code)?;
        }
        let mut ids = vec![0; ID * count];
        ranks.gather(&id.0, &mut ids)?;
        id.0.copy_from_slice(&ids[..ID]);

        // NCCL connects the card that is the thread's current one.
        let current = device.context.bind_to_thread();
        current.map_err(|e| failed("choosing it", &e))?;
        let mut handle: Handle = std::ptr::null_mut();
        // SAFETY: the handle is written before the call returns, where it succeeds.
        let code =
            unsafe { (functions.join)(&raw mut handle, int(count), id, int(rank)) };
        functions.check("joining the cards of the other ranks", code)?;
        let stream = Arc::clone(&device.stream);
        Ok(Self { functions, handle: handle as u64, stream, rank, count })
    }

    /// Gathers in place: `all` has a block for each rank, of which the own one is filled in.
    ///
    /// # Panics
    /// Where the blocks are not of equal length.
    pub fn gather(&self, device: &Device, all: Slice<'_>) -> Result<()> {
        assert!(all.len.is_multiple_of(self.count), "{} values in blocks", all.len);
        let block = all.len / self.count;
        if block == 0 {
            return Ok(());
        }

        let own = all.at(self.rank * block..(self.rank + 1) * block);
        let work = || {
            // SAFETY: `all` lies within a live buffer of this device and has a block of this
            // length for every rank; memory that is dropped later is freed behind this work.
            let code = unsafe {
                (self.functions.gather)(
                    own.pointer as *const c_void,
                    all.pointer as *mut c_void,
                    block,
                    type_of(all.kind),
                    self.handle as Handle,
                    self.stream.cu_stream().cast(),
                )
            };
            self.functions.check("gathering values of all ranks", code)
        };
        device.timed(|| ("gather".to_owned(), all.bytes()), work)
    }

    /// Sends slice p of `sent` to rank p and receives slice q of `received` from rank q, but
    /// for the own rank, whose slices stay as they are. All are of one length and kind.
    ///
    /// # Panics
    /// Where a slice is missing, or they differ in length or kind.
    pub fn exchange(
        &self,
        device: &Device,
        sent: &[Slice<'_>],
        received: &[Slice<'_>],
    ) -> Result<()> {
        assert!(
            sent.len() == self.count && received.len() == self.count,
            "a slice per rank"
        );
        let one = |own: &Slice<'_>| own.len == sent[0].len && own.kind == sent[0].kind;
        assert!(sent.iter().chain(received).all(one), "slices are of one shape");

        let work = || {
            // SAFETY: a group is begun and ended on this thread, with no return in between.
            let begun = unsafe { (self.functions.begin)() };
            self.functions.check("exchanging values with other ranks", begun)?;
            let codes = (0..self.count)
                .filter(|rank| *rank != self.rank)
                .map(|rank| self.swap(rank, (sent[rank], received[rank])));

            // The group ends whatever was refused within it.
            let refused =
                codes.fold(0, |first, code| if first == 0 { code } else { first });
            // SAFETY: as above.
            let ended = unsafe { (self.functions.end)() };
            let code = if refused == 0 { ended } else { refused };
            self.functions.check("exchanging values with other ranks", code)
        };
        let bytes = || sent.iter().chain(received).copied().map(Slice::bytes).sum();
        device.timed(|| ("exchange".to_owned(), bytes()), work)
    }

    /// Asks for both ways of an exchange with one rank, within a group.
    fn swap(&self, rank: usize, (sent, received): (Slice<'_>, Slice<'_>)) -> c_int {
        let (handle, stream) = (self.handle as Handle, self.stream.cu_stream().cast());
        let (to, kind) = (int(rank), type_of(sent.kind));
        let from = sent.pointer as *const c_void;
        // SAFETY: the slice lies within a live buffer of this device and has as many values;
        // memory that is dropped later is freed behind this work.
        let sending =
            unsafe { (self.functions.send)(from, sent.len, kind, to, handle, stream) };
        let into = received.pointer as *mut c_void;
        // SAFETY: as above.
        let receiving = unsafe {
            (self.functions.receive)(into, received.len, kind, to, handle, stream)
        };
        if sending == 0 { receiving } else { sending }
    }
}

/// All work of the card has been waited for by whoever drops an engine, or the run has failed,
/// and MPI ends all ranks.
impl Drop for Link {
    fn drop(&mut self) {
        // SAFETY: nothing uses the communicator any more.
        let _ = unsafe { (self.functions.leave)(self.handle as Handle) };
    }
}

/// A function of the library, with the type of its field in [`Functions`].
fn symbol<T: Copy>(library: &'static Library, name: &[u8]) -> Option<T> {
    // SAFETY: the fields have the types with which nccl.h declares the functions.
    let found = unsafe { library.get::<T>(name) };
    found.ok().map(|function| *function)
}

/// NCCL's number of a type.
fn type_of(kind: Kind) -> c_int {
    match kind {
        Kind::U8 => 1,
        Kind::I32 => 2,
        Kind::F32 => 7,
        Kind::F64 => 8,
        Kind::Bf16 => 9,
    }
}

fn int(n: usize) -> c_int {
    c_int::try_from(n).expect("ranks are below 2^31")
}
