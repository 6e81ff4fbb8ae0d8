// The optimizer over flat buffers: sums of gradients, norm, AdamW, the teacher's average, bf16
// copies.
//
//     g = gradient min(1, clip / |gradient|)           |.| over all values that train
//     m = b1 m + (1 - b1) g                            s = b2 s + (1 - b2) g²
//     w = w (1 - rate decay) - rate / (1 - b1^t) m / (sqrt(s / (1 - b2^t)) + epsilon)
//     average = average + (1 - d) (w - average)        the teacher, Loshchilov & Hutter's AdamW
//
// Tensors start at multiples of PAGE values, so one flag per page says whether its values
// decay, train without decay, or are frozen; padding is zero and stays zero.

#define PAGE 1024

// partial[block] = the sum of squares of the block's pages, in f64.
KERNEL(256) squared_norm(double* partial, const float* gradient, int pages) {
    double total = 0;
    for (int page = blockIdx.x; page < pages; page += gridDim.x) {
        float4 g = ((const float4*)(gradient + (size_t)page * PAGE))[threadIdx.x];
        total += (double)g.x * g.x + (double)g.y * g.y + (double)g.z * g.z + (double)g.w * g.w;
    }
    total = block_sum(total);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

// values += other, one page per block: a pair in the tree of gradients.
KERNEL(256) add_pages(float* values, const float* other) {
    size_t i = (size_t)blockIdx.x * (PAGE / 4) + threadIdx.x;
    float4 v = ((const float4*)values)[i], o = ((const float4*)other)[i];
    v.x += o.x, v.y += o.y, v.z += o.z, v.w += o.w;
    ((float4*)values)[i] = v;
}

struct Adam {
    float rate, keep, beta1, beta2, epsilon, root, scale;
};
DEVICE float adam(const Adam& step, float value, float gradient, float& first, float& second) {
    float g = gradient * step.scale;
    first = step.beta1 * first + (1.0f - step.beta1) * g;
    second = step.beta2 * second + (1.0f - step.beta2) * g * g;
    return value * step.keep - step.rate * first / (sqrtf(second) * step.root + step.epsilon);
}

// One page per block. flags: 0 frozen, 1 trains, 2 trains and decays. `rate` is already
// divided by 1 - beta1^t, `root` is 1 / sqrt(1 - beta2^t), `scale` clips the gradient.
KERNEL(256) adamw(float* values, real* copy, float* first, float* second,
                  const float* gradient, const unsigned char* flags, float rate, float keep,
                  float beta1, float beta2, float epsilon, float root, float scale) {
    int flag = flags[blockIdx.x];
    if (flag == 0) return;
    Adam step = {rate, flag == 2 ? keep : 1.0f, beta1, beta2, epsilon, root, scale};
    size_t i = (size_t)blockIdx.x * (PAGE / 4) + threadIdx.x;
    float4 v = ((float4*)values)[i], m = ((float4*)first)[i], s = ((float4*)second)[i];
    float4 g = ((const float4*)gradient)[i];
    v.x = adam(step, v.x, g.x, m.x, s.x);
    v.y = adam(step, v.y, g.y, m.y, s.y);
    v.z = adam(step, v.z, g.z, m.z, s.z);
    v.w = adam(step, v.w, g.w, m.w, s.w);
    ((float4*)values)[i] = v;
    ((float4*)first)[i] = m;
    ((float4*)second)[i] = s;
    if (copy) {
        put(copy + i * 4, v.x);
        put(copy + i * 4 + 1, v.y);
        put(copy + i * 4 + 2, v.z);
        put(copy + i * 4 + 3, v.w);
    }
}

// average += (1 - decay) (value - average), where the page's flag is set.
KERNEL(256) move_average(float* average, real* copy, const float* values,
                         const unsigned char* flags, float decay) {
    if (!flags[blockIdx.x]) return;
    for (int j = threadIdx.x; j < PAGE; j += 256) {
        size_t i = (size_t)blockIdx.x * PAGE + j;
        float own = average[i] + (1.0f - decay) * (values[i] - average[i]);
        average[i] = own;
        if (copy) put(copy + i, own);
    }
}

// The copy that matrix products read.
KERNEL(256) narrow_copy(real* copy, const float* values) {
    size_t i = (size_t)blockIdx.x * 256 + threadIdx.x;
    put(copy + i, values[i]);
}

// Keeps the logit scale within [0, most].
KERNEL(32) clamp_scale(float* value, float most) {
    if (threadIdx.x == 0) *value = fminf(fmaxf(*value, 0.0f), most);
}
