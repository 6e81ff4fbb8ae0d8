// The library that the program loads as libnccl.so: ranks that are threads of one process.
//
// What is called between ncclGroupStart and ncclGroupEnd, or one call by itself, is a round of
// its communicator. A round waits in the stream's line like other work, and when it runs, it
// waits until every rank has come to its own round of this number; then all values move. This
// is stricter than NCCL, which lets two ranks exchange what a third knows nothing of.
//
// Refused: a second rank on one card, a buffer beyond its allocation or of another card. The
// process ends at: a rank that does not come, sizes or types that differ between ranks, a send
// without its receive and the reverse, and a round that receives into what it sends.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

extern "C" void emulator_enqueue(void* stream, std::function<void()>);
extern "C" void emulator_lock();
extern "C" void emulator_unlock();
extern "C" bool emulator_wait(const std::function<bool()>& ready);
extern "C" int emulator_card();
extern "C" bool emulator_owns(int card, const void* p, size_t bytes);

#define EXPORT extern "C" __attribute__((visibility("default")))
#define API EXPORT int

enum { OK = 0, INVALID_ARGUMENT = 4, INVALID_USAGE = 5 };
enum Kind { GATHER, SEND, RECEIVE };

struct Guard {
    void lock() { emulator_lock(); }
    void unlock() { emulator_unlock(); }
};
static Guard guard;
typedef std::lock_guard<Guard> Lock;

[[noreturn]] static void fail(const char* what) {
    fprintf(stderr, "emulator: NCCL: %s\n", what);
    abort();
}

struct Operation {
    Kind kind;
    const char* from;
    char* to;
    size_t bytes;  // Of one rank's block.
    int type, peer;
};
typedef std::vector<Operation> Operations;

struct Round {
    std::vector<Operations> of;
    size_t arrived = 0, left = 0;
    bool moved = false;
};
// The ranks of one communicator.
struct Ranks {
    std::vector<int> cards;  // -1 where a rank has not joined.
    size_t joined = 0;
    bool refused = false;
    std::map<size_t, Round> rounds;
};
struct Communicator {
    std::shared_ptr<Ranks> ranks;
    int rank, card;
    size_t next = 0;
};
struct Id { char text[128]; };

static std::map<uint64_t, std::shared_ptr<Ranks>> meetings;

// ---- A round in which all ranks have arrived. ----

static bool overlap(const char* a, const char* b, size_t a_bytes, size_t b_bytes) {
    return a < b + b_bytes && b < a + a_bytes;
}
// Values that a round receives must not be values that it sends: a card moves both at once.
static void check_overlap(const Operations& own) {
    for (auto& in : own)
        for (auto& out : own)
            if (in.kind == RECEIVE && out.kind == SEND &&
                overlap(in.to, out.from, in.bytes, out.bytes))
                fail("a round receives into what it sends");
}

struct Move { char* to; std::vector<char> values; };
static std::vector<char> copy(const char* from, size_t bytes) { return {from, from + bytes}; }

static void gather(const Round& round, size_t index, std::vector<Move>& moves) {
    const Operation& first = round.of[0][index];
    for (auto& own : round.of) {
        if (index >= own.size() || own[index].kind != GATHER)
            fail("a rank gathers and another one does not");
        if (own[index].bytes != first.bytes || own[index].type != first.type)
            fail("ranks gather blocks of different sizes or types");
        for (size_t rank = 0; rank < round.of.size(); rank++)
            moves.push_back({own[index].to + rank * first.bytes,
                             copy(round.of[rank][index].from, first.bytes)});
    }
}
static void send(const Round& round, int from, const Operation& out,
                 std::vector<std::vector<bool>>& met, std::vector<Move>& moves) {
    const Operations& others = round.of[size_t(out.peer)];
    for (size_t i = 0; i < others.size(); i++) {
        if (others[i].kind != RECEIVE || others[i].peer != from || met[size_t(out.peer)][i])
            continue;
        if (others[i].bytes != out.bytes || others[i].type != out.type)
            fail("a rank sends another size or type than is received");
        met[size_t(out.peer)][i] = true;
        moves.push_back({others[i].to, copy(out.from, out.bytes)});
        return;
    }
    fail("a send without its receive");
}
static void move(const Round& round) {
    std::vector<Move> moves;
    std::vector<std::vector<bool>> met;
    for (auto& own : round.of) met.emplace_back(own.size(), false);
    for (size_t rank = 0; rank < round.of.size(); rank++) {
        check_overlap(round.of[rank]);
        for (size_t i = 0; i < round.of[rank].size(); i++) {
            const Operation& own = round.of[rank][i];
            if (own.kind == GATHER && rank == 0) gather(round, i, moves);
            else if (own.kind == GATHER && (i >= round.of[0].size() || round.of[0][i].kind != GATHER))
                fail("a rank gathers and another one does not");
            else if (own.kind == SEND) send(round, int(rank), own, met, moves);
        }
    }
    for (size_t rank = 0; rank < round.of.size(); rank++)
        for (size_t i = 0; i < round.of[rank].size(); i++)
            if (round.of[rank][i].kind == RECEIVE && !met[rank][i])
                fail("a receive without its send");
    for (auto& own : moves) memcpy(own.to, own.values.data(), own.values.size());
}

// Runs as work of a stream, under the lock.
static void meet(const std::shared_ptr<Ranks>& ranks, size_t number, int rank,
                 const Operations& own) {
    Round& round = ranks->rounds[number];
    round.of.resize(ranks->cards.size());
    round.of[size_t(rank)] = own;
    if (++round.arrived == ranks->cards.size()) {
        move(round);
        round.moved = true;
    } else if (!emulator_wait([&round] { return round.moved; })) {
        fail("a rank waits for one that does not come");
    }
    if (++round.left == ranks->cards.size()) ranks->rounds.erase(number);
}

// ---- Calls. ----

static thread_local unsigned depth = 0;
static thread_local Communicator* pending = nullptr;
static thread_local void* stream = nullptr;
static thread_local Operations operations;

static int submit() {
    if (!pending) return OK;
    auto ranks = pending->ranks;
    size_t number = pending->next++;
    int rank = pending->rank;
    Operations own = std::move(operations);
    operations.clear();
    pending = nullptr;
    emulator_enqueue(stream, [=] { meet(ranks, number, rank, own); });
    return OK;
}
static size_t size_of(int type) {
    switch (type) {
        case 0: case 1: return 1;          // 8 bits
        case 2: case 3: case 7: return 4;  // 32 bits
        case 4: case 5: case 8: return 8;  // 64 bits
        case 6: case 9: return 2;          // half, bf16
        default: return 0;
    }
}
static int add(Communicator* own, void* into, Operation operation) {
    auto outside = [&](const void* p, size_t bytes) {
        return p && !emulator_owns(own->card, p, bytes);
    };
    size_t blocks = operation.kind == GATHER ? own->ranks->cards.size() : 1;
    int peers = int(own->ranks->cards.size());
    if (!operation.bytes || operation.peer < 0 || operation.peer >= peers ||
        outside(operation.from, operation.bytes) || outside(operation.to, operation.bytes * blocks))
        return INVALID_ARGUMENT;
    // A group of several communicators or streams is more than the program needs.
    if (pending && (pending != own || stream != into)) return INVALID_USAGE;
    pending = own;
    stream = into;
    operations.push_back(operation);
    return depth ? int(OK) : submit();
}

API ncclGetUniqueId(Id* id) {
    static uint64_t last = 0;
    Lock own(guard);
    memset(id, 0, sizeof *id);
    last++;
    memcpy(id->text, &last, sizeof last);
    return OK;
}
API ncclCommInitRank(void** handle, int count, Id id, int rank) {
    Lock own(guard);
    uint64_t number;
    memcpy(&number, id.text, sizeof number);
    auto& meeting = meetings[number];
    if (!meeting) {
        meeting = std::make_shared<Ranks>();
        meeting->cards.assign(size_t(count), -1);
    }
    auto ranks = meeting;
    int card = emulator_card();
    for (int other : ranks->cards) ranks->refused |= other == card;
    bool fits = size_t(count) == ranks->cards.size() && rank >= 0 && rank < count;
    if (!fits || ranks->cards[size_t(rank)] >= 0) return INVALID_ARGUMENT;
    ranks->cards[size_t(rank)] = card;
    ranks->joined++;
    auto ready = [&] { return ranks->refused || ranks->joined == ranks->cards.size(); };
    if (!ready() && !emulator_wait(ready)) fail("a rank waits for one that does not join");
    if (ranks->refused) return INVALID_USAGE;
    *handle = new Communicator{ranks, rank, card};
    return OK;
}
API ncclCommDestroy(void* own) { delete (Communicator*)own; return OK; }
API ncclGroupStart() { depth++; return OK; }
API ncclGroupEnd() {
    if (!depth) return INVALID_USAGE;
    return --depth ? int(OK) : submit();
}
API ncclAllGather(const void* from, void* to, size_t count, int type, void* own, void* into) {
    return add((Communicator*)own, into,
               {GATHER, (const char*)from, (char*)to, count * size_of(type), type, 0});
}
API ncclSend(const void* from, size_t count, int type, int peer, void* own, void* into) {
    return add((Communicator*)own, into,
               {SEND, (const char*)from, nullptr, count * size_of(type), type, peer});
}
API ncclRecv(void* to, size_t count, int type, int peer, void* own, void* into) {
    return add((Communicator*)own, into,
               {RECEIVE, nullptr, (char*)to, count * size_of(type), type, peer});
}
EXPORT const char* ncclGetErrorString(int code) {
    switch (code) {
        case INVALID_ARGUMENT: return "invalid argument";
        case INVALID_USAGE: return "invalid usage";
        default: return "no error";
    }
}
