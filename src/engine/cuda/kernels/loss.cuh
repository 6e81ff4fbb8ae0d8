// Losses: contrastive, self-distillation, and the weights of the auxiliary ones.
//
//     sim = Î T̂ᵀ (unit rows),  s = exp(logit scale),  target = (1 - a) [r = c] + a / B
//     L = 1/(2B) sum over rows and columns of (log sum exp(s sim) - s sum target sim)
//     d L / d sim = s/(2B) (softmax by rows + softmax by columns - 2 target)
//
// Everything of the contrastive loss is f32 and its sums f64: B x B numbers are few beside
// the towers, and logits are a hundred times a cosine.

// unit [rows, width] = raw / |raw|, inverse = 1 / |raw|. One warp per row.
KERNEL(256) unit_forward(float* unit, float* inverse, const float* raw, int rows, int width) {
    int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    raw += (size_t)row * width;
    unit += (size_t)row * width;
    float square = 0;
    for (int j = lane; j < width; j += 32) square += raw[j] * raw[j];
    float own = 1.0f / fmaxf(sqrtf(warp_sum(square)), 1e-12f);
    for (int j = lane; j < width; j += 32) unit[j] = raw[j] * own;
    if (lane == 0) inverse[row] = own;
}

// draw = (g - <g, unit> unit) inverse, where g = gradient + factor (unit - taught): the
// second term distills the embedding into a teacher's, and distance[row] = |unit - taught|².
KERNEL(256) unit_backward(real* draw, double* distance, const float* gradient,
                          const float* unit, const float* inverse, const float* taught,
                          float factor, int rows, int width) {
    int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (row >= rows) return;
    size_t at = (size_t)row * width;
    float along = 0, far = 0;
    for (int j = lane; j < width; j += 32) {
        float u = unit[at + j], away = taught ? u - taught[at + j] : 0.0f;
        along += (gradient[at + j] + factor * away) * u;
        far += away * away;
    }
    along = warp_sum(along);
    far = warp_sum(far);
    for (int j = lane; j < width; j += 32) {
        float u = unit[at + j], away = taught ? u - taught[at + j] : 0.0f;
        put(draw + at + j, (gradient[at + j] + factor * away - along * u) * inverse[row]);
    }
    if (lane == 0 && taught) distance[row] = far;
}

// log_sum[row] = log sum over columns of exp(s sim). One block per row.
KERNEL(256) contrastive_rows(float* log_sum, const float* sim, const float* logit_scale,
                             int pairs) {
    const float* row = sim + (size_t)blockIdx.x * pairs;
    float s = expf(*logit_scale), most = -INFINITY, total = 0;
    for (int c = threadIdx.x; c < pairs; c += 256) most = fmaxf(most, row[c]);
    most = block_max(most);
    for (int c = threadIdx.x; c < pairs; c += 256) total += expf(s * (row[c] - most));
    total = block_sum(total);
    if (threadIdx.x == 0) log_sum[blockIdx.x] = s * most + logf(total);
}

// The same by columns. A block owns 32 columns, its 8 warps every eighth row.
KERNEL(256) contrastive_columns(float* log_sum, const float* sim, const float* logit_scale,
                                int pairs) {
    __shared__ float parts[2][8][32];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, c = blockIdx.x * 32 + lane;
    float s = expf(*logit_scale), most = -INFINITY, total = 0;
    if (c < pairs)
        for (int r = warp; r < pairs; r += 8) {
            float v = s * sim[(size_t)r * pairs + c], top = fmaxf(most, v);
            total = total * expf(most - top) + expf(v - top);
            most = top;
        }
    parts[0][warp][lane] = most;
    parts[1][warp][lane] = total;
    __syncthreads();
    if (warp == 0 && c < pairs) {
        for (int w = 1; w < 8; w++) most = fmaxf(most, parts[0][w][lane]);
        total = 0;
        for (int w = 0; w < 8; w++) total += parts[1][w][lane] * expf(parts[0][w][lane] - most);
        log_sum[c] = most + logf(total);
    }
}

// sim becomes d L / d sim; partial [pairs, 2] holds each row's loss, and its product of
// (softmaxes - 2 target) with the similarities. One block per row.
KERNEL(256) contrastive_gradient(float* sim, double* partial, const float* row_log_sum,
                                 const float* column_log_sum, const float* logit_scale,
                                 float smoothing, int pairs) {
    int r = blockIdx.x;
    float* row = sim + (size_t)r * pairs;
    float s = expf(*logit_scale), factor = s * 0.5f / pairs, even = smoothing / pairs;
    float own = row_log_sum[r], along = 0, wanted = 0;
    for (int c = threadIdx.x; c < pairs; c += 256) {
        float v = row[c], target = even + (c == r ? 1.0f - smoothing : 0.0f);
        float both = expf(s * v - own) + expf(s * v - column_log_sum[c]) - 2.0f * target;
        along += both * v;
        wanted += target * v;
        row[c] = factor * both;
    }
    along = block_sum(along);
    wanted = block_sum(wanted);
    if (threadIdx.x == 0) {
        partial[r * 2] = (double)own + column_log_sum[r] - 2.0 * s * wanted;
        partial[r * 2 + 1] = along;
    }
}

// sums = 1/(2B) of both columns of partial: the loss, and the logit scale's gradient.
KERNEL(256) contrastive_finish(double* loss, float* dscale, const double* partial,
                               const float* logit_scale, int pairs) {
    double total = 0, along = 0;
    for (int r = threadIdx.x; r < pairs; r += 256) {
        total += partial[r * 2];
        along += partial[r * 2 + 1];
    }
    total = block_sum(total);
    along = block_sum(along);
    if (threadIdx.x == 0) {
        loss[0] = 0.5 / pairs * total;
        loss[1] = *logit_scale;
        *dscale = (float)(0.5 / pairs * expf(*logit_scale) * along);
    }
}

// ---- Self-distillation of a layer: which rows, how far, and the pull. ----
//
//     S = the rows of each group with the highest entropy of routing
//     E = sum over S of |y - t|² / sum over S of |t|²    y the layer's output, t the ensemble's
//     dE/dy = 2 (y - t) / sum over S of |t|²             the teacher gets no gradient
//
// y is the output of the experts without the residual stream. Which rows, and in which order,
// follows from entropies and places alone.

// Floats in an order of integers: total, and equal to `total_cmp` of the CPU.
DEVICE unsigned ordered(float v) {
    unsigned bits = __float_as_uint(v);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// Marks the keep[g] counted rows of group g with the highest entropy, ties to the lower
// index. Group g owns rows groups[g]..groups[g + 1]. grid (256 rows, groups): a thread counts
// the rows that come before its own.
KERNEL(256) uncertain_mark(int* marked, const float* entropy, const int* counted,
                           const int* groups, const int* keep) {
    __shared__ unsigned keys[256];
    __shared__ int counts[256];
    int first = groups[blockIdx.y], last = groups[blockIdx.y + 1];
    int row = first + blockIdx.x * 256 + threadIdx.x;
    if (first + (int)blockIdx.x * 256 >= last) return;
    bool own = row < last && counted[row];
    unsigned key = own ? ordered(entropy[row]) : 0;
    int before = 0;
    for (int from = first; from < last; from += 256) {
        int other = from + threadIdx.x;
        __syncthreads();
        keys[threadIdx.x] = other < last ? ordered(entropy[other]) : 0;
        counts[threadIdx.x] = other < last && counted[other];
        __syncthreads();
        for (int i = 0; i < 256 && from + i < last; i++)
            before += counts[i] && (keys[i] > key || (keys[i] == key && from + i < row));
    }
    if (row < last) marked[row] = own && before < keep[blockIdx.y];
}

// rows[offsets[g]..] = the marked rows of group g, ascending. One block per group.
KERNEL(256) uncertain_place(int* rows, const int* marked, const int* groups,
                            const int* offsets) {
    __shared__ int found[8];
    int first = groups[blockIdx.x], last = groups[blockIdx.x + 1];
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, next = offsets[blockIdx.x];
    for (int from = first; from < last; from += 256) {
        int row = from + threadIdx.x;
        bool own = row < last && marked[row];
        unsigned holders = __ballot_sync(ALL_LANES, own);
        __syncthreads();
        if (lane == 0) found[warp] = __popc(holders);
        __syncthreads();
        int before = next + __popc(holders & ((1u << lane) - 1));
        for (int w = 0; w < 8; w++) {
            if (w < warp) before += found[w];
            next += found[w];
        }
        if (own) rows[before] = row;
    }
}

// x [n, d] = rows of the layer's input. One warp per row.
KERNEL(256) distill_gather(real* out, const real* x, const int* rows, int n, int d) {
    int i = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= n) return;
    const uint4* from = (const uint4*)(x + (size_t)rows[i] * d);
    uint4* to = (uint4*)(out + (size_t)i * d);
    for (int j = lane; j < d * (int)sizeof(real) / 16; j += 32) to[j] = from[j];
}

// difference [n, d] = the layer's output - the ensemble's; partial [n, 2]: squares of both.
KERNEL(256) distill_difference(real* difference, double* partial, const float* taught,
                               const real* out, const float* bias, const int* slots,
                               const int* chosen, const float* weight, const int* rows, int n,
                               int k, int d) {
    int i = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= n) return;
    float far = 0, size = 0;
    for (int j = lane * 8; j < d; j += 256) {
        float target[8], total[8];
        load8(target, taught + (size_t)i * d + j);
        for (int c = 0; c < 8; c++) total[c] = -target[c];
        for (int pair = rows[i] * k; pair < rows[i] * k + k; pair++) {
            float v[8], b[8], w = weight[pair];
            load8(v, out + (size_t)slots[pair] * d + j);
            load8(b, bias + (size_t)chosen[pair] * d + j);
            for (int c = 0; c < 8; c++) total[c] += w * (v[c] + b[c]);
        }
        for (int c = 0; c < 8; c++) {
            far += total[c] * total[c];
            size += target[c] * target[c];
        }
        store8(difference + (size_t)i * d + j, total);
    }
    far = warp_sum(far);
    size = warp_sum(size);
    if (lane == 0) {
        partial[(size_t)i * 2] = far;
        partial[(size_t)i * 2 + 1] = size;
    }
}

// dy[rows] = dx[rows] + 2 weight difference: the layer alone is pulled, not the stream.
KERNEL(256) distill_pull(real* dy, const float* dx, const real* difference, const int* rows,
                         const float* weight, int n, int d) {
    int i = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
    if (i >= n) return;
    float twice = 2.0f * *weight;
    for (int j = lane * 8; j < d; j += 256) {
        float g[8], v[8];
        load8(g, dx + (size_t)rows[i] * d + j);
        load8(v, difference + (size_t)i * d + j);
        for (int c = 0; c < 8; c++) g[c] += twice * v[c];
        store8(dy + (size_t)rows[i] * d + j, g);
    }
}

// Weights of each layer's auxiliary losses from its sums over the batch (src/loss/mod.rs). With
// n rows, f_e the assignments of expert e and L_i the log sum of row i's logits:
//
//     balance = E sum over e of (f_e / sum f) (mean of p_e)    d/dp_e = E f_e / (n sum f)
//     z = mean of L_i²                                         d/d(L_i²) = 1 / n
//
// pulls [layers, experts + 2] holds d loss / dp by expert, d loss / d (log sum)², and
// d loss / d |difference|². stats [layers, 5 + 2 experts]: rows, entropy, squared log sums,
// assignments, probabilities, squared distance, squared target. One thread per layer.
KERNEL(128) auxiliary_weights(float* pulls, const double* stats, const float* fractions,
                              double balance, double router_z, double eesd, int layers,
                              int experts) {
    int layer = threadIdx.x;
    if (layer >= layers) return;
    stats += layer * (5 + 2 * experts);
    pulls += layer * (experts + 2);
    double assignments = 0, rows = stats[0] > 1 ? stats[0] : 1, own = fractions[layer];
    for (int e = 0; e < experts; e++) assignments += stats[3 + e];
    double factor = experts / (assignments > 1 ? assignments : 1) / rows;
    for (int e = 0; e < experts; e++)
        pulls[e] = (float)(balance * own * factor * stats[3 + e]);
    pulls[experts] = (float)(router_z * own / rows);
    double target = stats[4 + 2 * experts];
    pulls[experts + 1] = target > 0 ? (float)(eesd * own / target) : 0.0f;
}
