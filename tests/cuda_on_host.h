// The functions of csrc/device.h on an emulated cluster: every thread of a kernel is a fiber.
//
// One fiber runs at a time, until it waits; who is next is drawn by FASTGEN_SEED's numbers, and so
// is when a message between blocks arrives. A warp's fibers often follow one another, as caches
// like it. An odd seed starves a warp or a lane at a time, which runs when nobody else can. Shared
// memory starts as NaNs. Waiting without an end is found: nobody can run. So are messages of a
// wrong size, or to a block that is gone.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#define __device__
#define __host__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

struct uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace fastgen::device {

constexpr int LANES_OF_A_WARP = 32, STACK = 1 << 16, GUARD = 256;
constexpr unsigned char POISON = 0xff; // NaN, as bfloat16 and as float

constexpr bool RUNS = true;

using Address = uint32_t; // block << 20 | byte of its shared memory

struct Barrier { // what fits into an mbarrier
  int32_t bytes;
  uint16_t pending, phases;
};
static_assert(sizeof(Barrier) == 8);

// Fibers that wait for one event.
using Waiting = std::vector<int>;

struct Warp {
  std::vector<int> runnable;
  struct Slot {
    unsigned char lanes[LANES_OF_A_WARP][24];
  } slots[2]; // one is read while the other fills
  int arrived = 0;
  long rounds = 0;
  Waiting waiting;
};

struct Group { // the threads of a barrier
  int arrived = 0;
  Waiting waiting;
};

struct Message {
  Address to, barrier;
  int size;
  unsigned char data[8];
};

struct Fiber {
  ucontext_t context;
  jmp_buf state;
  std::unique_ptr<char[]> stack;
  bool started = false;
};

struct Machine {
  int blocks, threads, bytes, current = -1, finished = 0;
  std::vector<std::vector<unsigned char>> memory;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  std::vector<Group> groups; // of blocks; the last is the cluster's
  std::vector<Message> messages;
  std::vector<std::pair<Barrier*, int>> waiting; // for a phase
  std::vector<int> ready;                        // warps, of fibers that can run
  size_t turn = 0;                               // whose it is, in ready
  std::minstd_rand random;
  bool starve;
  int victim = -1, lane = -1; // a warp, and of it a lane or all
  std::string error;
  jmp_buf scheduler;
  void (*kernel)(void*);
  void* arguments;

  [[noreturn]] void fail(const std::string& what) {
    error = what;
    _longjmp(scheduler, 2);
  }
  // Let others run until somebody makes this fiber runnable.
  void park() {
    if (!_setjmp(fibers[current].state)) _longjmp(scheduler, 1);
  }
  void wake(int fiber) {
    auto& runnable = warps[fiber / LANES_OF_A_WARP].runnable;
    if (runnable.empty()) ready.push_back(fiber / LANES_OF_A_WARP);
    runnable.push_back(fiber);
  }
  void wake(Waiting& who) {
    for (int fiber : who) wake(fiber);
    who.clear();
  }
  // Let others run first, by chance, and if this warp starves.
  void hesitate() {
    if (!starves(current) && random() % 32) return;
    wake(current);
    park();
  }
  void meet(Group& group, int size) {
    if (++group.arrived == size) {
      group.arrived = 0;
      wake(group.waiting);
    } else {
      group.waiting.push_back(current);
      park();
    }
  }
  unsigned char* at(Address a, int size) {
    const unsigned block = a >> 20, place = a & ((1 << 20) - 1);
    if (block >= unsigned(blocks) || place % size || place + size > unsigned(bytes))
      fail("an address beyond shared memory, or not aligned");
    return memory[block].data() + place;
  }
  void complete(Barrier* b) {
    if (b->pending || b->bytes) return;
    ++b->phases;
    b->pending = 1;
    for (size_t i = 0; i < waiting.size();)
      if (waiting[i].first == b) {
        wake(waiting[i].second);
        waiting[i] = waiting.back();
        waiting.pop_back();
      } else {
        ++i;
      }
  }
  void deliver() {
    const size_t i = random() % messages.size();
    const Message m = messages[i];
    messages[i] = messages.back();
    messages.pop_back();
    if (m.to >> 20 != m.barrier >> 20) fail("a message and its barrier are in different blocks");
    std::memcpy(at(m.to, m.size), m.data, m.size);
    auto* b = reinterpret_cast<Barrier*>(at(m.barrier, 8));
    if (b->pending > 1) fail("a message to a barrier that is none");
    b->bytes -= m.size;
    complete(b);
  }
  bool starves(int fiber) {
    return fiber / LANES_OF_A_WARP == victim && (lane < 0 || fiber % LANES_OF_A_WARP == lane);
  }
  // The fiber to run; -1 where that may wait for a message.
  int choose() {
    if (starve && random() % (1 << 16) == 0) {
      victim = random() % warps.size();
      lane = int(random() % (2 * LANES_OF_A_WARP)) - LANES_OF_A_WARP;
    }
    if (turn >= ready.size() || random() % 64 == 0) turn = random() % ready.size();
    for (int tries = 0;; ++tries) {
      auto& runnable = warps[ready[turn]].runnable;
      std::swap(runnable[random() % runnable.size()], runnable.back());
      if (!starves(runnable.back())) break;
      if (tries == 64 && !messages.empty()) return -1;
      if (tries == 64) break;
      turn = random() % ready.size();
    }
    auto& runnable = warps[ready[turn]].runnable;
    const int fiber = runnable.back();
    runnable.pop_back();
    if (runnable.empty()) {
      ready[turn] = ready.back();
      ready.pop_back();
      turn = ready.size();
    }
    return fiber;
  }
  void run();
};

inline Machine* machine = nullptr;

inline void begin() {
  machine->kernel(machine->arguments);
  ++machine->finished;
  _longjmp(machine->scheduler, 1);
}

inline void Machine::run() {
  // volatile: this frame is entered again by longjmp
  volatile bool done = false;
  while (!done) {
    const int how = _setjmp(scheduler);
    if (how == 2) return;
    if (ready.empty() && messages.empty()) {
      done = true;
      break;
    }
    const bool due = !messages.empty() && random() % 32 == 0;
    current = due || ready.empty() ? -1 : choose();
    if (current < 0) {
      deliver();
      continue;
    }
    Fiber& fiber = fibers[current];
    if (fiber.started) _longjmp(fiber.state, 1);
    fiber.started = true;
    setcontext(&fiber.context);
  }
  const int count = blocks * threads;
  if (finished < count)
    error = "deadlock: " + std::to_string(count - finished) + " of " + std::to_string(count) +
            " threads wait for ever";
  for (auto& m : memory)
    for (int i = 0; i < GUARD; ++i)
      if (m[bytes + i] != POISON) error = "a write beyond shared memory";
}

inline char* shared_memory() {
  return reinterpret_cast<char*>(machine->memory[machine->current / machine->threads].data());
}
inline int thread() { return machine->current % machine->threads; }
inline int rank() { return machine->current / machine->threads; }
inline void sync() { machine->meet(machine->groups[rank()], machine->threads); }
inline void sync_cluster() {
  machine->meet(machine->groups.back(), machine->threads * machine->blocks);
}
inline Address address(const void* p) {
  return rank() << 20 | (static_cast<const char*>(p) - shared_memory());
}
inline Address remote(Address a, int rank) { return rank << 20 | (a & ((1 << 20) - 1)); }
inline void init(Barrier* b) { *b = {0, 1, 0}; }
inline void show_barriers() {}
inline void trap() { machine->fail("a trap"); }
inline void expect(Barrier* b, int bytes) {
  if (b->pending != 1) machine->fail("a barrier that expects twice");
  b->bytes += bytes;
  b->pending = 0;
  machine->complete(b);
}
inline void wait(Barrier* b, int parity) {
  machine->hesitate();
  while ((b->phases & 1) == parity) {
    machine->waiting.push_back({b, machine->current});
    machine->park();
  }
  machine->hesitate();
}
template <class... T> void post(Address to, Address barrier, T... v) {
  Message m{to, barrier, int(sizeof...(T)) * 4, {}};
  int i = 0;
  (std::memcpy(m.data + 4 * i++, &v, 4), ...);
  machine->messages.push_back(m);
  machine->hesitate();
}
inline void send(Address to, Address barrier, uint32_t v) { post(to, barrier, v); }
inline void send(Address to, Address barrier, float x, float y) { post(to, barrier, x, y); }

// What all lanes of a warp give, once all are here.
template <class T> const Warp::Slot& exchange(const T& v) {
  static_assert(sizeof v <= sizeof machine->warps[0].slots[0].lanes[0]);
  Warp& warp = machine->warps[machine->current / LANES_OF_A_WARP];
  Warp::Slot& slot = warp.slots[warp.rounds % 2];
  std::memcpy(slot.lanes[machine->current % LANES_OF_A_WARP], &v, sizeof v);
  if (++warp.arrived == LANES_OF_A_WARP) {
    warp.arrived = 0;
    ++warp.rounds;
    machine->wake(warp.waiting);
  } else {
    warp.waiting.push_back(machine->current);
    machine->park();
  }
  return slot;
}
template <class T> T of(const Warp::Slot& slot, int lane) {
  T v;
  std::memcpy(&v, slot.lanes[lane], sizeof v);
  return v;
}
inline void sync_warp() { exchange(0); }
inline int my_lane() { return machine->current % LANES_OF_A_WARP; }

inline float widen(uint32_t pair, int half) {
  const uint32_t bits = half ? pair & 0xffff0000 : pair << 16;
  float v;
  std::memcpy(&v, &bits, 4);
  return v;
}
inline uint32_t narrow(float x, float y) {
  const auto round = [](float v) {
    uint32_t bits;
    std::memcpy(&bits, &v, 4);
    if (v != v) return 0x7fffu;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return round(x) | round(y) << 16;
}

// Fragments as the PTX manual draws them, of m16n8k16 with bfloat16: with g = lane / 4 and
// q = lane % 4, register i of A is rows g + 8 (i % 2) and columns 2q + 8 (i / 2) and one more; of B
// rows 2q + 8 i and one more, column g; numbers 0, 1 of C are row g, 2, 3 row g + 8, columns 2q,
// 2q + 1.
inline void mma(float4& c, const uint4& a, const uint2& b) {
  struct Both {
    uint32_t a[4], b[2];
  };
  const Warp::Slot& slot = exchange(Both{{a.x, a.y, a.z, a.w}, {b.x, b.y}});
  const auto* lanes = reinterpret_cast<const unsigned char*>(slot.lanes);
  const auto word = [&](int lane, int i) {
    uint32_t v;
    std::memcpy(&v, lanes + lane * sizeof(Both) + 4 * i, 4);
    return v;
  };
  const int g = my_lane() / 4, q = my_lane() % 4;
  float sums[2][2]{};
  for (int k = 0; k < 8; ++k) // pairs of columns of A
    for (int r = 0; r < 2; ++r)
      for (int n = 0; n < 2; ++n) {
        const uint32_t x = word(4 * g + k % 4, r + 2 * (k / 4));
        const uint32_t y = word(4 * (2 * q + n) + k % 4, 4 + k / 4);
        sums[r][n] += widen(x, 0) * widen(y, 0) + widen(x, 1) * widen(y, 1);
      }
  c.x += sums[0][0], c.y += sums[0][1], c.z += sums[1][0], c.w += sums[1][1];
}

inline float shuffle(float v, int lane) { return of<float>(exchange(v), lane); }
inline float shuffle_xor(float v, int mask) { return of<float>(exchange(v), my_lane() ^ mask); }
inline float shuffle_up(float v, int by) {
  const int from = my_lane() - by;
  return of<float>(exchange(v), from < 0 ? my_lane() : from);
}
template <class F> int reduce(int v, F f) {
  const Warp::Slot& slot = exchange(v);
  int all = of<int>(slot, 0);
  for (int i = 1; i < LANES_OF_A_WARP; ++i) all = f(all, of<int>(slot, i));
  return all;
}
inline int sum(int v) {
  return reduce(v, [](int a, int b) { return a + b; });
}
inline int largest(int v) {
  return reduce(v, [](int a, int b) { return a > b ? a : b; });
}
inline int smallest(int v) {
  return reduce(v, [](int a, int b) { return a < b ? a : b; });
}
inline float exponential(float x) { return std::exp(x); }
inline float inverse(float x) { return 1 / x; }

template <class A>
const char* clusters_that_run(void (*)(A), int64_t, int64_t blocks, int, int64_t,
                              int64_t* clusters) {
  *clusters = blocks <= 16;
  return nullptr;
}

inline std::string last_error;

template <class A>
const char* launch(void (*kernel)(A), const A& arguments, int64_t blocks, int threads,
                   int64_t bytes, int64_t, int64_t) {
  static void (*entry)(A);
  entry = kernel;
  Machine m;
  machine = &m;
  m.blocks = blocks, m.threads = threads, m.bytes = bytes;
  const char* seed = std::getenv("FASTGEN_SEED");
  const int number = seed ? std::atoi(seed) : 0;
  m.random.seed(number + 1);
  m.starve = number % 2;
  m.kernel = [](void* a) { entry(*static_cast<const A*>(a)); };
  m.arguments = const_cast<A*>(&arguments);
  m.memory.assign(blocks, std::vector<unsigned char>(bytes + GUARD, POISON));
  m.warps.resize(blocks * threads / LANES_OF_A_WARP);
  m.groups.resize(blocks + 1);
  m.fibers.resize(blocks * threads);
  for (int i = 0; i < blocks * threads; ++i) {
    Fiber& fiber = m.fibers[i];
    fiber.stack.reset(new char[STACK]);
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = STACK;
    makecontext(&fiber.context, begin, 0);
    m.wake(i);
  }
  m.run();
  last_error = m.error;
  return last_error.empty() ? nullptr : last_error.c_str();
}

} // namespace fastgen::device
