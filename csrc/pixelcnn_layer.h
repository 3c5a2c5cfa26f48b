// What the passes of pixelcnn_layer share: images cut into tiles of whole rows.
//
// A tile's intermediates stay in the second cache. What it reads is first copied into blocks with
// zeros around the image, where a tap of a convolution is an offset. Columns of a tile are the
// pixels of its rows, each row rounded up to whole vectors.
#pragma once
#include "common.h"
#include "ops.h"
#include "simd.h"

namespace fastgen::FASTGEN_ISA {
namespace {

[[maybe_unused]] int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
[[maybe_unused]] int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
[[maybe_unused]] int64_t ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }
[[maybe_unused]] int64_t padded(int64_t n) { return ceil(n, 16) * 16; }

// Taps of the vertical stack are rows x k, of the horizontal one the first `cols` of r + 1.
struct Sizes {
  int64_t B, V, C, P, O, H, W, k, rows, cols;
  bool residual;
  int64_t r() const { return k / 2; }
  int64_t N() const { return padded(W); }                 // columns of a row
  int64_t n() const { return pixelcnn_layer_rows(H, W); } // rows of a tile
  int64_t pitch() const { return N() + 2 * r(); }         // of a row in a block
  int64_t columns() const { return n() * N(); }           // of a tile
  int64_t each() const { return ceil(H, n()); }           // tiles of an image
  int64_t tiles() const { return B * each(); }
};

// n rows of image b from row y on.
struct Tile {
  int64_t index, b, y, n;
  Tile(const Sizes& s, int64_t i)
      : index(i), b(i / s.each()), y(i % s.each() * s.n()), n(min(s.n(), s.H - y)) {}
};

template <class real> void clear(real* to, int64_t n) {
  for (int64_t j = 0; j < n; ++j) to[j] = 0;
}

template <class real> void copy(real* to, const real* from, int64_t n) {
  int64_t j = 0;
  for (; j + LANES<real> <= n; j += LANES<real>) store(to + j, load(from + j));
  for (; j < n; ++j) to[j] = from[j];
}

template <class real> void fill(real* to, real value, int64_t n) {
  for (int64_t j = 0; j < n; j += LANES<real>) store(to + j, splat(value));
}

template <class real>
void product(int64_t rows, int64_t N, int64_t K, const real* a, int64_t am, const real* b,
             int64_t bk, real* c, int64_t cm) {
  auto nothing = [] {};
  gemm<Plain<real>>(rows, N, K, a, am, b, bk, c, cm, nothing);
}

// Rows [first, first + rows) of `channels` images, W wide, `channel` and `row` apart, into a block
// whose margins of r are zero already; rows outside [0, H) become zero.
template <class real>
void take(const Sizes& s, real* block, const real* from, int64_t channels, int64_t channel,
          int64_t row, int64_t first, int64_t rows, int64_t all) {
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t i = 0; i < rows; ++i) {
      real* to = block + (c * all + i) * s.pitch() + s.r();
      const int64_t y = first + i;
      y < 0 || y >= s.H ? clear(to, s.W) : copy(to, from + c * channel + y * row, s.W);
    }
}

// to (columns x padded(rows)) = the transpose of from (rows x columns), its margin zero.
template <class real>
void turn(real* to, const real* from, int64_t stride, int64_t rows, int64_t columns) {
  constexpr int W = LANES<real>;
  const int64_t wide = padded(rows);
  for (int64_t j = 0; j < columns; j += W) {
    int64_t c = 0;
    for (; j + W <= columns && c + W <= rows; c += W)
      transpose(to + j * wide + c, wide, from + c * stride + j, stride);
    for (; c < rows; ++c)
      for (int64_t l = j; l < min(j + W, columns); ++l) to[l * wide + c] = from[c * stride + l];
  }
}

// Runs of tiles of a job, on workers with some memory of their own.
template <class real, class Job> struct Workers {
  const Job& job;
  int64_t length; // tiles of a run
  real* memory;
  int64_t next = 0;

  static void work(void* context, int64_t worker) {
    auto& w = *static_cast<Workers*>(context);
    while (!stopped()) {
      const int64_t run = __atomic_fetch_add(&w.next, 1, __ATOMIC_RELAXED);
      const int64_t begin = run * w.length, end = min(begin + w.length, w.job.s.tiles());
      if (begin >= end) break;
      for (int64_t i = begin; i < end && !stopped(); ++i)
        w.job.tile(run, Tile(w.job.s, i), w.memory + worker * w.job.memory());
    }
  }
};

template <class real, class Job> void each_tile(const Job& job, int64_t length, int64_t threads) {
  threads = min(threads, ceil(job.s.tiles(), length));
  Scratch memory(threads * job.memory() * sizeof(real));
  Workers<real, Job> workers{job, length, reinterpret_cast<real*>(memory.data)};
  parallel(threads, threads, Workers<real, Job>::work, &workers);
}

} // namespace
} // namespace fastgen::FASTGEN_ISA
