//! `upcycle-inspect`: looking at the pipeline and its results without running anything.
