// Stands in for NVRTC: accepts any source and names the precision it was asked for; the
// emulated driver has the kernels already.
#include <cstring>
#define API extern "C" __attribute__((visibility("default"))) int
static thread_local char image[32];
API nvrtcVersion(int* major, int* minor) { *major = 13; *minor = 0; return 0; }
API nvrtcCreateProgram(void** p, const char*, const char*, int, const char**, const char**) { *p = (void*)1; return 0; }
API nvrtcCompileProgram(void*, int count, const char** options) {
    strcpy(image, "emulated f32");
    for (int i = 0; i < count; i++)
        if (!strcmp(options[i], "-DREAL_BF16")) strcpy(image, "emulated bf16");
    return 0;
}
API nvrtcDestroyProgram(void**) { return 0; }
API nvrtcGetCUBINSize(void*, size_t* n) { *n = strlen(image) + 1; return 0; }
API nvrtcGetCUBIN(void*, char* s) { strcpy(s, image); return 0; }
API nvrtcGetProgramLogSize(void*, size_t* n) { *n = 1; return 0; }
API nvrtcGetProgramLog(void*, char* s) { *s = 0; return 0; }
