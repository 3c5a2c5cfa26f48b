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
// Store past the caches, for what is not read again soon; p is aligned to a vector.
template <class T> inline void stream(T* p, vec<T> v) {
#if defined(__AVX512F__)
  _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif defined(__AVX2__)
  _mm256_stream_si256((__m256i*)p, (__m256i)v);
#else
  store(p, v);
#endif
}

// Let other threads see what was streamed.
inline void fence() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

template <class T> inline vec<T> splat(T x) { return vec<T>{} + x; }

// a[0] b[0] a[1] b[1] ...: of the lower halves, and of the upper ones.
template <class T> inline vec<T> zip_low(vec<T> a, vec<T> b) {
  if constexpr (LANES<T> == 1)
    return a;
  else if constexpr (LANES<T> == 2)
    return __builtin_shufflevector(a, b, 0, 2);
  else if constexpr (LANES<T> == 4)
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
  else if constexpr (LANES<T> == 8)
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
  else
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

template <class T> inline vec<T> zip_high(vec<T> a, vec<T> b) {
  if constexpr (LANES<T> == 1)
    return b;
  else if constexpr (LANES<T> == 2)
    return __builtin_shufflevector(a, b, 1, 3);
  else if constexpr (LANES<T> == 4)
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
  else if constexpr (LANES<T> == 8)
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
  else
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                   31);
}

// to (n x n, rows `stride` apart) = the transpose of from (n x n, rows `from_stride` apart), n the
// number of lanes.
template <class T>
inline void transpose(T* to, int64_t stride, const T* from, int64_t from_stride) {
  constexpr int N = LANES<T>;
  vec<T> x[N], y[N];
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) x[i] = load(from + i * from_stride);
#pragma GCC unroll 4
  for (int half = 1; half < N; half *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < N / 2; ++i) {
      y[2 * i] = zip_low<T>(x[i], x[i + N / 2]);
      y[2 * i + 1] = zip_high<T>(x[i], x[i + N / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < N; ++i) x[i] = y[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < N; ++i) store(to + i * stride, x[i]);
}

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

// log(x) of positive normal numbers, to 2 units in the last place.
template <class T> inline vec<T> log(vec<T> x) {
  constexpr bool F = sizeof(T) == 4;
  constexpr T LN2_HEAD = F ? 0x1.62e4p-1 : 0x1.62e42fefa38p-1; // n LN2_HEAD is exact
  constexpr T LN2_TAIL = 0x1.62e42fefa39efp-1 - LN2_HEAD;
  constexpr T LEAST = 0x1.6a09e667f3bcdp-1; // sqrt(1 / 2)
  constexpr int TERMS = F ? 5 : 11;
  constexpr auto M = Bits<T>::MANTISSA;
  const vec<bits<T>> n = ((vec<bits<T>>)x - (vec<bits<T>>)splat(LEAST)) >> M;
  const vec<T> m = (vec<T>)((vec<bits<T>>)x - (n << M)); // x = 2^n m
  const vec<T> s = (m - 1) / (m + 1), z = s * s;         // log m = 2 artanh s
  vec<T> q{};
#pragma GCC unroll 16
  for (int k = TERMS; k > 0; --k) q = (q + T(1) / (2 * k + 1)) * z;
  const vec<T> power = __builtin_convertvector(n, vec<T>);
  return power * LN2_HEAD + (power * LN2_TAIL + (2 * s * q + 2 * s));
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
  if (REGISTERS == 32) return M >= 8 ? 3 : M >= 4 ? 4 : 8;
  return M >= 4 ? 3 : M >= 2 ? 4 : 8;
}

template <class P, int M, int V, class F>
inline void across(int64_t N, int64_t K, const typename P::word* a, int64_t am,
                   const typename P::word* b, int64_t bk, typename P::sum* c, int64_t cm, F& feed) {
  constexpr int64_t L = LANES<typename P::sum>, W = V * L;
  // one vector more than a tile is better cut into two tiles of about one size
  for (; N >= W && (V == 1 || N != W + L); N -= W, b += W, c += W) {
    feed();
    tile<P, M, V>(K, a, am, b, bk, c, cm);
  }
  if constexpr (V > 1) across<P, M, (V > 4 ? V / 2 : V - 1)>(N, K, a, am, b, bk, c, cm, feed);
}

template <class P, int M, class F>
inline void down(int64_t rows, int64_t N, int64_t K, const typename P::word* a, int64_t am,
                 const typename P::word* b, int64_t bk, typename P::sum* c, int64_t cm, F& feed) {
  for (; rows >= M; rows -= M, a += M * am, c += M * cm)
    across<P, M, columns(M)>(N, K, a, am, b, bk, c, cm, feed);
  if constexpr (M > 1) down<P, M / 2>(rows, N, K, a, am, b, bk, c, cm, feed);
}

// c (rows x N, rows cm apart) += a (rows x K, rows am apart) b (K x N, rows bk apart).
// N is a multiple of the vector's lanes. For few rows: K goes in pieces, so that the second tile
// of rows finds b's piece in the first cache.
template <class P>
inline void gemm(int64_t rows, int64_t N, int64_t K, const typename P::word* a, int64_t am,
                 const typename P::word* b, int64_t bk, typename P::sum* c, int64_t cm) {
  constexpr int M = 4;
  const int64_t piece = rows > M ? 128 : K;
  auto nothing = [] {};
  for (int64_t k = 0; k < K; k += piece)
    down<P, M>(rows, N, K - k < piece ? K - k : piece, a + k, am, b + k * bk, bk, c, cm, nothing);
}

// The same for many rows, in as large tiles as the registers hold. feed() is called before each
// tile, for memory to bring what it asks for while the tile is computed.
template <class P, class F>
inline void gemm(int64_t rows, int64_t N, int64_t K, const typename P::word* a, int64_t am,
                 const typename P::word* b, int64_t bk, typename P::sum* c, int64_t cm, F& feed) {
  constexpr int64_t PIECE = 160;
  for (int64_t k = 0; k < K; k += PIECE)
    down<P, (REGISTERS == 32 ? 8 : 4)>(rows, N, K - k < PIECE ? K - k : PIECE, a + k, am,
                                       b + k * bk, bk, c, cm, feed);
}

// A word is one number.
template <class T> struct Plain {
  using word = T;
  using sum = T;
  static vec<T> add(vec<T> s, vec<T> x, vec<T> y) { return s + x * y; }
};

} // namespace fastgen::FASTGEN_ISA
