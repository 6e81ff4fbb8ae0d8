//! Launches of kernels, checked against the signatures in their source.
#![expect(
    unsafe_code,
    reason = "a driver is called through pointers; each call has its contract"
)]

use std::ffi::c_void;

use cudarc::driver::{CudaFunction, result};

use super::super::signature::Parameter;
use super::card::Device;
use super::driver::failed;
use super::values::{Arg, Grid};
use crate::error::Result;

impl Device {
    /// Launches a kernel. Number and types of the arguments are checked against the
    /// kernel's signature as it stands in the source; extents are the caller's to know.
    ///
    /// # Panics
    /// If the kernel does not exist or its arguments do not fit: that is a bug here.
    pub fn launch(&self, name: &str, grid: Grid, args: &[Arg<'_>]) -> Result<()> {
        // The driver refuses a grid without blocks, and there is nothing to do.
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
        self.timed(|| (name.to_owned(), args.iter().map(Arg::bytes).sum()), work)
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
}
