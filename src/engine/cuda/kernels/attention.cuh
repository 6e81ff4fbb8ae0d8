// Attention over packed rows qkv [N, 3d] of samples with lengths of their own. Sample s owns
// rows starts[s]..starts[s + 1]; a head is HEAD of a row's d columns.
//
//     S = Q Kᵀ / sqrt(HEAD)     P = softmax(S) by rows     out = P V        causal: key <= query
//
//     L_i = log sum over keys of exp(S_ij)       D_i = <dout_i, out_i>
//     dV = Pᵀ dout     dS = P ∘ (dout Vᵀ - D)    dQ = dS K / sqrt(HEAD)   dK = dSᵀ Q / sqrt(HEAD)
//
// No T x T matrix exists in memory (Dao et al., "FlashAttention", NeurIPS 2022; "FlashAttention-2",
// ICLR 2024). A block owns one tile of queries of one head of one sample and walks over the
// keys, tile by tile. It keeps for each of its rows the largest score so far m and the sum
// l = Σ exp(S - m); when a tile raises m, what was summed shrinks by exp(m_old - m_new):
//
//     for each tile of keys:   S = Q Kᵀ          m' = max(m, max S)
//                              P = exp(S - m')   l = l exp(m - m') + Σ P
//                              O = O exp(m - m') + P V          m = m'
//     out = O / l,  L = m + log l
//
// The backward makes P again from S and L, which is one product instead of a stored matrix. It
// runs twice: blocks that own keys sum dK and dV over queries, blocks that own queries sum dQ
// over keys. That makes S twice, and in return every output has one owner that adds in one
// order: no atomics, the same bits in every run.
//
// Logarithms are to the base 2 throughout: 2^x is one instruction of the special function
// unit, so the scale carries log2(e), and L with it.

#ifdef REAL_BF16

// log2(e).
#define LOG2E 1.44269504f

// Columns of scores that the keys' backward holds at a time. Scores and their gradients of a
// whole tile beside both outputs would be 4 x 32 accumulators per thread, and spill.
#define HALF 32

// One block's place: tile `from`.. of the `t` rows of a sample, of one head.
struct Place {
    int head, start, t, from, rows;
};
DEVICE Place place_of(const int* starts) {
    int start = starts[blockIdx.z], t = starts[blockIdx.z + 1] - start;
    Place own = {(int)blockIdx.y, start, t, (int)blockIdx.x * TILE, starts[gridDim.z]};
    return own;
}
// Tiles of keys that the tile of queries sees end here.
DEVICE int last_key(const Place& own, int causal) {
    return causal && own.from + TILE < own.t ? own.from + TILE : own.t;
}

// out and L. Shared memory, three tiles:
//
//     | Q: read once, into A fragments | K of this step | V of this step |
template <int HEAD>
DEVICE void attend(bf16* out, float* log_sum, const bf16* qkv, const int* starts, int d,
                   int causal, float scale) {
    DYNAMIC_SHARED(memory);
    typedef typename Shared<HEAD>::Row Row;
    Row *q = (Row*)memory, *k = q + TILE, *v = k + TILE;
    Place own = place_of(starts);
    int head = own.head, start = own.start, t = own.t, from = own.from, rows = own.rows;
    int lane = threadIdx.x % 32;
    if (from >= t) return;
    const bf16* base = qkv + (size_t)start * 3 * d + head * HEAD;
    load_tile<HEAD>(q, base, 3 * d, from, t);
    copies_done();
    __syncthreads();
    unsigned a[HEAD / 16][4];
    load_a<HEAD>(a, q);
    float o[HEAD / 8][4], most[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    clear<HEAD / 8>(o);
    scale *= LOG2E;
    int row = from + threadIdx.x / 32 * 16 + lane / 4;
    int last = last_key(own, causal);
    for (int key = 0; key < last; key += TILE) {
        __syncthreads();  // The warps have read the tiles before.
        load_tile<HEAD>(k, base + d, 3 * d, key, t);
        load_tile<HEAD>(v, base + 2 * d, 3 * d, key, t);
        copies_done();
        __syncthreads();
        float s[TILE / 8][4], top[2] = {most[0], most[1]};
        times_rows<HEAD, TILE>(s, a, k);
#pragma unroll
        for (int j = 0; j < TILE / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int column = key + j * 8 + lane % 4 * 2 + i % 2;
                bool seen = column < t && (!causal || column <= row + i / 2 * 8);
                s[j][i] = seen ? s[j][i] * scale : -INFINITY;
                top[i / 2] = fmaxf(top[i / 2], s[j][i]);
            }
        // A row lies in four lanes. Key 0 is seen by every query, so after the first tile
        // the maximum is finite; rows behind the end never leave this block.
#pragma unroll
        for (int r = 0; r < 2; r++) {
            top[r] = fmaxf(top[r], __shfl_xor_sync(ALL_LANES, top[r], 1));
            top[r] = fmaxf(top[r], __shfl_xor_sync(ALL_LANES, top[r], 2));
            float shrink = power_of_two(most[r] - top[r]);
            most[r] = top[r];
            sum[r] *= shrink;
#pragma unroll
            for (int j = 0; j < HEAD / 8; j++) {
                o[j][r * 2] *= shrink;
                o[j][r * 2 + 1] *= shrink;
            }
        }
#pragma unroll
        for (int j = 0; j < TILE / 8; j++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                s[j][i] = power_of_two(s[j][i] - most[i / 2]);
                sum[i / 2] += s[j][i];
            }
        times_columns<HEAD, TILE>(o, s, v);
    }
#pragma unroll
    for (int r = 0; r < 2; r++) {
        sum[r] += __shfl_xor_sync(ALL_LANES, sum[r], 1);
        sum[r] += __shfl_xor_sync(ALL_LANES, sum[r], 2);
        float inverse = 1.0f / sum[r];
#pragma unroll
        for (int j = 0; j < HEAD / 8; j++) {
            o[j][r * 2] *= inverse;
            o[j][r * 2 + 1] *= inverse;
        }
        // In powers of two, as the backward needs it.
        if (lane % 4 == 0 && row + r * 8 < t)
            log_sum[(size_t)head * rows + start + row + r * 8] = most[r] + log2f(sum[r]);
    }
    store_rows<HEAD>(out + (size_t)start * d + head * HEAD, d, o, from, t, 1.0f);
}

// P and dS of 16 x N pairs, in the place of scores and of dout Vᵀ. Rows are queries, or keys
// where TURNED; `row` and `column` are the sample's rows that the piece begins at. L and D are
// those of the step's queries, by their place in the tile.
template <bool TURNED, int N>
DEVICE void score_gradient(float s[N / 8][4], float ds[N / 8][4], const float* log_sum,
                           const float* delta, int row, int column, int t, int causal,
                           float scale) {
    int lane = threadIdx.x % 32, own = threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            int r = own + i / 2 * 8, c = j * 8 + lane % 4 * 2 + i % 2;
            int query = TURNED ? column + c : row + r, key = TURNED ? row + r : column + c;
            bool seen = query < t && key < t && (!causal || key <= query);
            int at = TURNED ? c : r;
            float p = seen ? power_of_two(s[j][i] * scale - log_sum[at]) : 0.0f;
            s[j][i] = p;
            ds[j][i] = seen ? p * (ds[j][i] - delta[at]) : 0.0f;
        }
}

// L and D of a tile's queries.
DEVICE void load_sums(float* sums, const float* log_sum, const float* delta, int from, int t) {
    for (int i = threadIdx.x; i < 2 * TILE; i += 128) {
        int query = from + i % TILE;
        sums[i] = query < t ? (i < TILE ? log_sum : delta)[query] : 0.0f;
    }
}

// dK and dV of a tile of keys. Shared memory, four tiles and two vectors:
//
//     | K | V | Q of this step | dout of this step | L [TILE] | D [TILE] of this step's queries |
//
// K and V are left operands (A fragments, read once), so scores lie transposed: rows are keys,
// columns are queries, and Pᵀ is a left operand as it stands.
template <int HEAD>
DEVICE void attend_backward_keys(bf16* dqkv, const bf16* dout, const bf16* qkv,
                                 const float* log_sum, const float* delta, const int* starts,
                                 int d, int causal, float scale) {
    DYNAMIC_SHARED(memory);
    typedef typename Shared<HEAD>::Row Row;
    Row *k = (Row*)memory, *v = k + TILE, *q = v + TILE, *g = q + TILE;
    float* sums = (float*)(g + TILE);
    Place own = place_of(starts);
    int head = own.head, start = own.start, t = own.t, from = own.from, rows = own.rows;
    if (from >= t) return;
    const bf16* base = qkv + (size_t)start * 3 * d + head * HEAD;
    const bf16* upstream = dout + (size_t)start * d + head * HEAD;
    log_sum += (size_t)head * rows + start;
    delta += (size_t)head * rows + start;
    load_tile<HEAD>(k, base + d, 3 * d, from, t);
    load_tile<HEAD>(v, base + 2 * d, 3 * d, from, t);
    copies_done();
    __syncthreads();
    unsigned ak[HEAD / 16][4], av[HEAD / 16][4];
    load_a<HEAD>(ak, k);
    load_a<HEAD>(av, v);
    float dk[HEAD / 8][4], dv[HEAD / 8][4];
    clear<HEAD / 8>(dk);
    clear<HEAD / 8>(dv);
    for (int query = causal ? from : 0; query < t; query += TILE) {
        __syncthreads();
        load_tile<HEAD>(q, base, 3 * d, query, t);
        load_tile<HEAD>(g, upstream, d, query, t);
        load_sums(sums, log_sum, delta, query, t);
        copies_done();
        __syncthreads();
#pragma unroll
        for (int half = 0; half < TILE; half += HALF) {
            float s[HALF / 8][4], ds[HALF / 8][4];
            times_rows<HEAD, HALF>(s, ak, q + half);
            times_rows<HEAD, HALF>(ds, av, g + half);
            score_gradient<true, HALF>(s, ds, sums + half, sums + TILE + half, from,
                                       query + half, t, causal, scale * LOG2E);
            times_columns<HEAD, HALF>(dv, s, g + half);
            times_columns<HEAD, HALF>(dk, ds, q + half);
        }
    }
    bf16* into = dqkv + (size_t)start * 3 * d + head * HEAD;
    store_rows<HEAD>(into + d, 3 * d, dk, from, t, scale);
    store_rows<HEAD>(into + 2 * d, 3 * d, dv, from, t, 1.0f);
}

// dQ of a tile of queries. Shared memory, four tiles and two vectors:
//
//     | Q | dout | K of this step | V of this step | L [TILE] | D [TILE] of the block's queries |
template <int HEAD>
DEVICE void attend_backward_queries(bf16* dqkv, const bf16* dout, const bf16* qkv,
                                    const float* log_sum, const float* delta,
                                    const int* starts, int d, int causal, float scale) {
    DYNAMIC_SHARED(memory);
    typedef typename Shared<HEAD>::Row Row;
    Row *q = (Row*)memory, *g = q + TILE, *k = g + TILE, *v = k + TILE;
    float* sums = (float*)(v + TILE);
    Place own = place_of(starts);
    int head = own.head, start = own.start, t = own.t, from = own.from, rows = own.rows;
    if (from >= t) return;
    const bf16* base = qkv + (size_t)start * 3 * d + head * HEAD;
    log_sum += (size_t)head * rows + start;
    delta += (size_t)head * rows + start;
    load_tile<HEAD>(q, base, 3 * d, from, t);
    load_tile<HEAD>(g, dout + (size_t)start * d + head * HEAD, d, from, t);
    load_sums(sums, log_sum, delta, from, t);
    copies_done();
    __syncthreads();
    unsigned aq[HEAD / 16][4], ag[HEAD / 16][4];
    load_a<HEAD>(aq, q);
    load_a<HEAD>(ag, g);
    float dq[HEAD / 8][4];
    clear<HEAD / 8>(dq);
    int last = last_key(own, causal);
    for (int key = 0; key < last; key += TILE) {
        __syncthreads();
        load_tile<HEAD>(k, base + d, 3 * d, key, t);
        load_tile<HEAD>(v, base + 2 * d, 3 * d, key, t);
        copies_done();
        __syncthreads();
        float s[TILE / 8][4], ds[TILE / 8][4];
        times_rows<HEAD, TILE>(s, aq, k);
        times_rows<HEAD, TILE>(ds, ag, v);
        score_gradient<false, TILE>(s, ds, sums, sums + TILE, from, key, t, causal,
                              scale * LOG2E);
        times_columns<HEAD, TILE>(dq, ds, k);
    }
    store_rows<HEAD>(dqkv + (size_t)start * 3 * d + head * HEAD, 3 * d, dq, from, t, scale);
}

#else

// In f32 the same by the definition: one thread per query, or per key, of one head, no shared
// memory, exact exponentials. It exists so that everything around it can be checked to the
// last digits; nobody trains with it at size. A block has one thread per row of its tile.

#define TILE 128

template <int HEAD>
DEVICE float score(const float* a, const float* b) {
    float total = 0;
    for (int c = 0; c < HEAD; c++) total += a[c] * b[c];
    return total;
}

template <int HEAD>
DEVICE void attend(float* out, float* log_sum, const float* qkv, const int* starts, int d,
                   int causal, float scale) {
    int head = blockIdx.y, start = starts[blockIdx.z], t = starts[blockIdx.z + 1] - start;
    int query = blockIdx.x * TILE + threadIdx.x, rows = starts[gridDim.z];
    if (query >= t) return;
    const float* base = qkv + (size_t)start * 3 * d + head * HEAD;
    const float* q = base + (size_t)query * 3 * d;
    int last = causal ? query + 1 : t;
    float most = -INFINITY, sum = 0, o[HEAD];
    for (int c = 0; c < HEAD; c++) o[c] = 0;
    for (int key = 0; key < last; key++) {
        const float* row = base + (size_t)key * 3 * d;
        float s = scale * score<HEAD>(q, row + d), top = fmaxf(most, s);
        float shrink = expf(most - top), p = expf(s - top);
        most = top;
        sum = sum * shrink + p;
        for (int c = 0; c < HEAD; c++) o[c] = o[c] * shrink + p * row[2 * d + c];
    }
    for (int c = 0; c < HEAD; c++)
        out[(size_t)(start + query) * d + head * HEAD + c] = o[c] / sum;
    log_sum[(size_t)head * rows + start + query] = most + logf(sum);
}

template <int HEAD>
DEVICE void attend_backward_keys(float* dqkv, const float* dout, const float* qkv,
                                 const float* log_sum, const float* delta, const int* starts,
                                 int d, int causal, float scale) {
    int head = blockIdx.y, start = starts[blockIdx.z], t = starts[blockIdx.z + 1] - start;
    int key = blockIdx.x * TILE + threadIdx.x, rows = starts[gridDim.z];
    if (key >= t) return;
    const float* base = qkv + (size_t)start * 3 * d + head * HEAD;
    const float* own = base + (size_t)key * 3 * d;
    log_sum += (size_t)head * rows + start;
    delta += (size_t)head * rows + start;
    float dk[HEAD], dv[HEAD];
    for (int c = 0; c < HEAD; c++) dk[c] = dv[c] = 0;
    for (int query = causal ? key : 0; query < t; query++) {
        const float* q = base + (size_t)query * 3 * d;
        const float* g = dout + (size_t)(start + query) * d + head * HEAD;
        float p = expf(scale * score<HEAD>(q, own + d) - log_sum[query]);
        float ds = p * (score<HEAD>(g, own + 2 * d) - delta[query]);
        for (int c = 0; c < HEAD; c++) {
            dv[c] += p * g[c];
            dk[c] += ds * q[c];
        }
    }
    float* into = dqkv + (size_t)(start + key) * 3 * d + head * HEAD;
    for (int c = 0; c < HEAD; c++) {
        into[d + c] = scale * dk[c];
        into[2 * d + c] = dv[c];
    }
}

template <int HEAD>
DEVICE void attend_backward_queries(float* dqkv, const float* dout, const float* qkv,
                                    const float* log_sum, const float* delta,
                                    const int* starts, int d, int causal, float scale) {
    int head = blockIdx.y, start = starts[blockIdx.z], t = starts[blockIdx.z + 1] - start;
    int query = blockIdx.x * TILE + threadIdx.x, rows = starts[gridDim.z];
    if (query >= t) return;
    const float* base = qkv + (size_t)start * 3 * d + head * HEAD;
    const float* q = base + (size_t)query * 3 * d;
    const float* g = dout + (size_t)(start + query) * d + head * HEAD;
    float own = log_sum[(size_t)head * rows + start + query];
    float along = delta[(size_t)head * rows + start + query], dq[HEAD];
    for (int c = 0; c < HEAD; c++) dq[c] = 0;
    for (int key = 0; key < (causal ? query + 1 : t); key++) {
        const float* row = base + (size_t)key * 3 * d;
        float p = expf(scale * score<HEAD>(q, row + d) - own);
        float ds = p * (score<HEAD>(g, row + 2 * d) - along);
        for (int c = 0; c < HEAD; c++) dq[c] += ds * row[d + c];
    }
    float* into = dqkv + (size_t)(start + query) * 3 * d + head * HEAD;
    for (int c = 0; c < HEAD; c++) into[c] = scale * dq[c];
}

#endif

// D = <dout, out> of every row and head, delta [heads, rows]. HEAD / 8 lanes per head of a
// row share its sum, so that a warp's reads are contiguous.
template <int HEAD>
DEVICE void row_products(float* delta, const real* dout, const real* out, int rows,
                         int heads) {
    const int LANES = HEAD / 8;
    size_t i = (size_t)blockIdx.x * (128 / LANES) + threadIdx.x / LANES;
    bool there = i < (size_t)rows * heads;
    float own = 0;
    if (there) {
        float a[8], b[8];
        load8(a, dout + i * HEAD + threadIdx.x % LANES * 8);
        load8(b, out + i * HEAD + threadIdx.x % LANES * 8);
        for (int c = 0; c < 8; c++) own += a[c] * b[c];
    }
    for (int step = LANES / 2; step > 0; step /= 2) own += __shfl_xor_sync(ALL_LANES, own, step);
    if (there && threadIdx.x % LANES == 0) delta[i % heads * rows + i / heads] = own;
}

// grid (tiles of TILE rows, heads, samples), 128 threads. Blocks behind a short sample's end
// return at once: lengths differ, and the grid is made for the longest.
#define ATTENTION(HEAD)                                                                     \
    KERNEL(128)                                                                             \
    attention_forward_##HEAD(real* out, float* log_sum, const real* qkv,                    \
                             const int* starts, int d, int causal, float scale) {           \
        attend<HEAD>(out, log_sum, qkv, starts, d, causal, scale);                          \
    }                                                                                       \
    KERNEL(128)                                                                             \
    attention_delta_##HEAD(float* delta, const real* dout, const real* out, int rows,       \
                           int heads) {                                                     \
        row_products<HEAD>(delta, dout, out, rows, heads);                                  \
    }                                                                                       \
    KERNEL(128)                                                                             \
    attention_keys_##HEAD(real* dqkv, const real* dout, const real* qkv,                    \
                          const float* log_sum, const float* delta, const int* starts,      \
                          int d, int causal, float scale) {                                 \
        attend_backward_keys<HEAD>(dqkv, dout, qkv, log_sum, delta, starts, d, causal,      \
                                   scale);                                                  \
    }                                                                                       \
    KERNEL(128)                                                                             \
    attention_queries_##HEAD(real* dqkv, const real* dout, const real* qkv,                 \
                             const float* log_sum, const float* delta, const int* starts,   \
                             int d, int causal, float scale) {                              \
        attend_backward_queries<HEAD>(dqkv, dout, qkv, log_sum, delta, starts, d, causal,   \
                                      scale);                                               \
    }

ATTENTION(16)
ATTENTION(32)
ATTENTION(64)
