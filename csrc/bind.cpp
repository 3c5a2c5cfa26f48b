// The module fastgen._C: a line a kernel. Pointers arrive as integers.
#include "common.h"
#include "ops.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace py = pybind11;

namespace {

#define FASTGEN_NAME(isa) #isa,
const char* const ISAS[] = {FASTGEN_EACH_ISA(FASTGEN_NAME)};
constexpr int COUNT = sizeof ISAS / sizeof *ISAS;

bool runs([[maybe_unused]] const std::string& isa) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (isa == "avx2") return avx2;
  if (isa == "avx512") return avx512;
  if (isa == "avx512_bf16")
    return avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
#endif
  return true; // scalar everywhere, neon on every 64-bit Arm
}

std::vector<std::string> isas() {
  std::vector<std::string> found;
  for (const char* isa : ISAS)
    if (runs(isa)) found.push_back(isa);
  return found;
}

int chosen = -1;

void set_isa(const std::string& name) {
  std::string known;
  for (int i = 0; i < COUNT; ++i) {
    if (ISAS[i] == name && runs(name)) {
      chosen = i;
      return;
    }
    if (runs(ISAS[i])) known += std::string(" ") + ISAS[i];
  }
  throw std::invalid_argument("FASTGEN_ISA: expected one of" + known + ", got " + name);
}

template <class T> using Argument = std::conditional_t<std::is_pointer_v<T>, std::uintptr_t, T>;

// Expose the kernel's versions, one for each instruction set, as one function. It lets go of the
// interpreter while it runs, and raises what a signal handler raised.
template <class... A>
void expose(py::module_& m, const char* name, const std::vector<void (*)(A...)>& kernels) {
  m.def(name, [kernels](Argument<A>... arguments) {
    {
      py::gil_scoped_release unlocked;
      kernels[chosen]((A)arguments...);
    }
    if (PyErr_Occurred()) throw py::error_already_set();
  });
}

#ifndef FASTGEN_NO_CUDA
// Expose what runs on a GPU; what it returns is an error.
template <class... A> void expose(py::module_& m, const char* name, const char* (*kernel)(A...)) {
  m.def(name, [name, kernel](Argument<A>... arguments) {
    const char* wrong;
    {
      py::gil_scoped_release unlocked;
      wrong = kernel((A)arguments...);
    }
    if (wrong) throw std::runtime_error(std::string(name) + ": " + wrong);
  });
}
#endif

#define FASTGEN_TABLE(isa) FASTGEN_ENTRY(isa),

} // namespace

PYBIND11_MODULE(_C, m) {
  set_isa(isas().back());
  fastgen::interrupted = [] {
    py::gil_scoped_acquire locked;
    return PyErr_CheckSignals() != 0;
  };
#ifdef FASTGEN_NO_CUDA
  m.attr("cuda") = FASTGEN_NO_CUDA; // why there are no CUDA kernels
#else
  m.attr("cuda") = "";
  expose(m, "wavenet_sample_cuda", fastgen::wavenet_sample_cuda);
  expose(m, "wavenet_sample_clusters", fastgen::wavenet_sample_clusters);
#endif
  m.def("isas", isas, "The instruction sets that this processor runs.");
  m.def("isa", [] { return ISAS[chosen]; }, "The instruction set in use.");
  m.def("set_isa", set_isa, "Use another instruction set.");
  m.def("pooled", fastgen::pooled, "Whether kernels of so many threads run on torch's own.");
  m.attr("WAVENET_LAYER_TILE") = WAVENET_LAYER_TILE;
  m.def("pixelcnn_layer_rows", pixelcnn_layer_rows, "The rows of a tile of pixelcnn_layer.");
#define FASTGEN_ENTRY(isa) fastgen::isa::logistic_mixture
  expose(m, "logistic_mixture", std::vector{FASTGEN_EACH_ISA(FASTGEN_TABLE)});
#undef FASTGEN_ENTRY
#define FASTGEN_ENTRY(isa) fastgen::isa::logistic_mixture_backward
  expose(m, "logistic_mixture_backward", std::vector{FASTGEN_EACH_ISA(FASTGEN_TABLE)});
#undef FASTGEN_ENTRY
#define FASTGEN_ENTRY(isa) fastgen::isa::affine_coupling
  expose(m, "affine_coupling", std::vector{FASTGEN_EACH_ISA(FASTGEN_TABLE)});
#undef FASTGEN_ENTRY
#define FASTGEN_ENTRY(isa) fastgen::isa::affine_coupling_backward
  expose(m, "affine_coupling_backward", std::vector{FASTGEN_EACH_ISA(FASTGEN_TABLE)});
#undef FASTGEN_ENTRY
#define FASTGEN_ENTRY(isa) fastgen::isa::pixelcnn_layer
  expose(m, "pixelcnn_layer", std::vector{FASTGEN_EACH_ISA(FASTGEN_TABLE)});
#undef FASTGEN_ENTRY
#define FASTGEN_ENTRY(isa) fastgen::isa::pixelcnn_layer_backward
  expose(m, "pixelcnn_layer_backward", std::vector{FASTGEN_EACH_ISA(FASTGEN_TABLE)});
#undef FASTGEN_ENTRY
#define FASTGEN_ENTRY(isa) fastgen::isa::minibatch_discrimination
  expose(m, "minibatch_discrimination", std::vector{FASTGEN_EACH_ISA(FASTGEN_TABLE)});
#undef FASTGEN_ENTRY
#define FASTGEN_ENTRY(isa) fastgen::isa::minibatch_discrimination_backward
  expose(m, "minibatch_discrimination_backward", std::vector{FASTGEN_EACH_ISA(FASTGEN_TABLE)});
#undef FASTGEN_ENTRY
#define FASTGEN_ENTRY(isa) fastgen::isa::masked_stack_sample
  expose(m, "masked_stack_sample", std::vector{FASTGEN_EACH_ISA(FASTGEN_TABLE)});
#undef FASTGEN_ENTRY
#define FASTGEN_ENTRY(isa) fastgen::isa::pixelcnn_sample
  expose(m, "pixelcnn_sample", std::vector{FASTGEN_EACH_ISA(FASTGEN_TABLE)});
#undef FASTGEN_ENTRY
#define FASTGEN_ENTRY(isa) fastgen::isa::wavenet_layer
  expose(m, "wavenet_layer", std::vector{FASTGEN_EACH_ISA(FASTGEN_TABLE)});
#undef FASTGEN_ENTRY
#define FASTGEN_ENTRY(isa) fastgen::isa::wavenet_layer_backward
  expose(m, "wavenet_layer_backward", std::vector{FASTGEN_EACH_ISA(FASTGEN_TABLE)});
#undef FASTGEN_ENTRY
#define FASTGEN_ENTRY(isa) fastgen::isa::wavenet_sample
  expose(m, "wavenet_sample", std::vector{FASTGEN_EACH_ISA(FASTGEN_TABLE)});
#undef FASTGEN_ENTRY
}
