// What every kernel needs of the run time, compiled once for the machine's common instructions.
//
// Kernels are compiled once for each instruction set, so nothing in them may leave a symbol
// that the linker could merge with another set's: they use no templates of the standard library.
#pragma once
#include <cstdint>

namespace fastgen {

// Call task(context, i) for i in [0, count) on up to `threads` threads, the caller being one.
// Ends early, with some tasks undone, once stopped() is true. Throws what a task threw, in the end.
void parallel(int64_t count, int64_t threads, void (*task)(void*, int64_t), void* context);

// Whether so many threads are torch's own.
bool pooled(int64_t threads);

// The same for anything that can be called.
template <class Task> void each(int64_t count, int64_t threads, Task task) {
  parallel(count, threads, [](void* f, int64_t i) { (*static_cast<Task*>(f))(i); }, &task);
}

// True once the user wants the call to end; long tasks ask at least ten times a second.
bool stopped();

// The caller's test for an interrupt, asked by the calling thread alone. nullptr: none.
extern bool (*interrupted)();

// Memory for one call, aligned to 64 bytes and zeroed; throws std::bad_alloc.
class Scratch {
public:
  explicit Scratch(int64_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* data;
};

} // namespace fastgen
