//! The driver and the libraries beside it: whether they are there, and what they say.
//!
//! The libraries of NVIDIA are looked for when a device is asked for, never at start.
#![expect(
    unsafe_code,
    reason = "a driver is called through pointers; each call has its contract"
)]

use std::ffi::OsStr;
use std::sync::LazyLock;

use cudarc::driver::{CudaContext, result, sys};
use libloading::Library;

use crate::error::{Error, Result};

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
    find(&cudarc::get_lib_name_candidates(name)).map(|_library| ())
}

/// The first of these libraries that there is, loaded for good.
pub(super) fn find<T: AsRef<OsStr>>(files: &[T]) -> Option<&'static Library> {
    files.iter().find_map(|file| {
        // SAFETY: initializers of NVIDIA's libraries may run at any time and have no
        // preconditions.
        let library = unsafe { Library::new(file.as_ref()) }.ok()?;
        Some(&*Box::leak(Box::new(library)))
    })
}

/// What was being done when the driver or a library refused.
pub(super) fn failed(doing: &str, error: &dyn std::fmt::Display) -> Error {
    Error::failed(format!("the CUDA device failed at {doing}: {error}"))
}
