#!/bin/bash
# Runs one fuzz target for some time, guided by coverage, with the stable toolchain.
#
#   tests/fuzz/run.sh TARGET [SECONDS]       without TARGET: lists them
#
# libFuzzer's instrumentation is asked of LLVM by its own flags, so that no nightly compiler
# is needed; a C++ compiler is. The first call builds every dependency once more (minutes).
# The corpus grows in target/fuzz/corpus/TARGET; what fails is left in target/fuzz/found.
set -euo pipefail
cd "$(dirname "$0")/../.."

triple=$(rustc -vV | sed -n 's/^host: //p')
export CARGO_TARGET_DIR=target/fuzz
RUSTFLAGS='-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4
 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
 -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares
 -Ccodegen-units=1 -Cdebug-assertions -Coverflow-checks' \
  cargo build --release --locked --package upcycle-fuzz --target "$triple" --quiet
