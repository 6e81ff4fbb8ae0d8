// Bias and activation between the two linear layers of an FFN, dense or by expert.
//
//     GELU(v) = v Phi(v)                    slope: Phi(v) + v phi(v)
//     QuickGELU(v) = v s(1.702 v)           slope: s + 1.702 v s (1 - s)
//
// Only the product W1 x is kept between forward and backward; the backward adds the bias
// again and recomputes value and slope from it, which costs less than reading them.
//
// Rows lie sorted by expert: expert e owns rows starts[e]..starts[e + 1] and a bias of its
// own. A dense FFN is the case of one expert.

// Rows per partial sum: long enough to make partial sums small beside the rows themselves,
// short enough for several blocks per multiprocessor.
#define ROWS_A_CHUNK 64

struct Activated {
    float value, slope;
};
DEVICE Activated activate(float v, int quick) {
    Activated out;
    if (quick) {
        float s = 1.0f / (1.0f + power_of_two(-1.702f * 1.44269504f * v));
        out.value = v * s;
        out.slope = s + 1.702f * v * s * (1.0f - s);
    } else {
        float cdf = 0.5f * (1.0f + erff(v * 0.70710678f));
        out.value = v * cdf;
        out.slope = cdf + v * 0.39894228f * power_of_two(-0.5f * 1.44269504f * v * v);
    }
    return out;
}

// hidden [rows, width] = act(pre + bias), times scale[row, column] where there is one: the
// ensemble of experts scales hidden rows by their probability, `pitch` values apart.
KERNEL(128) bias_activation(real* hidden, const real* pre, const float* bias,
                            const int* starts, int experts, int width, int quick,
                            const float* scale, int pitch) {
    int row = blockIdx.x, e = 0;
    while (e + 1 < experts && row >= starts[e + 1]) e++;
    float factor = scale ? scale[(size_t)row * pitch] : 1.0f;
    size_t at = (size_t)row * width;
    bias += (size_t)e * width;
    for (int j = threadIdx.x * 8; j < width; j += 1024) {
        float v[8], b[8];
        load8(v, pre + at + j);
        load8(b, bias + j);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = factor * activate(v[i] + b[i], quick).value;
        store8(hidden + at + j, v);
    }
}

// dh becomes dh act'(pre + bias), pre becomes the hidden rows, and partial [experts, chunks,
// width] the column sums of the new dh. grid (1024 columns, chunks, experts): a thread owns
// eight columns of one chunk of its expert's rows.
KERNEL(128) bias_activation_backward(real* dh, real* pre, float* partial, const float* bias,
                                     const int* starts, int width, int quick) {
    int j = (blockIdx.x * 128 + threadIdx.x) * 8, e = blockIdx.z;
    int first = starts[e] + blockIdx.y * ROWS_A_CHUNK;
    int last = first + ROWS_A_CHUNK < starts[e + 1] ? first + ROWS_A_CHUNK : starts[e + 1];
    if (j >= width || first >= last) return;
    float b[8], sums[8];
    load8(b, bias + (size_t)e * width + j);
#pragma unroll
    for (int i = 0; i < 8; i++) sums[i] = 0;
    for (int row = first; row < last; row++) {
        float v[8], g[8];
        load8(v, pre + (size_t)row * width + j);
        load8(g, dh + (size_t)row * width + j);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            Activated a = activate(v[i] + b[i], quick);
            v[i] = a.value;
            g[i] *= a.slope;
            sums[i] += g[i];
        }
        store8(pre + (size_t)row * width + j, v);
        store8(dh + (size_t)row * width + j, g);
    }
    store8(partial + ((size_t)e * gridDim.y + blockIdx.y) * width + j, sums);
}

// partial [experts, chunks, width]: column sums of y in chunks of each expert's rows. The
// same grid.
KERNEL(128) column_sums(float* partial, const real* y, const int* starts, int width) {
    int j = (blockIdx.x * 128 + threadIdx.x) * 8, e = blockIdx.z;
    int first = starts[e] + blockIdx.y * ROWS_A_CHUNK;
    int last = first + ROWS_A_CHUNK < starts[e + 1] ? first + ROWS_A_CHUNK : starts[e + 1];
    if (j >= width || first >= last) return;
    float sums[8];
#pragma unroll
    for (int i = 0; i < 8; i++) sums[i] = 0;
    for (int row = first; row < last; row++) {
        float v[8];
        load8(v, y + (size_t)row * width + j);
#pragma unroll
        for (int i = 0; i < 8; i++) sums[i] += v[i];
    }
    store8(partial + ((size_t)e * gridDim.y + blockIdx.y) * width + j, sums);
}

// into[e, j] = the sum of the chunks that expert e has. grid (32 columns,
// experts); 8 warps add every eighth chunk, then meet in warp order.
KERNEL(256) sum_chunks(float* into, const float* partial, const int* starts, int chunks,
                       int width) {
    __shared__ float sums[8][32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, e = blockIdx.y;
    int j = blockIdx.x * 32 + lane;
    int own = (starts[e + 1] - starts[e] + ROWS_A_CHUNK - 1) / ROWS_A_CHUNK;
    partial += (size_t)e * chunks * width;
    float total = 0;
    if (j < width)
        for (int c = warp; c < own; c += 8) total += partial[(size_t)c * width + j];
    sums[warp][lane] = total;
    __syncthreads();
    if (warp == 0 && j < width) {
        for (int w = 1; w < 8; w++) total += sums[w][lane];
        into[(size_t)e * width + j] = total;
    }
}

// y [rows, width] += bias. One warp per row.
KERNEL(256) bias_rows(real* y, const float* bias, int rows, int width) {
    int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    for (int j = lane * 8; j < width; j += 256) {
        float v[8], b[8];
        load8(v, y + (size_t)row * width + j);
        load8(b, bias + j);
        for (int i = 0; i < 8; i++) v[i] += b[i];
        store8(y + (size_t)row * width + j, v);
    }
}
