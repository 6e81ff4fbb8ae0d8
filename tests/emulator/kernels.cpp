// The kernels of one precision as host functions, and the table of their names. Compiled
// twice, with -DREAL_BF16 and without; `kernels.inc` lists every KERNEL of the sources.
#include "host.h"
namespace {
#include "prelude.cuh"
#include "patches.cuh"
#include "embedding.cuh"
#include "norm.cuh"
#include "activation.cuh"
#include "tiles.cuh"
#include "attention.cuh"
#include "router.cuh"
#include "experts.cuh"
#include "loss.cuh"
#include "optim.cuh"
}  // namespace

#ifndef LIST_KERNELS
#ifdef REAL_BF16
#define TABLE entries_bf16
#else
#define TABLE entries_f32
#endif
#define X(f) {#f, [](void** p) { return host::hold(f, p); }},
const host::Entry host::TABLE[] = {
#include "kernels.inc"
    {nullptr, nullptr}};
#endif
