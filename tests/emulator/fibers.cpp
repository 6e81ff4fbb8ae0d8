// Runs the blocks of a kernel: one fiber per thread, switched at barriers and collectives.
//
//     for every block:  all fibers READY
//         for every warp:  run READY lanes until all wait or are done
//         all fibers wait at the barrier: go on; some do and some are done: an error
#include "host.h"
#include <algorithm>
#include <random>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

// Saves what the System V ABI asks of a callee, and goes on elsewhere.
extern "C" void host_switch(void** save, void* load);
asm(R"(
.text
.globl host_switch
.hidden host_switch
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

namespace host {

thread_local Block* block;
thread_local Fiber* me;

// Bytes of a fiber's stack: kernels hold a few hundred registers, ASan's frames are larger.
static const size_t STACK = 64 * 1024;
static const int SAVED_REGISTERS = 6;

[[noreturn]] void fail(const char* what) {
    fprintf(stderr, "emulator: %s: block (%u,%u,%u) thread %u: %s\n", block->kernel,
            block->index.x, block->index.y, block->index.z, me ? me->thread.x : 0, what);
    abort();
}

// ASan wants to know of every change of stacks.
#if defined(__SANITIZE_ADDRESS__)
static thread_local void* scheduler_fake;
static thread_local const void* scheduler_bottom;
static thread_local size_t scheduler_size;
static void entered(void* fake) {
    __sanitizer_finish_switch_fiber(fake, &scheduler_bottom, &scheduler_size);
}
static void leaving(void** fake) {
    __sanitizer_start_switch_fiber(fake, scheduler_bottom, scheduler_size);
}
static void resuming(unsigned char* stack) {
    __sanitizer_start_switch_fiber(&scheduler_fake, stack, STACK);
}
static void resumed() { __sanitizer_finish_switch_fiber(scheduler_fake, nullptr, nullptr); }
#else
static void entered(void*) {}
static void leaving(void**) {}
static void resuming(unsigned char*) {}
static void resumed() {}
#endif

void yield(State state) {
    Fiber* own = me;
    own->state = state;
    void* fake = nullptr;
    leaving(state == DONE ? nullptr : &fake);
    host_switch(&own->stack_pointer, block->scheduler);
    entered(fake);
}

static void start() {
    entered(nullptr);
    block->body();
    yield(DONE);
    abort();
}

static void resume(Fiber& fiber, unsigned char* stack) {
    me = &fiber;
    resuming(stack);
    host_switch(&block->scheduler, fiber.stack_pointer);
    resumed();
    me = nullptr;
}

// Stacks of all fibers of a block, kept from launch to launch.
static unsigned char* stacks(size_t count) {
    static thread_local unsigned char* base = nullptr;
    static thread_local size_t there = 0;
    if (count > there) {
        base = (unsigned char*)mmap(nullptr, count * STACK, PROT_READ | PROT_WRITE,
                                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        there = count;
    }
    return base;
}

static Triple split(size_t i, Triple extent) {
    return {unsigned(i % extent.x), unsigned(i / extent.x % extent.y),
            unsigned(i / extent.x / extent.y)};
}

// Makes every thread of the block ready to start.
static void prepare(Block& own, size_t shared, unsigned char* base) {
    own.shared.assign(shared, 0xff);  // Not a number, wherever it is read before it is written.
    size_t threads = own.fibers.size();
    for (size_t w = 0; w < own.warps.size(); w++) {
        own.warps[w].arrived = own.warps[w].turn = 0;
        own.warps[w].members = unsigned(std::min<size_t>(LANES, threads - w * LANES));
    }
    for (size_t i = 0; i < threads; i++) {
        Fiber& fiber = own.fibers[i];
        fiber.state = READY;
        fiber.lane = i % LANES;
        fiber.warp = unsigned(i / LANES);
        fiber.thread = split(i, own.dim);
        fiber.copies.clear();
        void** top = (void**)(base + (i + 1) * STACK);
        *--top = nullptr;  // Keeps the stack aligned as behind a call.
        *--top = (void*)start;
        for (int r = 0; r < SAVED_REGISTERS; r++) *--top = nullptr;
        fiber.stack_pointer = top;
    }
}

// The order in which lanes and warps take their turns.
struct Turns {
    unsigned order;
    std::mt19937 random;
    std::vector<unsigned> lanes, warps;
    Turns(unsigned how, size_t count) : order(how), random(how), lanes(LANES), warps(count) {
        for (unsigned i = 0; i < LANES; i++) lanes[i] = order == 1 ? LANES - 1 - i : i;
        for (unsigned i = 0; i < count; i++) warps[i] = order == 1 ? unsigned(count) - 1 - i : i;
    }
    void next() {
        if (order < 2) return;
        std::shuffle(lanes.begin(), lanes.end(), random);
        std::shuffle(warps.begin(), warps.end(), random);
    }
};

// Runs every lane that can run until none can.
static void run_ready(Block& own, const Turns& turns, unsigned char* base) {
    for (unsigned warp : turns.warps)
        for (bool moved = true; moved;) {
            moved = false;
            for (unsigned lane : turns.lanes) {
                size_t i = size_t(warp) * LANES + lane;
                if (i >= own.fibers.size() || own.fibers[i].state != READY) continue;
                resume(own.fibers[i], base + i * STACK);
                moved = true;
            }
        }
}

// Opens the barrier if all threads are there; false where all are done.
static bool pass_barrier(Block& own) {
    size_t waiting = 0, live = 0;
    for (Fiber& fiber : own.fibers) {
        me = &fiber;
        if (fiber.state == AT_COLLECTIVE) fail("a warp collective that not all lanes reach");
        waiting += fiber.state == AT_BARRIER;
        live += fiber.state != DONE;
    }
    if (live && waiting != own.fibers.size()) fail("a barrier that not all threads reach");
    for (Fiber& fiber : own.fibers) {
        me = &fiber;
        if (!live && !fiber.copies.empty()) fail("an asynchronous copy nobody waited for");
        if (live) fiber.state = READY;
    }
    me = nullptr;
    return live > 0;
}

void launch(const char* kernel, Triple grid, Triple dim, size_t shared, std::function<void()> body,
            unsigned order) {
    Block own;
    own.kernel = kernel;
    own.grid = grid;
    own.dim = dim;
    own.body = std::move(body);
    size_t threads = size_t(dim.x) * dim.y * dim.z;
    own.fibers.resize(threads);
    own.warps.resize((threads + LANES - 1) / LANES);
    unsigned char* base = stacks(threads);
    block = &own;
    Turns turns(order, own.warps.size());

    size_t blocks = size_t(grid.x) * grid.y * grid.z;
    for (size_t number = 0; number < blocks; number++) {
        own.index = split(order == 1 ? blocks - 1 - number : number, grid);
        prepare(own, shared, base);
        do {
            turns.next();
            run_ready(own, turns, base);
        } while (pass_barrier(own));
    }
    block = nullptr;
}

}  // namespace host
