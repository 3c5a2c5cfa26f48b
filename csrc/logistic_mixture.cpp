// A discretized mixture of logistics and its gradient: kernels/logistic_mixture.py has the math.
#include "common.h"
#include "ops.h"
#include "simd.h"

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int64_t TILE = 64; // places that a row of a tile has
constexpr int64_t RUN = 8;   // tiles of a task

template <class real> struct Mixture {
  static constexpr int W = LANES<real>;
  using v = vec<real>;
  using integers = vec<bits<real>>;

  const real* params;   // (B, K, T)
  const int64_t* codes; // (B, C, T)
  real* log_p;          // (B, T), or null
  const real* dlog_p;   // (B, T), or null
  real* dparams;        // (B, K, T), or null
  int64_t B, C, M, T, classes;
  real floor;

  int64_t rows() const { return M * (1 + 2 * C + C * (C - 1) / 2); }
  int64_t tiles() const { return (T + TILE - 1) / TILE; }

  // What a tile of n places has in memory, each row TILE apart.
  struct Tile {
    real* p;      // (K,)
    real* x;      // (C,): values
    real* end;    // (C,): -1 at the first code, 1 at the last
    real* slopes; // (K,): the gradient
    real *t, *f;  // (M, W): a component's p is f e^t
    real* share;  // (M, W): softmax(logits), not yet divided
  };
  int64_t memory() const { return (2 * rows() + 2 * C) * TILE + 3 * M * W; }
  Tile carve(real* at) const {
    Tile i;
    i.p = at, i.x = i.p + rows() * TILE, i.end = i.x + C * TILE, i.slopes = i.end + C * TILE;
    i.t = i.slopes + rows() * TILE, i.f = i.t + M * W, i.share = i.f + M * W;
    return i;
  }

  static void copy(const real* from, real* to, int64_t n) {
    if (n == TILE)
      for (int64_t j = 0; j < TILE; j += W) store(to + j, load(from + j));
    else
      for (int64_t j = 0; j < n; ++j) to[j] = from[j];
  }

  // A tile's part of each row of params, and of the codes.
  void take(const Tile& i, int64_t b, int64_t at, int64_t n) const {
    for (int64_t k = 0; k < rows(); ++k)
      copy(params + (b * rows() + k) * T + at, i.p + k * TILE, n);
    const double step = 2. / double(classes - 1);
    for (int64_t c = 0; c < C; ++c)
      for (int64_t j = 0; j < n; ++j) {
        const int64_t code = codes[(b * C + c) * T + at + j];
        i.x[c * TILE + j] = real(double(code) * step - 1);
        i.end[c * TILE + j] = code == 0 ? -1 : code == classes - 1 ? 1 : 0;
      }
  }

  // A component's p, but for the sum of the softmax: e^t 2^power above / below.
  struct Part {
    v t, above, below;
    integers power;
  };

  // Multiply a part by a color's mass; GRAD: the slopes of its logarithm at mean and log-scale.
  template <bool GRAD> void add_mass(Part& part, v mean, v s, v x, v end, v* dmean, v* ds) const {
    const real half = real(1. / double(classes - 1)), most = 60;
    const auto first = end < 0, last = end > 0;
    const auto inside = (s >= floor) & (s <= most);
    const v rate = exp<real>(-(s < floor ? splat(floor) : s > most ? splat(most) : s));
    const v z = x - mean, a = rate * (z + half), b = rate * (z - half), zero{};
    v ea = exp<real>(-abs<real>(a)), eb = exp<real>(-abs<real>(b));
    const Exp<real> e(from_low<real>(-2 * half * rate)); // of b - a
    v inner = -(e.power * e.q + (e.power - 1));
    const v na = last ? zero : a > 0 ? ea : splat<real>(1);  // sigmoid(-a) (1 + ea)
    const v nb = first ? zero : b > 0 ? splat<real>(1) : eb; // sigmoid(b) (1 + eb)
    ea = last ? zero : ea, eb = first ? zero : eb;
    inner = end != 0 ? splat<real>(1) : inner;
    part.t += (last ? zero : a < 0 ? a : zero) - (first ? zero : b > 0 ? b : zero);
    const v outer = (1 + ea) * (1 + eb);
    part.below *= outer;
    constexpr auto DIGITS = Bits<real>::MANTISSA;
    constexpr auto ONE = bits<real>(Bits<real>::BIAS) << DIGITS;
    const integers whole = (integers)inner;
    part.power += (whole >> DIGITS) - Bits<real>::BIAS;
    part.above *= (v)((whole & ((bits<real>(1) << DIGITS) - 1)) | ONE);
    if constexpr (GRAD) {
      const v inverse = 1 / (outer * inner), shared = inverse * inner;
      const v pa = na * (1 + eb) * shared, pb = nb * (1 + ea) * shared;
      const v left = 2 * half * rate * (e.power * e.q + e.power) * (inverse * outer);
      *dmean = rate * (pb - pa);
      const v slope = b * pb - a * pa - (end != 0 ? zero : left);
      *ds = inside ? slope : zero;
    }
  }

  // t and f of component m of a vector from place j on, of logits below the largest,
  // or a large one would take all digits; GRAD: and its slopes.
  template <bool GRAD> Part component(const Tile& i, int64_t m, int64_t j, v largest) const {
    const auto row = [&](real* rows, int64_t k) { return rows + (k * M + m) * TILE + j; };
    Part part{load(row(i.p, 0)) - largest, splat<real>(1), splat<real>(1), integers{}};
    for (int64_t c = 0, k = 1 + 2 * C; c < C; k += c, ++c) {
      v mean = load(row(i.p, 1 + c)), dmean, ds;
      for (int64_t d = 0; d < c; ++d) {
        const v th = tanh<real>(load(row(i.p, k + d)));
        mean += th * load(i.x + d * TILE + j);
        if (GRAD) store(row(i.slopes, k + d), th);
      }
      add_mass<GRAD>(part, mean, load(row(i.p, 1 + C + c)), load(i.x + c * TILE + j),
                     load(i.end + c * TILE + j), &dmean, &ds);
      if constexpr (!GRAD) continue;
      store(row(i.slopes, 1 + c), dmean), store(row(i.slopes, 1 + C + c), ds);
      for (int64_t d = 0; d < c; ++d) {
        const v th = load(row(i.slopes, k + d));
        store(row(i.slopes, k + d), dmean * load(i.x + d * TILE + j) * (1 - th * th));
      }
    }
    return part;
  }

  // log p of a vector of places; GRAD: scale the slopes by g, dlog_p.
  template <bool GRAD> v vector(const Tile& i, int64_t j, v g) const {
    constexpr real LEAST = -(sizeof(real) == 4 ? __FLT_MAX__ : __DBL_MAX__),
                   LN2 = 0.6931471805599453;
    v top = splat(LEAST), largest = splat(LEAST), sum{}, all{};
    for (int64_t m = 0; m < M; ++m) {
      const v l = load(i.p + m * TILE + j);
      largest = l > largest ? l : largest;
    }
    for (int64_t m = 0; m < M; ++m) {
      const Part part = component<GRAD>(i, m, j, largest);
      const v t = part.t + __builtin_convertvector(part.power, v) * LN2;
      store(i.t + m * W, t), store(i.f + m * W, part.above / part.below);
      top = t > top ? t : top;
    }
    for (int64_t m = 0; m < M; ++m) {
      const v p = exp<real>(load(i.t + m * W) - top) * load(i.f + m * W);
      const v q = exp<real>(load(i.p + m * TILE + j) - largest);
      sum += p, all += q;
      if (GRAD) store(i.f + m * W, p), store(i.share + m * W, q);
    }
    if (!GRAD) return top + (log<real>(sum) - log<real>(all));
    const v scale = g / sum, other = g / all;
    for (int64_t m = 0; m < M; ++m) {
      const v r = load(i.f + m * W) * scale;
      store(i.slopes + m * TILE + j, r - load(i.share + m * W) * other);
      for (int64_t k = M + m; k < rows(); k += M) {
        real* at = i.slopes + k * TILE + j;
        store(at, load(at) * r);
      }
    }
    return g;
  }

  template <bool GRAD> void tile(const Tile& i, int64_t b, int64_t at) const {
    const int64_t n = T - at < TILE ? T - at : TILE;
    take(i, b, at, n);
    real row[TILE] = {};
    if (GRAD) copy(dlog_p + b * T + at, row, n);
    for (int64_t j = 0; j < n; j += W) store(row + j, vector<GRAD>(i, j, load(row + j)));
    if (!GRAD) return copy(row, log_p + b * T + at, n);
    for (int64_t k = 0; k < rows(); ++k)
      copy(i.slopes + k * TILE, dparams + (b * rows() + k) * T + at, n);
  }

  template <bool GRAD> void run(int64_t threads) const {
    const int64_t count = B * tiles();
    each((count + RUN - 1) / RUN, threads, [&](int64_t task) {
      Scratch scratch(memory() * sizeof(real));
      const Tile i = carve(reinterpret_cast<real*>(scratch.data));
      for (int64_t n = task * RUN; n < count && n < (task + 1) * RUN && !stopped(); ++n)
        tile<GRAD>(i, n / tiles(), n % tiles() * TILE);
    });
  }
};

} // namespace

void logistic_mixture(int64_t dtype, const void* params, const int64_t* codes, void* log_p,
                      int64_t B, int64_t C, int64_t M, int64_t T, int64_t classes, double floor,
                      int64_t threads) {
  const auto call = [&](auto zero) {
    using real = decltype(zero);
    Mixture<real>{(const real*)params, codes, (real*)log_p, nullptr, nullptr, B, C, M, T, classes,
                  real(floor)}
        .template run<false>(threads);
  };
  dtype ? call(double()) : call(float());
}

void logistic_mixture_backward(int64_t dtype, const void* dlog_p, const void* params,
                               const int64_t* codes, void* dparams, int64_t B, int64_t C, int64_t M,
                               int64_t T, int64_t classes, double floor, int64_t threads) {
  const auto call = [&](auto zero) {
    using real = decltype(zero);
    Mixture<real>{(const real*)params,
                  codes,
                  nullptr,
                  (const real*)dlog_p,
                  (real*)dparams,
                  B,
                  C,
                  M,
                  T,
                  classes,
                  real(floor)}
        .template run<true>(threads);
  };
  dtype ? call(double()) : call(float());
}

} // namespace fastgen::FASTGEN_ISA
