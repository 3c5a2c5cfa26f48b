#include "common.h"
#include "ops.h"
#include "simd.h"

// A task is one kernel b of one group. Its numbers are first copied into planes, (C, rows), where
// rows j lie along a vector and R rows i share what is loaded. Within one batch only pairs of i < j
// are computed, each for both of its rows. A task is done by one thread, so that no bit depends on
// how many there are.

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int R = REGISTERS == 32 ? 8 : 4; // rows i at once
constexpr int64_t J = 64;                  // rows j whose weights are kept

constexpr int64_t padded(int64_t n) { return (n + 15) / 16 * 16; }

struct Sizes {
  int64_t N, M, B, C, groups;
  bool within; // pairs of one batch
  int64_t n() const { return N / groups; }
  int64_t m() const { return M / groups; }
  int64_t x() const { return padded(n()); } // rows of a plane
  int64_t y() const { return padded(m()); }
};

template <class real> real sum(vec<real> v) {
  real x[LANES<real>];
  memcpy(x, &v, sizeof v);
#pragma GCC unroll 8
  for (int half = LANES<real> / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) x[l] += x[l + half];
  return x[0];
}

template <class real> void add(real* to, vec<real> v) { store(to, load(to) + v); }

// One task: planes of both batches, where `within` the same ones, and what is summed there.
template <class real> struct Planes {
  static constexpr int64_t L = LANES<real>;
  int64_t n, m, C, nx, ny; // rows, components, rows of a plane
  bool within;
  real *x, *y;                  // (C, rows)
  real *gx, *gy;                // (rows,): what a pair's weight takes from either row
  real *vx, *vy;                // (C, rows): gradients of dx and dy
  real *ox, *oy, *dx, *dy;      // (rows,) and (C, rows): sums
  real *weights, *sums, *begin; // (R, J), (C, R, L) and all of the memory

  static int64_t size(const Sizes& s) {
    return (s.x() + (s.within ? 0 : s.y())) * (3 * s.C + 2) + R * (J + s.C * L);
  }

  Planes(const Sizes& s, real* memory)
      : n(s.n()), m(s.m()), C(s.C), nx(s.x()), ny(s.y()), within(s.within), begin(memory) {
    const auto plane = [&](int64_t rows) {
      real* here = memory;
      memory += rows;
      return here;
    };
    x = plane(C * nx), gx = plane(nx), vx = plane(C * nx), ox = plane(nx), dx = plane(C * nx);
    y = x, gy = gx, vy = vx, oy = ox, dy = dx;
    if (!within)
      y = plane(C * ny), gy = plane(ny), vy = plane(C * ny), oy = plane(ny), dy = plane(C * ny);
    weights = plane(R * J), sums = plane(R * C * L);
  }

  // e = exp(-distance) of R rows from i on and a vector of rows from j on, 0 where there is no
  // such pair; with SECOND also u, the sum over components of sign(y - x) (vx - vy).
  template <bool SECOND> void pairs(int64_t i, int64_t j, vec<real>* e, vec<real>* u) const {
    vec<real> a[R]{};
    if constexpr (SECOND)
      for (int r = 0; r < R; ++r) u[r] = vec<real>{};
    const real *xi = x + i, *yj = y + j;
    for (int64_t c = 0; c < C; ++c, xi += nx, yj += ny) {
      const vec<real> v = load(yj);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) a[r] += abs<real>(v - xi[r]);
      if constexpr (SECOND) {
        const vec<real> vj = load(vy + c * ny + j);
        const real* vi = vx + c * nx + i;
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) u[r] += sign<real>(v - xi[r]) * (vi[r] - vj);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) e[r] = exp_minus<real>(a[r]);
    if ((within && j < i + R) || j + L > m) mask(i, j, e);
  }

  void mask(int64_t i, int64_t j, vec<real>* e) const {
    vec<bits<real>> row;
    for (int l = 0; l < L; ++l) row[l] = j + l;
    for (int r = 0; r < R; ++r) {
      const bits<real> last = within ? i + r : -1, end = m;
      e[r] = (row > last) & (row < end) ? e[r] : vec<real>{};
    }
  }

  // The first row of y that is paired with rows from i on.
  int64_t start(int64_t i) const { return within ? i / L * L : 0; }

  void forward() const {
    const int64_t m = this->m;
    for (int64_t i = 0; i < n && !stopped(); i += R) {
      vec<real> total[R]{}, e[R];
      for (int64_t j = start(i); j < m; j += L) {
        pairs<false>(i, j, e, nullptr);
        vec<real> column{};
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) total[r] += e[r], column += e[r];
        add(oy + j, column);
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) ox[i + r] += sum<real>(total[r]);
    }
  }

  template <bool SECOND> void backward() const {
    for (int64_t i = 0; i < n && !stopped(); i += R) {
      vec<real> total[R]{};
      memset(sums, 0, C * R * L * sizeof(real));
      for (int64_t j = start(i); j < m; j += J) {
        const int64_t columns = m - j < J ? m - j : J;
        for (int64_t k = 0; k < columns; k += L) weigh<SECOND>(i, j + k, weights + k, total);
        for (int64_t c = 0; c < C; ++c)
          descend(columns, x + c * nx + i, y + c * ny + j, dy + c * ny + j, sums + c * R * L);
      }
      for (int64_t c = 0; c < C; ++c)
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) dx[c * nx + i + r] += sum<real>(load(sums + (c * R + r) * L));
      if constexpr (SECOND)
        for (int r = 0; r < R; ++r) ox[i + r] += sum<real>(total[r]);
    }
  }

  // Weights of pairs: e and what both rows give; with SECOND times u, and sums of e u.
  template <bool SECOND>
  void weigh(int64_t i, int64_t j, real* to, [[maybe_unused]] vec<real>* total) const {
    vec<real> e[R], u[R], column{};
    pairs<SECOND>(i, j, e, u);
    const vec<real> g = load(gy + j);
    const real* gi = gx + i;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      if constexpr (SECOND) e[r] *= u[r], total[r] += e[r], column += e[r];
      store(to + r * J, (g + gi[r]) * e[r]);
    }
    if constexpr (SECOND) add(oy + j, column);
  }

  // A component of the gradients of both rows, from a tile's weights.
  void descend(int64_t columns, const real* xi, const real* yj, real* dyj, real* total) const {
    vec<real> t[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) t[r] = load(total + r * L);
    const real* w = weights;
    for (int64_t k = 0; k < columns; k += L) {
      const vec<real> v = load(yj + k);
      vec<real> down[2] = {load(dyj + k)}; // one alone would wait for itself
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const vec<real> way = sign<real>(v - xi[r]), wr = load(w + r * J + k);
        t[r] += way * wr;
        down[r % 2] -= way * wr;
      }
      store(dyj + k, down[0] + down[1]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) store(total + r * L, t[r]);
  }
};

// Both batches' tensors of rows, each (rows, B, width); null: zeros, or not wanted.
template <class real> struct Layer {
  Sizes s;
  const real *m, *y, *grad, *vm, *vy;
  real *o, *dm, *dy;
  real own; // what a row adds to its own sum
  bool backward;
  real* memory;
  int64_t next = 0;

  static void work(void* context, int64_t worker) {
    auto& w = *static_cast<Layer*>(context);
    const Planes<real> p(w.s, w.memory + worker * Planes<real>::size(w.s));
    while (!stopped()) {
      const int64_t task = __atomic_fetch_add(&w.next, 1, __ATOMIC_RELAXED);
      if (task >= w.s.groups * w.s.B) break;
      memset(p.begin, 0, Planes<real>::size(w.s) * sizeof(real));
      w.task(p, task / w.s.B, task % w.s.B);
    }
  }

  void task(const Planes<real>& p, int64_t g, int64_t b) const {
    take(p.x, m, g * s.n(), s.n(), s.C, b);
    take(p.gx, grad, g * s.n(), s.n(), 1, b);
    take(p.vx, vm, g * s.n(), s.n(), s.C, b);
    if (!s.within) {
      take(p.y, y, g * s.m(), s.m(), s.C, b);
      take(p.vy, vy, g * s.m(), s.m(), s.C, b);
    }
    if (!backward)
      p.forward();
    else
      o ? p.template backward<true>() : p.template backward<false>();
    for (int64_t i = 0; i < s.n(); ++i) p.ox[i] += own;
    put(o, p.ox, g * s.n(), s.n(), 1, b);
    put(dm, p.dx, g * s.n(), s.n(), s.C, b);
    if (!s.within) put(dy, p.dy, g * s.m(), s.m(), s.C, b);
  }

  // to (C, padded rows) = b's part of so many rows of from (rows, B, C), from `first` on
  void take(real* to, const real* from, int64_t first, int64_t rows, int64_t C, int64_t b) const {
    for (int64_t i = 0; from && i < rows; ++i)
      for (int64_t c = 0; c < C; ++c)
        to[c * padded(rows) + i] = from[((first + i) * s.B + b) * C + c];
  }

  void put(real* to, const real* from, int64_t first, int64_t rows, int64_t C, int64_t b) const {
    for (int64_t i = 0; to && i < rows; ++i)
      for (int64_t c = 0; c < C; ++c)
        to[((first + i) * s.B + b) * C + c] = from[c * padded(rows) + i];
  }

  void run(int64_t threads) {
    threads = threads < s.groups * s.B ? threads : s.groups * s.B;
    Scratch scratch(threads * Planes<real>::size(s) * sizeof(real));
    memory = reinterpret_cast<real*>(scratch.data);
    parallel(threads, threads, work, this);
  }
};

template <class real>
void start(int64_t backward, const Sizes& s, const void* grad, const void* m, const void* y,
           const void* vm, const void* vy, void* o, void* dm, void* dy, int64_t own,
           int64_t threads) {
  using in = const real*;
  Layer<real>{s,        in(m),     in(y),     in(grad),  in(vm),        in(vy),
              (real*)o, (real*)dm, (real*)dy, real(own), backward != 0, nullptr}
      .run(threads);
}

} // namespace

void minibatch_discrimination(int64_t dtype, const void* m, const void* y, void* o, int64_t N,
                              int64_t M, int64_t B, int64_t C, int64_t groups, int64_t keep_self,
                              int64_t threads) {
  const Sizes s{N, M < 0 ? N : M, B, C, groups, M < 0};
  (dtype ? start<double> : start<float>)(0, s, nullptr, m, y, nullptr, nullptr, o, nullptr, nullptr,
                                         keep_self, threads);
}

void minibatch_discrimination_backward(int64_t dtype, const void* grad, const void* m,
                                       const void* y, const void* vm, const void* vy, void* dgrad,
                                       void* dm, void* dy, int64_t N, int64_t M, int64_t B,
                                       int64_t C, int64_t groups, int64_t threads) {
  const Sizes s{N, M < 0 ? N : M, B, C, groups, M < 0};
  (dtype ? start<double> : start<float>)(1, s, grad, m, y, vm, vy, dgrad, dm, dy, 0, threads);
}

} // namespace fastgen::FASTGEN_ISA
