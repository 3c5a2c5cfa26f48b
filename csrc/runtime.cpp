#include "common.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

namespace fastgen {

bool (*interrupted)() = nullptr;

namespace {

using Clock = std::chrono::steady_clock;
constexpr auto POLL = std::chrono::milliseconds(100);

// One call's: several Python threads may each have a kernel running.
struct Call {
  std::atomic<int64_t> next{0};
  std::atomic<int64_t> running{0};
  std::atomic<bool> stop{false};
};

thread_local Call* current = nullptr;
thread_local bool caller = false;
thread_local Clock::time_point asked;

void work(Call& call, int64_t count, void (*task)(void*, int64_t), void* context) {
  current = &call;
  for (int64_t i; !call.stop && (i = call.next++) < count;) task(context, i);
  current = nullptr;
}

// A task that starts a parallel loop of its own runs it alone.
void nested(int64_t count, void (*task)(void*, int64_t), void* context) {
  for (int64_t i = 0; i < count && !stopped(); ++i) task(context, i);
}

} // namespace

bool stopped() {
  if (!current) return false;
  if (caller && interrupted && !current->stop && Clock::now() - asked > POLL) {
    asked = Clock::now();
    if (interrupted()) current->stop = true;
  }
  return current->stop;
}

void parallel(int64_t count, int64_t threads, void (*task)(void*, int64_t), void* context) {
  if (current) return nested(count, task, context);
  Call call;
  std::vector<std::thread> workers;
  for (int64_t i = 1; i < std::min(threads, count); ++i) {
    try {
      ++call.running;
      workers.emplace_back([&] {
        work(call, count, task, context);
        --call.running;
      });
    } catch (const std::system_error&) { // no more threads to be had: fewer will do
      --call.running;
      break;
    }
  }
  caller = true;
  asked = Clock::now();
  work(call, count, task, context);
  current = &call;
  while (call.running) {
    stopped();
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
  current = nullptr;
  caller = false;
  for (auto& worker : workers) worker.join();
}

Scratch::Scratch(int64_t bytes)
    : data(static_cast<char*>(::operator new(bytes, std::align_val_t(64)))) {
  std::memset(data, 0, bytes);
}

Scratch::~Scratch() { ::operator delete(data, std::align_val_t(64)); }

} // namespace fastgen
