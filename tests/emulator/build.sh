#!/bin/sh
# Builds the emulated libcuda.so, libcublas.so, libnccl.so and libnvrtc.so into the folder $1;
# further arguments go to the compiler (-fsanitize=address,undefined -g). The kernels come from
# $UPCYCLE_EMULATOR_KERNELS where it is set: mutated ones. The libraries carry plain names
# only: NVIDIA's NVRTC would load a libcuda.so.1.
set -e
here=$(cd "$(dirname "$0")" && pwd)
out=$1
shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
cxx=${CXX:-g++}
kernels=${UPCYCLE_EMULATOR_KERNELS:-$here/../../src/engine/cuda/kernels}
# A card computes a * b + c in one rounding only where it is asked to.
flags="-std=c++17 -O2 -ffp-contract=off -fPIC -fvisibility=hidden -Wno-unknown-pragmas
  -I $kernels -I $here -I $out"
"$cxx" -E -P -DLIST_KERNELS -std=c++17 -I "$kernels" -I "$here" "$here/kernels.cpp" |
  grep -oE 'KERNEL_NAME +[a-z_0-9]+' | sed 's/KERNEL_NAME *\(.*\)/X(\1)/' >"$out/kernels.inc"
"$cxx" $flags "$@" -DREAL_BF16 -c "$here/kernels.cpp" -o "$out/bf16.o" &
first=$!
"$cxx" $flags "$@" -c "$here/kernels.cpp" -o "$out/f32.o"
wait $first
"$cxx" $flags "$@" -shared -Wl,-soname,libcuda.so "$here/fibers.cpp" "$here/driver.cpp" \
  "$out/bf16.o" "$out/f32.o" -o "$out/libcuda.so"
"$cxx" $flags "$@" -shared -Wl,-soname,libcublas.so "$here/blas.cpp" -L "$out" -lcuda \
  -o "$out/libcublas.so"
"$cxx" $flags "$@" -shared -Wl,-soname,libnccl.so "$here/nccl.cpp" -L "$out" -lcuda \
  -o "$out/libnccl.so"
"$cxx" $flags "$@" -shared -Wl,-soname,libnvrtc.so "$here/nvrtc.cpp" -o "$out/libnvrtc.so"
