// The library that the program loads as libcublas.so: products by their definition.
//
// Column-major, leading dimensions, f32 or bf16 operands of one type, sums in f32. What cuBLAS
// refuses is refused: operands of two types, leading dimensions below the extent.
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

extern "C" void emulator_enqueue(void* stream, std::function<void()>);
#define API extern "C" __attribute__((visibility("default"))) int

enum { OK = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { F32 = 0, BF16 = 14 };
struct Handle { void* stream = nullptr; };

static float load(const void* p, int type, size_t i) {
    if (type == F32) return ((const float*)p)[i];
    uint32_t wide = uint32_t(((const uint16_t*)p)[i]) << 16;
    float value;
    memcpy(&value, &wide, 4);
    return value;
}
static void store(void* p, int type, size_t i, float value) {
    if (type == F32) {
        ((float*)p)[i] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    ((uint16_t*)p)[i] = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// A matrix of `rows` x `inner` as op(p) is, its rows contiguous.
static std::vector<float> gather(const void* p, int type, bool contiguous, int lead, int rows,
                                 int inner) {
    std::vector<float> out(size_t(rows) * inner);
    for (int i = 0; i < rows; i++)
        for (int k = 0; k < inner; k++)
            out[size_t(i) * inner + k] =
                load(p, type, contiguous ? size_t(i) * lead + k : size_t(k) * lead + i);
    return out;
}

// Eight sums side by side, as vectors compute them.
static float dot(const float* x, const float* y, int count) {
    float lanes[8] = {0}, total = 0;
    int k = 0;
    for (; k + 8 <= count; k += 8)
        for (int l = 0; l < 8; l++) lanes[l] += x[k + l] * y[k + l];
    for (float lane : lanes) total += lane;
    for (; k < count; k++) total += x[k] * y[k];
    return total;
}

API cublasCreate_v2(void** handle) { *handle = new Handle; return OK; }
API cublasDestroy_v2(void* handle) { delete (Handle*)handle; return OK; }
API cublasSetMathMode(void*, int) { return OK; }
API cublasSetWorkspace_v2(void*, void*, size_t) { return OK; }
API cublasSetStream_v2(void* handle, void* stream) {
    ((Handle*)handle)->stream = stream;
    return OK;
}
API cublasGemmEx(void* handle, int turn_a, int turn_b, int m, int n, int k, const void* alpha,
                 const void* a, int type_a, int lead_a, const void* b, int type_b, int lead_b,
                 const void* beta, void* c, int type_c, int lead_c, int, int) {
    auto known = [](int type) { return type == F32 || type == BF16; };
    if (!known(type_a) || !known(type_c) || type_a != type_b) return NOT_SUPPORTED;
    if (lead_a < (turn_a ? k : m) || lead_b < (turn_b ? n : k) || lead_c < m) return INVALID_VALUE;
    float by = *(const float*)alpha, keep = *(const float*)beta;
    emulator_enqueue(((Handle*)handle)->stream, [=] {
        auto left = gather(a, type_a, turn_a, lead_a, m, k);
        auto right = gather(b, type_b, !turn_b, lead_b, n, k);
        for (int j = 0; j < n; j++)
            for (int i = 0; i < m; i++) {
                size_t at = size_t(j) * lead_c + i;
                float sum = by * dot(&left[size_t(i) * k], &right[size_t(j) * k], k);
                store(c, type_c, at, sum + (keep ? keep * load(c, type_c, at) : 0.0f));
            }
    });
    return OK;
}
