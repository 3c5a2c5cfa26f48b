// What the samplers share: products with matrices in panels, and a draw from logits.
#pragma once
#include "simd.h"

namespace fastgen::FASTGEN_ISA {

// Rows of a matrix that lie together, and what their number is padded to.
constexpr int64_t PANEL = 64, PAD = 16;

inline int64_t padded(int64_t rows) { return (rows + PAD - 1) / PAD * PAD; }

// out[m][row] += sum_k x[m][k] w[row][k]: w in panels, out's rows padded to 16.
template <class P>
void product(int64_t rows, int64_t K, const typename P::word* w, int64_t M,
             const typename P::word* x, int64_t x_stride, typename P::sum* out,
             int64_t out_stride) {
  rows = padded(rows);
  for (int64_t r = 0; r < rows; r += PANEL) {
    const int64_t N = rows - r < PANEL ? rows - r : PANEL;
    gemm<P>(M, N, K, x, x_stride, w + r * K, N, out + r, out_stride);
  }
}

// Whole vectors at a time: arrays are padded for what these touch beyond `count`.
template <class T> void copy(int64_t count, const T* from, T* to) {
  for (int64_t i = 0; i < count; i += LANES<T>) store<T>(to + i, load(from + i));
}
template <class T> void accumulate(int64_t count, const T* from, T* to) {
  for (int64_t i = 0; i < count; i += LANES<T>) store<T>(to + i, load(to + i) + load(from + i));
}

template <class T> void relu(int64_t count, T* x) {
  for (int64_t i = 0; i < count; i += LANES<T>) {
    const vec<T> v = load(x + i);
    store<T>(x + i, v < 0 ? vec<T>{} : v); // a NaN stays one
  }
}
template <class T> bool all_finite(int64_t count, const T* x) {
  vec<T> zero{};
  int64_t i = 0;
  for (; i + LANES<T> <= count; i += LANES<T>) zero += load(x + i) * 0;
  T sum = 0;
  for (int k = 0; k < LANES<T>; ++k) sum += zero[k];
  for (; i < count; ++i) sum += x[i] * 0;
  return sum == 0;
}

template <class T> T largest(vec<T> v) {
  T x[LANES<T>];
  memcpy(x, &v, sizeof v);
#pragma GCC unroll 8
  for (int half = LANES<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
  return x[0];
}

template <class T> T largest(const T* x, int64_t count) {
  vec<T> v = splat<T>(x[0]);
  int64_t i = 0;
  for (; i + LANES<T> <= count; i += LANES<T>) v = load(x + i) > v ? load(x + i) : v;
  T top = largest<T>(v);
  for (; i < count; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

// The number of entries of the CDF of softmax(z / temperature) that are <= u: as u < 1, a class
// of positive probability. At temperature 0 the likeliest class. p has room for A, padded.
//
// cdf[i] is the sum of the whole blocks of 16 before i, plus that of i's block up to i: the
// blocks' sums need not wait for each other.
template <class T> int64_t choose(const T* z, int64_t A, double u, double temperature, T* p) {
  const T top = largest(z, A);
  if (temperature == 0) {
    int64_t best = 0;
    while (z[best] != top) ++best;
    return best;
  }
  const T rate = T(temperature < 1e-30 ? 1e30 : 1 / temperature);
  for (int64_t i = 0; i < A; i += LANES<T>) store<T>(p + i, exp<T>((load(z + i) - top) * rate));
  for (int64_t i = A; i < padded(A); ++i) p[i] = 0;
  const auto block = [p](int64_t i, int64_t count) {
    double sum = 0;
    for (int64_t k = 0; k < count; ++k) sum += p[i + k];
    return sum;
  };
  double total = 0, before = 0;
  for (int64_t i = 0; i < A; i += PAD) total += block(i, PAD);
  const double target = u * total;
  int64_t code = 0;
  for (double sum; code + PAD < A && before + (sum = block(code, PAD)) <= target; code += PAD)
    before += sum;
  const int64_t start = code;
  while (code < A - 1 && before + block(start, code + 1 - start) <= target) ++code;
  return code;
}

} // namespace fastgen::FASTGEN_ISA
