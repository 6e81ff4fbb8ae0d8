// Dispatch to experts and back. No token is dropped: every token has K pairs (token, choice),
// the pairs are sorted by expert with a stable counting sort, and the experts' products run
// over contiguous rows.
//
//     pair  = token K + choice             slots [pairs]: its place in the sorted order
//     starts [2 E + 1]: expert e owns slots starts[e]..starts[e + 1], and its own rows end at
//     starts[E + 1 + e]; what is left of its slots is padding
//
//     |  rows of expert 0  | 0 0 0 |  rows of expert 1          | 0 |  ..
//     starts[0]            starts[E+1]  starts[1]           starts[E+2]   starts[2]
//
// Every expert's slots are a multiple of ROUNDED, so that its products come in few shapes.
// Padding is zero where products read it; what they make of it nobody reads, and its gradient
// is zero, so that no sum changes.
//
// With o_s the output of the expert of slot s without its bias b, and g the weight of a pair:
//
//     y = x + sum over the token's pairs of g (o_s + b)
//     d g = <dy, o_s + b>       d o_s = g dy       d b = sum over its slots of d o_s
//     dx = sum over the token's slots of d rows_s + dlogits Wr
//
// The ensemble that distills sends every row through all experts, weighted by p: its second
// biases add sum over e of p_e b_e.

// A tile of cuBLAS's products has 128 rows (src/engine/cuda/moe.rs has the same number).
#define ROUNDED 128

DEVICE int rounded(int rows) {
    return (rows + ROUNDED - 1) / ROUNDED * ROUNDED;
}
// The slot of candidate i of the padding, of ROUNDED per expert; -1 where it is a row.
DEVICE int padding(const int* starts, int experts, int i) {
    int e = i / ROUNDED;
    if (e >= experts) return -1;
    int slot = starts[experts + 1 + e] + i % ROUNDED;
    return slot < starts[e + 1] ? slot : -1;
}

// Pairs of a block of the sort.
#define SORTED 256
#define SORT_WARPS (SORTED / 32)

// counts [chunks, experts]: how many pairs of a chunk chose each expert.
KERNEL(SORTED) experts_count(int* counts, const int* chosen, int pairs, int experts) {
    __shared__ int found[SORT_WARPS][32];
    int pair = blockIdx.x * SORTED + threadIdx.x, warp = threadIdx.x / 32;
    int own = pair < pairs ? chosen[pair] : -1;
    for (int e = 0; e < experts; e++) {
        int here = __popc(__ballot_sync(ALL_LANES, own == e));
        if (threadIdx.x % 32 == e) found[warp][e] = here;
    }
    __syncthreads();
    if (threadIdx.x < experts) {
        int total = 0;
        for (int w = 0; w < SORT_WARPS; w++) total += found[w][threadIdx.x];
        counts[blockIdx.x * experts + threadIdx.x] = total;
    }
}

// counts becomes the first slot of each chunk's pairs of an expert. One block; warp e runs
// over the chunks of expert e, 32 at a time.
KERNEL(1024) experts_scan(int* counts, int* starts, int chunks, int experts) {
    __shared__ int totals[32];
    int e = threadIdx.x / 32, lane = threadIdx.x % 32, before = 0;
    if (e < experts) {
        for (int first = 0; first < chunks; first += 32) {
            int chunk = first + lane, own = chunk < chunks ? counts[chunk * experts + e] : 0;
            int sum = own;
            for (int step = 1; step < 32; step *= 2) {
                int other = __shfl_up_sync(ALL_LANES, sum, step);
                if (lane >= step) sum += other;
            }
            if (chunk < chunks) counts[chunk * experts + e] = before + sum - own;
            before += __shfl_sync(ALL_LANES, sum, 31);
        }
    }
    if (lane == 0) totals[e] = before;
    __syncthreads();
    int start = 0;
    for (int i = 0; i < e && i < experts; i++) start += rounded(totals[i]);
    if (e < experts) {
        for (int chunk = lane; chunk < chunks; chunk += 32) counts[chunk * experts + e] += start;
        if (lane == 0) {
            starts[e] = start;
            starts[experts + 1 + e] = start + before;
            if (e == experts - 1) starts[experts] = start + rounded(before);
        }
    }
}

// slots [pairs]: the pair's rank among those of its expert in its chunk, behind those of the
// chunks before, so that pairs of one expert keep their order.
KERNEL(SORTED) experts_place(int* slots, const int* counts, const int* chosen, int pairs,
                             int experts) {
    __shared__ int found[SORT_WARPS][32];
    int pair = blockIdx.x * SORTED + threadIdx.x;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int own = pair < pairs ? chosen[pair] : -1, rank = 0;
    for (int e = 0; e < experts; e++) {
        unsigned holders = __ballot_sync(ALL_LANES, own == e);
        if (own == e) rank = __popc(holders & ((1u << lane) - 1));
        if (lane == e) found[warp][e] = __popc(holders);
    }
    __syncthreads();
    if (own >= 0) {
        int slot = counts[blockIdx.x * experts + own] + rank;
        for (int w = 0; w < warp; w++) slot += found[w][own];
        slots[pair] = slot;
    }
}

// rows [slots, d] = x [tokens, d] of each pair's token, and zeros in the padding. One warp per
// pair, then one per candidate of the padding.
KERNEL(256) experts_gather(real* rows, const real* x, const int* slots, const int* starts,
                           int pairs, int k, int d, int experts) {
    int pair = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    int slot = pair < pairs ? slots[pair] : padding(starts, experts, pair - pairs);
    if (slot < 0) return;
    const uint4* from = (const uint4*)(x + (size_t)(pair / k) * d);
    uint4 zero = {0, 0, 0, 0}, *to = (uint4*)(rows + (size_t)slot * d);
    for (int j = lane; j < d * (int)sizeof(real) / 16; j += 32)
        to[j] = pair < pairs ? from[j] : zero;
}

// y = x + sum over the token's choices of weight (out + bias of the expert); y [tokens, d]
// in f32. One warp per token.
KERNEL(256) experts_combine(float* y, const float* x, const real* out, const float* bias,
                            const int* slots, const int* chosen, const float* weight,
                            int tokens, int k, int d) {
    int token = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (token >= tokens) return;
    for (int j = lane * 8; j < d; j += 256) {
        float total[8];
        load8(total, x + (size_t)token * d + j);
        for (int i = token * k; i < token * k + k; i++) {
            float v[8], b[8], w = weight[i];
            load8(v, out + (size_t)slots[i] * d + j);
            load8(b, bias + (size_t)chosen[i] * d + j);
#pragma unroll
            for (int c = 0; c < 8; c++) total[c] += w * (v[c] + b[c]);
        }
        store8(y + (size_t)token * d + j, total);
    }
}

// dout by slot = weight dy, zeros in the padding, dweight = <dy, out + bias>. One warp per
// pair, then one per candidate of the padding.
KERNEL(256) experts_combine_backward(real* dout, float* dweight, const real* dy,
                                     const real* out, const float* bias, const int* slots,
                                     const int* starts, const int* chosen,
                                     const float* weight, int pairs, int k, int d,
                                     int experts) {
    int pair = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (pair >= pairs) {
        int slot = padding(starts, experts, pair - pairs);
        if (slot < 0) return;
        float zero[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        for (int j = lane * 8; j < d; j += 256) store8(dout + (size_t)slot * d + j, zero);
        return;
    }
    size_t from = (size_t)(pair / k) * d, to = (size_t)slots[pair] * d;
    float w = weight[pair], along = 0;
    for (int j = lane * 8; j < d; j += 256) {
        float g[8], v[8], b[8];
        load8(g, dy + from + j);
        load8(v, out + to + j);
        load8(b, bias + (size_t)chosen[pair] * d + j);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            along += g[i] * (v[i] + b[i]);
            g[i] *= w;
        }
        store8(dout + to + j, g);
    }
    along = warp_sum(along);
    if (lane == 0) dweight[pair] = along;
}

// dx [tokens, d] = the sum of the token's rows by slot + dlogits router: what reaches the
// layer's input through the experts and through the router. One warp per ROUTED tokens.
KERNEL(128) experts_scatter(real* dx, const real* rows, const int* slots,
                            const float* dlogits, const float* router, int tokens, int k,
                            int d, int experts) {
    int first = (blockIdx.x * 4 + threadIdx.x / 32) * ROUTED, lane = threadIdx.x % 32;
    if (first >= tokens) return;
    for (int j = lane * 8; j < d; j += 256) {
        float total[ROUTED][8];
#pragma unroll
        for (int t = 0; t < ROUTED; t++) {
            int token = first + t < tokens ? first + t : tokens - 1;
#pragma unroll
            for (int c = 0; c < 8; c++) total[t][c] = 0;
            for (int i = token * k; i < token * k + k; i++) {
                float v[8];
                load8(v, rows + (size_t)slots[i] * d + j);
#pragma unroll
                for (int c = 0; c < 8; c++) total[t][c] += v[c];
            }
        }
        for (int e = 0; e < experts; e++) {
            float w[8];
            load8(w, router + (size_t)e * d + j);
#pragma unroll
            for (int t = 0; t < ROUTED; t++) {
                int token = first + t < tokens ? first + t : tokens - 1;
                float g = dlogits[(size_t)token * experts + e];
#pragma unroll
                for (int c = 0; c < 8; c++) total[t][c] += g * w[c];
            }
        }
#pragma unroll
        for (int t = 0; t < ROUTED; t++)
            if (first + t < tokens) store8(dx + (size_t)(first + t) * d + j, total[t]);
    }
}

// y [rows, d] f32 = sum over all experts of p bias: what the ensemble's second biases add.
// One warp per row.
KERNEL(256) ensemble_bias(float* y, const float* p, const float* bias, int rows, int d,
                          int experts) {
    int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    for (int j = lane * 8; j < d; j += 256) {
        float total[8];
#pragma unroll
        for (int c = 0; c < 8; c++) total[c] = 0;
        for (int e = 0; e < experts; e++) {
            float b[8], own = p[(size_t)row * experts + e];
            load8(b, bias + (size_t)e * d + j);
#pragma unroll
            for (int c = 0; c < 8; c++) total[c] += own * b[c];
        }
        store8(y + (size_t)row * d + j, total);
    }
}

// y = x + added, all f32 [count]; count is a multiple of eight.
KERNEL(256) stream_add(float* y, const float* x, const float* added, int vectors) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= vectors) return;
    float a[8], b[8];
    load8(a, x + (size_t)i * 8);
    load8(b, added + (size_t)i * 8);
    for (int c = 0; c < 8; c++) a[c] += b[c];
    store8(y + (size_t)i * 8, a);
}
