//! The kernels under NVIDIA's own compilers, which need no card: they compile for three
//! generations and stay within registers.
//!
//! `UPCYCLE_NVIDIA_WHEELS` names a folder in which, at any depth, the Python wheels
//! `nvidia-cuda-nvrtc` and `nvidia-cuda-nvcc` were installed; without it the test is skipped
//! with one line.
#![expect(unsafe_code, reason = "NVRTC is loaded by name and called")]

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};
use upcycle::config::Precision;
use upcycle::engine::cuda::device::{options, source};

/// Ampere, Hopper and Blackwell.
const ARCHITECTURES: [u32; 3] = [80, 90, 100];

/// Registers a thread may have; 255 are the most that exist. Blocks of 256 threads leave two
/// blocks per multiprocessor below 128, and one below 256.
const REGISTERS: u32 = 224;

/// The file of this name, or whose name begins so, below a folder.
fn find(folder: &Path, begins: &str) -> Option<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten() {
            let path = entry.ok()?.path();
            let name =
                path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                folders.push(path);
            } else if name == begins || name.starts_with(&format!("{begins}.")) {
                return Some(path);
            }
        }
    }
    None
}

type Create = extern "C" fn(
    *mut *mut c_void,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = extern "C" fn(*mut c_void, c_int, *const *const c_char) -> c_int;
type Size = extern "C" fn(*mut c_void, *mut usize) -> c_int;
type Text = extern "C" fn(*mut c_void, *mut c_char) -> c_int;

/// NVIDIA's NVRTC; the emulated one may be loaded beside it.
struct Nvrtc(Library);

impl Nvrtc {
    fn open(wheels: &Path) -> Self {
        let load = |begins: &str| {
            let path = find(wheels, begins).unwrap_or_else(|| panic!("no {begins}"));
            // SAFETY: NVIDIA's initializers may run at any time.
            unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.unwrap()
        };
        // NVRTC asks for its builtins by name; a library of this name is there then.
        std::mem::forget(load("libnvrtc-builtins.so"));
        Self(load("libnvrtc.so"))
    }

    fn symbol<T>(&self, name: &str) -> Symbol<T> {
        // SAFETY: the types above are those of nvrtc.h.
        unsafe { self.0.get(name.as_bytes()) }.unwrap()
    }

    fn text(&self, program: *mut c_void, what: &str) -> Vec<u8> {
        let mut bytes = 0;
        let size = self.symbol::<Size>(&format!("nvrtcGet{what}Size"));
        assert_eq!(size(program, &raw mut bytes), 0);
        let mut text = vec![0_u8; bytes];
        assert_eq!(
            self.symbol::<Text>(&format!("nvrtcGet{what}"))(
                program,
                text.as_mut_ptr().cast()
            ),
            0
        );
        text.truncate(bytes.saturating_sub(1));
        text
    }

    /// The kernels as PTX.
    fn compile(&self, architecture: u32, precision: Precision) -> Vec<u8> {
        let text = CString::new(source()).unwrap();
        let mut program = std::ptr::null_mut();
        let none = std::ptr::null();
        let create = self.symbol::<Create>("nvrtcCreateProgram");
        assert_eq!(
            create(
                &raw mut program,
                text.as_ptr(),
                none,
                0,
                std::ptr::null(),
                std::ptr::null()
            ),
            0
        );
        let options: Vec<CString> =
            options(&format!("compute_{architecture}"), precision)
                .into_iter()
                .map(|own| CString::new(own).unwrap())
                .collect();
        let pointers: Vec<*const c_char> =
            options.iter().map(|own| own.as_ptr()).collect();
        let count = c_int::try_from(pointers.len()).unwrap();
        let done = self.symbol::<Compile>("nvrtcCompileProgram")(
            program,
            count,
            pointers.as_ptr(),
        );
        let log = self.text(program, "ProgramLog");
        assert_eq!(done, 0, "{}", String::from_utf8_lossy(&log));
        self.text(program, "PTX")
    }
}

/// Each kernel with its registers and the bytes it keeps in memory instead, as ptxas says it.
fn usage(said: &str) -> Vec<(String, u32, u32)> {
    let number_before = |line: &str, word: &str| -> u32 {
        let before = line.split(word).next().unwrap_or_default();
        before.split_whitespace().last().and_then(|n| n.parse().ok()).unwrap_or(0)
    };
    let (mut found, mut name, mut spills) = (Vec::new(), String::new(), 0);
    for line in said.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            rest.split('\'').next().unwrap_or_default().clone_into(&mut name);
        } else if line.contains("bytes spill stores") {
            spills = number_before(line, " bytes spill stores");
        } else if line.contains(" registers") {
            let registers = number_before(line, " registers");
            found.push((std::mem::take(&mut name), registers, spills));
        }
    }
    found
}

#[test]
fn kernels_compile_for_three_generations_within_their_registers() {
    let Some(wheels) = std::env::var_os("UPCYCLE_NVIDIA_WHEELS").map(PathBuf::from)
    else {
        println!(
            "skipped: UPCYCLE_NVIDIA_WHEELS names no folder with nvidia-cuda-nvrtc and \
             nvidia-cuda-nvcc"
        );
        return;
    };
    let nvrtc = Nvrtc::open(&wheels);
    let ptxas = find(&wheels, "ptxas").expect("nvidia-cuda-nvcc has ptxas");
    let folder = tempfile::tempdir().unwrap();
    let (ptx, cubin) =
        (folder.path().join("kernels.ptx"), folder.path().join("kernels.cubin"));
    for precision in [Precision::F32, Precision::Bf16] {
        for architecture in ARCHITECTURES {
            std::fs::write(&ptx, nvrtc.compile(architecture, precision)).unwrap();
            let mut command = Command::new(&ptxas);
            command.arg("-v").arg(format!("-arch=sm_{architecture}"));
            let output = command.arg("-o").args([&cubin, &ptx]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{said}");

            let kernels = usage(&said);
            assert!(kernels.len() > 60, "{} kernels", kernels.len());
            let most = kernels.iter().max_by_key(|own| own.1).unwrap();
            let spilled: Vec<String> = kernels
                .iter()
                .filter(|own| own.2 > 0)
                .map(|(name, _, bytes)| format!("{name} {bytes}"))
                .collect();
            println!(
                "sm_{architecture} {precision:?}: at most {} registers ({}); bytes in memory \
                 instead: {spilled:?}",
                most.1, most.0
            );
            for (name, registers, spills) in &kernels {
                // In f32 attention follows the definition, one thread a row, for checks only.
                if precision == Precision::Bf16 {
                    assert!(
                        *registers <= REGISTERS,
                        "{name} on sm_{architecture}: {registers}"
                    );
                    assert!(
                        *spills == 0,
                        "{name} on sm_{architecture}: {spills} bytes in memory"
                    );
                }
            }
        }
    }
}
