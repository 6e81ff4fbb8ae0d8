#!/bin/bash
# Runs one fuzz target for some time, guided by coverage, with the stable toolchain.
#
#   tests/fuzz/run.sh TARGET [SECONDS]       without TARGET: lists them
#
# libFuzzer's instrumentation is asked of LLVM by its own flags, so that no nightly compiler
# is needed; a C++ compiler is. The first call builds every dependency once more (minutes).
# The corpus grows in target/fuzz/corpus/TARGET; what fails is left in target/fuzz/found.
# TMPDIR=/dev/shm makes it faster: every try is a file.
set -euo pipefail
cd "$(dirname "$0")/../.."

triple=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=target/fuzz
RUSTFLAGS='-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
 -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
 -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks' \
  cargo build --release --locked --package upcycle-fuzz --target "$triple" --quiet

target=${1:-}
seconds=${2:-600}
if [ -z "$target" ]; then
  grep -oP 'target\("\K[^"]+' tests/hostile/targets.rs
  exit 0
fi
binary=$CARGO_TARGET_DIR/$triple/release/fuzz
corpus=$CARGO_TARGET_DIR/corpus/$target
found=$CARGO_TARGET_DIR/found
mkdir -p "$corpus" "$found"
export FUZZ_TARGET=$target
FUZZ_SEEDS=$corpus "$binary" -runs=1 "$corpus" 2>/dev/null
exec "$binary" "$corpus" -max_total_time="$seconds" -max_len=131072 -timeout=20 \
  -rss_limit_mb=2048 -malloc_limit_mb=1024 -artifact_prefix="$found/$target-" \
  -print_final_stats=1
