// The emulated driver: fibers that run one block's threads, a queue that runs work as late as
// a device may, and the functions of libcuda that cudarc calls.
#include "host.h"
#include <random>
#include <algorithm>
#include <sys/mman.h>
#include <deque>
#include <functional>
#include <map>
#include <mutex>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace host {
thread_local Block* block;
thread_local Fiber* me;
static const size_t STACK = 64 * 1024;

[[noreturn]] void fail(const char* what) {
    fprintf(stderr, "emulator: %s: block (%u,%u,%u) thread %u: %s\n", block->kernel,
            block->index.x, block->index.y, block->index.z, me ? me->thread.x : 0, what);
    abort();
}

// Saves what the System V ABI asks of a callee.
asm(R"(
.text
.globl host_switch
.type host_switch,@function
host_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

#if defined(__SANITIZE_ADDRESS__)
static thread_local void* fake_scheduler;
static thread_local const void* scheduler_bottom;
static thread_local size_t scheduler_size;
#endif

static void leave(State state) {
    Fiber* own = me;
    own->state = state;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(state == DONE ? nullptr : &fake, scheduler_bottom, scheduler_size);
#endif
    host_switch(&own->stack_pointer, block->scheduler);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, &scheduler_bottom, &scheduler_size);
#endif
}
void yield(State state) { leave(state); }

static void start() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);
#endif
    block->body(block->body_data);
    leave(DONE);
    abort();
}

struct Stacks {
    unsigned char* base = nullptr;
    size_t count = 0;
    unsigned char* get(size_t n) {
        if (n > count) {
            base = (unsigned char*)mmap(nullptr, n * STACK, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            count = n;
        }
        return base;
    }
};
static thread_local Stacks stacks;

static void run(Fiber& fiber, unsigned char* stack) {
    me = &fiber;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fake_scheduler, stack, STACK);
#else
    (void)stack;
#endif
    host_switch(&block->scheduler, fiber.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_scheduler, nullptr, nullptr);
#endif
    me = nullptr;
}

// order: 0 ascending, 1 descending, else the seed of a permutation.
void launch(const char* kernel, uint3_ grid, uint3_ dim, size_t shared, void (*body)(void*), void* data,
            unsigned order) {
    Block b;
    b.kernel = kernel;
    b.grid = grid;
    b.dim = dim;
    b.body = body;
    b.body_data = data;
    size_t threads = size_t(dim.x) * dim.y * dim.z, warps = (threads + 31) / 32;
    b.fibers.resize(threads);
    b.warps.resize(warps);
    unsigned char* base = stacks.get(threads);
    block = &b;
    std::mt19937 random(order);
    std::vector<unsigned> lanes(32), turns(warps);
    size_t blocks = size_t(grid.x) * grid.y * grid.z;
    for (size_t number = 0; number < blocks; number++) {
        size_t at = order == 1 ? blocks - 1 - number : number;
        b.index = {unsigned(at % grid.x), unsigned(at / grid.x % grid.y), unsigned(at / grid.x / grid.y)};
        b.shared.assign(shared, 0xff);  // not a number, wherever it is read before it is written
        for (size_t w = 0; w < warps; w++) {
            b.warps[w].arrived = b.warps[w].turn = 0;
            b.warps[w].members = unsigned(std::min<size_t>(32, threads - w * 32));
        }
        for (size_t i = 0; i < threads; i++) {
            Fiber& f = b.fibers[i];
            f.state = READY;
            f.lane = i % 32;
            f.warp = unsigned(i / 32);
            f.thread = {unsigned(i % dim.x), unsigned(i / dim.x % dim.y), unsigned(i / dim.x / dim.y)};
            f.copies.clear();
            void** top = (void**)(base + (i + 1) * STACK);
            *--top = nullptr;  // keeps the stack aligned as behind a call
            *--top = (void*)start;
            for (int r = 0; r < 6; r++) *--top = nullptr;
            f.stack_pointer = top;
        }
        for (unsigned i = 0; i < 32; i++) lanes[i] = i;
        for (unsigned i = 0; i < warps; i++) turns[i] = i;
        for (size_t live = threads; live > 0;) {
            if (order == 1) { std::reverse(lanes.begin(), lanes.end()); std::reverse(turns.begin(), turns.end()); }
            if (order > 1) {
                std::shuffle(lanes.begin(), lanes.end(), random);
                std::shuffle(turns.begin(), turns.end(), random);
            }
            for (unsigned w : turns)
                for (bool moved = true; moved;) {
                    moved = false;
                    for (unsigned lane : lanes) {
                        size_t i = size_t(w) * 32 + lane;
                        if (i >= threads || b.fibers[i].state != READY) continue;
                        run(b.fibers[i], base + i * STACK);
                        moved = true;
                    }
                }
            size_t waiting = 0;
            live = 0;
            for (Fiber& f : b.fibers) {
                if (f.state == AT_WARP) { me = &f; fail("a warp collective that not all lanes reach"); }
                waiting += f.state == AT_BLOCK;
                live += f.state != DONE;
            }
            if (live && waiting != threads) { fail("a barrier that not all threads reach"); }
            for (Fiber& f : b.fibers) if (f.state == AT_BLOCK) f.state = READY;
            // What was copied asynchronously and never waited for is an error.
        }
        for (Fiber& f : b.fibers) if (!f.copies.empty()) { me = &f; fail("an asynchronous copy nobody waited for"); }
    }
    block = nullptr;
}

}  // namespace host

// ---- The driver that the program loads as libcuda.so. ----
#define API extern "C" __attribute__((visibility("default"))) int
// How kernels and queued work run: set by a test, or for a whole process by the environment.
static unsigned from_environment(const char* name) {
    const char* value = getenv(name);
    return value ? unsigned(atoi(value)) : 0;
}
static unsigned order = from_environment("EMULATOR_ORDER");
static bool lazy = from_environment("EMULATOR_LAZY") != 0;
// Work waits in line until somebody waits for it, as late as a device may run it.
static std::mutex guard;
static std::deque<std::function<void()>> line;
static size_t queued, done;
static std::map<char*, size_t> pinned;
extern "C" __attribute__((visibility("default"))) void emulator_enqueue(std::function<void()> work) {
    std::lock_guard<std::mutex> own(guard);
    line.push_back(std::move(work));
    queued++;
    if (!lazy) { line.front()(); line.pop_front(); done++; }
}
static void drain(size_t until) {
    std::lock_guard<std::mutex> own(guard);
    while (done < until) { line.front()(); line.pop_front(); done++; }
}
static bool is_pinned(const void* p) {
    auto it = pinned.upper_bound((char*)p);
    return it != pinned.begin() && (char*)p < (--it)->first + it->second;
}
struct Event { size_t at; };
extern "C" __attribute__((visibility("default"))) void emulator_configure(unsigned how, unsigned late) {
    drain(queued);
    order = how;
    lazy = late != 0;
}
API cuStreamSynchronize(void*) { drain(queued); return 0; }
API cuCtxSynchronize() { drain(queued); return 0; }
API cuEventCreate(void** e, unsigned) { *e = new Event{0}; return 0; }
API cuEventDestroy_v2(void* e) { delete (Event*)e; return 0; }
API cuEventRecord(void* e, void*) { ((Event*)e)->at = queued; return 0; }
API cuEventElapsedTime_v2(float* ms, void*, void*) { *ms = 1.0f; return 0; }
API cuEventSynchronize(void* e) { drain(((Event*)e)->at); return 0; }
struct Function { const host::Entry* entry; size_t shared_limit; };
API cuInit(unsigned) { return 0; }
API cuDriverGetVersion(int* v) { *v = 13000; return 0; }
API cuDeviceGet(int* d, int i) { *d = i; return i ? 101 : 0; }
API cuDeviceGetCount(int* n) { *n = 1; return 0; }
API cuDeviceGetName(char* s, int n, int) { snprintf(s, n, "emulated"); return 0; }
API cuDeviceGetAttribute(int* v, int which, int) {
    switch (which) {
        case 75: *v = 9; break;         // compute capability
        case 76: *v = 0; break;
        case 16: *v = 132; break;       // multiprocessors
        case 97: *v = 232448; break;    // shared memory a block, opt-in
        case 115: *v = 1; break;        // memory pools
        default: *v = 0;
    }
    return 0;
}
API cuDeviceTotalMem_v2(size_t* n, int) { *n = size_t(8) << 30; return 0; }
API cuMemGetInfo_v2(size_t* left, size_t* all) { *left = *all = size_t(8) << 30; return 0; }
API cuDeviceGetDefaultMemPool(void** pool, int) { *pool = (void*)3; return 0; }
API cuMemPoolSetAttribute(void*, int, void*) { return 0; }
API cuDevicePrimaryCtxRetain(void** c, int) { *c = (void*)1; return 0; }
API cuDevicePrimaryCtxRelease_v2(int) { return 0; }
API cuCtxGetCurrent(void** c) { *c = (void*)1; return 0; }
API cuCtxSetCurrent(void*) { return 0; }
API cuStreamCreate(void** s, unsigned) { *s = (void*)2; return 0; }
API cuStreamDestroy_v2(void*) { return 0; }
API cuStreamWaitEvent(void*, void*, unsigned) { return 0; }
// Device memory by its start, so that a transfer beyond an allocation is refused as a card
// refuses it: a host's slice that is longer than the buffer passed here once and failed there.
static std::map<char*, size_t> device_memory;
static bool outside(const void* p, size_t n) {
    if (n == 0) return false;
    auto it = device_memory.upper_bound((char*)p);
    if (it == device_memory.begin()) return true;
    --it;
    return (char*)p + n > it->first + it->second;
}
enum { INVALID_VALUE = 1 };
API cuMemAllocAsync(void** p, size_t n, void*) {
    *p = aligned_alloc(256, (n + 255) / 256 * 256);
    memset(*p, 0xff, n);
    device_memory[(char*)*p] = n;
    return 0;
}
API cuMemAlloc_v2(void** p, size_t n) { return cuMemAllocAsync(p, n, nullptr); }
// Freed memory keeps its entry until the free itself runs: work that is queued before it may use it.
API cuMemFreeAsync(void* p, void*) {
    emulator_enqueue([=] { device_memory.erase((char*)p); free(p); });
    return 0;
}
API cuMemFree_v2(void* p) { drain(queued); device_memory.erase((char*)p); free(p); return 0; }
API cuMemHostAlloc(void** p, size_t n, unsigned) { *p = malloc(n); memset(*p, 0xff, n); pinned[(char*)*p] = n; return 0; }
API cuMemFreeHost(void* p) { drain(queued); pinned.erase((char*)p); free(p); return 0; }
API cuMemcpyHtoDAsync_v2(void* d, const void* s, size_t n, void*) {
    if (outside(d, n)) return INVALID_VALUE;
    if (is_pinned(s)) { emulator_enqueue([=] { memcpy(d, s, n); }); return 0; }
    std::vector<unsigned char> own((const unsigned char*)s, (const unsigned char*)s + n);
    emulator_enqueue([=] { memcpy(d, own.data(), n); });
    return 0;
}
API cuMemcpyDtoHAsync_v2(void* d, const void* s, size_t n, void*) {
    if (outside(s, n)) return INVALID_VALUE;
    emulator_enqueue([=] { memcpy(d, s, n); });
    if (!is_pinned(d)) drain(queued);
    return 0;
}
API cuMemcpyDtoDAsync_v2(void* d, const void* s, size_t n, void*) {
    if (outside(d, n) || outside(s, n)) return INVALID_VALUE;
    emulator_enqueue([=] { memmove(d, s, n); });
    return 0;
}
API cuMemsetD8Async(void* d, unsigned char v, size_t n, void*) {
    if (outside(d, n)) return INVALID_VALUE;
    emulator_enqueue([=] { memset(d, v, n); });
    return 0;
}
// The image is what the emulated NVRTC wrote: the name of a precision.
API cuModuleLoadData(void** m, const void* image) {
    const char* text = (const char*)image;
    if (!strncmp(text, "emulated bf16", 13)) *m = (void*)host::entries_bf16;
    else if (!strncmp(text, "emulated f32", 12)) *m = (void*)host::entries_f32;
    else return 200;
    return 0;
}
API cuModuleUnload(void*) { return 0; }
API cuModuleGetFunction(void** f, void* module, const char* name) {
    auto* e = (const host::Entry*)module;
    while (e->name && strcmp(e->name, name)) e++;
    if (!e->name) return 500;
    *f = new Function{e, 48 * 1024};
    return 0;
}
API cuFuncSetAttribute(void* f, int which, int v) {
    if (which == 8) {
        if (v > 232448) return 1;
        ((Function*)f)->shared_limit = size_t(v);
    }
    return 0;
}
API cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void*, void** params, void**) {
    auto* fn = (Function*)f;
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || bx * by * bz > 1024 || !(bx * by * bz) || shared > fn->shared_limit)
        return 1;
    const char* name = fn->entry->name;
    unsigned how = order;
    emulator_enqueue([=, body = fn->entry->bind(params)] {
        host::launch(name, {gx, gy, gz}, {bx, by, bz}, shared,
                     [](void* d) { (*(const std::function<void()>*)d)(); }, (void*)&body, how);
    });
    return 0;
}
API cuGetErrorName(int, const char** s) { *s = "CUDA_ERROR"; return 0; }
API cuGetErrorString(int, const char** s) { *s = "emulated driver refused"; return 0; }
