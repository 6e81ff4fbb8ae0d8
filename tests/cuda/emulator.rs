//! Builds the emulated driver and lets the program find it as it finds NVIDIA's.
#![expect(unsafe_code, reason = "libraries are loaded by name and called")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// How the emulator runs what it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    /// 0 ascending, 1 descending, else the seed of a permutation of warps and lanes.
    pub(crate) threads: u32,
    /// What waits until somebody waits for it.
    pub(crate) late: Late,
}

/// Work that runs as late as a card may run it (`tests/emulator/driver.cpp`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Late {
    /// None.
    Nothing = 0,
    /// All of it.
    Everything = 1,
    /// Kernels; uploads run at once, and overtake what they do not wait for.
    Kernels = 2,
}

/// Leave to use the device: one test at a time, because its order is the process's.
#[derive(Debug)]
pub(crate) struct Session {
    _only: MutexGuard<'static, ()>,
}

static ONE: Mutex<()> = Mutex::new(());
static READY: OnceLock<Result<Option<PathBuf>, String>> = OnceLock::new();

/// A device that runs in order, or nothing where there is none to be had.
pub(crate) fn session() -> Option<Session> {
    session_in(Order { threads: 0, late: Late::Nothing })
}

/// A device that runs in this order.
pub(crate) fn session_in(order: Order) -> Option<Session> {
    let only = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    match READY.get_or_init(prepare) {
        Ok(Some(_)) => configure(order),
        Ok(None) => {}
        Err(reason) => {
            let required = std::env::var_os("UPCYCLE_REQUIRE_EMULATOR").is_some();
            assert!(!required, "{reason}");
            println!("skipped: {reason}");
            return None;
        }
    }
    Some(Session { _only: only })
}

/// Whether the tests run on a real card.
pub(crate) fn on_card() -> bool {
    std::env::var_os("UPCYCLE_CUDA_TESTS").is_some_and(|own| own == OsStr::new("card"))
}

/// Where the emulated libraries lie, for other programs; none on a card.
pub(crate) fn libraries(_session: &Session) -> Option<&'static Path> {
    READY.get()?.as_ref().ok()?.as_deref()
}

/// Loads the emulator, unless a card is asked for; its folder comes back.
fn prepare() -> Result<Option<PathBuf>, String> {
    if on_card() {
        return Ok(None);
    }
    let folder = build()?;
    // The program asks for libcuda.so by name and gets what has been loaded under it.
    for name in ["libcuda.so", "libcublas.so", "libnvrtc.so", "libnccl.so"] {
        // A test hides one to see what the program says without it.
        if std::env::var_os("UPCYCLE_EMULATOR_HIDES").is_none_or(|own| own != name) {
            load(&folder.join(name))?;
        }
    }
    Ok(Some(folder))
}

fn load(path: &Path) -> Result<(), String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the emulator's initializers read the environment and nothing else.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    let library = library.map_err(|e| format!("{}: {e}", path.display()))?;
    std::mem::forget(library);
    Ok(())
}

fn configure(order: Order) {
    let library = libloading::os::unix::Library::this();
    // SAFETY: the emulator exports this function with this signature.
    let found = unsafe { library.get::<extern "C" fn(u32, u32)>(b"emulator_configure") };
    found.expect("the emulator is loaded")(order.threads, order.late as u32);
}

/// Builds the emulator once per state of its sources.
fn build() -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let own = root.join("tests/emulator");
    // Mutated kernels, by `tests/cuda/mutants.py`.
    let kernels = std::env::var_os("UPCYCLE_EMULATOR_KERNELS");
    let kernels = kernels.map_or(root.join("src/engine/cuda/kernels"), PathBuf::from);
    let mut files = Vec::new();
    for folder in [&own, &kernels] {
        let entries =
            std::fs::read_dir(folder).map_err(|e| format!("no emulator: {e}"))?;
        files.extend(entries.filter_map(Result::ok).map(|entry| entry.path()));
    }
    files.sort();
    let flags = std::env::var_os("UPCYCLE_EMULATOR_FLAGS").unwrap_or_default();
    let flags = flags.to_string_lossy().into_owned();
    let mut hash = blake3::Hasher::new();
    hash.update(flags.as_bytes());
    for file in &files {
        hash.update(&std::fs::read(file).map_err(|e| format!("no emulator: {e}"))?);
    }
    let name = &hash.finalize().to_hex()[..16];
    let target = std::env::var_os("UPCYCLE_EMULATOR_FOLDER");
    let target = target.map_or(PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let folder = target.join(format!("emulator-{name}"));
    if folder.join("libnvrtc.so").exists() {
        return Ok(folder);
    }
    // Tests of other processes may build at the same time: the last to finish wins.
    let scratch = folder.with_extension(std::process::id().to_string());
    let mut command = Command::new(own.join("build.sh"));
    command.arg(&scratch).args(flags.split_whitespace());
    let output = command.output().map_err(|e| format!("no emulator: {e}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        let compiler = Command::new("g++").arg("--version").output();
        assert!(compiler.is_err(), "the emulator does not build: {text}");
        return Err(
            "there is no C++ compiler (g++) for the emulated CUDA driver".to_owned()
        );
    }
    if std::fs::rename(&scratch, &folder).is_err() {
        let _ = std::fs::remove_dir_all(&scratch);
    }
    Ok(folder)
}
