// The driver that the program loads as libcuda.so: memory, streams, events, launches.
//
// Work waits in its stream's line. What runs when is a parameter: at once; as late as a card
// may run it, when somebody waits; or late in a card's first stream and at once in the others,
// so that uploads overtake the kernels they must wait for. Memory starts as NaN, and a transfer
// beyond an allocation is refused, as a card refuses it.
//
// There are several cards, so that ranks that are threads have one each (nccl.cpp). Whatever
// runs holds one lock for all of them; work that waits for another rank lets it go meanwhile.
#include "host.h"
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <thread>

#define EXPORT extern "C" __attribute__((visibility("default")))
#define API EXPORT int

enum { OK = 0, INVALID_VALUE = 1, NO_DEVICE = 101, INVALID_IMAGE = 200, NOT_FOUND = 500 };
enum Lateness { AT_ONCE, ALL_LATE, FIRST_LATE };

typedef std::function<void()> Work;
struct Stream {
    std::deque<Work> line;
    size_t queued = 0, done = 0;
    int device = 0;
    bool first = false;
};
struct Event { Stream* stream = nullptr; size_t at = 0; };

static unsigned from_environment(const char* name) {
    const char* value = getenv(name);
    return value ? unsigned(atoi(value)) : 0;
}
// Set by a test, or for a whole process by the environment.
static unsigned order = from_environment("EMULATOR_ORDER");
static unsigned lateness = from_environment("EMULATOR_LATE");

// The card of a thread: contexts are cards, counted from 1.
static const int CARDS = 8;
static thread_local uintptr_t context = 0;
static int current() { return context ? int(context) - 1 : 0; }

// A lock that its thread may take again, and let go of altogether while it waits.
class Monitor {
    std::mutex inside;
    std::condition_variable moved;
    std::thread::id owner;
    unsigned depth = 0;

  public:
    void lock() {
        std::unique_lock<std::mutex> held(inside);
        auto own = std::this_thread::get_id();
        if (!depth || owner != own) moved.wait(held, [this] { return depth == 0; });
        owner = own;
        depth++;
    }
    void unlock() {
        std::unique_lock<std::mutex> held(inside);
        if (--depth == 0) moved.notify_all();
    }
    // Lets other threads work until `ready`; false where that takes too long.
    bool wait(const std::function<bool()>& ready) {
        std::unique_lock<std::mutex> held(inside);
        unsigned kept = depth;
        depth = 0;
        moved.notify_all();
        auto both = [&] { return depth == 0 && ready(); };
        bool came = moved.wait_for(held, std::chrono::seconds(60), both);
        if (!came) moved.wait(held, [this] { return depth == 0; });
        owner = std::this_thread::get_id();
        depth = kept;
        return came;
    }
};

// Work runs under the lock: it may run more work, of another stream that it waits for.
static Monitor guard;
typedef std::lock_guard<Monitor> Lock;
static std::vector<std::unique_ptr<Stream>> streams;

EXPORT void emulator_lock() { guard.lock(); }
EXPORT void emulator_unlock() { guard.unlock(); }
EXPORT bool emulator_wait(const std::function<bool()>& ready) { return guard.wait(ready); }
EXPORT int emulator_card() { return current(); }

static void finish(Stream& stream, size_t until) {
    while (stream.done < until) {
        Work work = std::move(stream.line.front());
        stream.line.pop_front();
        stream.done++;
        work();
    }
}
// All work of this thread's card.
static void finish_all() {
    Lock own(guard);
    for (size_t i = 0; i < streams.size(); i++)
        if (streams[i]->device == current()) finish(*streams[i], streams[i]->queued);
}
static Stream& stream_of(void* handle) {
    if (handle) return *(Stream*)handle;
    static Stream* null[CARDS];
    Stream*& own = null[current()];
    if (!own) {
        streams.push_back(std::make_unique<Stream>());
        own = streams.back().get();
        own->device = current();
    }
    return *own;
}
EXPORT void emulator_enqueue(void* handle, Work work) {
    Lock own(guard);
    Stream& stream = stream_of(handle);
    stream.line.push_back(std::move(work));
    stream.queued++;
    bool late = lateness == ALL_LATE || (lateness == FIRST_LATE && stream.first);
    if (!late) finish(stream, stream.queued);
}
EXPORT void emulator_configure(unsigned how, unsigned late) {
    Lock own(guard);
    for (size_t i = 0; i < streams.size(); i++) finish(*streams[i], streams[i]->queued);
    order = how;
    lateness = late;
}

// ---- Streams and events. ----

API cuStreamCreate(void** handle, unsigned) {
    Lock own(guard);
    bool first = true;
    for (auto& stream : streams) first &= !(stream->first && stream->device == current());
    streams.push_back(std::make_unique<Stream>());
    streams.back()->device = current();
    streams.back()->first = first;
    *handle = streams.back().get();
    return OK;
}
API cuStreamDestroy_v2(void* handle) {
    Lock own(guard);
    finish(stream_of(handle), stream_of(handle).queued);
    // Events may still name it: its memory stays, another one becomes the first.
    stream_of(handle).first = false;
    return OK;
}
API cuStreamSynchronize(void* handle) {
    Lock own(guard);
    finish(stream_of(handle), stream_of(handle).queued);
    return OK;
}
API cuStreamWaitEvent(void* handle, void* event, unsigned) {
    Event seen = *(Event*)event;
    if (seen.stream) emulator_enqueue(handle, [seen] { finish(*seen.stream, seen.at); });
    return OK;
}
API cuEventCreate(void** event, unsigned) {
    *event = new Event;
    return OK;
}
API cuEventDestroy_v2(void* event) {
    delete (Event*)event;
    return OK;
}
API cuEventRecord(void* event, void* handle) {
    Lock own(guard);
    *(Event*)event = {&stream_of(handle), stream_of(handle).queued};
    return OK;
}
API cuEventSynchronize(void* event) {
    Lock own(guard);
    Event seen = *(Event*)event;
    if (seen.stream) finish(*seen.stream, seen.at);
    return OK;
}
API cuEventElapsedTime_v2(float* milliseconds, void*, void*) {
    *milliseconds = 1.0f;
    return OK;
}

// ---- The device. ----

static const int SHARED_LIMIT = 232448;  // What a block may ask for on compute capability 9.0.
static const size_t MEMORY = size_t(8) << 30;

API cuInit(unsigned) { return OK; }
API cuDriverGetVersion(int* version) { *version = 13000; return OK; }
API cuDeviceGetCount(int* count) { *count = CARDS; return OK; }
API cuDeviceGet(int* device, int i) { *device = i; return i < CARDS ? OK : NO_DEVICE; }
API cuDeviceGetName(char* name, int size, int) {
    snprintf(name, size_t(size), "emulated");
    return OK;
}
API cuDeviceGetAttribute(int* value, int which, int) {
    switch (which) {
        case 16: *value = 132; break;           // multiprocessors
        case 75: *value = 9; break;             // compute capability, major
        case 97: *value = SHARED_LIMIT; break;  // shared memory of a block
        case 115: *value = 1; break;            // memory pools
        default: *value = 0;
    }
    return OK;
}
API cuDeviceTotalMem_v2(size_t* bytes, int) { *bytes = MEMORY; return OK; }
API cuMemGetInfo_v2(size_t* free, size_t* total) { *free = *total = MEMORY; return OK; }
API cuDeviceGetDefaultMemPool(void** pool, int) { *pool = (void*)3; return OK; }
API cuMemPoolSetAttribute(void*, int, void*) { return OK; }
API cuMemPoolTrimTo(void*, size_t) { return OK; }
API cuDevicePrimaryCtxRetain(void** own, int device) {
    *own = (void*)(uintptr_t(device) + 1);
    return OK;
}
API cuDevicePrimaryCtxRelease_v2(int) { return OK; }
API cuCtxGetCurrent(void** own) { *own = (void*)context; return OK; }
API cuCtxSetCurrent(void* own) { context = (uintptr_t)own; return OK; }
API cuCtxSynchronize() { finish_all(); return OK; }
API cuGetErrorName(int, const char** text) { *text = "CUDA_ERROR"; return OK; }
API cuGetErrorString(int, const char** text) { *text = "emulated driver refused"; return OK; }

// ---- Memory: allocations by their start. ----

static const size_t ALIGNMENT = 256;
struct Allocation { size_t bytes; int device; };
typedef std::map<char*, Allocation> Allocations;
static Allocations on_device, pinned;

// The allocation that these bytes lie in, if there is one.
static const Allocation* around(const Allocations& all, const void* p, size_t bytes) {
    auto it = all.upper_bound((char*)p);
    if (it == all.begin()) return nullptr;
    --it;
    return (char*)p + bytes <= it->first + it->second.bytes ? &it->second : nullptr;
}
static bool within(const Allocations& all, const void* p, size_t bytes) {
    Lock own(guard);
    return around(all, p, bytes);
}
static bool outside(const void* p, size_t bytes) {
    return bytes > 0 && !within(on_device, p, bytes);
}
// Whether these bytes are memory of a card.
EXPORT bool emulator_owns(int card, const void* p, size_t bytes) {
    Lock own(guard);
    const Allocation* found = around(on_device, p, bytes);
    return found && found->device == card;
}
static void* allocate(Allocations& all, size_t bytes) {
    Lock own(guard);
    void* p = aligned_alloc(ALIGNMENT, (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT);
    memset(p, 0xff, bytes);
    all[(char*)p] = {bytes, current()};
    return p;
}
static void release(Allocations& all, void* p) {
    Lock own(guard);
    all.erase((char*)p);
    free(p);
}

API cuMemAllocAsync(void** p, size_t bytes, void*) { *p = allocate(on_device, bytes); return OK; }
API cuMemAlloc_v2(void** p, size_t bytes) { *p = allocate(on_device, bytes); return OK; }
// Work that is queued before the free may still use the memory.
API cuMemFreeAsync(void* p, void* stream) {
    emulator_enqueue(stream, [p] { release(on_device, p); });
    return OK;
}
API cuMemFree_v2(void* p) { finish_all(); release(on_device, p); return OK; }
API cuMemHostAlloc(void** p, size_t bytes, unsigned) { *p = allocate(pinned, bytes); return OK; }
API cuMemFreeHost(void* p) { release(pinned, p); return OK; }

// Page-locked memory is read when the copy runs; any other is staged when it is asked for.
API cuMemcpyHtoDAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
    if (outside(to, bytes)) return INVALID_VALUE;
    if (within(pinned, from, bytes)) {
        emulator_enqueue(stream, [=] { memcpy(to, from, bytes); });
        return OK;
    }
    std::vector<unsigned char> staged((const unsigned char*)from, (const unsigned char*)from + bytes);
    emulator_enqueue(stream, [to, staged] { memcpy(to, staged.data(), staged.size()); });
    return OK;
}
API cuMemcpyDtoHAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
    if (outside(from, bytes)) return INVALID_VALUE;
    emulator_enqueue(stream, [=] { memcpy(to, from, bytes); });
    if (!within(pinned, to, bytes)) return cuStreamSynchronize(stream);
    return OK;
}
API cuMemcpyDtoDAsync_v2(void* to, const void* from, size_t bytes, void* stream) {
    if (outside(to, bytes) || outside(from, bytes)) return INVALID_VALUE;
    emulator_enqueue(stream, [=] { memmove(to, from, bytes); });
    return OK;
}
API cuMemsetD8Async(void* to, unsigned char value, size_t bytes, void* stream) {
    if (outside(to, bytes)) return INVALID_VALUE;
    emulator_enqueue(stream, [=] { memset(to, value, bytes); });
    return OK;
}

// ---- Kernels. ----

struct Function { const host::Entry* entry; size_t shared_limit; };
static const size_t SHARED_DEFAULT = 48 * 1024;  // More must be asked for, as on a card.

// The image is what the emulated NVRTC wrote: the name of a precision.
API cuModuleLoadData(void** module, const void* image) {
    const char* text = (const char*)image;
    if (!strncmp(text, "emulated bf16", 13)) *module = (void*)host::entries_bf16;
    else if (!strncmp(text, "emulated f32", 12)) *module = (void*)host::entries_f32;
    else return INVALID_IMAGE;
    return OK;
}
API cuModuleUnload(void*) { return OK; }
API cuModuleGetFunction(void** function, void* module, const char* name) {
    auto* entry = (const host::Entry*)module;
    while (entry->name && strcmp(entry->name, name)) entry++;
    if (!entry->name) return NOT_FOUND;
    *function = new Function{entry, SHARED_DEFAULT};
    return OK;
}
API cuFuncSetAttribute(void* function, int which, int value) {
    if (which != 8) return OK;  // Only the largest dynamic shared memory matters.
    if (value > SHARED_LIMIT) return INVALID_VALUE;
    ((Function*)function)->shared_limit = size_t(value);
    return OK;
}
API cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                   unsigned bz, unsigned shared, void* stream, void** params, void**) {
    auto* own = (Function*)function;
    unsigned threads = bx * by * bz;
    bool fits = gx && gy && gz && gy <= 65535 && gz <= 65535 && threads && threads <= 1024;
    if (!fits || shared > own->shared_limit) return INVALID_VALUE;
    const char* name = own->entry->name;
    unsigned how = order;
    emulator_enqueue(stream, [=, body = own->entry->bind(params)] {
        host::launch(name, {gx, gy, gz}, {bx, by, bz}, shared, body, how);
    });
    return OK;
}
