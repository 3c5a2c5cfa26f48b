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
  static constexpr type SIGN = INT32_MIN;
};
template <> struct Bits<double> {
  using type = int64_t;
  static constexpr int MANTISSA = 52, BIAS = 1023;
  static constexpr type SIGN = INT64_MIN;
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

// Between these exp is normal.
template <class T> constexpr T LOW = sizeof(T) == 4 ? -87.6 : -708.7;
template <class T> constexpr T HIGH = sizeof(T) == 4 ? 88.3 : 709.4;

// The same x from LOW on, or to HIGH; a NaN stays one.
template <class T> inline vec<T> from_low(vec<T> x) { return x < LOW<T> ? splat<T>(LOW<T>) : x; }
template <class T> inline vec<T> to_high(vec<T> x) { return x > HIGH<T> ? splat<T>(HIGH<T>) : x; }

// exp(x) = 2^n (1 + q) of x in [LOW, HIGH], n the nearest integer to x / ln 2.
template <class T> struct Exp {
  vec<T> power; // 2^n
  vec<T> q;     // exp(x - n ln 2) - 1
  explicit Exp(vec<T> x);
};

template <class T> inline Exp<T>::Exp(vec<T> x) {
  constexpr bool F = sizeof(T) == 4;
  constexpr T LN2_HEAD = F ? 0x1.62e4p-1 : 0x1.62e42fefa38p-1; // n LN2_HEAD is exact
  constexpr T LN2_TAIL = F ? T(0x1.62e42fefa39efp-1 - LN2_HEAD) : T(0x1.ef35793c76730p-45);
  constexpr int DEGREE = F ? 7 : 13;
  constexpr auto M = Bits<T>::MANTISSA;
  const T magic =
      T(3) * (int64_t(1) << (M - 1)); // adding 1.5 * 2^M rounds, and leaves n in the low bits
  const vec<T> shifted = x * T(1.44269504088896341) + magic;
  const vec<T> n = shifted - magic;
  const vec<T> r = (x - n * LN2_HEAD) - n * LN2_TAIL;
  T coefficient[DEGREE + 1] = {1, 1}; // 1 / k!
  for (int k = 2; k <= DEGREE; ++k) coefficient[k] = coefficient[k - 1] / k;
  // two terms at a time, for a chain half as long
  const vec<T> square = r * r;
  q = coefficient[DEGREE] * r + coefficient[DEGREE - 1];
#pragma GCC unroll 16
  for (int k = DEGREE - 3; k > 1; k -= 2)
    q = q * square + (coefficient[k + 1] * r + coefficient[k]);
  q = q * square + r;
  power = (vec<T>)(((vec<bits<T>>)shifted << M) + (bits<T>(Bits<T>::BIAS) << M));
}

// exp(x) of x in [LOW, HIGH], to 2 units in the last place.
template <class T> inline vec<T> exp_inside(vec<T> x) {
  const Exp<T> e(x);
  return e.power * e.q + e.power;
}

// exp(x) to 2 units in the last place; 0 below the normal range, finite above it.
template <class T> inline vec<T> exp(vec<T> x) {
  const vec<T> y = exp_inside<T>(to_high<T>(from_low<T>(x)));
  return x < LOW<T> ? vec<T>{} : y;
}

// exp(-x) of x >= 0, to 2 + x / 2 units in the last place, by fewer operations; 0 below the normal
// range.
template <class T> inline vec<T> exp_minus(vec<T> x) {
  constexpr bool F = sizeof(T) == 4;
  constexpr int DEGREE = F ? 7 : 13;
  constexpr auto M = Bits<T>::MANTISSA;
  constexpr T LOG2E = 1.44269504088896341;
  // as in Exp; the low bits hold the exponent of 2^n with its bias
  const T magic = T(3) * (int64_t(1) << (M - 1)) + Bits<T>::BIAS;
  const vec<T> shifted = magic - x * LOG2E, n = shifted - magic, f = -n - x * LOG2E;
  T coefficient[DEGREE + 1] = {1}; // ln(2)^k / k!
  for (int k = 1; k <= DEGREE; ++k) coefficient[k] = coefficient[k - 1] * 0.693147180559945309 / k;
  vec<T> y = splat<T>(coefficient[DEGREE]);
#pragma GCC unroll 16
  for (int k = DEGREE - 1; k >= 0; --k) y = y * f + coefficient[k];
  y *= (vec<T>)((vec<bits<T>>)shifted << M);
  return x > T(F ? 87.3 : 708.3) ? vec<T>{} : y; // a NaN stays one
}

// exp(x) - 1 of x <= 0.
template <class T> inline vec<T> expm1(vec<T> x) {
  const Exp<T> e(from_low<T>(x));
  return e.power * e.q + (e.power - 1);
}

// log(x) to 2 units in the last place, for normal x; -infinity at 0.
template <class T> inline vec<T> log(vec<T> x) {
  constexpr bool F = sizeof(T) == 4;
  constexpr int TERMS = F ? 4 : 10;
  constexpr auto M = Bits<T>::MANTISSA;
  constexpr auto HALF = bits<T>(F ? 0x3f3504f3 : 0x3fe6a09e667f3bcd); // the bits of sqrt(1/2)
  constexpr T LN2_HEAD = F ? 0x1.62e4p-1 : 0x1.62e42fefa38p-1;
  constexpr T LN2_TAIL = F ? T(0x1.62e42fefa39efp-1 - LN2_HEAD) : T(0x1.ef35793c76730p-45);
  const vec<bits<T>> whole = (vec<bits<T>>)x, power = (whole - HALF) >> M;
  const vec<T> n = __builtin_convertvector(power, vec<T>);
  const vec<T> m = (vec<T>)(whole - (power << M)); // in [sqrt(1/2), sqrt(2))
  const vec<T> s = (m - 1) / (m + 1), w = s * s;
  vec<T> q = splat<T>(T(1) / (2 * TERMS + 1)); // of 2 atanh(s)
#pragma GCC unroll 16
  for (int k = TERMS - 1; k > 0; --k) q = q * w + T(1) / (2 * k + 1);
  const vec<T> y = n * LN2_HEAD + (2 * s + (2 * s * w * q + n * LN2_TAIL));
  const vec<T> none = splat<T>(__builtin_nan("")), least = splat<T>(-__builtin_inf());
  return x > 0 ? y : x == 0 ? least : none;
}

template <class T> inline vec<T> sigmoid(vec<T> x) { return 1 / (1 + exp<T>(-x)); }

template <class T> inline vec<T> abs(vec<T> x) {
  return (vec<T>)((vec<bits<T>>)x & ~Bits<T>::SIGN);
}

// -1, 0 or 1; of a NaN, one of these.
template <class T> inline vec<T> sign(vec<T> x) {
#if defined(__AVX512F__)
  // what becomes of positive and negative numbers, infinities, 1, 0 and NaN: 8 is 0, 9 -1, a 1
  constexpr int TABLE = 0xa9a9a8aa;
  if constexpr (sizeof(T) == 4)
    return _mm512_maskz_fixupimm_ps(-1, x, x, _mm512_set1_epi32(TABLE), 0);
  else
    return _mm512_maskz_fixupimm_pd(-1, x, x, _mm512_set1_epi64(TABLE), 0);
#else
  const vec<T> one = (vec<T>)(((vec<bits<T>>)x & Bits<T>::SIGN) | (vec<bits<T>>)splat<T>(1));
  return x == 0 ? vec<T>{} : one;
#endif
}

// |x| with the sign of y.
template <class T> inline vec<T> signed_as(vec<T> x, vec<T> y) {
  return (vec<T>)((vec<bits<T>>)x | ((vec<bits<T>>)y & Bits<T>::SIGN));
}

// To 3 units in the last place.
template <class T> inline vec<T> tanh(vec<T> x) {
  const vec<T> e = expm1<T>(-2 * abs<T>(x));
  return signed_as<T>(abs<T>(e / (2 + e)), x);
}

// a's lanes where index < LANES, and b's beyond.
template <class T> inline vec<T> pick(vec<T> a, vec<T> b, vec<bits<T>> index) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return (vec<T>)_mm512_permutex2var_ps((__m512)a, (__m512i)index, (__m512)b);
  else
    return (vec<T>)_mm512_permutex2var_pd((__m512d)a, (__m512i)index, (__m512d)b);
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 4) {
    const __m256i i = (__m256i)index;
    const vec<T> left = (vec<T>)_mm256_permutevar8x32_ps((__m256)a, i);
    return index < LANES<T> ? left : (vec<T>)_mm256_permutevar8x32_ps((__m256)b, i);
  }
#endif
  T both[2 * LANES<T>];
  store(both, a), store(both + LANES<T>, b);
  vec<T> y;
  for (int i = 0; i < LANES<T>; ++i) y[i] = both[index[i]];
  return y;
}

// 2 atanh(r) = log((1 + r) / (1 - r)), for |r| <= 1 / 3.
template <class T> inline vec<T> twice_atanh(vec<T> r) {
  constexpr int TERMS = sizeof(T) == 4 ? 8 : 17;
  const vec<T> q = r * r;
  vec<T> sum = splat<T>(T(2) / (2 * TERMS - 1));
#pragma GCC unroll 17
  for (int k = TERMS - 2; k >= 0; --k) sum = sum * q + T(2) / (2 * k + 1);
  return sum * r;
}

// log(1 + x) of x in [0, 1].
template <class T> inline vec<T> log1p(vec<T> x) { return twice_atanh<T>(x / (2 + x)); }

template <class T> inline vec<T> atan(vec<T> x) {
  constexpr int TERMS = sizeof(T) == 4 ? 9 : 21;
  const vec<T> a = abs<T>(x);
  const auto large = a > T(2.4142135623730950), middle = a > T(0.41421356237309505);
  // atan(a) = pi / 2 + atan(-1 / a) = pi / 4 + atan((a - 1) / (a + 1))
  const vec<T> above = large ? splat<T>(-1) : middle ? a - 1 : a;
  const vec<T> r = above / (large ? a : middle ? a + 1 : splat<T>(1)), q = r * r;
  const vec<T> base = large    ? splat<T>(1.5707963267948966)
                      : middle ? splat<T>(0.78539816339744831)
                               : vec<T>{};
  vec<T> sum = splat<T>(T(TERMS % 2 ? 1 : -1) / (2 * TERMS - 1));
#pragma GCC unroll 21
  for (int k = TERMS - 2; k >= 0; --k) sum = sum * q + T(k % 2 ? -1 : 1) / (2 * k + 1);
  const vec<T> y = base + sum * r;
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
