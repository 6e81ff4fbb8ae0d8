//! Single kernels against definitions in f64.
