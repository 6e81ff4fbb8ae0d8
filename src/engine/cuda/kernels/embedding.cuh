// Token and position embeddings, pooling, and their gradients.
//
//     x_i = token[id_i] + position[place_i]
//     d token[v] = sum over rows i with id_i = v of dx_i
//     d position[t] = sum over rows i with place_i = t of dx_i
//
// Gradients of embeddings are sums over rows that meet in one place. Every place has one
// owner that adds its rows in ascending order: no atomics, the same bits in every run.

// x [rows, d] = token[ids] + position[places]. One warp per row.
KERNEL(256) captions_embed(float* x, const int* ids, const int* places, const float* token,
                           const float* position, int rows, int d) {
    int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    for (int j = lane * 8; j < d; j += 256) {
        float a[8], b[8];
        load8(a, token + (size_t)ids[row] * d + j);
        load8(b, position + (size_t)places[row] * d + j);
        for (int i = 0; i < 8; i++) a[i] += b[i];
        store8(x + (size_t)row * d + j, a);
    }
}

// dposition [tokens, d] = the sum over samples that have such a row.
// One thread per value: samples ascend.
KERNEL(256) position_backward(float* dposition, const float* dx, const int* starts,
                              int samples, int tokens, int d) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= tokens * d) return;
    int t = i / d, j = i % d;
    float total = 0;
    for (int s = 0; s < samples; s++) {
        int row = starts[s] + t;
        if (row < starts[s + 1]) total += dx[(size_t)row * d + j];
    }
    dposition[i] = total;
}

// dtoken[id] += its rows, in order: block u owns the id unique[u] and the rows
// rows[firsts[u]..firsts[u + 1]], which the host has sorted by id.
KERNEL(128) token_backward(float* dtoken, const float* dx, const int* unique,
                           const int* firsts, const int* rows, int d) {
    float* into = dtoken + (size_t)unique[blockIdx.x] * d;
    int first = firsts[blockIdx.x], last = firsts[blockIdx.x + 1];
    for (int j = threadIdx.x; j < d; j += blockDim.x) {
        float total = 0;
        for (int i = first; i < last; i++) total += dx[(size_t)rows[i] * d + j];
        into[j] += total;
    }
}

// out [n, d] = x[rows]; the other way round, dx[rows] = out where dx was zero. One warp per
// row.
KERNEL(256) rows_gather(float* out, const float* x, const int* rows, int n, int d) {
    int i = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= n) return;
    for (int j = lane * 8; j < d; j += 256) {
        float v[8];
        load8(v, x + (size_t)rows[i] * d + j);
        store8(out + (size_t)i * d + j, v);
    }
}
KERNEL(256) rows_scatter(float* dx, real* dx_real, const float* from, const int* rows, int n,
                         int d) {
    int i = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= n) return;
    for (int j = lane * 8; j < d; j += 256) {
        float v[8];
        load8(v, from + (size_t)i * d + j);
        store8(dx + (size_t)rows[i] * d + j, v);
        store8(dx_real + (size_t)rows[i] * d + j, v);
    }
}
