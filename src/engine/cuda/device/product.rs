//! Matrix products, by cuBLAS.
#![expect(
    unsafe_code,
    reason = "a driver is called through pointers; each call has its contract"
)]

use std::ffi::c_void;

use cudarc::cublas::{self, sys as blas};

use super::super::kind::Kind;
use super::card::Device;
use super::driver::failed;
use super::values::{Extents, Operand, Slice};
use crate::error::Result;

impl Device {
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

        // Sums of no terms are zero, for example the gradient of an expert without rows.
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
        let describe = || {
            let bytes = [(a.values.kind, m * k), (b.values.kind, k * n), (c.kind, m * n)];
            let bytes = bytes.map(|(kind, values)| (values * kind.size()) as u64);
            (format!("product {m} x {n} x {k}"), bytes.iter().sum())
        };
        self.timed(describe, work)
    }
}

fn blas_type(kind: Kind) -> blas::cudaDataType {
    match kind {
        Kind::F32 => blas::cudaDataType::CUDA_R_32F,
        Kind::Bf16 => blas::cudaDataType::CUDA_R_16BF,
        other => panic!("no matrix product of {other:?}"),
    }
}
