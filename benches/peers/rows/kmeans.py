"""Spherical k-means against faiss: one iteration, whole fits, and how they scale."""

import json

import numpy as np
from safetensors.numpy import save_file

from harness import Bench, Measure, Row, Scaling, clock, cpu

N, D, K, ITERATIONS = 200_000, 768, 8, 25
# Iterations that a fit to convergence may take.
MOST = 300


def rows(bench: Bench) -> list:
    import faiss

    faiss.omp_set_num_threads(bench.threads)
    x = vectors(N, D)
    save_file({"x": x}, bench.scratch / "x.safetensors")
    # faiss compares inner products: rows must be of length 1. Ours needs no such copy.
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    del x

    def peer(turn: int) -> Measure:
        kmeans = faiss.Kmeans(
            D, K, niter=ITERATIONS, spherical=True, seed=turn + 1, max_points_per_centroid=N
        )
        before = cpu()
        seconds, _ = clock(lambda: kmeans.train(unit))
        used = cpu() - before
        own = faiss_objective(unit, kmeans.centroids)
        # It stops where nothing moves any more: what it ran counts, not what it was allowed.
        ran = len(kmeans.iteration_stats)
        extra = {"whole fit, s": seconds, "CPU s": used, "iterations": ran}
        return Measure(seconds / ran, own, extra)

    def ours(dtype: str):
        return lambda turn: fit(bench, bench.scratch / "x.safetensors", K, turn + 1, dtype)

    comparison = Row(
        name="kmeans",
        title="Spherical k-means, one iteration",
        note=(
            f"{N:,} vectors of {D} around 8 overlapping directions, k = {K}, {ITERATIONS} "
            "iterations at most, one start, no subsampling; seconds of one iteration (faiss: whole "
            "training by the iterations it ran; ours: median pass).\n"
            "The objective is the mean cosine to the nearest centroid, computed from the f32 "
            "vectors for all; medians over the seeds.\n"
            "Ours starts with k-means++ (inside `whole fit`), faiss from random vectors.\n"
            "`CPU s` is that of the whole fit; ours counts reading the file too.\n"
            "`of read` is the share of a plain read of the same memory by the same threads."
        ),
        peer="faiss-cpu, f32",
        contenders={
            "faiss-cpu, f32": peer, "upcycle, f32": ours("f32"), "upcycle, bf16": ours("bf16"),
        },
        targets={"upcycle, f32": 2.0, "upcycle, bf16": 3.5},
        quality="objective",
    )
    return [comparison, *whole_fits(bench), *scaling(bench)]


def whole_fits(bench: Bench) -> list[Row]:
    """From vectors in memory to converged centroids, on easy and on hard data."""
    import faiss

    found = []
    for name, spread, about in (
        ("easy", 0.8, "8 directions far apart"), ("hard", 0.08, "8 overlapping directions"),
    ):
        path = bench.scratch / f"{name}.safetensors"
        x = vectors(N, D, spread)
        save_file({"x": x}, path)
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        del x

        def peer(turn: int, unit=unit) -> Measure:
            kmeans = faiss.Kmeans(
                D, K, niter=MOST, spherical=True, seed=turn + 1, max_points_per_centroid=N
            )
            seconds, _ = clock(lambda: kmeans.train(unit))
            ran = len(kmeans.iteration_stats)
            return Measure(seconds, faiss_objective(unit, kmeans.centroids), {"iterations": ran})

        def ours(dtype: str, path=path):
            def run(turn: int) -> Measure:
                own = fit(bench, path, K, turn + 1, dtype, iterations=MOST)
                extra = {"iterations": own.extra["iterations"]}
                return Measure(own.extra["whole fit, s"], own.quality, extra)
            return run

        found.append(Row(
            name=f"kmeans-whole-{name}",
            title=f"Spherical k-means, whole fit, {about}",
            note=(
                f"{N:,} vectors of {D} around {about}, k = {K}, one start, until nothing moves "
                f"({MOST} iterations at most); from vectors in memory to centroids, seeding "
                "included.\n"
                "A start may end in a poorer optimum: compare the objectives, medians over the "
                "seeds."
            ),
            peer="faiss-cpu, f32",
            contenders={
                "faiss-cpu, f32": peer, "upcycle, f32": ours("f32"),
                "upcycle, bf16": ours("bf16"),
            },
            quality="objective",
        ))
    return found


def scaling(bench: Bench) -> list[Scaling]:
    """Time by vectors, clusters and threads."""
    path = {n: bench.scratch / f"{n}.safetensors" for n in (50_000, 100_000, 200_000)}
    for n, file in path.items():
        save_file({"x": vectors(n, D)}, file)

    def point(n: int, k: int, threads: int):
        return lambda turn: fit(bench, path[n], k, turn + 1, "f32", threads, 8)

    note = f"Vectors of {D}, f32, one start; seconds of one iteration (median of 8)."
    return [
        Scaling(
            "kmeans-scaling-samples", "k-means by vectors", f"{note} k = {K}.",
            {f"{n:,} vectors": (n, point(n, K, bench.threads)) for n in path},
        ),
        Scaling(
            "kmeans-scaling-clusters", "k-means by clusters", f"{note} 100,000 vectors.",
            {f"k = {k}": (k, point(100_000, k, bench.threads)) for k in (16, 32, 64)},
        ),
        Scaling(
            "kmeans-scaling-threads", "k-means by threads",
            f"{note} 200,000 vectors, k = {K}. The size is 1 / threads.",
            {f"{t} threads": (1 / t, point(200_000, K, t)) for t in (1, 2)},
        ),
    ]


def vectors(n: int, d: int, spread: float = 0.08) -> np.ndarray:
    """Rows around 8 directions; those that overlap are the hard case, many rows move."""
    random = np.random.default_rng(1)
    means = spread * random.standard_normal((8, d), dtype=np.float32)
    x = random.standard_normal((n, d), dtype=np.float32)
    x += means[np.arange(n) % 8]
    return x


def faiss_objective(unit: np.ndarray, centroids: np.ndarray) -> float:
    """Mean cosine to the nearest centroid."""
    blocks = (unit[i : i + 8192] @ centroids.T for i in range(0, len(unit), 8192))
    return float(sum(block.max(axis=1).sum(dtype=np.float64) for block in blocks) / len(unit))


def fit(bench, path, k, seed, dtype, threads=None, iterations=ITERATIONS) -> Measure:
    """One fit of ours, as its JSON line tells it."""
    before = cpu()
    line = json.loads(bench.ours(
        "upcycle-cluster", "fit", "--vectors", path, "--clusters", k,
        "--iterations", iterations, "--restarts", 1, "--tolerance", 0, "--seed", seed,
        "--dtype", dtype, "--threads", threads or bench.threads, "--memory", "64G",
        "--bandwidth", "--quiet", "--force", "--out", bench.scratch / "out",
    ))
    return Measure(line["seconds_per_iteration"], line["objective"], {
        "whole fit, s": line["seconds"]["fit"], "iterations": line["iterations"],
        "CPU s": cpu() - before,
        "GB/s": line["gigabytes_per_second"],
        "of read": line["gigabytes_per_second"] / line["read_gigabytes_per_second"],
        "peak MB": line["peak_bytes"] / 1e6,
    })
