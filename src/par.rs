//! Parallel loops whose results do not depend on the number of threads.
//!
//! The rule: work is cut into pieces by the data's shape alone, a piece is computed by one
//! thread, and pieces meet in index order. Threads decide who computes, never what.

use rayon::prelude::*;

/// Calls `work(piece_index, piece)` for every `piece_len` values of `out`, in parallel.
/// The last piece may be shorter.
pub fn for_each_piece<T: Send>(
    out: &mut [T],
    piece_len: usize,
    work: impl Fn(usize, &mut [T]) + Sync,
) {
    if out.len() <= piece_len {
        if !out.is_empty() {
            work(0, out);
        }
        return;
    }
    out.par_chunks_mut(piece_len)
        .enumerate()
        .for_each(|(index, piece)| work(index, piece));
}

/// Like [`for_each_piece`] for fallible work; the error of the lowest index wins.
pub fn try_for_each_piece<T: Send, E: Send>(
    out: &mut [T],
    piece_len: usize,
    work: impl Fn(usize, &mut [T]) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let pieces = out.par_chunks_mut(piece_len.max(1)).enumerate();
    let done: Vec<Result<(), E>> =
        pieces.map(|(index, piece)| work(index, piece)).collect();
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
    fn pieces_cover_the_slice_once() {
        let mut out = vec![0_usize; 103];
        for_each_piece(&mut out, 10, |index, piece| {
            piece.iter_mut().enumerate().for_each(|(i, v)| *v += index * 10 + i);
        });
        assert!(out.iter().enumerate().all(|(i, &v)| i == v));
    }
}
