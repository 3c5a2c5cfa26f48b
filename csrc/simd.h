// Vectors of one instruction set, and the one GEMM microkernel that every kernel stands on.
//
// A kernel is written once on these types and compiled for each set, in a namespace of its own
// (FASTGEN_ISA). Arithmetic is plain operators on vectors; the compiler contracts a * b + c.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastgen::FASTGEN_ISA {

#if defined(__AVX512F__)
constexpr int BYTES = 64, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int BYTES = 32, REGISTERS = 16;
#elif defined(FASTGEN_SCALAR)
constexpr int BYTES = 0, REGISTERS = 16; // a lane to a vector
#else
constexpr int BYTES = 16, REGISTERS = 32;
#endif

template <class T> struct Vector {
  typedef T type __attribute__((vector_size(BYTES ? BYTES : sizeof(T))));
};
template <class T> using vec = typename Vector<T>::type;
template <class T> constexpr int LANES = sizeof(vec<T>) / sizeof(T);

// The integer as wide as T, for bits and masks.
template <class T> struct Bits;
template <> struct Bits<float> {
  using type = int32_t;
  static constexpr int MANTISSA = 23, BIAS = 127;
};
template <> struct Bits<double> {
  using type = int64_t;
  static constexpr int MANTISSA = 52, BIAS = 1023;
};
template <class T> using bits = typename Bits<T>::type;

template <class T> inline vec<T> load(const T* p) {
  vec<T> v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <class T> inline void store(T* p, vec<T> v) { memcpy(p, &v, sizeof v); }
template <class T> inline vec<T> splat(T x) { return vec<T>{} + x; }

// exp(x) = 2^n (1 + q), n the nearest integer to x / ln 2. Arguments saturate at the normal range.
template <class T> struct Exp {
  vec<T> power; // 2^n
  vec<T> q;     // exp(x - n ln 2) - 1
  explicit Exp(vec<T> x);
};

template <class T> inline Exp<T>::Exp(vec<T> x) {
  constexpr bool F = sizeof(T) == 4;
  constexpr T LOW = F ? -87.6 : -708.7, HIGH = F ? 88.3 : 709.4;
  constexpr T LN2_HEAD = F ? 0x1.62e4p-1 : 0x1.62e42fefa38p-1; // n LN2_HEAD is exact
  constexpr T LN2_TAIL = 0x1.62e42fefa39efp-1 - LN2_HEAD;
  constexpr int DEGREE = F ? 7 : 13;
  constexpr auto M = Bits<T>::MANTISSA;
  x = x < LOW ? splat<T>(LOW) : x > HIGH ? splat<T>(HIGH) : x; // a NaN stays one
  const T magic =
      T(3) * (int64_t(1) << (M - 1)); // adding 1.5 * 2^M rounds, and leaves n in the low bits
  const vec<T> shifted = x * T(1.44269504088896341) + magic;
  const vec<T> n = shifted - magic;
  const vec<T> r = (x - n * LN2_HEAD) - n * LN2_TAIL;
  T coefficient[DEGREE + 1] = {1, 1}; // 1 / k!
  for (int k = 2; k <= DEGREE; ++k) coefficient[k] = coefficient[k - 1] / k;
  q = splat<T>(coefficient[DEGREE]);
#pragma GCC unroll 16
  for (int k = DEGREE - 1; k > 0; --k) q = q * r + coefficient[k];
  q = q * r;
  power = (vec<T>)(((vec<bits<T>>)shifted << M) + (bits<T>(Bits<T>::BIAS) << M));
}

// exp(x) to 2 units in the last place; 0 below the normal range, finite above it.
template <class T> inline vec<T> exp(vec<T> x) {
  const Exp<T> e(x);
  const vec<T> y = e.power * e.q + e.power;
  return x < T(sizeof(T) == 4 ? -87.6 : -708.7) ? vec<T>{} : y;
}

template <class T> inline vec<T> expm1(vec<T> x) {
  const Exp<T> e(x);
  return e.power * e.q + (e.power - 1);
}

template <class T> inline vec<T> sigmoid(vec<T> x) { return 1 / (1 + exp<T>(-x)); }

template <class T> inline vec<T> abs(vec<T> x) { return x < 0 ? -x : x; }

template <class T> inline vec<T> tanh(vec<T> x) {
  const vec<T> e = expm1<T>(-2 * abs<T>(x)), y = -e / (2 + e);
  return x < 0 ? -y : y;
}

// tanh(a) sigmoid(b), with one division.
template <class T> inline vec<T> gated(vec<T> a, vec<T> b) {
  const vec<T> e = expm1<T>(-2 * abs<T>(a)), y = -e / ((2 + e) * (1 + exp<T>(-b)));
  return a < 0 ? -y : y;
}

// The GEMM microkernel: c[m][n] += sum_k a[m][k] b[k][n] for M rows and V vectors of columns.
//
// Each sum is one chain over k that starts from c, whatever M and V are: how a product is cut into
// tiles changes no bit of it. A policy P says what a word of a and b holds, and how to add it.
template <class P, int M, int V>
inline void tile(int64_t K, const typename P::word* a, int64_t am, const typename P::word* b,
                 int64_t bk, typename P::sum* c, int64_t cm) {
  using word = typename P::word;
  using sum = typename P::sum;
  constexpr int W = LANES<sum>;
  vec<sum> s[M][V];
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) s[m][v] = load<sum>(c + m * cm + v * W);
  for (int64_t k = 0; k < K; ++k) {
    vec<word> y[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) y[v] = load<word>(b + k * bk + v * W);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      const vec<word> x = splat<word>(a[m * am + k]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) s[m][v] = P::add(s[m][v], x, y[v]);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store<sum>(c + m * cm + v * W, s[m][v]);
}

// How many vectors of columns a tile of M rows holds, so that sums, b and a fit in registers.
constexpr int columns(int M) {
  return REGISTERS == 32 ? (M >= 4 ? 4 : 8) : M >= 4 ? 3 : M >= 2 ? 4 : 8;
}

template <class P, int M, int V>
inline void across(int64_t N, int64_t K, const typename P::word* a, int64_t am,
                   const typename P::word* b, int64_t bk, typename P::sum* c, int64_t cm) {
  constexpr int64_t W = V * LANES<typename P::sum>;
  for (; N >= W; N -= W, b += W, c += W) tile<P, M, V>(K, a, am, b, bk, c, cm);
  if constexpr (V > 1) across<P, M, V / 2>(N, K, a, am, b, bk, c, cm);
}

template <class P, int M>
inline void down(int64_t rows, int64_t N, int64_t K, const typename P::word* a, int64_t am,
                 const typename P::word* b, int64_t bk, typename P::sum* c, int64_t cm) {
  for (; rows >= M; rows -= M, a += M * am, c += M * cm)
    across<P, M, columns(M)>(N, K, a, am, b, bk, c, cm);
  if constexpr (M > 1) down<P, M / 2>(rows, N, K, a, am, b, bk, c, cm);
}

// c (rows x N, rows cm apart) += a (rows x K, rows am apart) b (K x N, rows bk apart).
// N is a multiple of the vector's lanes. K goes in pieces, so that the second tile of rows finds
// b's piece in the first cache.
template <class P>
inline void gemm(int64_t rows, int64_t N, int64_t K, const typename P::word* a, int64_t am,
                 const typename P::word* b, int64_t bk, typename P::sum* c, int64_t cm) {
  constexpr int M = 4;
  const int64_t piece = rows > M ? 128 : K;
  for (int64_t k = 0; k < K; k += piece)
    down<P, M>(rows, N, K - k < piece ? K - k : piece, a + k, am, b + k * bk, bk, c, cm);
}

// A word is one number.
template <class T> struct Plain {
  using word = T;
  using sum = T;
  static vec<T> add(vec<T> s, vec<T> x, vec<T> y) { return s + x * y; }
};

} // namespace fastgen::FASTGEN_ISA
