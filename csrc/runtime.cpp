#include "common.h"

#include <algorithm>
#include <atomic>
#include <cfenv>
#include <chrono>
#include <cstring>
#include <exception>
#include <new>
#include <system_error>
#include <thread>
#include <vector>
#if __has_include(<dlfcn.h>)
#include <dlfcn.h>
#include <pthread.h>
#endif

namespace fastgen {

bool (*interrupted)() = nullptr;

namespace {

using Clock = std::chrono::steady_clock;
constexpr auto POLL = std::chrono::milliseconds(100), SPIN = std::chrono::milliseconds(1);

struct Call {
  int64_t count;
  void (*task)(void*, int64_t);
  void* context;
  std::thread::id caller = std::this_thread::get_id();
  std::fenv_t environment{}; // the caller's: how it rounds, and whether it flushes denormals
  std::exception_ptr failure{};
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> running{0};
  std::atomic<bool> stop{false};
};

// One a thread: several Python threads may each have a kernel running.
thread_local Call* current = nullptr;
thread_local bool asks = false; // the calling thread alone
thread_local Clock::time_point asked;

void tasks(Call& call) {
  try {
    for (int64_t i; !call.stop && (i = call.next++) < call.count;) call.task(call.context, i);
  } catch (...) {
    if (!call.stop.exchange(true)) call.failure = std::current_exception();
  }
}

// What each thread of a team runs. The caller stays until all have finished, to hear interrupts.
void work(void* of) {
  Call& call = *static_cast<Call*>(of);
  current = &call;
  asks = std::this_thread::get_id() == call.caller;
  asked = Clock::now();
  std::fenv_t own;
  std::fegetenv(&own);
  std::fesetenv(&call.environment);
  ++call.running;
  tasks(call);
  --call.running;
  std::fesetenv(&own);
  for (const auto idle = Clock::now(); asks && call.running;) {
    stopped();
    if (Clock::now() - idle < SPIN)
      std::this_thread::yield();
    else
      std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  current = nullptr;
}

// A team of as many threads as there are to be had, for one call; as GOMP_parallel.
void form(void (*run)(void*), void* call, unsigned threads, unsigned) {
  std::vector<std::thread> workers;
  try {
    while (workers.size() + 1 < threads) workers.emplace_back(run, call);
  } catch (const std::system_error&) {
  }
  run(call);
  for (auto& worker : workers) worker.join();
}

using Team = decltype(&form);

#if __has_include(<dlfcn.h>)
// After a fork the threads of OpenMP are gone, and it would wait for them.
bool forked = false;
const int watched = pthread_atfork(nullptr, nullptr, [] { forked = true; });

// What runs a team in the OpenMP runtime that torch has loaded, nullptr without one. Its threads
// spin on the cores for a while after each of torch's loops, and others would wait for them.
Team openmp() {
  static std::atomic<Team> found{nullptr};
  if (!found) found = reinterpret_cast<Team>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return forked ? nullptr : found.load();
}
#else
Team openmp() { return nullptr; }
#endif

} // namespace

bool pooled(int64_t threads) {
  // past the cores there may be none to be had, and OpenMP would end the process
  return threads <= std::thread::hardware_concurrency() && openmp();
}

bool stopped() {
  if (!current) return false;
  if (asks && interrupted && !current->stop && Clock::now() - asked > POLL) {
    asked = Clock::now();
    if (interrupted()) current->stop = true;
  }
  return current->stop;
}

void parallel(int64_t count, int64_t threads, void (*task)(void*, int64_t), void* context) {
  if (current) { // a task that starts a parallel loop of its own runs it alone
    for (int64_t i = 0; i < count && !stopped(); ++i) task(context, i);
    return;
  }
  Call call{count, task, context};
  std::fegetenv(&call.environment);
  if (count < 2 || threads < 2)
    work(&call);
  else if (pooled(threads)) // all of torch's threads: for fewer, OpenMP would end the others
    openmp()(work, &call, unsigned(threads), 0);
  else
    form(work, &call, unsigned(std::min(threads, count)), 0);
  if (call.failure) std::rethrow_exception(call.failure);
}

Scratch::Scratch(int64_t bytes)
    : data(static_cast<char*>(::operator new(bytes, std::align_val_t(64)))) {
  std::memset(data, 0, bytes);
}

Scratch::~Scratch() { ::operator delete(data, std::align_val_t(64)); }

} // namespace fastgen
