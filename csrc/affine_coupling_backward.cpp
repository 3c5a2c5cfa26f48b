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
};

template <class T, template <class> class Map, Known known>
__attribute__((flatten)) void gradients(const Numbers<T>& a) {
  using real = computed<T>;
  for (int64_t i = 0; i < a.count; i += LANES<real>) {
    vec<real> slope;
    const vec<real> f = Map<real>::map(widen(a.s + i), slope);
    const vec<real> m = a.w ? load(a.w + i) * f : f, l = bounded<real>(m);
    const vec<real> e = exp<real>(known == INVERSE ? -l : l), v = widen(a.v + i);
    const vec<real> d = widen(a.dy + i), de = d * e;
    vec<real> dl = load(a.g + i);
    if (known == BEGIN) dl += de * v;
    if (known == INVERSE) dl = -dl - d * v;
    if (known == END) {
      const vec<real> scaled = v - widen(a.t + i);
      dl += d * scaled;
      narrow(a.restored + i, scaled / e, a.past);
    } else if (known == INVERSE && a.restored) {
      narrow(a.restored + i, v / e + widen(a.t + i), a.past);
    }
    dl = (m < real(-BOUND)) | (m > real(BOUND)) ? vec<real>{} : dl;
    if (a.dx) narrow(a.dx + i, de, a.past);
    narrow(a.ds + i, (a.w ? load(a.w + i) * dl : dl) * slope, a.past);
    narrow(a.dt + i, known == INVERSE ? -de : d, a.past);
    store(a.g + i, dl * f);
  }
}

template <class T> using Gradients = void (*)(const Numbers<T>&);
template <class T, Known known> Gradients<T> of(int64_t scale) {
  constexpr Gradients<T> maps[] = {gradients<T, Tanh, known>, gradients<T, Sigmoid, known>,
                                   gradients<T, Atan, known>, gradients<T, Softplus, known>,
                                   gradients<T, Exponent, known>};
  return maps[scale];
}
template <class T> Gradients<T> of(int64_t scale, Known known) {
  return known == BEGIN ? of<T, BEGIN>(scale)
         : known == END ? of<T, END>(scale)
                        : of<T, INVERSE>(scale);
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
    const Gradients<T> where_they_lie = of<T>(scale, known);
    const Gradients<real> in_tile = of<real>(scale, known);
    const bool direct = in_place<T>(sizes);
    if (dx) copy_kept(sizes, cut, task, dx, dy, access.past);
    if (restored) copy_kept(sizes, cut, task, restored, v, access.past);
    each_tile(sizes, cut, task, most, [&](const Run* runs, int64_t count, int64_t numbers) {
      for (const Run* r = runs; r < runs + count; ++r) {
        if (w) spread_channels(sizes, *r, weight, w);
        spread_samples(sizes, *r, dlogdet, g);
        if (direct) {
          const bool past = access.past && aligned(ds + r->s) && aligned(dt + r->t) &&
                            (!dx || aligned(dx + r->x)) && (!restored || aligned(restored + r->x));
          where_they_lie({r->n, past, v + r->x, s + r->s, t + r->t, dy + r->x, w ? w + r->at : w,
                          restored ? restored + r->x : restored, dx ? dx + r->x : dx, ds + r->s,
                          dt + r->t, g + r->at});
        } else {
          access.take_x(*r, v, mv, kept);
          access.take_x(*r, dy, md, dkept);
          access.take_h(*r, s, restored ? t : nullptr, ms, mt);
        }
      }
      if (!direct)
        in_tile({numbers, false, mv, ms, mt, md, w, restored ? mv : nullptr, md, ms, mt, g});
      for (const Run* r = runs; r < runs + count; ++r) {
        if (!direct) put(*r, mv, kept, md, dkept, ms, mt);
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
