// Pictures to patches, and the vision tower's input.
//
// A picture [3, S, S] is cut into (S/p)² patches in row-major order, each laid out [3, p, p]
// as the weight of the patch convolution is: the convolution becomes one matrix product.

// Where value i of the patches [pictures (S/p)², 3 p p] comes from among the pixels.
DEVICE size_t pixel_of(size_t i, int size, int patch, int& plane) {
    int side = size / patch, width = 3 * patch * patch;
    size_t row = i / width, picture = row / (side * side);
    int within = (int)(i % width), place = (int)(row % (side * side));
    int y = within / patch % patch, x = within % patch;
    plane = within / (patch * patch);
    size_t line = (picture * 3 + plane) * size + place / side * patch + y;
    return line * size + place % side * patch + x;
}

// out [pictures (S/p)², 3 p p]; one thread per value, neighbors write neighbors. At most 65536
// blocks: each thread goes on with the value that lies one grid further.
KERNEL(256) patches_cut(real* out, const float* pixels, int size, int patch, int pictures) {
    size_t count = (size_t)pictures * 3 * size * size;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count;
         i += (size_t)gridDim.x * blockDim.x) {
        int plane;
        size_t from = pixel_of(i, size, patch, plane);
        put(out + i, pixels[from]);
    }
}

// The same from levels 0..255, normalized on the way:
//
//     value = level factor + summand           lines [3, 2]: both of each channel
//
// Product and sum are rounded one after the other, as the CPU does it (src/image/augment.rs):
// a fused multiply-add would give other bits.
KERNEL(256) patches_cut_levels(real* out, const unsigned char* pixels, const float* lines,
                               int size, int patch, int pictures) {
    size_t count = (size_t)pictures * 3 * size * size;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count;
         i += (size_t)gridDim.x * blockDim.x) {
        int plane;
        size_t from = pixel_of(i, size, patch, plane);
        float scaled = __fmul_rn((float)pixels[from], lines[plane * 2]);
        put(out + i, __fadd_rn(scaled, lines[plane * 2 + 1]));
    }
}

// raw [pictures T, d] = position + (class token, or the patch's product). One warp per row.
KERNEL(256) patches_embed(float* raw, const real* embedded, const float* class_token,
                          const float* position, int rows, int tokens, int d) {
    int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    int t = row % tokens;
    size_t own = (size_t)(row / tokens * (tokens - 1) + t - 1) * d;
    for (int j = lane * 8; j < d; j += 256) {
        float a[8], b[8];
        load8(a, position + (size_t)t * d + j);
        if (t == 0) load8(b, class_token + j);
        else load8(b, embedded + own + j);
        for (int i = 0; i < 8; i++) a[i] += b[i];
        store8(raw + (size_t)row * d + j, a);
    }
}

// The gradient of the patches' products: the rows of `draw` without those of class tokens.
KERNEL(256) patches_embed_backward(real* dembedded, const float* draw, int rows, int tokens,
                                   int d) {
    int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows || row % tokens == 0) return;
    size_t own = (size_t)(row / tokens * (tokens - 1) + row % tokens - 1) * d;
    for (int j = lane * 8; j < d; j += 256) {
        float v[8];
        load8(v, draw + (size_t)row * d + j);
        store8(dembedded + own + j, v);
    }
}
