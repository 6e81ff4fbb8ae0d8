// LayerNorm fused with the residual addition before it.
//
//     x' = x + added + bias            (only where something is added)
//     n  = (x' - mean) / sigma         sigma² = variance + 1e-5, as in PyTorch
//     y  = gain n + offset
//
//     dx += (gain dy - mean(gain dy) - n mean(gain dy n)) / sigma
//     dgain = sum over rows of dy n,   doffset = sum over rows of dy
//
// A row belongs to one warp and stays in its registers: 8 values per lane and chunk of 256
// columns, so x is read once. CHUNKS is a template parameter because register arrays need
// constant indices; four chunks (width 1024) leave the backward below 255 registers.

#define NORM_EPSILON 1e-5f

template <int CHUNKS, class OUT>
DEVICE void norm_rows(float* x_out, OUT* y, float* mean, float* inverse, const float* x,
                      const real* added, const float* bias, const float* gain,
                      const float* offset, int rows, int d) {
    int row = blockIdx.x * 8 + threadIdx.x / 32, first = threadIdx.x % 32 * 8;
    if (row >= rows) return;
    size_t at = (size_t)row * d;
    float v[CHUNKS][8], total = 0;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        int j = c * 256 + first;
        if (j < d) {
            load8(v[c], x + at + j);
            if (added) {
                float a[8], b[8];
                load8(a, added + at + j);
                load8(b, bias + j);
#pragma unroll
                for (int i = 0; i < 8; i++) v[c][i] += a[i] + b[i];
                store8(x_out + at + j, v[c]);
            }
#pragma unroll
            for (int i = 0; i < 8; i++) total += v[c][i];
        }
    }
    float center = warp_sum(total) / d, square = 0;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++)
        if (c * 256 + first < d) {
#pragma unroll
            for (int i = 0; i < 8; i++) square += (v[c][i] - center) * (v[c][i] - center);
        }
    float scale = 1.0f / sqrtf(warp_sum(square) / d + NORM_EPSILON);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        int j = c * 256 + first;
        if (j < d) {
            float g[8], o[8];
            load8(g, gain + j);
            load8(o, offset + j);
#pragma unroll
            for (int i = 0; i < 8; i++) o[i] += (v[c][i] - center) * scale * g[i];
            store8(y + at + j, o);
        }
    }
    if (first == 0) {
        mean[row] = center;
        inverse[row] = scale;
    }
}

// Shared memory of the backward: the 8 warps' sums over their rows, one of the three
// quantities at a time.
//
//     [8 warps][d] f32
//
// partial [blocks, 3, d]: dgain, doffset, and the column sums of the new dx, which are the
// gradient of the bias that was added in front of this norm's input.
template <int CHUNKS>
DEVICE void norm_rows_backward(float* dx, real* dx_real, float* partial, const real* dy,
                               const float* x, const float* mean, const float* inverse,
                               const float* gain, int rows, int d, int add) {
    DYNAMIC_SHARED(memory);
    float* sums = (float*)memory;
    int warp = threadIdx.x / 32, first = threadIdx.x % 32 * 8;
    float parts[3][CHUNKS][8];
#pragma unroll
    for (int q = 0; q < 3; q++)
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
#pragma unroll
            for (int i = 0; i < 8; i++) parts[q][c][i] = 0;
    int rows_a_block = (rows + gridDim.x - 1) / gridDim.x;
    int begin = blockIdx.x * rows_a_block;
    int end = begin + rows_a_block < rows ? begin + rows_a_block : rows;
    for (int row = begin + warp; row < end; row += 8) {
        size_t at = (size_t)row * d;
        float center = mean[row], scale = inverse[row], total = 0, along = 0;
        float n[CHUNKS][8], g[CHUNKS][8];
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            int j = c * 256 + first;
            if (j < d) {
                float weight[8];
                load8(n[c], x + at + j);
                load8(g[c], dy + at + j);
                load8(weight, gain + j);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    n[c][i] = (n[c][i] - center) * scale;
                    parts[0][c][i] += g[c][i] * n[c][i];
                    parts[1][c][i] += g[c][i];
                    g[c][i] *= weight[i];
                    total += g[c][i];
                    along += g[c][i] * n[c][i];
                }
            }
        }
        total = warp_sum(total) / d;
        along = warp_sum(along) / d;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            int j = c * 256 + first;
            if (j < d) {
                float own[8];
#pragma unroll
                for (int i = 0; i < 8; i++) own[i] = 0;
                if (add) load8(own, dx + at + j);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    own[i] += (g[c][i] - total - n[c][i] * along) * scale;
                    parts[2][c][i] += own[i];
                }
                store8(dx + at + j, own);
                store8(dx_real + at + j, own);
            }
        }
    }
#pragma unroll
    for (int q = 0; q < 3; q++) {
        __syncthreads();
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
            if (c * 256 + first < d) store8(sums + warp * d + c * 256 + first, parts[q][c]);
        __syncthreads();
        for (int j = threadIdx.x; j < d; j += blockDim.x) {
            float sum = 0;
            for (int w = 0; w < 8; w++) sum += sums[w * d + j];
            partial[((size_t)blockIdx.x * 3 + q) * d + j] = sum;
        }
    }
}

#define NORM(CHUNKS)                                                                        \
    KERNEL(256)                                                                             \
    norm_forward_##CHUNKS(float* x_out, real* y, float* mean, float* inverse,               \
                          const float* x, const real* added, const float* bias,             \
                          const float* gain, const float* offset, int rows, int d) {        \
        norm_rows<CHUNKS>(x_out, y, mean, inverse, x, added, bias, gain, offset, rows, d);  \
    }                                                                                       \
    KERNEL(256)                                                                             \
    norm_stream_##CHUNKS(float* y, float* mean, float* inverse, const float* x,             \
                         const float* gain, const float* offset, int rows, int d) {         \
        norm_rows<CHUNKS>((float*)0, y, mean, inverse, x, (const real*)0, gain, gain,       \
                          offset, rows, d);                                                 \
    }                                                                                       \
    KERNEL(256)                                                                             \
    norm_backward_##CHUNKS(float* dx, real* dx_real, float* partial, const real* dy,        \
                           const float* x, const float* mean, const float* inverse,         \
                           const float* gain, int rows, int d, int add) {                   \
        norm_rows_backward<CHUNKS>(dx, dx_real, partial, dy, x, mean, inverse, gain, rows,  \
                                   d, add);                                                 \
    }

NORM(1)
NORM(2)
NORM(3)
NORM(4)

// into[j] = sum over `count` of partial[i, j], rows `stride` apart. A block owns
// 32 columns; its 8 warps add every eighth row, then meet in warp order.
KERNEL(256) sum_partials(float* into, const float* partial, int count, int stride, int width) {
    __shared__ float sums[8][32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, j = blockIdx.x * 32 + lane;
    float total = 0;
    if (j < width)
        for (int i = warp; i < count; i += 8) total += partial[(size_t)i * stride + j];
    sums[warp][lane] = total;
    __syncthreads();
    if (warp == 0 && j < width) {
        for (int w = 1; w < 8; w++) total += sums[w][lane];
        into[j] = total;
    }
}
