#!/usr/bin/env python3
"""Breaks every kernel, one at a time, and counts what the emulated tests catch.

    make cuda-mutants            or: tests/cuda/mutants.py TEST_BINARY [--only TEXT] [--jobs N]

A mutant is a text in a kernel's source and what takes its place: a missing barrier or wait,
swapped fragments, a wrong mask, a barrier that only some threads reach, an access out of
bounds, a wrong term. The tests build the emulator with the mutated sources and run those that
cover the kernel; a mutant is caught where they fail. The test binary itself never changes.
Exit status 1 where one survives.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "src/engine/cuda/kernels"

# What covers a kernel: parts of names of tests.
ATTENTION = "attention_equals"
NORMS = "norms_"
SORT = "pairs_are_sorted"
GATHER = "gathered_rows"
CHOICE = "most_uncertain_rows"
LEVELS = "levels_become"
F32 = "losses_and_every_gradient_equal"
BF16 = "near_the_cpu_in_bf16"
STEPS = "three_steps"
FROZEN = "frozen_tensors_keep"
SCALE = "frozen_logit_scale"
SMOOTH = "smoothed_labels"
MICRO = "micro_batches_have"

BARRIER = "__syncthreads();"

# (file, kernel, text, replacement, tests). A text that stands in several places is the first
# one behind the kernel's name.
MUTANTS = [
    # Attention on tensor cores.
    ("attention", "attend", "    copies_done();\n", "", ATTENTION),
    ("attention", "attend", "        copies_done();\n        " + BARRIER, "        copies_done();", ATTENTION),
    ("attention", "attend", BARRIER + "  // The warps", "// The warps", ATTENTION),
    ("attention", "attend", "column <= row + i / 2 * 8", "column < row + i / 2 * 8", ATTENTION),
    ("attention", "attend", "column < t &&", "column <= t &&", ATTENTION),
    ("attention", "attend", "sum[r] *= shrink;", "", ATTENTION),
    ("attention", "attend", "__shfl_xor_sync(ALL_LANES, top[r], 2)", "top[r]", ATTENTION),
    ("tiles", "load_a", "lane / 16 * 8", "lane / 8 % 2 * 8", ATTENTION),
    ("tiles", "times_rows", "mma(c[j], a[half * 2], b);", "mma(c[j], a[half * 2], b + 2);", ATTENTION),
    ("tiles", "times_rows", "b + j % 2 * 2", "b", ATTENTION),
    ("tiles", "times_columns", "pack(left[2], left[3])", "pack(right[0], right[1])", ATTENTION),
    ("tiles", "times_columns", "load_tiles_transposed", "load_tiles", ATTENTION),
    ("tiles", "store_rows", "row + 8 < end", "row < end", ATTENTION),
    ("attention", "score_gradient", "key <= query", "key < query", ATTENTION),
    ("attention", "score_gradient", "- delta[at]", "", ATTENTION),
    ("attention", "attend_backward_keys", "        " + BARRIER + "\n        load_tile", "        load_tile", ATTENTION),
    ("attention", "attend_backward_keys", "causal ? from : 0", "causal ? from + TILE : 0", ATTENTION),
    ("attention", "attend_backward_queries", "    copies_done();\n    " + BARRIER, "    copies_done();", ATTENTION),
    ("attention", "attend_backward_queries", "        copies_done();\n", "", ATTENTION),
    # Attention by the definition.
    ("attention", "#else", "causal ? query + 1 : t", "causal ? query : t", ATTENTION),
    ("attention", "#else", "causal ? key : 0", "causal ? key + 1 : 0", ATTENTION),
    ("attention", "#else", "(score<HEAD>(g, row + 2 * d) - along)", "score<HEAD>(g, row + 2 * d)", ATTENTION),
    ("attention", "row_products", "LANES / 2", "LANES / 4", ATTENTION),
    # Norms.
    ("norm", "norm_rows", "1e-5f", "1e-3f", NORMS),
    ("norm", "norm_rows", "store8(x_out + at + j, v[c]);", "", NORMS),
    ("norm", "norm_rows", "if (row >= rows) return;", "if (row > rows) return;", "asan " + NORMS),
    ("norm", "norm_rows_backward", "- n[c][i] * along", "", NORMS),
    ("norm", "norm_rows_backward", "        " + BARRIER + "\n#pragma", "        if (warp) " + BARRIER + "\n#pragma", NORMS),
    ("norm", "norm_rows_backward", BARRIER + "\n        for (int j", "\n        for (int j", NORMS),
    ("norm", "norm_stream", "offset, rows, d);", "gain, rows, d);", F32),
    ("norm", "sum_partials", "w < 8", "w < 7", NORMS),
    # Activation and sums of columns.
    ("activation", "bias_activation", "row >= starts[e + 1]", "row > starts[e + 1]", F32),
    ("activation", "bias_activation_backward", "g[i] *= a.slope", "g[i] *= a.value", F32),
    ("activation", "column_sums", "row < last", "row < last - 1", F32),
    ("activation", "sum_chunks", "c < own", "c < own - 1", F32),
    ("activation", "bias_rows", "v[i] += b[i]", "v[i] -= b[i]", F32),
    # Pictures and captions.
    ("patches", "pixel_of", "within / patch % patch, x = within % patch", "within % patch, x = within / patch % patch", F32),
    ("patches", "patches_cut_levels", "lines[plane * 2 + 1]", "lines[1]", LEVELS),
    ("patches", "patches_embed", "position + (size_t)t * d", "position", F32),
    ("patches", "patches_embed_backward", "dembedded + own + j", "dembedded + j", F32),
    ("embedding", "captions_embed", "places[row]", "0", F32),
    ("embedding", "position_backward", "row < starts[s + 1]", "row <= starts[s + 1]", F32),
    ("embedding", "token_backward", "i < last", "i < last - 1", F32),
    ("embedding", "rows_gather", "rows[i]", "i", F32),
    ("embedding", "rows_scatter", "store8(dx_real + (size_t)rows[i] * d + j, v);", "", F32),
    # The router.
    ("router", "route", "if (lane == winner) left = -1.0f;", "", F32),
    ("router", "router_forward", "sums[i][t] += v[t][c] * w[c]", "sums[i][t] = v[t][c] * w[c]", F32),
    ("router", "routing_statistics", "counts ? 1.0 : 0.0", "1.0", F32),
    ("router", "sum_statistics", "total = block_sum(total);", "", F32),
    ("router", "router_backward", "(dweight[slots + i] - along)", "dweight[slots + i]", F32),
    ("router", "router_weights_backward", "sums[i] += dlogits", "sums[i] = dlogits", F32),
    # Experts.
    ("experts", "experts_count", BARRIER, "", SORT),
    ("experts", "experts_scan", "start += rounded(totals[i])", "start += totals[i]", SORT),
    ("experts", "experts_scan", BARRIER, "if (lane == 0) " + BARRIER, SORT),
    ("experts", "experts_place", "(1u << lane) - 1", "(2u << lane) - 1", SORT),
    ("experts", "experts_gather", "to[j] = pair < pairs ? from[j] : zero", "if (pair < pairs) to[j] = from[j]", GATHER),
    ("experts", "experts_combine", "w * (v[c] + b[c])", "w * v[c]", F32),
    ("experts", "experts_combine_backward", "store8(dout + (size_t)slot * d + j, zero);", ";", F32),
    ("experts", "experts_combine_backward", "g[i] *= w", "g[i] += w", F32),
    ("experts", "experts_scatter", "total[t][c] += g * w[c]", "total[t][c] -= g * w[c]", F32),
    ("experts", "ensemble_bias", "own * b[c]", "b[c]", F32),
    ("experts", "stream_add", "a[c] += b[c]", "a[c] = b[c]", F32),
    # Losses.
    ("loss", "unit_forward", "raw[j] * own", "raw[j]", F32),
    ("loss", "unit_backward", "- along * u", "", F32),
    ("loss", "contrastive_rows", "most = block_max(most);", "", F32),
    ("loss", "contrastive_columns", BARRIER, "", F32),
    ("loss", "contrastive_gradient", "- 2.0f * target", "- target", F32),
    ("loss", "contrastive_gradient", "even = smoothing / pairs", "even = 0", SMOOTH),
    ("loss", "contrastive_finish", "along = block_sum(along);", "", F32),
    ("loss", "uncertain_mark", "from + i < row)", "from + i <= row)", CHOICE),
    ("loss", "uncertain_place", "        " + BARRIER + "\n        int before", "        int before", CHOICE),
    ("loss", "distill_gather", "rows[i]", "i", F32),
    ("loss", "distill_difference", "total[c] = -target[c]", "total[c] = 0", F32),
    ("loss", "distill_pull", "2.0f * *weight", "*weight", F32),
    ("loss", "auxiliary_weights", "router_z * own / rows", "router_z / rows", F32),
    # The optimizer.
    ("optim", "squared_norm", " + (double)g.w * g.w", "", STEPS),
    ("optim", "add_pages", "v.w += o.w", "v.w = o.w", MICRO),
    ("optim", "add_pages", "(size_t)blockIdx.x * (PAGE / 4) + threadIdx.x", "threadIdx.x", MICRO),
    ("optim", "add_pages", "((float4*)values)[i] = v;", "", MICRO),
    ("optim", "adamw", "flag == 2 ? keep : 1.0f", "keep", STEPS),
    ("optim", "adamw", "if (flag == 0) return;", "", FROZEN),
    ("optim", "move_average", "if (!flags[blockIdx.x]) return;", "", STEPS),
    ("optim", "narrow_copy", "put(copy + i, values[i])", "put(copy + i, values[0])", BF16),
    ("optim", "clamp_scale", "fminf(fmaxf(*value, 0.0f), most)", "fmaxf(*value, 0.0f)", SCALE),
    # Reductions that all share.
    ("prelude", "block_sum", "    " + BARRIER + "\n    T total", "    T total", F32),
    ("prelude", "warp_sum(float", "step = 16", "step = 8", F32),
]


def mutate(mutant, folder):
    """Writes all kernels to `folder`, one of them broken."""
    file, kernel, text, replacement, _ = mutant
    for source in KERNELS.glob("*.cuh"):
        shutil.copy(source, folder)
    path = folder / f"{file}.cuh"
    source = path.read_text()
    # The kernel or the function that it is made of, not a mention of it.
    marks = [kernel] if kernel.startswith("#") else [f" {kernel}(", f" {kernel}##", f" {kernel}_##", f" {kernel}"]
    at = next((source.find(mark) for mark in marks if mark in source), -1)
    at = source.find(text, at) if at >= 0 else -1
    if at < 0 and text in source:
        at = source.find(text)
    if at < 0:
        raise SystemExit(f"{file}.cuh has no `{text}` in {kernel}")
    path.write_text(source[:at] + replacement + source[at + len(text):])


def run(binary, mutant):
    """Whether the tests fail on a mutant, and for how long they ran."""
    tests, environment, clock = mutant[4], dict(os.environ), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="upcycle-mutant-") as scratch:
        folder = Path(scratch) / "kernels"
        folder.mkdir()
        mutate(mutant, folder)
        environment.update(
            UPCYCLE_EMULATOR_KERNELS=str(folder), UPCYCLE_EMULATOR_FOLDER=scratch,
            UPCYCLE_REQUIRE_EMULATOR="1", UPCYCLE_EMULATOR_FLAGS="-O1", HOME=scratch,
        )
        if tests.startswith("asan "):
            tests = tests.removeprefix("asan ")
            asan = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True)
            environment.update(
                UPCYCLE_EMULATOR_FLAGS="-O1 -fsanitize=address", LD_PRELOAD=asan.stdout.strip(),
                ASAN_OPTIONS="detect_leaks=0",
            )
        done = subprocess.run(
            [binary, tests], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=3600,
        )
    if "the emulator does not build" in done.stdout + done.stderr:
        raise SystemExit(f"{mutant[:3]} does not compile:\n{done.stdout}{done.stderr}")
    if "running 0 tests" in done.stdout:
        raise SystemExit(f"there is no test {tests}")
    return done.returncode != 0, time.monotonic() - clock


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("binary", help="the test binary `cuda`, as cargo built it")
    parser.add_argument("--only", default="", help="mutants whose file or kernel has this in its name")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    chosen = [m for m in MUTANTS if arguments.only in f"{m[0]} {m[1]}"]
    survived = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        results = pool.map(lambda mutant: run(arguments.binary, mutant), chosen)
        for mutant, (caught, seconds) in zip(chosen, results):
            file, kernel, text, replacement, _ = mutant
            change = f"{' '.join(text.split())} -> {' '.join(replacement.split()) or 'nothing'}"
            word = "caught" if caught else "SURVIVED"
            print(f"{word:8} {seconds:5.1f} s  {file:10} {kernel:24} {change}", flush=True)
            if not caught:
                survived.append(mutant)
    print(f"{len(chosen) - len(survived)} of {len(chosen)} broken kernels were caught")
    return 1 if survived else 0


if __name__ == "__main__":
    sys.exit(main())
