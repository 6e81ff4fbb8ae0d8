//! The kernels for the card at hand: compiled by NVRTC once, then read from a cache.
//!
//! The binary is kept in the user's cache folder (`~/.cache/upcycle`) under a hash of source,
//! options and card.
#![expect(
    unsafe_code,
    reason = "a driver is called through pointers; each call has its contract"
)]

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaModule};
use cudarc::nvrtc;

use super::driver::failed;
use crate::config::Precision;
use crate::error::{Context as _, Error, Result};

/// The kernels, in the order in which they build on each other.
pub(super) const SOURCES: [&str; 11] = [
    include_str!("../kernels/prelude.cuh"),
    include_str!("../kernels/patches.cuh"),
    include_str!("../kernels/embedding.cuh"),
    include_str!("../kernels/norm.cuh"),
    include_str!("../kernels/activation.cuh"),
    include_str!("../kernels/tiles.cuh"),
    include_str!("../kernels/attention.cuh"),
    include_str!("../kernels/router.cuh"),
    include_str!("../kernels/experts.cuh"),
    include_str!("../kernels/loss.cuh"),
    include_str!("../kernels/optim.cuh"),
];

/// The kernels for a card: from the cache, or compiled.
pub(super) fn kernels(
    context: &Arc<CudaContext>,
    precision: Precision,
) -> Result<Arc<CudaModule>> {
    let (major, minor) = context
        .compute_capability()
        .map_err(|e| failed("reading its compute capability", &e))?;

    let options = options(&format!("sm_{major}{minor}"), precision);
    let source = source();
    let card = context.name().map_err(|e| failed("reading its name", &e))?;

    // A zero ends each part, so that no two lists of parts have one key.
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

    // A file that cannot be read or loaded is made again.
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

/// The source of all kernels, for NVRTC.
pub fn source() -> String {
    SOURCES.concat().replace("#pragma once", "")
}

/// What NVRTC is asked for: an architecture such as `sm_90` or `compute_90`, and a precision.
pub fn options(architecture: &str, precision: Precision) -> Vec<String> {
    let mut options = vec![format!("--gpu-architecture={architecture}")];
    options.extend(["--std=c++17", "-default-device"].map(str::to_owned));
    if precision == Precision::Bf16 {
        options.push("-DREAL_BF16".to_owned());
    }
    options
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
