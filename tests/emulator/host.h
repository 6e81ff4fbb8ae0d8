// Runs CUDA kernels on the host: one fiber per thread, blocks one after the other.
//
// Barriers and warp collectives are exact: a lane that never arrives, a divergent barrier or
// a warp collective outside its warp is an error, not a hang. The order in which warps and
// lanes run between barriers is a parameter: a kernel without races gives the same bits in
// every order.
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

struct uint3_ { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };

namespace host {

enum State { READY, AT_BLOCK, AT_WARP, DONE };

struct Fiber {
    void* stack_pointer;
    State state;
    uint3_ thread;
    unsigned lane, warp;
    struct Copy { void* to; const void* from; bool use; };
    std::vector<Copy> copies;
};
struct Warp {
    unsigned char slot[2][32][64];
    unsigned arrived, members, turn;
};

struct Block {
    uint3_ index, grid, dim;
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    std::vector<unsigned char> shared;
    void (*body)(void*);
    void* body_data;
    void* scheduler;
    const char* kernel;
};
extern thread_local Block* block;
extern thread_local Fiber* me;
extern "C" void host_switch(void** save, void* load);
void yield(State state);
[[noreturn]] void fail(const char* what);

inline unsigned char* dynamic_shared() { return block->shared.data(); }

// All lanes of the warp meet; each leaves a value and may read any other's.
template <class F> inline unsigned char (*meet(const void* value, size_t size, F last))[64] {
    Warp& warp = block->warps[me->warp];
    unsigned turn = warp.turn & 1;
    memcpy(warp.slot[turn][me->lane], value, size);
    if (++warp.arrived == warp.members) {
        warp.arrived = 0;
        warp.turn++;
        last(warp.slot[turn]);
        for (unsigned i = 0; i < warp.members; i++) {
            Fiber& other = block->fibers[me->warp * 32 + i];
            if (other.state == AT_WARP) other.state = READY;
            else if (&other != me) fail("a lane is missing from a warp collective");
        }
    } else {
        yield(AT_WARP);
    }
    return warp.slot[turn];
}
inline unsigned char (*meet(const void* value, size_t size))[64] {
    return meet(value, size, [](unsigned char (*)[64]) {});
}
template <class T> T read(unsigned char (*slots)[64], unsigned lane) {
    T v;
    memcpy(&v, slots[lane], sizeof v);
    return v;
}
inline float from_bf16(uint16_t bits) {
    uint32_t wide = uint32_t(bits) << 16;
    float v;
    memcpy(&v, &wide, 4);
    return v;
}
inline uint32_t to_bf16(float v) {
    uint32_t bits;
    memcpy(&bits, &v, 4);
    if (std::isnan(v)) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
struct Fragments { uint32_t a[4], b[2]; };

// A kernel by name, and how to bind its arguments: they are copied at launch, as a driver does.
struct Entry { const char* name; std::function<void()> (*bind)(void**); };
extern const Entry entries_bf16[], entries_f32[];
template <class... A, size_t... I>
std::function<void()> hold(void (*f)(A...), void** p, std::index_sequence<I...>) {
    return [f, own = std::tuple<A...>(*static_cast<A*>(p[I])...)] { std::apply(f, own); };
}
template <class... A> std::function<void()> hold(void (*f)(A...), void** p) {
    return hold(f, p, std::index_sequence_for<A...>{});
}
}  // namespace host

#define __shared__ static thread_local
#define __launch_bounds__(n)
#ifdef LIST_KERNELS
#define KERNEL(threads) KERNEL_NAME
#else
#define KERNEL(threads) static void
#endif
#define DEVICE static inline
#define DYNAMIC_SHARED(name) unsigned char* name = host::dynamic_shared()
#define threadIdx (host::me->thread)
#define blockIdx (host::block->index)
#define blockDim (host::block->dim)
#define gridDim (host::block->grid)

static inline void __syncthreads() { host::yield(host::AT_BLOCK); }
static inline void __syncwarp() { char c = 0; host::meet(&c, 1); }
template <class T> static inline T __shfl_xor_sync(unsigned, T v, int mask) {
    return host::read<T>(host::meet(&v, sizeof v), host::me->lane ^ mask);
}
template <class T> static inline T __shfl_up_sync(unsigned, T v, unsigned by) {
    unsigned lane = host::me->lane;
    auto slots = host::meet(&v, sizeof v);
    return host::read<T>(slots, lane < by ? lane : lane - by);
}
static inline unsigned __ballot_sync(unsigned, bool v) {
    auto slots = host::meet(&v, sizeof v);
    unsigned members = host::block->warps[host::me->warp].members, all = 0;
    for (unsigned i = 0; i < members; i++) all |= unsigned(host::read<bool>(slots, i)) << i;
    return all;
}
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
static inline int __ffs(unsigned v) { return __builtin_ffs(int(v)); }
template <class T> static inline T __shfl_sync(unsigned, T v, int lane) {
    return host::read<T>(host::meet(&v, sizeof v), lane);
}
static inline float __uint_as_float(unsigned v) { float f; memcpy(&f, &v, 4); return f; }
static inline unsigned __float_as_uint(float v) { unsigned f; memcpy(&f, &v, 4); return f; }

static inline float power_of_two(float x) { return exp2f(x); }
static inline unsigned pack(float low, float high) {
    return host::to_bf16(low) | host::to_bf16(high) << 16;
}
// The fragment layouts of PTX ISA, mma.m16n8k16. The lane that arrives last computes for all.
static inline void mma(float* d, const unsigned* a, const unsigned* b) {
    host::Fragments own;
    memcpy(own.a, a, 16);
    memcpy(own.b, b, 8);
    auto slots = host::meet(&own, sizeof own, [](unsigned char (*slots)[64]) {
        float x[16][16], y[16][8], c[16][8] = {};
        for (unsigned lane = 0; lane < 32; lane++) {
            auto f = host::read<host::Fragments>(slots, lane);
            for (unsigned i = 0; i < 4; i++)
                for (unsigned h = 0; h < 2; h++)
                    x[lane / 4 + i % 2 * 8][lane % 4 * 2 + h + i / 2 * 8] = host::from_bf16(uint16_t(f.a[i] >> h * 16));
            for (unsigned i = 0; i < 2; i++)
                for (unsigned h = 0; h < 2; h++)
                    y[lane % 4 * 2 + h + i * 8][lane / 4] = host::from_bf16(uint16_t(f.b[i] >> h * 16));
        }
        for (unsigned r = 0; r < 16; r++)
            for (unsigned k = 0; k < 16; k++)
                for (unsigned j = 0; j < 8; j++) c[r][j] += x[r][k] * y[k][j];
        for (unsigned lane = 0; lane < 32; lane++) {
            const float *top = &c[lane / 4][lane % 4 * 2], *low = &c[lane / 4 + 8][lane % 4 * 2];
            float own[4] = {top[0], top[1], low[0], low[1]};
            memcpy(slots[lane], own, 16);
        }
    });
    float own_c[4];
    memcpy(own_c, slots[host::me->lane], 16);
    for (int i = 0; i < 4; i++) d[i] += own_c[i];
}
static inline void load_tiles_any(unsigned* r, const void* row, bool transposed) {
    if (uintptr_t(row) % 16) host::fail("ldmatrix: a row is not aligned to 16 bytes");
    auto slots = host::meet(&row, sizeof row);
    unsigned lane = host::me->lane;
    for (unsigned i = 0; i < 4; i++) {
        uint16_t v[2];
        for (unsigned h = 0; h < 2; h++) {
            unsigned tile_row = transposed ? lane % 4 * 2 + h : lane / 4;
            unsigned column = transposed ? lane / 4 : lane % 4 * 2 + h;
            v[h] = host::read<const uint16_t*>(slots, i * 8 + tile_row)[column];
        }
        r[i] = v[0] | uint32_t(v[1]) << 16;
    }
    // No lane may overwrite the tiles before all have read them.
    __syncwarp();
}
static inline void load_tiles(unsigned* r, const void* row) { load_tiles_any(r, row, false); }
static inline void load_tiles_transposed(unsigned* r, const void* row) { load_tiles_any(r, row, true); }
// Lands only when it is waited for, as late as the device may let it.
static inline void copy_async(void* to, const void* from, bool use) {
    if (uintptr_t(to) % 16 || uintptr_t(from) % 16) host::fail("cp.async: not aligned to 16 bytes");
    host::me->copies.push_back({to, from, use});
}
static inline void copies_done() {
    for (auto& c : host::me->copies) {
        if (c.use) memcpy(c.to, c.from, 16);
        else memset(c.to, 0, 16);
    }
    host::me->copies.clear();
}
