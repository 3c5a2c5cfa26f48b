// The sampling loop of a WaveNet: kernels/wavenet_sample.py has the math and the layouts.
//
// A thread takes a group of up to 8 streams through all T steps; nothing is shared between groups.
// Every product is out[m][row] += sum_k a[m][k] w[row][k], a the group's vectors, w in panels.
#include "common.h"
#include "ops.h"
#include "sample.h"

#include <type_traits>

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int64_t GROUP = 8;
constexpr int64_t BLOCK = 16; // rows of one product of past taps: steps times streams

// Two bfloat16 to a word, the even column in the low half.
struct Brain {
  using word = int32_t;
  using sum = float;
  static vec<float> add(vec<float> s, vec<int32_t> x, vec<int32_t> y) {
#if defined(__AVX512BF16__)
    return (vec<float>)_mm512_dpbf16_ps((__m512)s, (__m512bh)x, (__m512bh)y);
#else
    const auto high = [](vec<int32_t> v) { return (vec<float>)(v & int32_t(0xffff0000)); };
    const auto low = [](vec<int32_t> v) { return (vec<float>)(v << 16); };
    return s + low(x) * low(y) + high(x) * high(y);
#endif
  }
};

// Four to a word: x unsigned bytes, y signed ones.
struct Byte {
  using word = int32_t;
  using sum = int32_t;
  static vec<int32_t> add(vec<int32_t> s, vec<int32_t> x, vec<int32_t> y) {
#if defined(__AVX512VNNI__)
    return (vec<int32_t>)_mm512_dpbusd_epi32((__m512i)s, (__m512i)x, (__m512i)y);
#elif defined(__AVX512BW__)
    const auto even = _mm512_madd_epi16(_mm512_and_si512((__m512i)x, _mm512_set1_epi16(255)),
                                        _mm512_srai_epi16(_mm512_slli_epi16((__m512i)y, 8), 8));
    const auto odd =
        _mm512_madd_epi16(_mm512_srli_epi16((__m512i)x, 8), _mm512_srai_epi16((__m512i)y, 8));
    return s + (vec<int32_t>)even + (vec<int32_t>)odd;
#elif defined(__AVX2__)
    const auto even = _mm256_madd_epi16(_mm256_and_si256((__m256i)x, _mm256_set1_epi16(255)),
                                        _mm256_srai_epi16(_mm256_slli_epi16((__m256i)y, 8), 8));
    const auto odd =
        _mm256_madd_epi16(_mm256_srli_epi16((__m256i)x, 8), _mm256_srai_epi16((__m256i)y, 8));
    return s + (vec<int32_t>)even + (vec<int32_t>)odd;
#else
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) s += ((x >> 8 * i) & 255) * ((y << (24 - 8 * i)) >> 24);
    return s;
#endif
  }
};

// The dtypes: T is what vectors hold, P how matrices multiply, COLUMNS what a word holds.
struct Float32 {
  using T = float;
  using P = Plain<float>;
  static constexpr int COLUMNS = 1;
};
struct Float64 {
  using T = double;
  using P = Plain<double>;
  static constexpr int COLUMNS = 1;
};
struct BFloat16 {
  using T = float;
  using P = Brain;
  static constexpr int COLUMNS = 2;
};
struct Int8 {
  using T = float;
  using P = Byte;
  static constexpr int COLUMNS = 4;
};

template <class D> struct Matrix {
  const typename D::P::word* words;
  const float* scales;
  const int32_t* offsets;
  int64_t rows, K; // K in words
};

// Vectors, ready to be multiplied.
template <class D> struct Operand {
  const typename D::P::word* words;
  int64_t stride;      // words from one vector to the next
  const float* scales; // of each vector, int8 only
};

// In the order of bits: Inf is above the numbers, a NaN above Inf.
float largest_magnitude(const float* x, int64_t count) {
  constexpr int W = LANES<int32_t>;
  constexpr int32_t MAGNITUDE = 0x7fffffff;
  vec<int32_t> v{};
  int64_t i = 0;
  for (; i + W <= count; i += W) {
    const vec<int32_t> y = (vec<int32_t>)load(x + i) & MAGNITUDE;
    v = y > v ? y : v;
  }
  int32_t top = largest<int32_t>(v);
  for (int32_t y; i < count; ++i) {
    memcpy(&y, x + i, sizeof y);
    top = (y & MAGNITUDE) > top ? y & MAGNITUDE : top;
  }
  float magnitude;
  memcpy(&magnitude, &top, sizeof top);
  return magnitude;
}

// Round to bfloat16, ties to even.
void narrow(int64_t count, const float* from, uint16_t* to) {
  typedef uint16_t half __attribute__((vector_size(2 * LANES<float>)));
  for (int64_t i = 0; i < count; i += LANES<float>) {
    const auto u = (vec<uint32_t>)load(from + i);
    const half h = __builtin_convertvector((u + 0x7fff + ((u >> 16) & 1)) >> 16, half);
    memcpy(to + i, &h, sizeof h);
  }
}

// Round x / scale to bytes of zero 128; returns the scale, NaN if a number is Inf or NaN.
float narrow(int64_t count, const float* from, uint8_t* to) {
  typedef uint8_t bytes __attribute__((vector_size(LANES<float>)));
  const float top = largest_magnitude(from, count), inverse = top > 0 ? 127 / top : 0;
  for (int64_t i = 0; i < count; i += LANES<float>) {
    const vec<float> x = load(from + i) * inverse + 128.5f;
    const bytes b = __builtin_convertvector(__builtin_convertvector(x, vec<int32_t>), bytes);
    memcpy(to + i, &b, sizeof b);
  }
  return top / 127 + 0 * top;
}

// M vectors x of length K, `stride` apart, as an operand; `words` and `scales` have room for them.
template <class D>
Operand<D> operand(int64_t M, const typename D::T* x, int64_t stride, int64_t K,
                   typename D::P::word* words, float* scales) {
  if constexpr (D::COLUMNS == 1) return {x, stride, nullptr};
  const int64_t width = (K + D::COLUMNS - 1) / D::COLUMNS;
  for (int64_t m = 0; m < M; ++m) {
    auto* to = words + m * width;
    if constexpr (D::COLUMNS == 2) {
      auto* narrowed = reinterpret_cast<uint16_t*>(to);
      narrow(K, x + m * stride, narrowed);
      if (K % 2) narrowed[K] = 0; // it meets a zero, and must not be a NaN
    }
    if constexpr (D::COLUMNS == 4)
      scales[m] = narrow(K, x + m * stride, reinterpret_cast<uint8_t*>(to));
  }
  return {words, width, scales};
}

// out[m][row] += sum_k x[m][k] w[row][k]; out's rows are padded to 16.
template <class D>
void multiply(const Matrix<D>& w, int64_t M, const Operand<D>& x, typename D::T* out,
              int64_t stride) {
  if constexpr (D::COLUMNS < 4) {
    product<typename D::P>(w.rows, w.K, w.words, M, x.words, x.stride, out, stride);
  } else {
    const int64_t rows = padded(w.rows);
    for (int64_t r = 0; r < rows; r += PANEL) {
      constexpr int W = LANES<float>;
      const int64_t N = rows - r < PANEL ? rows - r : PANEL;
      alignas(64) int32_t sums[BLOCK * PANEL];
      memset(sums, 0, M * N * sizeof *sums);
      gemm<typename D::P>(M, N, w.K, x.words, x.stride, w.words + r * w.K, N, sums, N);
      for (int64_t m = 0; m < M; ++m)
        for (int64_t i = 0; i < N; i += W) {
          const vec<int32_t> sum = load(sums + m * N + i) - load(w.offsets + r + i);
          const vec<float> scale = load(w.scales + r + i) * x.scales[m];
          float* to = out + m * stride + r + i;
          store<float>(to, load(to) + __builtin_convertvector(sum, vec<float>) * scale);
        }
    }
  }
}

struct Sizes {
  int64_t n, T, step, P, bases, C, F, hop, L, K, R, H, S, O, classes, mixtures;
};

template <class D> struct Model {
  using T = typename D::T;
  Matrix<D>*past, *now, *res; // (L,) each; a layer that has none is left empty
  Matrix<D> skip, hidden, out;
  const T *cond, *table, *embed, *res_bias, *skip_bias, *hidden_bias, *out_bias;
  const int64_t* dilations;
};

// What belongs to the streams: see ops.h.
template <class T> struct Streams {
  const double* uniforms;
  const int64_t* prefix;
  const T *base, *cond;
  T* rings;
  int64_t width; // of a stream's rings
  int64_t *history, *codes;
  T* logits;
  int64_t* failed;
  double temperature;
};

// What a group of M streams works in. Rows are padded for what vectors write beyond their end.
template <class D> struct Arrays {
  using T = typename D::T;
  int64_t R, G, S, O, LH, LG;
  T *y, *a, *h, *skip, *hidden, *out; // (M, R) (M, G) (M, LH) (M, S) (M, S) (M, O)
  T *past, *taps;                     // (L, BLOCK / M, M, G), (BLOCK, (K - 1) R)
  T *before, *after, *features;       // (M, LG): base + cond at the frames around t; (M, C)
  T* p;                               // (O,) of one stream
  typename D::P::word* words;
  float* scales;

  // Lay the arrays out from `memory`, or with nullptr only measure; returns the bytes.
  int64_t place(const Sizes& z, int64_t M, char* memory) {
    R = padded(z.R), G = padded(2 * z.H), S = padded(z.S), O = padded(z.O);
    LH = padded(z.L * z.H) + PAD, LG = padded(z.L * 2 * z.H);
    int64_t at = 0;
    const auto take = [&](auto*& array, int64_t count) {
      array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(memory + at);
      at += (count * int64_t(sizeof *array) + 63) / 64 * 64;
    };
    take(y, M * R), take(a, M * G), take(h, M * LH);
    take(skip, M * S), take(hidden, M * S), take(out, M * O);
    take(past, z.L * BLOCK * G), take(taps, BLOCK * (z.K - 1) * z.R);
    take(before, M * LG), take(after, M * LG), take(features, M * z.C);
    take(p, O);
    take(words, BLOCK * (LH + S + R * z.K) + PAD), take(scales, BLOCK);
    return at + 64;
  }
};

// A component by the first uniform, a place within it by the second, the nearest code to it.
template <class T>
int64_t choose_mixture(const T* z, int64_t mixtures, int64_t classes, const double* u,
                       double temperature, T* p) {
  const int64_t i = choose(z, mixtures, u[0], temperature, p);
  double x = z[mixtures + i];
  // 0 * inf is not a sample: quantiles are finite, and at the median it is the mean
  if (temperature > 0 && u[1] != 0.5) {
    double quantile = __builtin_log(u[1]) - __builtin_log1p(-u[1]);
    quantile = quantile < -40 ? -40 : quantile > 40 ? 40 : quantile;
    x += temperature * __builtin_exp(double(z[2 * mixtures + i])) * quantile;
  }
  x = x < -1 ? -1 : x > 1 ? 1 : x;
  return int64_t(__builtin_nearbyint((x + 1) * (double(classes - 1) / 2)));
}

// One thread's group of M streams.
template <class D> class Group : Arrays<D> {
  using T = typename D::T;
  using Real = std::conditional_t<sizeof(T) == 8, Float64, Float32>;
  using A = Arrays<D>;
  using A::R, A::G, A::S, A::O, A::LH, A::LG, A::y, A::a, A::h, A::skip, A::hidden, A::out, A::past,
      A::taps, A::before, A::after, A::features, A::p, A::words, A::scales;

  const Model<D>& w;
  const Sizes& z;
  const Streams<T>& s;
  const int64_t first, M, steps; // streams first ... first + M - 1; steps of past taps in a product

public:
  Group(const Model<D>& w, const Sizes& z, const Streams<T>& s, int64_t first, int64_t M,
        char* memory)
      : w(w), z(z), s(s), first(first), M(M), steps(BLOCK / M) {
    A::place(z, M, memory);
  }

  void run() {
    for (int64_t t = 0; t < z.T && !stopped(); ++t)
      if (!step(t)) return;
  }

private:
  Operand<D> ready(int64_t rows, const T* x, int64_t stride, int64_t K) {
    return operand<D>(rows, x, stride, K, words, scales);
  }

  // One code for each stream of the group; false where the logits are not finite.
  bool step(int64_t t) {
    conditions(t);
    int64_t ring = 0; // where the layer's ring starts in a stream's
    for (int64_t l = 0; l < z.L; ++l) {
      gate_inputs(l, t);
      if (l == 0) {
        embed();
      } else {
        const int64_t depth = (z.K - 1) * w.dilations[l];
        convolve(l, z.step + t, ring, depth);
        ring += depth * z.R;
      }
      gate(l);
      if (l < z.L - 1) {
        for (int64_t m = 0; m < M; ++m) accumulate(z.R, w.res_bias + l * z.R, y + m * R);
        multiply(w.res[l], M, ready(M, h + l * z.H, LH, z.H), y, R);
      }
    }
    if (t >= z.P || s.logits) {
      head();
      for (int64_t m = 0; m < M; ++m)
        if (!finite(m, t)) return false;
    }
    for (int64_t m = 0; m < M; ++m) emit(m, t);
    return true;
  }

  // base + cond at the frames around t, whenever t enters a frame.
  void conditions(int64_t t) {
    const int64_t phase = z.step % z.hop + t, f = phase / z.hop;
    if (t > 0 && (z.C == 0 || phase % z.hop)) return;
    if (t == 0 || z.hop == 1) {
      frame(f, before);
    } else {
      T* const old = before;
      before = after;
      after = old;
    }
    if (z.C && z.hop > 1) frame(f + 1 < z.F ? f + 1 : f, after);
  }

  void frame(int64_t f, T* to) {
    for (int64_t m = 0; m < M; ++m) {
      const T* base = s.base + (z.bases > 1 ? first + m : 0) * z.L * 2 * z.H;
      memcpy(to + m * LG, base, z.L * 2 * z.H * sizeof(T));
      for (int64_t c = 0; c < z.C; ++c)
        features[m * z.C + c] = s.cond[((first + m) * z.C + c) * z.F + f];
    }
    const Matrix<Real> cond{w.cond, nullptr, nullptr, z.L * 2 * z.H, z.C};
    if (z.C) multiply<Real>(cond, M, {features, z.C, nullptr}, to, LG);
  }

  // a = base + cond at t, between the frames before and after.
  void gate_inputs(int64_t l, int64_t t) {
    const bool between = z.C && z.hop > 1;
    const T fraction = T((z.step + t) % z.hop) / T(z.hop);
    for (int64_t m = 0; m < M; ++m) {
      const T *from = before + m * LG + l * 2 * z.H, *to = after + m * LG + l * 2 * z.H;
      if (!between) {
        copy(2 * z.H, from, a + m * G);
        continue;
      }
      for (int64_t i = 0; i < 2 * z.H; i += LANES<T>) {
        const vec<T> x = load(from + i);
        store<T>(a + m * G + i, x + fraction * (load(to + i) - x));
      }
    }
  }

  // Layer 0: the embedding of the last code, and its convolution from the table.
  void embed() {
    for (int64_t m = 0; m < M; ++m) {
      const int64_t* codes = s.history + (first + m) * z.K;
      for (int64_t k = 0; k < z.K; ++k)
        lookup(w.table + k * (z.mixtures ? 2 : z.classes) * 2 * z.H, 2 * z.H, codes[k], a + m * G);
      memset(y + m * R, 0, z.R * sizeof(T));
      lookup(w.embed, z.R, codes[z.K - 1], y + m * R);
    }
  }

  // to += the code's row; of a mixture, its value times the first row plus the second.
  void lookup(const T* table, int64_t width, int64_t code, T* to) const {
    if (code < 0) return;
    const T value = T(code) * T(2.0 / double(z.classes - 1)) - 1;
    const T* row = z.mixtures ? table : table + code * width;
    for (int64_t i = 0; i < width; ++i)
      to[i] += z.mixtures ? value * row[i] + row[width + i] : row[i];
  }

  // a += the convolution of layer l at step t; the ring takes y.
  void convolve(int64_t l, int64_t t, int64_t ring, int64_t depth) {
    int64_t together = steps < w.dilations[l] ? steps : w.dilations[l];
    while (together & (together - 1)) together &= together - 1;
    T* products = past + l * steps * M * G;
    const int64_t at = t % together;
    if (at == 0 || t == z.step) past_taps(l, t, together - at, ring, depth, products + at * M * G);
    for (int64_t m = 0; m < M; ++m) {
      accumulate(2 * z.H, products + (at * M + m) * G, a + m * G);
      T* slots = s.rings + (first + m) * s.width + ring;
      memcpy(slots + t % depth * z.R, y + m * R, z.R * sizeof(T));
    }
    multiply(w.now[l], M, ready(M, y, R, z.R), a, G);
  }

  // What the past taps of layer l add at steps t ... t + count - 1: all of them lie in the ring.
  void past_taps(int64_t l, int64_t t, int64_t count, int64_t ring, int64_t depth, T* products) {
    const int64_t K = (z.K - 1) * z.R;
    T* to = taps;
    for (int64_t i = t; i < t + count; ++i)
      for (int64_t m = 0; m < M; ++m)
        for (int64_t k = z.K - 1; k > 0; --k, to += z.R) {
          const T* slots = s.rings + (first + m) * s.width + ring;
          const int64_t slot = (i - k * w.dilations[l] + depth) % depth;
          memcpy(to, slots + slot * z.R, z.R * sizeof(T));
        }
    memset(products, 0, count * M * G * sizeof(T));
    multiply(w.past[l], count * M, ready(count * M, taps, K, K), products, G);
  }

  void gate(int64_t l) {
    for (int64_t m = 0; m < M; ++m)
      for (int64_t i = 0; i < z.H; i += LANES<T>) {
        const T* from = a + m * G + i;
        store<T>(h + m * LH + l * z.H + i, gated<T>(load(from), load(from + z.H)));
      }
  }

  void head() {
    for (int64_t m = 0; m < M; ++m) {
      copy(z.S, w.skip_bias, skip + m * S);
      copy(z.S, w.hidden_bias, hidden + m * S);
      copy(z.O, w.out_bias, out + m * O);
    }
    multiply(w.skip, M, ready(M, h, LH, z.L * z.H), skip, S);
    relu(M * S, skip);
    multiply(w.hidden, M, ready(M, skip, S, z.S), hidden, S);
    relu(M * S, hidden);
    multiply(w.out, M, ready(M, hidden, S, z.S), out, O);
  }

  bool finite(int64_t m, int64_t t) {
    if (all_finite(O, out + m * O)) return true;
    s.failed[first + m] = z.step + t;
    return false;
  }

  void emit(int64_t m, int64_t t) {
    const int64_t stream = first + m;
    const T* logits = out + m * O;
    if (s.logits) memcpy(s.logits + (stream * z.T + t) * z.O, logits, z.O * sizeof(T));
    int64_t code;
    if (t < z.P)
      code = s.prefix[stream * z.P + t];
    else if (z.mixtures)
      code = choose_mixture(logits, z.mixtures, z.classes, s.uniforms + (stream * z.T + t) * 2,
                            s.temperature, p);
    else
      code = choose(logits, z.O, s.uniforms[stream * z.T + t], s.temperature, p);
    s.codes[stream * z.T + t] = code;
    int64_t* codes = s.history + stream * z.K;
    memmove(codes, codes + 1, (z.K - 1) * sizeof *codes);
    codes[z.K - 1] = code;
  }
};

template <class D>
void sample(const Model<D>& w, const Sizes& z, const Streams<typename D::T>& s, int64_t threads) {
  // As few groups as hold all streams, but one for each thread, of sizes as equal as can be.
  int64_t groups = (z.n + GROUP - 1) / GROUP;
  groups = (groups + threads - 1) / threads * threads;
  groups = groups < z.n ? groups : z.n;
  const int64_t bytes = Arrays<D>().place(z, GROUP, nullptr);
  Scratch scratch(groups * bytes);
  each(groups, threads, [&](int64_t g) {
    const int64_t first = g * z.n / groups, M = (g + 1) * z.n / groups - first;
    Group<D>(w, z, s, first, M, scratch.data + g * bytes).run();
  });
}

template <class D>
void start(const void* words, const float* scales, const int32_t* offsets, const void* cond_words,
           const void* table, const void* embed, const void* biases, const int64_t* dilations,
           const Sizes& z, const Streams<typename D::T>& s, int64_t threads) {
  using T = typename D::T;
  using word = typename D::P::word;
  const word* at = static_cast<const word*>(words);
  const auto next = [&](int64_t rows, int64_t columns) {
    const Matrix<D> matrix{at, scales, offsets, rows, (columns + D::COLUMNS - 1) / D::COLUMNS};
    at += padded(rows) * matrix.K;
    if (D::COLUMNS == 4) scales += padded(rows), offsets += padded(rows);
    return matrix;
  };
  Scratch memory(3 * z.L * sizeof(Matrix<D>));
  auto* matrices = reinterpret_cast<Matrix<D>*>(memory.data);
  Model<D> w{};
  w.past = matrices, w.now = matrices + z.L, w.res = matrices + 2 * z.L;
  for (int64_t l = 0; l < z.L; ++l) {
    if (l > 0) w.past[l] = next(2 * z.H, (z.K - 1) * z.R), w.now[l] = next(2 * z.H, z.R);
    if (l < z.L - 1) w.res[l] = next(z.R, z.H);
  }
  w.skip = next(z.S, z.L * z.H), w.hidden = next(z.S, z.S), w.out = next(z.O, z.S);
  w.cond = static_cast<const T*>(cond_words);
  w.table = static_cast<const T*>(table), w.embed = static_cast<const T*>(embed);
  w.res_bias = static_cast<const T*>(biases);
  w.skip_bias = w.res_bias + (z.L - 1) * z.R;
  w.hidden_bias = w.skip_bias + z.S, w.out_bias = w.hidden_bias + z.S;
  w.dilations = dilations;
  sample<D>(w, z, s, threads);
}

} // namespace

void wavenet_sample(int64_t dtype, const void* words, const float* scales, const int32_t* offsets,
                    const void* cond_words, const void* table, const void* embed,
                    const void* biases, const double* uniforms, const int64_t* prefix,
                    const void* base, const void* cond, const int64_t* dilations, void* rings,
                    int64_t* history, int64_t* codes, void* logits, int64_t* failed, int64_t n,
                    int64_t T, int64_t step, int64_t P, int64_t bases, int64_t C, int64_t F,
                    int64_t hop, int64_t L, int64_t K, int64_t R, int64_t H, int64_t S, int64_t O,
                    int64_t classes, int64_t mixtures, double temperature, int64_t threads) {
  const Sizes z{n, T, step, P, bases, C, F, hop, L, K, R, H, S, O, classes, mixtures};
  int64_t width = 0;
  for (int64_t l = 1; l < L; ++l) width += (K - 1) * dilations[l] * R;
  const auto run = [&](auto d) {
    using D = decltype(d);
    using Real = typename D::T;
    const Streams<Real> s{uniforms,
                          prefix,
                          static_cast<const Real*>(base),
                          static_cast<const Real*>(cond),
                          static_cast<Real*>(rings),
                          width,
                          history,
                          codes,
                          static_cast<Real*>(logits),
                          failed,
                          temperature};
    start<D>(words, scales, offsets, cond_words, table, embed, biases, dilations, z, s, threads);
  };
  if (dtype == 0) run(Float32{});
  if (dtype == 1) run(Float64{});
  if (dtype == 2) run(BFloat16{});
  if (dtype == 3) run(Int8{});
}

} // namespace fastgen::FASTGEN_ISA
