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
  bool residual, last; // last: images are (H, W, channels)
  int64_t r() const { return k / 2; }
  int64_t N() const { return padded(W); }                 // columns of a row
  int64_t n() const { return pixelcnn_layer_rows(H, W); } // rows of a tile
  int64_t pitch() const { return padded(N() + 2 * r()); } // of a row in a block
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

// Where the taps of a convolution lie in a block, from the first one on.
struct Taps {
  int64_t count, k, row, step;
  int64_t operator[](int64_t t) const { return t / k * row + t % k * step; }
};

// c += the sum over taps of a (rows x K) b (K x N), a's taps `next` apart; the sums stay in
// registers.
template <class real, int M, int V>
void tap_tile(const Taps& taps, int64_t K, const real* a, int64_t am, int64_t next, const real* b,
              int64_t bk, real* c, int64_t cm) {
  constexpr int W = LANES<real>;
  vec<real> s[M][V];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) s[m][v] = load(c + m * cm + v * W);
  for (int64_t t = 0; t < taps.count; ++t) {
    const real *x = a + t * next, *y = b + taps[t];
    for (int64_t k = 0; k < K; ++k) {
      vec<real> z[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) z[v] = load(y + k * bk + v * W);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) s[m][v] += x[m * am + k] * z[v];
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(c + m * cm + v * W, s[m][v]);
}

template <class real, int M, int V>
void tap_columns(const Taps& taps, int64_t N, int64_t K, const real* a, int64_t am, int64_t next,
                 const real* b, int64_t bk, real* c, int64_t cm) {
  constexpr int64_t L = LANES<real>, W = V * L;
  for (; N >= W && (V == 1 || N != W + L); N -= W, b += W, c += W)
    tap_tile<real, M, V>(taps, K, a, am, next, b, bk, c, cm);
  if constexpr (V > 1)
    tap_columns<real, M, (V > 4 ? V / 2 : V - 1)>(taps, N, K, a, am, next, b, bk, c, cm);
}

// The same for `images` pairs of b and c, `b_next` and `c_next` apart, each panel of a being used
// for all of them.
template <class real, int M = REGISTERS == 32 ? 8 : 4>
void tap_product(const Taps& taps, int64_t images, int64_t rows, int64_t N, int64_t K,
                 const real* a, int64_t am, int64_t next, const real* b, int64_t bk, int64_t b_next,
                 real* c, int64_t cm, int64_t c_next) {
  for (; rows >= M; rows -= M, a += M * am, c += M * cm)
    for (int64_t j = 0; j < images; ++j)
      tap_columns<real, M, columns(M)>(taps, N, K, a, am, next, b + j * b_next, bk, c + j * c_next,
                                       cm);
  if constexpr (M > 1)
    tap_product<real, M / 2>(taps, images, rows, N, K, a, am, next, b, bk, b_next, c, cm, c_next);
}

// to (columns x rows, `wide` apart) = the transpose of from (rows x columns, `stride` apart).
template <class real>
void turn(real* to, int64_t wide, const real* from, int64_t stride, int64_t rows, int64_t columns) {
  constexpr int W = LANES<real>;
  for (int64_t j = 0; j < columns; j += W) {
    int64_t c = 0;
    for (; j + W <= columns && c + W <= rows; c += W)
      transpose(to + j * wide + c, wide, from + c * stride + j, stride);
    for (; c < rows; ++c)
      for (int64_t l = j; l < min(j + W, columns); ++l) to[l * wide + c] = from[c * stride + l];
  }
}

// Row y of an image, to a row of `stride` for each channel; zero outside the image.
template <class real>
void take_row(const Sizes& s, real* to, int64_t stride, const real* image, int64_t channels,
              int64_t y) {
  if (s.last && y >= 0 && y < s.H)
    return turn(to, stride, image + y * s.W * channels, channels, s.W, channels);
  for (int64_t c = 0; c < channels; ++c, to += stride)
    y < 0 || y >= s.H ? clear(to, s.W) : copy(to, image + (c * s.H + y) * s.W, s.W);
}

// Row y of an image, from a row of `stride` for each channel.
template <class real>
void put_row(const Sizes& s, real* image, const real* from, int64_t stride, int64_t channels,
             int64_t y) {
  if (s.last) return turn(image + y * s.W * channels, channels, from, stride, channels, s.W);
  for (int64_t c = 0; c < channels; ++c, from += stride)
    copy(image + (c * s.H + y) * s.W, from, s.W);
}

// Rows [first, first + rows) of an image of `channels`, into a block (rows, channels, pitch) whose
// margins of r are zero already; rows outside [0, H) become zero.
template <class real>
void take(const Sizes& s, real* block, const real* image, int64_t channels, int64_t first,
          int64_t rows) {
  for (int64_t i = 0; i < rows; ++i, block += channels * s.pitch())
    take_row(s, block + s.r(), s.pitch(), image, channels, first + i);
}

// A tile of an image, from rows of all channels.
template <class real>
void put(const Sizes& s, real* to, const real* from, int64_t channels, const Tile& i) {
  to += i.b * channels * s.H * s.W;
  for (int64_t j = 0; j < i.n; ++j)
    put_row(s, to, from + j * s.N(), s.columns(), channels, i.y + j);
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
