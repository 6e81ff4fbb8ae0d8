// Attention over packed rows qkv [N, 3d] of samples with lengths of their own. Sample s owns
// rows starts[s]..starts[s + 1]; a head is HEAD of a row's d columns.
//
//     P = softmax(Q Kᵀ / sqrt(HEAD)),  out = P V               causal: key <= query
//
//     L_i = log sum over keys of exp(score)    D_i = <dout_i, out_i>
//     dV = Pᵀ dout    dS = P ∘ (dout Vᵀ - D)    dQ = dS K / sqrt(HEAD)    dK = dSᵀ Q / sqrt(HEAD)
//
// No T x T matrix exists in memory (Dao et al., FlashAttention): a block owns TILE queries,
// walks over tiles of keys and keeps the running maximum and sum of its rows. The backward
// recomputes P from scores and L, once with keys as rows for dK and dV and once with queries
// as rows for dQ, so that every output has one owner: no atomics, the same bits always.

#ifdef REAL_BF16

// bf16 on tensor cores. 128 threads; warp w owns rows 16w..16w+16 of the block's tile.
//
//     tile of shared memory [TILE][PITCH] bf16, rows of HEAD values and 8 of padding:
//     |<------------ HEAD ------------>|<- 8 ->|
//
// ldmatrix reads 8 rows of 16 bytes at a time; with a pitch of HEAD + 8 values they start 4
// banks apart modulo 32 (for HEAD 64: 36 words), so the eight rows hit all 32 banks once.
//
// Accumulators c [HEAD / 8 or TILE / 8][4] follow PTX's m16n8k16 layout: lane l holds rows
// l / 4 and l / 4 + 8, columns 2 (l % 4) and the next, of each 16 x 8 piece.

#define TILE 64

template <int HEAD> struct Shared {
    typedef bf16 Row[HEAD + 8];
};
// Columns of scores that the keys' backward holds at a time. Scores, their gradients and both
// outputs of a whole tile would be 128 registers per thread, and spill.
#define HALF 32

// Rows from..from+64 of one matrix of a head; rows at or behind `end` are zero.
template <int HEAD>
DEVICE void load_tile(typename Shared<HEAD>::Row* tile, const bf16* base, int pitch, int from,
                      int end) {
    for (int i = threadIdx.x; i < TILE * HEAD / 8; i += 128) {
        int row = i / (HEAD / 8), column = i % (HEAD / 8) * 8;
        bool use = from + row < end;
        copy_async(&tile[row][column], base + (size_t)(use ? from + row : 0) * pitch + column,
                   use);
    }
}
// The A operand of this warp's 16 rows: one 16 x 16 fragment per step.
template <int HEAD>
DEVICE void load_a(unsigned a[HEAD / 16][4], const typename Shared<HEAD>::Row* tile) {
    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane % 16;
#pragma unroll
    for (int step = 0; step < HEAD / 16; step++)
        load_tiles(a[step], &tile[row][step * 16 + lane / 16 * 8]);
}
// c [16, N] = A tileᵀ for N rows of the tile. They are B's columns, so ldmatrix needs no
// transpose: one load covers 8 rows of the tile by 32 columns, two steps of 16.
template <int HEAD, int N>
DEVICE void times_rows(float c[N / 8][4], const unsigned a[HEAD / 16][4],
                       const typename Shared<HEAD>::Row* tile) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0;
        if (HEAD == 16) {
            // A load of four tiles would pass the row's end: take two pieces of rows at once
            // and use the half that belongs to j.
            unsigned b[4];
            load_tiles(b, &tile[j / 2 * 16 + lane / 16 * 8 + lane % 8][lane / 8 % 2 * 8]);
            mma(c[j], a[0], b + j % 2 * 2);
        } else {
#pragma unroll
            for (int half = 0; half < HEAD / 32; half++) {
                unsigned b[4];
                load_tiles(b, &tile[j * 8 + lane % 8][half * 32 + lane / 8 * 8]);
                mma(c[j], a[half * 2], b);
                mma(c[j], a[half * 2 + 1], b + 2);
            }
        }
    }
}
// c [16, HEAD] += P tile, P [16, N] as it lies in accumulators: two neighboring pieces of an
// accumulator are one A fragment. The tile's columns are B's, so ldmatrix transposes.
template <int HEAD, int N>
DEVICE void times_columns(float c[HEAD / 8][4], const float p[N / 8][4],
                          const typename Shared<HEAD>::Row* tile) {
    int lane = threadIdx.x % 32;
#pragma unroll
    for (int step = 0; step < N / 16; step++) {
        const float *left = p[step * 2], *right = p[step * 2 + 1];
        unsigned a[4] = {pack(left[0], left[1]), pack(left[2], left[3]),
                         pack(right[0], right[1]), pack(right[2], right[3])};
#pragma unroll
        for (int j = 0; j < HEAD / 16; j++) {
            unsigned b[4];
            load_tiles_transposed(b, &tile[step * 16 + lane % 16][j * 16 + lane / 16 * 8]);
            mma(c[j * 2], a, b);
            mma(c[j * 2 + 1], a, b + 2);
        }
    }
}
template <int HEAD>
DEVICE void store_rows(bf16* base, int pitch, const float c[HEAD / 8][4], int from, int end,
                       float scale) {
    int lane = threadIdx.x % 32, row = from + threadIdx.x / 32 * 16 + lane / 4;
#pragma unroll
    for (int j = 0; j < HEAD / 8; j++) {
        int column = j * 8 + lane % 4 * 2;
        if (row < end)
            *(unsigned*)(base + (size_t)row * pitch + column) =
                pack(c[j][0] * scale, c[j][1] * scale);
        if (row + 8 < end)
            *(unsigned*)(base + (size_t)(row + 8) * pitch + column) =
                pack(c[j][2] * scale, c[j][3] * scale);
    }
}
template <int N> DEVICE void clear(float c[N][4]) {
#pragma unroll
    for (int j = 0; j < N; j++) c[j][0] = c[j][1] = c[j][2] = c[j][3] = 0;
}

// Shared memory: [Q][K][V], three tiles. Scores are kept in powers of two: 2^x is one
// instruction, so the scale carries log2(e).
template <int HEAD>
DEVICE void attend(bf16* out, float* log_sum, const bf16* qkv, const int* starts, int d,
                   int causal, float scale) {
    DYNAMIC_SHARED(memory);
    typedef typename Shared<HEAD>::Row Row;
    Row *q = (Row*)memory, *k = q + TILE, *v = k + TILE;
    int head = blockIdx.y, start = starts[blockIdx.z], t = starts[blockIdx.z + 1] - start;
    int from = blockIdx.x * TILE, lane = threadIdx.x % 32, rows = starts[gridDim.z];
    if (from >= t) return;
    const bf16* base = qkv + (size_t)start * 3 * d + head * HEAD;
    load_tile<HEAD>(q, base, 3 * d, from, t);
    copies_done();
    __syncthreads();
    unsigned a[HEAD / 16][4];
    load_a<HEAD>(a, q);
    float o[HEAD / 8][4], most[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    clear<HEAD / 8>(o);
    scale *= 1.44269504f;
    int row = from + threadIdx.x / 32 * 16 + lane / 4;
    int last = causal && from + TILE < t ? from + TILE : t;
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

// P and dS of 16 x N pairs from scores and dout Vᵀ. Rows are queries, or keys where
// TURNED; L and D of the queries come from `log_sum` and `delta`, which a query's row or
// column within the tile indexes.
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

// dK and dV. Shared memory: [K][V][Q][dout] tiles, then L and D of the tile's queries.
template <int HEAD>
DEVICE void attend_backward_keys(bf16* dqkv, const bf16* dout, const bf16* qkv,
                                 const float* log_sum, const float* delta, const int* starts,
                                 int d, int causal, float scale) {
    DYNAMIC_SHARED(memory);
    typedef typename Shared<HEAD>::Row Row;
    Row *k = (Row*)memory, *v = k + TILE, *q = v + TILE, *g = q + TILE;
    float* sums = (float*)(g + TILE);
    int head = blockIdx.y, start = starts[blockIdx.z], rows = starts[gridDim.z];
    int t = starts[blockIdx.z + 1] - start, from = blockIdx.x * TILE;
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
                                       query + half, t, causal, scale * 1.44269504f);
            times_columns<HEAD, HALF>(dv, s, g + half);
            times_columns<HEAD, HALF>(dk, ds, q + half);
        }
    }
    bf16* into = dqkv + (size_t)start * 3 * d + head * HEAD;
    store_rows<HEAD>(into + d, 3 * d, dk, from, t, scale);
    store_rows<HEAD>(into + 2 * d, 3 * d, dv, from, t, 1.0f);
}

// dQ. Shared memory: [Q][dout][K][V] tiles, then L and D of the block's queries.
template <int HEAD>
DEVICE void attend_backward_queries(bf16* dqkv, const bf16* dout, const bf16* qkv,
                                    const float* log_sum, const float* delta,
                                    const int* starts, int d, int causal, float scale) {
    DYNAMIC_SHARED(memory);
    typedef typename Shared<HEAD>::Row Row;
    Row *q = (Row*)memory, *g = q + TILE, *k = g + TILE, *v = k + TILE;
    float* sums = (float*)(v + TILE);
    int head = blockIdx.y, start = starts[blockIdx.z], rows = starts[gridDim.z];
    int t = starts[blockIdx.z + 1] - start, from = blockIdx.x * TILE;
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
    int last = causal && from + TILE < t ? from + TILE : t;
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
                              scale * 1.44269504f);
        times_columns<HEAD, TILE>(dq, ds, k);
    }
    store_rows<HEAD>(dqkv + (size_t)start * 3 * d + head * HEAD, 3 * d, dq, from, t, scale);
}

#else

// f32 by the definition: one thread per query, or per key, of one head. It exists so that
// everything around it can be checked to the last digits; nobody trains with it at size.
// The block's tile has 128 rows here: TILE is what the host's grid divides by.

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

// grid (tiles of TILE rows, heads, samples), 128 threads.
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
