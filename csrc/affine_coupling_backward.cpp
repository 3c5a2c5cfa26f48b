// The gradients of an affine coupling: kernels/affine_coupling.py has the math.
#include "affine_coupling.h"

namespace fastgen::FASTGEN_ISA {
namespace {

// What is known of the coupling: where it began, where it ended, or where its inverse ended.
enum Known { BEGIN, END, INVERSE };

// Numbers of which gradients are computed; `restored` and dx may be null.
template <class T> struct Numbers {
  int64_t count;
  bool past;
  const T *v, *s, *t, *dy;
  const computed<T>* w;
  T *restored, *dx, *ds, *dt;
  computed<T>* g; // of logdet; becomes that of w
  // of numbers that lie in pairs: v, dy, restored and dx are whole rows of x, s and ds those of h
  const Access<T>* access = nullptr;
};

template <class T, template <class> class Map, Known known, bool pairs>
__attribute__((flatten)) void gradients(const Numbers<T>& a) {
  using real = computed<T>;
  constexpr int64_t L = LANES<real>;
  for (int64_t i = 0, off = 0; i < a.count; i += L) {
    vec<real> v, kept, s, t{}, d, dkept, slope;
    if constexpr (pairs) {
      a.access->even.get(a.v, i, off, v, kept), a.access->even.get(a.dy, i, off, d, dkept);
      a.access->h.get(a.s, i, off, s, t);
    } else {
      v = widen(a.v + i), d = widen(a.dy + i), s = widen(a.s + i);
      if (known != BEGIN && a.restored) t = widen(a.t + i);
    }
    const vec<real> f = Map<real>::map(s, slope);
    const vec<real> m = a.w ? load(a.w + i) * f : f, l = bounded<real>(m);
    const vec<real> e = exp_inside<real>(known == INVERSE ? -l : l), de = d * e;
    vec<real> dl = load(a.g + i), other;
    if (known == BEGIN) dl += de * v;
    if (known == INVERSE) dl = -dl - d * v, other = v / e + t;
    if (known == END) dl += d * (v - t), other = (v - t) / e;
    dl = (m < real(-BOUND)) | (m > real(BOUND)) ? vec<real>{} : dl;
    const vec<real> ds = (a.w ? load(a.w + i) * dl : dl) * slope, dt = known == INVERSE ? -de : d;
    if constexpr (pairs) {
      if (known != BEGIN && a.restored) a.access->even.put(a.restored, i, off, other, kept, a.past);
      if (a.dx) a.access->even.put(a.dx, i, off, de, dkept, a.past);
      a.access->h.put(a.ds, i, off, ds, dt, a.past);
      off = off + L == a.access->s.K ? 0 : off + L;
    } else {
      if (known != BEGIN && a.restored) narrow(a.restored + i, other, a.past);
      if (a.dx) narrow(a.dx + i, de, a.past);
      narrow(a.ds + i, ds, a.past), narrow(a.dt + i, dt, a.past);
    }
    store(a.g + i, dl * f);
  }
}

template <class T> using Gradients = void (*)(const Numbers<T>&);
template <class T, Known known, bool pairs> Gradients<T> of(int64_t scale) {
  constexpr Gradients<T> maps[] = {
      gradients<T, Tanh, known, pairs>, gradients<T, Sigmoid, known, pairs>,
      gradients<T, Atan, known, pairs>, gradients<T, Softplus, known, pairs>,
      gradients<T, Exponent, known, pairs>};
  return maps[scale];
}
template <class T, bool pairs = false> Gradients<T> of(int64_t scale, Known known) {
  return known == BEGIN ? of<T, BEGIN, pairs>(scale)
         : known == END ? of<T, END, pairs>(scale)
                        : of<T, INVERSE, pairs>(scale);
}

template <class T> struct Backward {
  using real = computed<T>;
  const T *v, *dy, *s, *t;
  const real *weight, *dlogdet;
  T *restored, *dx, *ds, *dt;
  Access<T> access;
  Cut cut;
  int64_t scale;
  Known known;
  double* dweight; // (groups, K), or null

  void task(int64_t task) const {
    const Sizes& sizes = access.s;
    const int64_t most = room<real>(sizes);
    Scratch memory(8 * most * sizeof(real));
    real* next = (real*)memory.data;
    const auto array = [&] { return next += most, next - most; };
    real *kept = array(), *dkept = array(), *g = array(), *w = weight ? array() : nullptr;
    real *mv = array(), *ms = array(), *mt = array(), *md = array();
    const Gradients<T> where_they_lie = of<T>(scale, known), in_pairs = of<T, true>(scale, known);
    const Gradients<real> in_tile = of<real>(scale, known);
    const bool direct = in_place<T>(sizes);
    if (dx) copy_kept(sizes, cut, task, dx, dy, access.past);
    if (restored) copy_kept(sizes, cut, task, restored, v, access.past);
    each_tile(sizes, cut, task, most, [&](const Run* runs, int64_t count, int64_t numbers) {
      for (const Run* r = runs; r < runs + count; ++r) {
        if (w) spread_channels(sizes, *r, weight, w);
        spread_samples(sizes, *r, dlogdet, g);
      }
      const int64_t paired = access.in_pairs(numbers), rest = numbers - paired;
      if (paired) {
        const int64_t x = runs->x, h = runs->s;
        const bool past = access.past && aligned(ds + h) && (!dx || aligned(dx + x)) &&
                          (!restored || aligned(restored + x));
        in_pairs({paired, past, v + x, s + h, nullptr, dy + x, w,
                  restored ? restored + x : restored, dx ? dx + x : dx, ds + h, nullptr, g,
                  &access});
      }
      for (const Run* r = runs; r < runs + count && rest; ++r) {
        if (direct) {
          const bool past = access.past && aligned(ds + r->s) && aligned(dt + r->t) &&
                            (!dx || aligned(dx + r->x)) && (!restored || aligned(restored + r->x));
          where_they_lie({r->n, past, v + r->x, s + r->s, t + r->t, dy + r->x, w ? w + r->at : w,
                          restored ? restored + r->x : restored, dx ? dx + r->x : dx, ds + r->s,
                          dt + r->t, g + r->at});
        } else {
          access.take_x(r->after(paired), v, mv, kept);
          access.take_x(r->after(paired), dy, md, dkept);
          access.take_h(r->after(paired), s, restored ? t : nullptr, ms, mt);
        }
      }
      if (!direct) {
        real *v = mv + paired, *s = ms + paired, *t = mt + paired, *d = md + paired;
        in_tile({rest, false, v, s, t, d, w ? w + paired : w, restored ? v : nullptr, d, s, t,
                 g + paired});
      }
      for (const Run* r = runs; r < runs + count; ++r) {
        if (!direct && rest) put(r->after(paired), mv, kept, md, dkept, ms, mt);
        if (dweight) add(*r, g, dweight + task / cut.parts * sizes.K);
      }
    });
    fence();
  }

  void put(const Run& r, const real* mv, const real* kept, const real* md, const real* dkept,
           const real* ms, const real* mt) const {
    if (restored) access.put_x(r, restored, mv, kept);
    if (dx) access.put_x(r, dx, md, dkept);
    access.put_h(r, ds, dt, ms, mt);
  }

  void add(const Run& r, real* g, double* sums) const {
    const int64_t K = access.s.K;
    if (!access.s.vectors())
      return sum_rows(access.pairs, g + r.at, 1, r.n,
                      [&](int64_t, double sum) { sums[r.k] += sum; });
    for (int64_t row = 0; row < r.rows; ++row)
      for (int64_t k = 0; k < K; ++k) sums[k] += g[row * K + k];
  }

  void run(real* to, int64_t threads) {
    const Sizes& sizes = access.s;
    Scratch memory(to ? cut.groups * sizes.K * sizeof(double) : 0);
    dweight = to ? (double*)memory.data : nullptr;
    each(cut.groups * cut.parts, threads, [&](int64_t i) {
      if (!stopped()) task(i);
    });
    for (int64_t k = 0; to && k < sizes.K; ++k) {
      double sum = 0;
      for (int64_t i = 0; i < cut.groups; ++i) sum += dweight[i * sizes.K + k];
      to[k] = sum;
    }
  }
};

} // namespace

void affine_coupling_backward(int64_t dtype, const void* v, const void* dy, const void* dlogdet,
                              const void* s, const void* t, const void* weight, void* restored,
                              void* dx, void* ds, void* dt, void* dweight, int64_t B, int64_t C,
                              int64_t K, int64_t S, int64_t W, int64_t split, int64_t swap,
                              int64_t layout, int64_t scale, int64_t inverse, int64_t threads) {
  const Sizes z{B, C, K, S, W, split, swap, layout, false};
  const auto call = [&](auto zero) {
    using T = decltype(zero);
    using real = computed<T>;
    using in = const T*;
    using out = T*;
    if (B * C * S == 0) {
      if (dweight) memset(dweight, 0, K * sizeof(real));
      return;
    }
    const Known known = inverse ? INVERSE : restored ? END : BEGIN;
    Backward<T>{in(v),
                in(dy),
                in(s),
                z.joined() ? in(s) : in(t),
                (const real*)weight,
                (const real*)dlogdet,
                out(restored),
                out(dx),
                out(ds),
                z.joined() ? out(ds) : out(dt),
                Access<T>(z, large<T>(z)),
                Cut(z),
                scale,
                known,
                nullptr}
        .run((real*)dweight, threads);
  };
  dtype == 0 ? call(float()) : dtype == 1 ? call(double()) : call(bfloat16());
}

} // namespace fastgen::FASTGEN_ISA
