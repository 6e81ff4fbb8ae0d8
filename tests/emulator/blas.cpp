// cuBLAS by its definition: column-major, leading dimensions, any mix of f32 and bf16.
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>
#include <functional>
extern "C" void emulator_enqueue(std::function<void()>);
#define API extern "C" __attribute__((visibility("default"))) int
static float load(const void* p, int type, size_t i) {
    if (type == 0) return ((const float*)p)[i];
    uint32_t w = uint32_t(((const uint16_t*)p)[i]) << 16;
    float v;
    memcpy(&v, &w, 4);
    return v;
}
static void store(void* p, int type, size_t i, float v) {
    if (type == 0) { ((float*)p)[i] = v; return; }
    uint32_t b;
    memcpy(&b, &v, 4);
    ((uint16_t*)p)[i] = uint16_t((b + 0x7fff + (b >> 16 & 1)) >> 16);
}
API cublasCreate_v2(void** h) { *h = (void*)1; return 0; }
API cublasDestroy_v2(void*) { return 0; }
API cublasSetMathMode(void*, int) { return 0; }
API cublasSetStream_v2(void*, void*) { return 0; }
API cublasSetWorkspace_v2(void*, void*, size_t) { return 0; }
API cublasGemmEx(void*, int ta, int tb, int m, int n, int k, const void* alpha, const void* a, int at, int lda,
                 const void* b, int bt, int ldb, const void* beta, void* c, int ct, int ldc, int, int) {
    if ((at != 0 && at != 14) || (bt != 0 && bt != 14) || (ct != 0 && ct != 14) || at != bt) return 15;
    if (lda < (ta ? k : m) || ldb < (tb ? n : k) || ldc < m) return 7;
    float al = *(const float*)alpha, be = *(const float*)beta;
    emulator_enqueue([=] {
    std::vector<float> left(size_t(m) * k), right(size_t(n) * k);
    for (int i = 0; i < m; i++) for (int p = 0; p < k; p++)
        left[size_t(i) * k + p] = load(a, at, ta ? size_t(i) * lda + p : size_t(p) * lda + i);
    for (int j = 0; j < n; j++) for (int p = 0; p < k; p++)
        right[size_t(j) * k + p] = load(b, bt, tb ? size_t(p) * ldb + j : size_t(j) * ldb + p);
    for (int j = 0; j < n; j++) for (int i = 0; i < m; i++) {
        const float *x = &left[size_t(i) * k], *y = &right[size_t(j) * k];
        float total[8] = {0};
        int p = 0;
        for (; p + 8 <= k; p += 8) for (int l = 0; l < 8; l++) total[l] += x[p + l] * y[p + l];
        float sum = 0;
        for (int l = 0; l < 8; l++) sum += total[l];
        for (; p < k; p++) sum += x[p] * y[p];
        size_t at_c = size_t(j) * ldc + i;
        store(c, ct, at_c, al * sum + (be ? be * load(c, ct, at_c) : 0.0f));
    }
    });
    return 0;
}
