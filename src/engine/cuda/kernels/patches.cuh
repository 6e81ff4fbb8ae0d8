// Pictures to patches, and the vision tower's input.
//
// A picture [3, S, S] is cut into (S/p)² patches in row-major order, each laid out [3, p, p]
// as the weight of the patch convolution is: the convolution becomes one matrix product.

// out [pictures (S/p)², 3 p p]; one thread per value, neighbors write neighbors.
KERNEL(256) patches_cut(real* out, const float* pixels, int size, int patch, int pictures) {
    int side = size / patch, width = 3 * patch * patch;
    size_t count = (size_t)pictures * side * side * width;
    for (size_t i = (size_t)blockIdx.x * blockDim.x + threadIdx.x; i < count;
         i += (size_t)gridDim.x * blockDim.x) {
        size_t row = i / width;
        int within = (int)(i % width), place = (int)(row % (side * side));
        size_t picture = row / (side * side);
        int plane = within / (patch * patch), y = within / patch % patch, x = within % patch;
        size_t line = (picture * 3 + plane) * size + place / side * patch + y;
        put(out + i, pixels[line * size + place % side * patch + x]);
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
