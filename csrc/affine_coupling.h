// What affine_coupling and its gradients share: where the parts of x and h lie, and how they get
// into tiles in the first cache, a part after the other, and out again.
#pragma once
#include "common.h"
#include "simd.h"

namespace fastgen::FASTGEN_ISA {
namespace {

struct bfloat16 {
  uint16_t bits;
};
template <class T> struct Computed {
  using type = T;
};
template <> struct Computed<bfloat16> {
  using type = float;
};
template <class T> using computed = typename Computed<T>::type;

// A vector of numbers as they are computed with.
template <class real> inline vec<real> widen(const real* p) { return load(p); }
inline vec<float> widen(const bfloat16* p) {
  typedef uint16_t half __attribute__((vector_size(2 * LANES<float>)));
  half h;
  memcpy(&h, p, sizeof h);
  return (vec<float>)(__builtin_convertvector(h, vec<int32_t>) << 16);
}

template <class real> inline void narrow(real* p, vec<real> v) { store(p, v); }
inline void narrow(bfloat16* p, vec<float> v) {
  typedef uint16_t half __attribute__((vector_size(2 * LANES<float>)));
  vec<int32_t> b = (vec<int32_t>)v;
  b = v == v ? b + 0x7FFF + (b >> 16 & 1) : b | 0x400000; // ties to even; a NaN stays one
  const half h = __builtin_convertvector(b >> 16, half);
  memcpy(p, &h, sizeof h);
}

// The same past the caches, where that can be: p is aligned then.
template <class real> inline void narrow(real* p, vec<real> v, bool past) {
  past ? stream<real>(p, v) : store(p, v);
}
inline void narrow(bfloat16* p, vec<float> v, bool) { narrow(p, v); }
inline bool aligned(const void* p) { return uintptr_t(p) % 64 == 0; }

template <class real> inline real widen1(real x) { return x; }
inline float widen1(bfloat16 x) {
  const uint32_t b = uint32_t(x.bits) << 16;
  float y;
  memcpy(&y, &b, sizeof y);
  return y;
}

template <class real> inline void narrow1(real* p, real x) { *p = x; }
inline void narrow1(bfloat16* p, float x) {
  uint32_t b;
  memcpy(&b, &x, sizeof b);
  p->bits = (x == x ? b + 0x7FFF + (b >> 16 & 1) : b | 0x400000) >> 16;
}

// n numbers, of each `step`-th of `from`.
template <class T> inline void take(computed<T>* to, const T* from, int64_t n, int64_t step = 1) {
  constexpr int64_t L = LANES<computed<T>>;
  int64_t i = 0;
  if (step == 1)
    for (; i + L <= n; i += L) store(to + i, widen(from + i));
#pragma GCC unroll 1
  for (; i < n; ++i) to[i] = widen1(from[i * step]);
}

template <class T>
inline void put_row(T* to, const computed<T>* from, int64_t n, int64_t step, bool past) {
  constexpr int64_t L = LANES<computed<T>>;
  int64_t i = 0;
  past = past && aligned(to);
  if (step == 1)
    for (; i + L <= n; i += L) narrow(to + i, load(from + i), past);
#pragma GCC unroll 1
  for (; i < n; ++i) narrow1(to + i * step, from[i]);
}

template <class T> inline void copy(T* to, const T* from, int64_t n, bool past) {
  constexpr int64_t L = LANES<computed<T>>;
  if (!past || sizeof(T) < 4 || n % L || !aligned(to)) return (void)memcpy(to, from, n * sizeof(T));
  for (int64_t i = 0; i < n; i += L) narrow(to + i, widen(from + i), true);
}

// Two parts of the same rows: a has n numbers of each row from `first` on, each `step`-th, b the
// others; where it turns, they change places from row to row.
template <class T> class Pair {
public:
  using real = computed<T>;
  Pair(int64_t width, int64_t n, int64_t first, int64_t step, bool turns = false)
      : width(width), n(n), first(first), step(step), per(1), turns(turns) {
    if (step == 2 && width == 2 * n && !turns) per = n, this->n = 1, this->width = 2;
    paired = this->width == 2 * this->n && L % (turns ? 2 * this->n : this->n) == 0;
    whole = !paired && width == 2 * n && step == 1 && n % L == 0;
    for (int64_t i = 0; i < 2 * L && (paired || whole); ++i) {
      const int64_t half = paired ? this->n : L, row = i / (2 * half), c = i % (2 * half);
      const int64_t from = paired ? start(row) : first ? L : 0;
      const bool is_a = step == 2 ? c % 2 == from : c >= from && c < from + half;
      const int64_t place = row * half + (step == 2 ? c / 2 : c % half);
      into[i / L][i % L] = is_a ? place : L + place;
      (is_a ? from_a : from_b)[place] = i;
    }
  }

  // Whether a vector of each part lies in two vectors, which `get` and `put` find: from + 2 i on,
  // or where a row has several, n numbers apart, with i `off` numbers into the row.
  bool fits() const { return paired || whole; }
  void get(const T* from, int64_t i, int64_t off, vec<real>& a, vec<real>& b) const {
    from += 2 * i - (whole ? off : 0);
    const vec<real> low = widen(from), high = widen(from + (whole ? n : L));
    a = pick<real>(low, high, from_a), b = pick<real>(low, high, from_b);
  }
  void put(T* to, int64_t i, int64_t off, vec<real> a, vec<real> b, bool past) const {
    to += 2 * i - (whole ? off : 0);
    narrow(to, pick<real>(a, b, into[0]), past);
    narrow(to + (whole ? n : L), pick<real>(a, b, into[1]), past);
  }

  void take_rows(int64_t rows, const T* from, real* a, real* b) const {
    rows *= per;
    int64_t i = 0;
    for (vec<real> of_a, of_b; paired && i + L <= rows * n; i += L) {
      get(from, i, 0, of_a, of_b);
      store(a + i, of_a), store(b + i, of_b);
    }
    for (int64_t row = i / n; row < rows; ++row) {
      take(a + row * n, from + row * width + start(row), n, step);
      take(b + row * (width - n), from + row * width + rest(row), width - n, step);
    }
  }

  void put_rows(int64_t rows, T* to, const real* a, const real* b, bool past) const {
    rows *= per;
    int64_t i = 0;
    const bool vectors_past = past && aligned(to);
    for (; paired && i + L <= rows * n; i += L)
      put(to, i, 0, load(a + i), load(b + i), vectors_past);
    for (int64_t row = i / n; row < rows; ++row) {
      put_row(to + row * width + start(row), a + row * n, n, step, past);
      put_row(to + row * width + rest(row), b + row * (width - n), width - n, step, past);
    }
  }

  vec<real> sums(vec<real> low, vec<real> high) const {
    return pick<real>(low, high, from_a) + pick<real>(low, high, from_b);
  }

private:
  static constexpr int64_t L = LANES<real>;
  int64_t start(int64_t row) const { return turns ? first ^ (row & 1) : first; }
  int64_t rest(int64_t row) const { return step == 2 ? 1 - start(row) : first ? 0 : n; }

  int64_t width, n, first, step;
  int64_t per; // how often what is seen as a row is in a row
  bool turns;
  bool paired; // whether two vectors of rows have a vector of each part
  bool whole;  // whether each part of a row is vectors
  vec<bits<real>> from_a, from_b, into[2];
};

enum Scale { TANH, SIGMOID, ATAN, SOFTPLUS, EXP, ADDITIVE };
enum Split { WHOLE, CHANNEL, ALTERNATE, CHECKERBOARD };
enum Layout { APART, ST, TS, STST, TSTS };

// x (B, C, P); what changes (B, K, S); h (B, K or 2K, S). W: pixels of a row of a checkerboard.
struct Sizes {
  int64_t B, C, K, S, W, split, swap, layout;
  bool additive;

  // A vector a sample, or else a channel's S numbers, or a row's of a checkerboard.
  bool vectors() const { return S == 1 && split != CHECKERBOARD; }
  int64_t n() const { return vectors() ? K : split == CHECKERBOARD ? W / 2 : S; }
  int64_t runs() const { return vectors() ? 1 : S / n(); } // of a channel
  bool interleaved() const { return layout >= STST; }
  bool joined() const { return layout != APART && !additive; }
  bool paired_x() const { return split == CHECKERBOARD || (vectors() && split != WHOLE); }
  bool paired_h() const { return vectors() && joined(); }
  bool plain() const { return !paired_x() && !vectors(); }
  int64_t pixels() const { return split == CHECKERBOARD ? 2 * S : S; }
  int64_t first() const { return swap ? 0 : split == ALTERNATE ? 1 : C - K; } // channel
  int64_t channel(int64_t k) const {
    return split == CHANNEL ? first() + k : split == ALTERNATE ? 2 * k + !swap : k;
  }
  int64_t kept_channel(int64_t k) const {
    return split == CHANNEL ? (swap ? K : 0) + k : 2 * k + swap;
  }
  // The place of channel k in h, of s and of t.
  int64_t s_row(int64_t k) const { return row(k, layout == TS || layout == TSTS); }
  int64_t t_row(int64_t k) const { return row(k, layout == ST || layout == STST); }
  int64_t row(int64_t k, bool second) const {
    return !joined() ? k : interleaved() ? 2 * k + second : second * K + k;
  }
};

constexpr int64_t TILE = 512, CHUNK = 1 << 15;

// How the work is cut, in the same way for any number of threads: groups of samples, and where one
// has more than CHUNK numbers, parts of its channels.
struct Cut {
  int64_t samples, groups, channels, parts;
  explicit Cut(const Sizes& s) {
    const int64_t E = s.K * s.S > 0 ? s.K * s.S : 1;
    samples = E < CHUNK ? CHUNK / E : 1;
    groups = (s.B + samples - 1) / samples;
    channels = E > CHUNK && !s.vectors() ? (CHUNK > s.S ? CHUNK / s.S : 1) : s.K;
    parts = (s.K + channels - 1) / channels;
  }
};

// Numbers that lie together in x and in h, and as many in a tile from `at` on.
struct Run {
  int64_t b, k, at, n, rows; // rows of vectors or of a checkerboard
  int64_t x, s, t;           // where it begins
  bool odd;                  // of a checkerboard: whether its second pixel changes

  // What is left of a run of vectors after `numbers` of those that change, whole rows of which as
  // many are kept; s and t side by side.
  Run after(int64_t numbers) const {
    Run rest = *this;
    rest.rows -= rows * numbers / n, rest.n -= numbers, rest.at += numbers;
    rest.x += 2 * numbers, rest.s += 2 * numbers, rest.t += 2 * numbers;
    return rest;
  }
};

// x and h of one dtype, with how to get at them.
template <class T> struct Access {
  using real = computed<T>;
  Sizes s;
  bool past, short_rows; // of a checkerboard: some to a vector
  Pair<T> even, odd, h;
  Pair<real> pairs{2, 1, 0, 2};
  Access(const Sizes& s, bool past)
      : s(s), past(past), short_rows(s.split == CHECKERBOARD && LANES<real> % s.W == 0),
        even(s.vectors() ? Pair<T>(s.C, s.K, s.first(), s.split == ALTERNATE ? 2 : 1) : board(0)),
        odd(board(1)), h(2 * s.K, s.K, s.s_row(0), s.interleaved() ? 2 : 1) {}
  Pair<T> board(int64_t first) const {
    return short_rows ? Pair<T>(s.W, s.W / 2, first, 2, true) : Pair<T>(2, 1, first, 2);
  }

  // How many of a tile's numbers are computed where they lie, in pairs of vectors.
  int64_t in_pairs(int64_t numbers) const {
    constexpr int64_t L = LANES<real>;
    const bool rows = s.K % L == 0 || L % s.K == 0; // else a vector may end within one
    return rows && s.paired_h() && s.paired_x() && even.fits() && h.fits() ? numbers / L * L : 0;
  }

  // Call f(pair, rows, where in x, in what changes, in what is kept) until the run is done.
  template <class F> void pairs_of(const Run& r, F f) const {
    if (s.vectors()) return f(even, r.rows, r.x, r.at, int64_t(0));
    if (short_rows) return f(r.odd ? odd : even, r.rows, r.x, r.at, r.at);
    const int64_t n = s.W / 2;
    for (int64_t i = 0; i < r.rows; ++i)
      f(r.odd != bool(i & 1) ? odd : even, n, r.x + i * s.W, r.at + i * n, r.at + i * n);
  }
  void take_x(const Run& r, const T* x, real* changed, real* kept) const {
    if (!s.paired_x()) return take(changed + r.at, x + r.x, r.n);
    pairs_of(r, [&](const Pair<T>& pair, int64_t rows, int64_t from, int64_t at, int64_t kept_at) {
      pair.take_rows(rows, x + from, changed + at, kept + kept_at);
    });
  }
  void put_x(const Run& r, T* x, const real* changed, const real* kept) const {
    if (!s.paired_x()) return put_row(x + r.x, changed + r.at, r.n, 1, past);
    pairs_of(r, [&](const Pair<T>& pair, int64_t rows, int64_t to, int64_t at, int64_t kept_at) {
      pair.put_rows(rows, x + to, changed + at, kept + kept_at, past);
    });
  }

  void take_h(const Run& r, const T* hs, const T* ht, real* to_s, real* to_t) const {
    if (s.paired_h()) return h.take_rows(r.rows, hs + r.s, to_s + r.at, to_t + r.at);
    if (!s.additive) take(to_s + r.at, hs + r.s, r.n);
    if (ht) take(to_t + r.at, ht + r.t, r.n);
  }
  void put_h(const Run& r, T* hs, T* ht, const real* from_s, const real* from_t) const {
    if (s.paired_h()) return h.put_rows(r.rows, hs + r.s, from_s + r.at, from_t + r.at, past);
    put_row(hs + r.s, from_s + r.at, r.n, 1, past);
    put_row(ht + r.t, from_t + r.at, r.n, 1, past);
  }
};

constexpr int64_t RUNS = 128; // of a tile, at most

// Numbers that a tile has room for, whole vectors: a sample's, where that is a vector.
template <class real> int64_t room(const Sizes& s) {
  const int64_t least = s.vectors() ? s.C : s.split == CHECKERBOARD ? s.n() : 0;
  const int64_t L = LANES<real>;
  return ((least > TILE ? least : TILE) + L - 1) / L * L;
}

// Call f(runs, count, numbers) for each tile of a task, `room` numbers at most.
template <class F> void each_tile(const Sizes& s, const Cut& cut, int64_t task, int64_t room, F f) {
  const int64_t part = task % cut.parts, b0 = task / cut.parts * cut.samples;
  const int64_t b1 = b0 + cut.samples < s.B ? b0 + cut.samples : s.B;
  const int64_t k0 = part * cut.channels, k1 = k0 + cut.channels < s.K ? k0 + cut.channels : s.K;
  const int64_t n = s.n(), h_rows = s.joined() ? 2 * s.K : s.K;
  if (s.vectors()) {
    const int64_t most = room / (s.C - s.K > s.K ? s.C - s.K : s.K);
    for (int64_t b = b0; b < b1; b += most) {
      const int64_t rows = b1 - b < most ? b1 - b : most, h = b * h_rows;
      const Run run{b, 0, 0, rows * n, rows, b * s.C, h, h, false};
      f(&run, 1, run.n);
    }
    return;
  }
  Run runs[RUNS];
  int64_t count = 0, used = 0;
  const auto flush = [&] {
    if (count) f(runs, count, used);
    count = used = 0;
  };
  for (int64_t b = b0; b < b1; ++b)
    for (int64_t k = k0; k < k1; ++k) {
      const int64_t hs = (b * h_rows + s.s_row(k)) * s.S, ht = (b * h_rows + s.t_row(k)) * s.S;
      const int64_t x = (b * s.C + s.channel(k)) * s.pixels();
      const int64_t unit = s.split == CHECKERBOARD ? n : 1;
      for (int64_t p = 0, size; p < s.S; p += size) {
        if (used + unit > room || count == RUNS) flush();
        size = s.S - p < room - used ? s.S - p : (room - used) / unit * unit;
        const bool odd = ((p / unit & 1) != 0) != !s.swap;
        runs[count++] = {b,      k,      used, size, size / unit, x + (s.paired_x() ? 2 * p : p),
                         hs + p, ht + p, odd};
        used += size;
      }
    }
  flush();
}

// Copy a task's share of the channels that are kept, where they lie apart from those that change.
template <class T>
void copy_kept(const Sizes& s, const Cut& cut, int64_t task, T* to, const T* from, bool past) {
  if (s.split == WHOLE || s.paired_x()) return;
  const int64_t part = task % cut.parts, b0 = task / cut.parts * cut.samples, kept = s.C - s.K;
  const int64_t k0 = kept * part / cut.parts, k1 = kept * (part + 1) / cut.parts;
  const int64_t many = s.split == CHANNEL ? k1 - k0 : 1;
  for (int64_t b = b0; b < b0 + cut.samples && b < s.B; ++b)
    for (int64_t k = k0; k < k1; k += many) {
      const int64_t at = (b * s.C + s.kept_channel(k)) * s.S;
      copy(to + at, from + at, many * s.S, past);
    }
}

// to[i] = the sum of row i of a (rows, n), which is overwritten; pairs, then pairs of pairs.
template <class real, class F>
void sum_rows(const Pair<real>& pairs, real* a, int64_t rows, int64_t n, F to) {
  constexpr int64_t L = LANES<real>;
  for (; n % 2 == 0 && n > 1; n /= 2) {
    const int64_t half = rows * n / 2;
    int64_t i = 0;
    for (; i + L <= half; i += L) {
      const vec<real> low = load(a + 2 * i), high = load(a + 2 * i + L);
      store(a + i, pairs.sums(low, high));
    }
    for (; i < half; ++i) a[i] = a[2 * i] + a[2 * i + 1];
  }
  for (int64_t row = 0; row < rows; ++row) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += a[row * n + i];
    to(row, sum);
  }
}

// The maps f of kernels/affine_coupling.py, and their derivatives.
template <class T> struct Tanh {
  static vec<T> map(vec<T> s) { return tanh<T>(s); }
  static vec<T> map(vec<T> s, vec<T>& slope) {
    const vec<T> f = tanh<T>(s);
    slope = 1 - f * f;
    return f;
  }
};

template <class T> struct Sigmoid {
  static vec<T> map(vec<T> s) {
    const vec<T> z = s + 2, least = z < 0 ? z : vec<T>{};
    return least - log1p<T>(exp<T>(-abs<T>(z)));
  }
  static vec<T> map(vec<T> s, vec<T>& slope) {
    const vec<T> z = s + 2, least = z < 0 ? z : vec<T>{}, e = exp<T>(-abs<T>(z));
    slope = (z < 0 ? splat<T>(1) : e) / (1 + e);
    return least - log1p<T>(e);
  }
};

template <class T> struct Atan {
  static vec<T> map(vec<T> s) { return atan<T>(s); }
  static vec<T> map(vec<T> s, vec<T>& slope) {
    slope = 1 / (1 + s * s);
    return atan<T>(s);
  }
};

template <class T> struct Softplus {
  static constexpr T LINEAR = sizeof(T) == 4 ? -20 : -40; // below, log softplus(s) = s
  static vec<T> map(vec<T> s) {
    vec<T> slope;
    return map(s, slope);
  }
  static vec<T> map(vec<T> s, vec<T>& slope) {
    const vec<T> e = exp<T>(-abs<T>(s)), y = (s > 0 ? s : vec<T>{}) + log1p<T>(e);
    const auto low = s < LINEAR;
    slope = low ? splat<T>(1) : (s > 0 ? splat<T>(1) : e) / ((1 + e) * y);
    return low ? s : log<T>(y);
  }
};

template <class T> struct Exponent {
  static vec<T> map(vec<T> s) { return s; }
  static vec<T> map(vec<T> s, vec<T>& slope) {
    slope = splat<T>(1);
    return s;
  }
};

constexpr int BOUND = 80;

template <class T> inline vec<T> bounded(vec<T> l) {
  return l < T(-BOUND) ? splat<T>(-BOUND) : l > T(BOUND) ? splat<T>(BOUND) : l;
}

// to = of each number of a run its channel's value.
template <class real>
void spread_channels(const Sizes& s, const Run& r, const real* from, real* to) {
  if (!s.vectors())
    for (int64_t i = 0; i < r.n; ++i) to[r.at + i] = from[r.k];
  else
    for (int64_t row = 0; row < r.rows; ++row)
      for (int64_t k = 0; k < s.K; ++k) to[row * s.K + k] = from[k];
}

// to = of each number of a run its sample's value, or zero without any.
template <class real>
void spread_samples(const Sizes& s, const Run& r, const real* from, real* to) {
  constexpr int64_t L = LANES<real>;
  const int64_t rows = s.vectors() ? r.rows : 1, n = r.n / rows;
  int64_t row = 0;
  if (from && L % n == 0) {
    vec<bits<real>> index;
    for (int64_t i = 0; i < L; ++i) index[i] = i / n;
    for (vec<real> values; row + L <= rows; row += L / n) {
      values = load(from + r.b + row);
      store(to + r.at + row * n, pick<real>(values, values, index));
    }
  }
  for (; row < rows; ++row) {
    const real value = from ? from[r.b + row] : 0;
    for (int64_t i = 0; i < n; ++i) to[r.at + row * n + i] = value;
  }
}

// Whether all numbers are in whole, aligned vectors, so that they are computed where they lie.
template <class T> bool in_place(const Sizes& s) {
  return s.plain() && s.S % LANES<computed<T>> == 0;
}

constexpr int64_t LARGE = 1 << 22; // bytes of what will not stay in the second cache

// Whether what is written goes past the caches.
template <class T> bool large(const Sizes& s) {
  return s.B * s.C * s.S * int64_t(sizeof(T)) >= LARGE;
}

} // namespace
} // namespace fastgen::FASTGEN_ISA
