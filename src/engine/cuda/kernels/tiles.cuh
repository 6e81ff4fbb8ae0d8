// Products of small tiles on tensor cores, as attention uses them: bf16 operands in shared
// memory, f32 accumulators in registers.
//
// A block has 128 threads and works on tiles of TILE rows of a head; warp w owns rows
// 16w..16w + 16 of whatever is the left operand. Two products are enough for all of attention:
//
//     times_rows      C [16, N]    = A [16, HEAD]  tile [N, HEAD]ᵀ      scores, dout Vᵀ
//     times_columns   C [16, HEAD] += P [16, N]    tile [N, HEAD]       P V, Pᵀ dout, dS K, dSᵀ Q
//
// One tile in shared memory, PITCH = HEAD + 8 values a row:
//
//               0                      HEAD   HEAD + 8
//     row 0     | values of the head   | unused |
//     row 1     | ..                   |        |
//     row 63    |                      |        |
//
// Why the 8 unused values: ldmatrix reads eight rows of 16 bytes at a time. Rows are then
// (HEAD + 8) / 2 words apart, which is 4 modulo 32 for HEAD 64 (36 words), 20 for HEAD 32 and
// 12 for HEAD 16; in all three cases eight consecutive rows begin in eight different groups of
// four banks, so a read takes one pass. Without padding all rows of HEAD 64 would begin in
// the same bank.
//
// Fragments, by the PTX ISA ("Matrix Fragments for mma.m16n8k16 with floating point type" and
// "Warp-level matrix load instruction: ldmatrix"; sections change their numbers from version to
// version); g = lane / 4, t = lane % 4:
//
//     A [16, 16]   four registers of two values: (row g, g + 8, g, g + 8), columns 2t and the
//                  next, + 8 in the last two registers
//     B [16, 8]    two registers: rows 2t and the next, + 8 in the second; column g
//     C [16, 8]    four values: row g columns 2t and the next, then row g + 8
//
// Two neighboring pieces of C [16, 8] therefore lie as one A [16, 16] does: scores become the
// left operand of the next product without leaving their registers. ldmatrix hands out 8 x 8
// tiles by rows, lane l two values of row l / 4: as A wants them, and as B wants a matrix that
// lies transposed. Where B lies straight, .trans hands each tile out by columns.

#ifdef REAL_BF16

// Four warps of 16 rows. Tiles of 128 rows would need twice the shared memory, and the keys'
// backward twice its accumulators, which fill the registers already.
#define TILE 64

template <int HEAD> struct Shared {
    typedef bf16 Row[HEAD + 8];
};

// Fills a tile with rows `from`.. of one matrix of a head, `pitch` values apart; rows at or
// behind `end` become zeros, so that a ragged end needs no other path. Threads copy 16 bytes
// each without registers; the tile is there after copies_done() and a barrier.
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
// This warp's 16 rows as left operand: one A fragment per 16 columns. Lane l names row l % 16,
// and the column half l / 16, which orders the four 8 x 8 tiles as A's registers are.
template <int HEAD>
DEVICE void load_a(unsigned a[HEAD / 16][4], const typename Shared<HEAD>::Row* tile) {
    int lane = threadIdx.x % 32, row = threadIdx.x / 32 * 16 + lane % 16;
#pragma unroll
    for (int step = 0; step < HEAD / 16; step++)
        load_tiles(a[step], &tile[row][step * 16 + lane / 16 * 8]);
}
// c [16, N] = A tileᵀ for N rows of the tile. They are B's columns, so ldmatrix does not turn:
// one load covers 8 rows of the tile by 32 columns, which are B of two steps.
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
// c [16, HEAD] += P tile for N rows of the tile, P [16, N] as it lies in accumulators. The
// tile's columns are B's, so ldmatrix turns: one load covers 16 rows by 16 columns, which are
// B of two pieces of C.
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
// Writes this warp's rows, scaled and rounded; rows at or behind `end` stay as they were.
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

#endif
