// Instructions of sm_90 for which C++ has no words: one to a function, and nothing else.
//
// Off nvcc the same functions come from the tests, which run a kernel's threads on the host.
#pragma once
#ifndef __CUDACC__
#include "cuda_on_host.h"
#else
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace fastgen::device {

using Barrier = uint64_t; // of shared memory: mbarrier

// Whether this compilation is for a GPU that has the instructions below.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr bool RUNS = true;
#else
constexpr bool RUNS = false;
#endif

// Addresses in the window of a block's shared memory, and of that of another block of the cluster.
using Address = uint32_t;

__device__ inline char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

__device__ inline int thread() { return threadIdx.x; }

__device__ inline int rank() {
  int r;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}

__device__ inline void sync() { __syncthreads(); }
__device__ inline void sync_warp() { __syncwarp(); }

__device__ inline void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

__device__ inline Address address(const void* p) {
  return static_cast<Address>(__cvta_generic_to_shared(p));
}

// The same place in the shared memory of block `rank`.
__device__ inline Address remote(Address a, int rank) {
  Address r;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(r) : "r"(a), "r"(rank));
  return r;
}

// One arrival completes a phase, once as many bytes came as it expects.
__device__ inline void init(Barrier* b) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(b)) : "memory");
}

// Between init and sync_cluster: other blocks see the barriers.
__device__ inline void show_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ inline void expect(Barrier* b, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(b)),
               "r"(bytes)
               : "memory");
}

// Whether the phase of this parity is over; waits a while for it.
__device__ inline bool over(Barrier* b, int parity) {
  int done;
  asm volatile("{\n"
               ".reg .pred p;\n"
               "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n"
               "selp.s32 %0, 1, 0, p;\n"
               "}"
               : "=r"(done)
               : "r"(address(b)), "r"(parity)
               : "memory");
  return done;
}

__device__ inline void trap() { __trap(); }

// Wait for a phase. A wait of seconds can only be an error, which shall end and not hang.
__device__ inline void wait(Barrier* b, int parity) {
  for (unsigned tries = 0; !over(b, parity);)
    if (++tries == 1u << 26) trap();
}

// Store into the memory of another block, and count the bytes at a barrier beside them.
__device__ inline void send(Address to, Address barrier, uint32_t v) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to),
      "r"(v), "r"(barrier)
      : "memory");
}
__device__ inline void send(Address to, Address barrier, float x, float y) {
  asm volatile(
      "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];" ::
          "r"(to),
      "f"(x), "f"(y), "r"(barrier)
      : "memory");
}

// c (16, 8) += a (16, 16) b (16, 8): bfloat16, summed in float32.
__device__ inline void mma(float4& c, const uint4& a, const uint2& b) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c.x), "+f"(c.y), "+f"(c.z), "+f"(c.w)
      : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
}

// Two numbers rounded to bfloat16, ties to even, x in the low half.
__device__ inline uint32_t narrow(float x, float y) {
  uint32_t v;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(v) : "f"(y), "f"(x));
  return v;
}

constexpr unsigned ALL = 0xffffffff; // lanes

__device__ inline float shuffle(float v, int lane) { return __shfl_sync(ALL, v, lane); }
__device__ inline float shuffle_xor(float v, int mask) { return __shfl_xor_sync(ALL, v, mask); }
__device__ inline float shuffle_up(float v, int by) { return __shfl_up_sync(ALL, v, by); }
__device__ inline int sum(int v) { return __reduce_add_sync(ALL, v); }
__device__ inline int largest(int v) { return __reduce_max_sync(ALL, v); }
__device__ inline int smallest(int v) { return __reduce_min_sync(ALL, v); }

__device__ inline float exponential(float x) { return __expf(x); }
__device__ inline float inverse(float x) {
  float v;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(v) : "f"(x));
  return v;
}

// What is wrong, or null; and forget it, so that it is not told again of another call.
inline const char* told(cudaError_t error) {
  return error ? cudaGetLastError(), cudaGetErrorString(error) : nullptr;
}

// How one cluster is launched.
struct Cluster {
  cudaLaunchAttribute size{};
  cudaLaunchConfig_t config{};
  Cluster(int64_t blocks, int threads, int64_t bytes, int64_t stream) {
    size.id = cudaLaunchAttributeClusterDimension;
    size.val.clusterDim = {static_cast<unsigned>(blocks), 1, 1};
    config.gridDim = blocks;
    config.blockDim = threads;
    config.dynamicSmemBytes = bytes;
    config.stream = reinterpret_cast<cudaStream_t>(stream);
    config.attrs = &size;
    config.numAttrs = 1;
  }
  Cluster(const Cluster&) = delete;
};

// Gives back the device that was current.
struct Current {
  int device = 0;
  Current() { cudaGetDevice(&device); }
  ~Current() { cudaSetDevice(device); }
  Current(const Current&) = delete;
};

template <class A> cudaError_t allow(void (*kernel)(A), int64_t device, int64_t bytes) {
  cudaError_t error = cudaSetDevice(device);
  if (!error)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (!error)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  return error;
}

// How many clusters of so many blocks can run at once; returns what is wrong, or null.
template <class A>
const char* clusters_that_run(void (*kernel)(A), int64_t device, int64_t blocks, int threads,
                              int64_t bytes, int64_t* clusters) {
  const Current current;
  const Cluster cluster(blocks, threads, bytes, 0);
  int count = 0;
  cudaError_t error = allow(kernel, device, bytes);
  if (!error) error = cudaOccupancyMaxActiveClusters(&count, kernel, &cluster.config);
  *clusters = count;
  return told(error);
}

// Run a kernel on one cluster; returns what is wrong, or null.
template <class A>
const char* launch(void (*kernel)(A), const A& arguments, int64_t blocks, int threads,
                   int64_t bytes, int64_t device, int64_t stream) {
  const Current current;
  const Cluster cluster(blocks, threads, bytes, stream);
  cudaError_t error = allow(kernel, device, bytes);
  if (!error) error = cudaLaunchKernelEx(&cluster.config, kernel, arguments);
  return told(error);
}

} // namespace fastgen::device
#endif
