// The library that the program loads as libnvrtc.so. It accepts any source and answers with
// the precision that it was asked for: the emulated driver has the kernels already.
#include <cstring>

#define API extern "C" __attribute__((visibility("default"))) int
enum { OK = 0 };
static thread_local const char* image;

API nvrtcVersion(int* major, int* minor) { *major = 13; *minor = 0; return OK; }
API nvrtcCreateProgram(void** program, const char*, const char*, int, const char**, const char**) {
    *program = (void*)1;
    return OK;
}
API nvrtcCompileProgram(void*, int count, const char** options) {
    image = "emulated f32";
    for (int i = 0; i < count; i++)
        if (!strcmp(options[i], "-DREAL_BF16")) image = "emulated bf16";
    return OK;
}
API nvrtcDestroyProgram(void**) { return OK; }
API nvrtcGetCUBINSize(void*, size_t* bytes) { *bytes = strlen(image) + 1; return OK; }
API nvrtcGetCUBIN(void*, char* to) { strcpy(to, image); return OK; }
API nvrtcGetProgramLogSize(void*, size_t* bytes) { *bytes = 1; return OK; }
API nvrtcGetProgramLog(void*, char* to) { *to = 0; return OK; }
