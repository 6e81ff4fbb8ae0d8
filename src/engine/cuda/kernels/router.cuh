// The router: softmax over experts, top K with renormalized weights, and its gradient.
//
//     p = softmax(Wr x),  S = top K of p (ties: lower index),  g_i = p_i / sum of p over S
//
//     dlogit_e = [e in S] g_e (dg_e - sum over S of g dg)            of the task
//              + p_e (u_e - sum over experts of u p + 2 v L)         of balance and z-loss
//     dWr = sum over tokens of dlogit x
//
// with L the log sum of the logits, u = d loss / dp and v = d loss / d(L²).
//
// Renormalizing is a softmax over the chosen logits, so the task's gradient reaches those
// only; balance and z-loss reach all of them (src/engine/cpu/ops/router.rs). Routers read
// f32 weights in both precisions: they are small, and a flipped choice is a jump. At most 32
// experts: one per lane.

// Rows of one warp: each reads the router's weights once for all of them.
#define ROUTED 4
// Experts whose logits are accumulated side by side in registers.
#define ABREAST 8

DEVICE void route(float* p, int* chosen, float* weight, float* log_sum, float* entropy,
                  float logit, int experts, int k) {
    int lane = threadIdx.x % 32;
    float largest = warp_max(lane < experts ? logit : -INFINITY);
    float e = lane < experts ? expf(logit - largest) : 0.0f;
    float total = warp_sum(e), own = e / total, log_total = logf(total);
    float mean = warp_sum(lane < experts ? own * (logit - largest) : 0.0f);
    if (lane < experts) p[lane] = own;
    if (lane == 0) {
        *log_sum = largest + log_total;
        *entropy = log_total - mean;
    }
    float left = lane < experts ? own : -1.0f, sum = 0, mine = 0;
    int my_choice = 0;
    for (int slot = 0; slot < k; slot++) {
        float best = warp_max(left);
        unsigned holders = __ballot_sync(ALL_LANES, left == best);
        int winner = __ffs(holders) - 1;
        if (lane == winner) left = -1.0f;
        if (lane == slot) {
            mine = best;
            my_choice = winner;
        }
        sum += best;
    }
    if (lane < k) {
        chosen[lane] = my_choice;
        weight[lane] = mine / sum;
    }
}

// Routes x [tokens, d] by router [experts, d]; one warp per ROUTED tokens.
KERNEL(128) router_forward(float* p, int* chosen, float* weight, float* log_sum,
                           float* entropy, const real* x, const float* router, int tokens,
                           int d, int experts, int k) {
    int first = (blockIdx.x * 4 + threadIdx.x / 32) * ROUTED, lane = threadIdx.x % 32;
    if (first >= tokens) return;
    float logit[ROUTED];
#pragma unroll
    for (int t = 0; t < ROUTED; t++) logit[t] = 0;
    for (int group = 0; group < experts; group += ABREAST) {
        float sums[ABREAST][ROUTED];
#pragma unroll
        for (int i = 0; i < ABREAST; i++)
#pragma unroll
            for (int t = 0; t < ROUTED; t++) sums[i][t] = 0;
        for (int j = lane * 8; j < d; j += 256) {
            float v[ROUTED][8];
#pragma unroll
            for (int t = 0; t < ROUTED; t++) {
                int token = first + t < tokens ? first + t : tokens - 1;
                load8(v[t], x + (size_t)token * d + j);
            }
#pragma unroll
            for (int i = 0; i < ABREAST; i++)
                if (group + i < experts) {
                    float w[8];
                    load8(w, router + (size_t)(group + i) * d + j);
#pragma unroll
                    for (int t = 0; t < ROUTED; t++)
#pragma unroll
                        for (int c = 0; c < 8; c++) sums[i][t] += v[t][c] * w[c];
                }
        }
#pragma unroll
        for (int i = 0; i < ABREAST; i++)
#pragma unroll
            for (int t = 0; t < ROUTED; t++) {
                float total = warp_sum(sums[i][t]);
                if (lane == group + i) logit[t] = total;
            }
    }
#pragma unroll
    for (int t = 0; t < ROUTED; t++) {
        size_t token = first + t;
        if (first + t < tokens)
            route(p + token * experts, chosen + token * k, weight + token * k,
                  log_sum + token, entropy + token, logit[t], experts, k);
    }
}

// Sums over 256 tokens that count, one block each: partial [blocks, 3 + 2 experts] holds
// rows, entropy, squared log sums, then assignments and probabilities by expert.
KERNEL(256) routing_statistics(double* partial, const float* p, const int* chosen,
                               const float* log_sum, const float* entropy,
                               const int* counted, int tokens, int experts, int k) {
    int token = blockIdx.x * 256 + threadIdx.x, own = token < tokens ? token : 0;
    bool counts = token < tokens && counted[own];
    double* out = partial + (size_t)blockIdx.x * (3 + 2 * experts);
    double rows = block_sum(counts ? 1.0 : 0.0);
    double mass = block_sum(counts ? (double)entropy[own] : 0.0);
    double square = block_sum(counts ? (double)log_sum[own] * log_sum[own] : 0.0);
    if (threadIdx.x == 0) out[0] = rows, out[1] = mass, out[2] = square;
    for (int e = 0; e < experts; e++) {
        float assigned = 0;
        for (int i = 0; i < k; i++) assigned += chosen[(size_t)own * k + i] == e;
        double n = block_sum(counts ? (double)assigned : 0.0);
        double sum = block_sum(counts ? (double)p[(size_t)own * experts + e] : 0.0);
        if (threadIdx.x == 0) out[3 + e] = n, out[3 + experts + e] = sum;
    }
}

// into[j] += sum over `count` of partial[i, j]. One block per column; threads take every
// 256th row, then meet in a fixed tree.
KERNEL(256) sum_statistics(double* into, const double* partial, int count, int width) {
    double total = 0;
    for (int i = threadIdx.x; i < count; i += 256)
        total += partial[(size_t)i * width + blockIdx.x];
    total = block_sum(total);
    if (threadIdx.x == 0) into[blockIdx.x] += total;
}

// dlogits [tokens, experts]; pull = the layer's weights in the auxiliary losses: d loss / dp
// of each expert, then d loss / d (log sum)². One thread per token.
KERNEL(128) router_backward(float* dlogits, const float* p, const int* chosen,
                            const float* weight, const float* dweight,
                            const float* log_sum, const int* counted, const float* pull,
                            int tokens, int experts, int k) {
    int token = blockIdx.x * blockDim.x + threadIdx.x;
    if (token >= tokens) return;
    p += (size_t)token * experts;
    dlogits += (size_t)token * experts;
    if (counted[token]) {
        float along = 0, square = 2.0f * pull[experts] * log_sum[token];
        for (int e = 0; e < experts; e++) along += pull[e] * p[e];
        for (int e = 0; e < experts; e++) dlogits[e] = p[e] * (pull[e] - along + square);
    } else {
        for (int e = 0; e < experts; e++) dlogits[e] = 0;
    }
    size_t slots = (size_t)token * k;
    float along = 0;
    for (int i = 0; i < k; i++) along += weight[slots + i] * dweight[slots + i];
    for (int i = 0; i < k; i++)
        dlogits[chosen[slots + i]] += weight[slots + i] * (dweight[slots + i] - along);
}

// partial [chunks, experts, d]: each chunk's sum of dlogits x, the router's gradient. grid
// (256 columns, chunks, groups of ABREAST experts); a thread owns one column.
KERNEL(256) router_weights_backward(float* partial, const float* dlogits, const real* x,
                                    int tokens, int d, int experts) {
    int j = blockIdx.x * 256 + threadIdx.x, group = blockIdx.z * ABREAST;
    int first = blockIdx.y * ROWS_A_CHUNK;
    int last = first + ROWS_A_CHUNK < tokens ? first + ROWS_A_CHUNK : tokens;
    if (j >= d) return;
    float sums[ABREAST];
#pragma unroll
    for (int i = 0; i < ABREAST; i++) sums[i] = 0;
    for (int token = first; token < last; token++) {
        float v = wide(x[(size_t)token * d + j]);
#pragma unroll
        for (int i = 0; i < ABREAST; i++)
            if (group + i < experts) sums[i] += dlogits[(size_t)token * experts + group + i] * v;
    }
    for (int i = 0; i < ABREAST && group + i < experts; i++)
        partial[((size_t)blockIdx.y * experts + group + i) * d + j] = sums[i];
}
