// What every kernel starts from: the activation type, warp collectives, tensor-core steps.
//
// The whole source is compiled once per precision. `real` is the type of activations and of
// the weights that matrix products read: bf16 with -DREAL_BF16, otherwise f32. The residual
// stream, statistics, gradients of weights and master weights are f32 in both.
//
// On a device the primitives below are PTX. The emulator of the tests defines each as a plain
// function over one fiber per thread; kernels use nothing else, and no header of CUDA's.
#pragma once

#ifdef __CUDACC__
#define INFINITY __int_as_float(0x7f800000)
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
#define DEVICE __device__ __forceinline__
#endif

struct bf16 {
    unsigned short bits;
};

#ifdef __CUDACC__
// Two values rounded to bf16, the first in the low half.
DEVICE unsigned pack(float low, float high) {
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}
// 2^x to 2 ulp: one instruction of the special function unit.
DEVICE float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE unsigned shared_address(const void* p) {
    return (unsigned)__cvta_generic_to_shared(p);
}
// D += A B of 16x16 by 16x8 (PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point
// type").
DEVICE void mma(float* d, const unsigned* a, const unsigned* b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// Four 8x8 tiles; lane 8i + j names row j of tile i.
DEVICE void load_tiles(unsigned* r, const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)) : "memory");
}
DEVICE void load_tiles_transposed(unsigned* r, const bf16* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row)) : "memory");
}
// 16 bytes to shared memory without registers; zeros where `use` is false.
DEVICE void copy_async(void* to, const void* from, bool use) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(to)), "l"(from), "r"(use ? 16 : 0) : "memory");
}
DEVICE void copies_done() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}
#endif

#ifdef REAL_BF16
typedef bf16 real;
#else
typedef float real;
#endif

DEVICE float wide(float v) {
    return v;
}
DEVICE float wide(bf16 v) {
    return __uint_as_float((unsigned)v.bits << 16);
}
DEVICE void put(float* to, float v) {
    *to = v;
}
DEVICE void put(bf16* to, float v) {
    to->bits = (unsigned short)(pack(v, 0.0f) & 0xffff);
}

// Rows are read and written in vectors of eight values: 16 bytes of bf16, 32 of f32. Widths
// are multiples of eight and buffers are aligned to 256 bytes, so that no vector straddles.
DEVICE void load8(float* v, const float* from) {
    float4 a = ((const float4*)from)[0], b = ((const float4*)from)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
    v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
DEVICE void load8(float* v, const bf16* from) {
    uint4 a = *(const uint4*)from;
    v[0] = __uint_as_float(a.x << 16), v[1] = __uint_as_float(a.x & 0xffff0000u);
    v[2] = __uint_as_float(a.y << 16), v[3] = __uint_as_float(a.y & 0xffff0000u);
    v[4] = __uint_as_float(a.z << 16), v[5] = __uint_as_float(a.z & 0xffff0000u);
    v[6] = __uint_as_float(a.w << 16), v[7] = __uint_as_float(a.w & 0xffff0000u);
}
DEVICE void store8(float* to, const float* v) {
    float4 a, b;
    a.x = v[0], a.y = v[1], a.z = v[2], a.w = v[3];
    b.x = v[4], b.y = v[5], b.z = v[6], b.w = v[7];
    ((float4*)to)[0] = a;
    ((float4*)to)[1] = b;
}
DEVICE void store8(bf16* to, const float* v) {
    uint4 a;
    a.x = pack(v[0], v[1]), a.y = pack(v[2], v[3]);
    a.z = pack(v[4], v[5]), a.w = pack(v[6], v[7]);
    *(uint4*)to = a;
}

#define ALL_LANES 0xffffffffu

// Sums in a fixed tree: the same bits in every lane and in every run.
DEVICE float warp_sum(float v) {
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}
DEVICE double warp_sum(double v) {
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(ALL_LANES, v, step);
    return v;
}
DEVICE float warp_max(float v) {
    for (int step = 16; step > 0; step /= 2)
        v = fmaxf(v, __shfl_xor_sync(ALL_LANES, v, step));
    return v;
}
// The sum over a block of whole warps, in every thread; every thread must call it.
template <class T> DEVICE T block_sum(T v) {
    __shared__ T parts[32];
    v = warp_sum(v);
    __syncthreads();  // An earlier call's parts have been read.
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    T total = 0;
    for (int w = 0; w < (int)blockDim.x / 32; w++) total += parts[w];
    return total;
}
DEVICE float block_max(float v) {
    __shared__ float parts[32];
    v = warp_max(v);
    __syncthreads();
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = v;
    __syncthreads();
    float most = parts[0];
    for (int w = 1; w < (int)blockDim.x / 32; w++) most = fmaxf(most, parts[w]);
    return most;
}
