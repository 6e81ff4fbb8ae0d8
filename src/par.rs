//! Parallel loops whose results do not depend on the number of threads.
//!
//! The rule: work is cut into chunks by the data's shape alone, a chunk is computed by one
//! thread, and chunks meet in index order. Threads decide who computes, never what.

use rayon::prelude::*;

/// Calls `work(chunk_index, chunk)` for every `chunk_len` values of `out`, in parallel.
/// The last chunk may be shorter.
pub fn for_each_chunk<T: Send>(
    out: &mut [T],
    chunk_len: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    if out.len() <= chunk_len {
        if !out.is_empty() {
            work(0, out);
        }
        return;
    }

    out.par_chunks_mut(chunk_len)
        .enumerate()
        .for_each(|(index, chunk)| work(index, chunk));
}

/// Like [`for_each_chunk`] for fallible work; the error of the lowest index wins.
pub fn try_for_each_chunk<T: Send, E: Send>(
    out: &mut [T],
    chunk_len: usize,
    work: impl Fn(usize, &mut [T]) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let chunks = out.par_chunks_mut(chunk_len.max(1)).enumerate();
    let done: Vec<Result<(), E>> =
        chunks.map(|(index, chunk)| work(index, chunk)).collect();
    done.into_iter().collect()
}

/// Computes `make(0), .., make(count - 1)` in parallel and returns them in index order.
pub fn map<T: Send>(count: usize, make: impl Fn(usize) -> T + Sync + Send) -> Vec<T> {
    (0..count).into_par_iter().map(make).collect()
}

/// Like [`map`] for fallible work; the error of the lowest index wins, whoever came first.
pub fn try_map<T: Send, E: Send>(
    count: usize,
    make: impl Fn(usize) -> Result<T, E> + Sync + Send,
) -> Result<Vec<T>, E> {
    map(count, make).into_iter().collect()
}

/// Like [`try_map`], and each call takes one of `items`.
pub fn try_map_each<S: Send, T: Send, E: Send>(
    items: Vec<S>,
    make: impl Fn(usize, S) -> Result<T, E> + Sync + Send,
) -> Result<Vec<T>, E> {
    let items = items.into_par_iter().enumerate();
    let made: Vec<_> = items.map(|(index, item)| make(index, item)).collect();
    made.into_iter().collect()
}

/// Runs both closures, possibly at the same time.
pub fn join<A: Send, B: Send>(
    left: impl FnOnce() -> A + Send,
    right: impl FnOnce() -> B + Send,
) -> (A, B) {
    rayon::join(left, right)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_the_slice_once() {
        let mut out = vec![0_usize; 103];
        for_each_chunk(&mut out, 10, |index, chunk| {
            chunk.iter_mut().enumerate().for_each(|(i, v)| *v += index * 10 + i);
        });
        assert!(out.iter().enumerate().all(|(i, &v)| i == v));
    }
}
