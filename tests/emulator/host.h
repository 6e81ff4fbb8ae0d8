// What a kernel sees of an emulated card: threads, warps, blocks and the primitives of
// prelude.cuh, as plain C++.
//
// One fiber per thread of a block; blocks run one after the other (fibers.cpp). Barriers and
// warp collectives are exact: a lane that never arrives, a barrier that not all threads reach
// or a collective outside its warp is an error, not a hang. In which order warps and lanes run
// between barriers is a parameter: a kernel without races gives the same bits in every order.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>
#include <vector>

struct Triple { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };

namespace host {

const unsigned LANES = 32;
// The largest value that lanes exchange: a thread's part of both operands of a product.
const size_t SLOT = 64;

enum State { READY, AT_BARRIER, AT_COLLECTIVE, DONE };

// cp.async: lands when it is waited for, as late as a card may let it.
struct Copy { void* to; const void* from; bool use; };

struct Fiber {
    void* stack_pointer;
    State state;
    Triple thread;
    unsigned lane, warp;
    std::vector<Copy> copies;
};

// Values of a collective, twice: a fast lane may begin the next one while a slow lane still
// reads those of the last.
struct Warp {
    unsigned char slots[2][LANES][SLOT];
    unsigned arrived, members, turn;
};

struct Block {
    const char* kernel;
    Triple index, grid, dim;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<unsigned char> shared;
    std::function<void()> body;
    void* scheduler;
};

extern thread_local Block* block;
extern thread_local Fiber* me;

// Leaves the running fiber; it comes back when its state is READY again.
void yield(State state);
[[noreturn]] void fail(const char* what);

// Runs a kernel. order: 0 ascending, 1 descending, else the seed of permutations.
void launch(const char* kernel, Triple grid, Triple dim, size_t shared, std::function<void()> body,
            unsigned order);

// A kernel by name, and how to bind its arguments: they are copied when it is launched.
struct Entry { const char* name; std::function<void()> (*bind)(void**); };
extern const Entry entries_bf16[], entries_f32[];

template <class... A, size_t... I>
std::function<void()> hold(void (*f)(A...), void** p, std::index_sequence<I...>) {
    return [f, own = std::tuple<A...>(*static_cast<A*>(p[I])...)] { std::apply(f, own); };
}
template <class... A> std::function<void()> hold(void (*f)(A...), void** p) {
    return hold(f, p, std::index_sequence_for<A...>{});
}

// All lanes of a warp meet: each leaves a value, the last to arrive may work on all of them,
// then each may read any.
typedef unsigned char Slots[LANES][SLOT];
template <class Last> inline Slots& meet(const void* value, size_t size, Last last) {
    Warp& warp = block->warps[me->warp];
    Slots& slots = warp.slots[warp.turn & 1];
    memcpy(slots[me->lane], value, size);
    if (++warp.arrived < warp.members) {
        yield(AT_COLLECTIVE);
        return slots;
    }
    warp.arrived = 0;
    warp.turn++;
    last(slots);
    for (unsigned lane = 0; lane < warp.members; lane++) {
        Fiber& other = block->fibers[me->warp * LANES + lane];
        if (&other == me) continue;
        if (other.state != AT_COLLECTIVE) fail("a lane is missing from a warp collective");
        other.state = READY;
    }
    return slots;
}
inline Slots& meet(const void* value, size_t size) {
    return meet(value, size, [](Slots&) {});
}
template <class T> T of_lane(Slots& slots, unsigned lane) {
    T value;
    memcpy(&value, slots[lane], sizeof value);
    return value;
}

inline float from_bf16(uint16_t bits) {
    uint32_t wide = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}
// To the nearest, ties to even, as cvt.rn does.
inline uint32_t to_bf16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (std::isnan(value)) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

// Where the fragments of mma.m16n8k16 and ldmatrix lie. PTX ISA 9.0, section "Matrix Fragments
// for mma.m16n8k16 with floating point type": with g = lane / 4 and t = lane % 4,
//
//     A 16 x 16, values a0..a7:  row g, or g + 8 for a2 a3 a6 a7;
//                                column 2t + (i & 1), + 8 for a4..a7
//     B 16 x 8,  values b0..b3:  row 2t + (i & 1), + 8 for b2 b3;  column g
//     C 16 x 8,  values c0..c3:  row g, or g + 8 for c2 c3;  column 2t + (i & 1)
//
// and section "ldmatrix": of each 8 x 8 tile, lane l gets row l / 4, columns 2 (l % 4) and the
// next; with .trans, column l / 4, rows 2 (l % 4) and the next.
struct Place { unsigned row, column; };
inline Place place_a(unsigned lane, unsigned i) {
    return {lane / 4 + (i / 2 % 2) * 8, lane % 4 * 2 + i % 2 + i / 4 * 8};
}
inline Place place_b(unsigned lane, unsigned i) {
    return {lane % 4 * 2 + i % 2 + i / 2 * 8, lane / 4};
}
inline Place place_c(unsigned lane, unsigned i) {
    return {lane / 4 + i / 2 * 8, lane % 4 * 2 + i % 2};
}

// A thread's registers of both operands, two bf16 values each, the first in the low half.
struct Operands { uint32_t a[4], b[2]; };
inline float half_of(const uint32_t* registers, unsigned i) {
    return from_bf16(uint16_t(registers[i / 2] >> i % 2 * 16));
}

inline void multiply(Slots& slots) {
    float a[16][16], b[16][8], c[16][8] = {};
    for (unsigned lane = 0; lane < LANES; lane++) {
        auto own = of_lane<Operands>(slots, lane);
        for (unsigned i = 0; i < 8; i++) {
            Place at = place_a(lane, i);
            a[at.row][at.column] = half_of(own.a, i);
        }
        for (unsigned i = 0; i < 4; i++) {
            Place at = place_b(lane, i);
            b[at.row][at.column] = half_of(own.b, i);
        }
    }
    for (unsigned row = 0; row < 16; row++)
        for (unsigned k = 0; k < 16; k++)
            for (unsigned column = 0; column < 8; column++)
                c[row][column] += a[row][k] * b[k][column];
    for (unsigned lane = 0; lane < LANES; lane++) {
        float own[4];
        for (unsigned i = 0; i < 4; i++) {
            Place at = place_c(lane, i);
            own[i] = c[at.row][at.column];
        }
        memcpy(slots[lane], own, sizeof own);
    }
}

}  // namespace host

// The words of CUDA that kernels use.
#define __shared__ static thread_local
#ifdef LIST_KERNELS
#define KERNEL(threads) KERNEL_NAME
#else
#define KERNEL(threads) static void
#endif
#define DEVICE static inline
#define DYNAMIC_SHARED(name) unsigned char* name = host::block->shared.data()
#define threadIdx (host::me->thread)
#define blockIdx (host::block->index)
#define blockDim (host::block->dim)
#define gridDim (host::block->grid)

static inline void __syncthreads() { host::yield(host::AT_BARRIER); }
static inline void __syncwarp() {
    char nothing = 0;
    host::meet(&nothing, 1);
}
template <class T> static inline T __shfl_sync(unsigned, T value, int lane) {
    return host::of_lane<T>(host::meet(&value, sizeof value), unsigned(lane));
}
template <class T> static inline T __shfl_xor_sync(unsigned, T value, int mask) {
    unsigned lane = host::me->lane ^ unsigned(mask);
    return host::of_lane<T>(host::meet(&value, sizeof value), lane);
}
template <class T> static inline T __shfl_up_sync(unsigned, T value, unsigned by) {
    unsigned lane = host::me->lane;
    return host::of_lane<T>(host::meet(&value, sizeof value), lane < by ? lane : lane - by);
}
static inline unsigned __ballot_sync(unsigned, bool value) {
    auto& slots = host::meet(&value, sizeof value);
    unsigned members = host::block->warps[host::me->warp].members, all = 0;
    for (unsigned i = 0; i < members; i++) all |= unsigned(host::of_lane<bool>(slots, i)) << i;
    return all;
}
static inline int __popc(unsigned value) { return __builtin_popcount(value); }
static inline int __ffs(unsigned value) { return __builtin_ffs(int(value)); }
static inline float __uint_as_float(unsigned bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static inline unsigned __float_as_uint(float value) {
    unsigned bits;
    memcpy(&bits, &value, 4);
    return bits;
}
// Rounded one after the other: the build forbids contraction.
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }

// The primitives that prelude.cuh writes in PTX for a card.
static inline float power_of_two(float x) { return exp2f(x); }
static inline unsigned pack(float low, float high) {
    return host::to_bf16(low) | host::to_bf16(high) << 16;
}
static inline void mma(float* d, const unsigned* a, const unsigned* b) {
    host::Operands own;
    memcpy(own.a, a, sizeof own.a);
    memcpy(own.b, b, sizeof own.b);
    float c[4];
    memcpy(c, host::meet(&own, sizeof own, host::multiply)[host::me->lane], sizeof c);
    for (int i = 0; i < 4; i++) d[i] += c[i];
}
static inline void load_tiles_any(unsigned* r, const void* row, bool transposed) {
    if (uintptr_t(row) % 16) host::fail("ldmatrix: a row is not aligned to 16 bytes");
    auto& slots = host::meet(&row, sizeof row);
    unsigned lane = host::me->lane;
    for (unsigned tile = 0; tile < 4; tile++) {
        uint32_t both = 0;
        for (unsigned half = 0; half < 2; half++) {
            unsigned pair = lane % 4 * 2 + half;
            unsigned at_row = transposed ? pair : lane / 4, column = transposed ? lane / 4 : pair;
            auto values = host::of_lane<const uint16_t*>(slots, tile * 8 + at_row);
            both |= uint32_t(values[column]) << half * 16;
        }
        r[tile] = both;
    }
    __syncwarp();  // No lane may overwrite the tiles before all have read them.
}
static inline void load_tiles(unsigned* r, const void* row) { load_tiles_any(r, row, false); }
static inline void load_tiles_transposed(unsigned* r, const void* row) {
    load_tiles_any(r, row, true);
}
static inline void copy_async(void* to, const void* from, bool use) {
    if (uintptr_t(to) % 16 || uintptr_t(from) % 16) host::fail("cp.async: not aligned to 16 bytes");
    host::me->copies.push_back({to, from, use});
}
static inline void copies_done() {
    for (auto& copy : host::me->copies) {
        if (copy.use) memcpy(copy.to, copy.from, 16);
        else memset(copy.to, 0, 16);
    }
    host::me->copies.clear();
}
