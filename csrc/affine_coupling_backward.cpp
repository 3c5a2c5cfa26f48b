// The gradients of an affine coupling: kernels/affine_coupling.py has the math.
#include "affine_coupling.h"

namespace fastgen::FASTGEN_ISA {
namespace {

// What is known of the coupling: where it began, where it ended, or where its inverse ended.
enum Known { BEGIN, END, INVERSE };

// Arrays of a tile: each is overwritten by its gradient, v by what it was before, g by that of w.
template <class real> struct Tile {
  real *v, *s, *t, *d, *g;
  const real* w;
};

template <class real, template <class> class Map, Known known>
void gradients(int64_t count, const Tile<real>& a) {
  for (int64_t i = 0; i < count; i += LANES<real>) {
    vec<real> slope;
    const vec<real> f = Map<real>::map(load(a.s + i), slope);
    const vec<real> m = a.w ? load(a.w + i) * f : f, l = bounded<real>(m);
    const vec<real> e = exp<real>(known == INVERSE ? -l : l), d = load(a.d + i), v = load(a.v + i);
    const vec<real> de = d * e;
    vec<real> dl = load(a.g + i);
    if (known == BEGIN) dl += de * v;
    if (known == INVERSE) dl = -dl - d * v;
    if (known == END) {
      const vec<real> scaled = v - load(a.t + i);
      dl += d * scaled;
      store(a.v + i, scaled / e);
    } else if (known == INVERSE) {
      store(a.v + i, v / e + load(a.t + i));
    }
    dl = (m < real(-BOUND)) | (m > real(BOUND)) ? vec<real>{} : dl;
    store(a.s + i, (a.w ? load(a.w + i) * dl : dl) * slope);
    store(a.g + i, dl * f);
    store(a.t + i, known == INVERSE ? -de : d);
    store(a.d + i, de);
  }
}

template <class real, Known known> auto of(int64_t scale) {
  constexpr decltype(&gradients<real, Tanh, known>) maps[] = {
      gradients<real, Tanh, known>, gradients<real, Sigmoid, known>, gradients<real, Atan, known>,
      gradients<real, Softplus, known>, gradients<real, Exponent, known>};
  return maps[scale];
}

template <class T> struct Backward {
  using real = computed<T>;
  const T *v, *dy, *s, *t, *weight;
  const real* dlogdet;
  T *restored, *dx, *ds, *dt;
  Access<T> access;
  Cut cut;
  void (*map)(int64_t, const Tile<real>&);
  double* dweight; // (groups, K), or null

  void task(int64_t task) const {
    const Sizes& sizes = access.s;
    const int64_t most = room<real>(sizes);
    Scratch memory(8 * most * sizeof(real));
    real* next = (real*)memory.data;
    const auto array = [&] { return next += most, next - most; };
    real *kept = array(), *dkept = array(), *w = weight ? array() : nullptr;
    const Tile<real> a{array(), array(), array(), array(), array(), w};
    if (dx) copy_kept(sizes, cut, task, dx, dy);
    if (restored) copy_kept(sizes, cut, task, restored, v);
    each_tile(sizes, cut, task, most, [&](const Run* runs, int64_t count, int64_t numbers) {
      for (const Run* r = runs; r < runs + count; ++r) {
        access.take_x(*r, v, a.v, kept);
        access.take_x(*r, dy, a.d, dkept);
        access.take_h(*r, s, t, a.s, a.t);
        take_dlogdet(*r, a.g);
      }
      if (w) take_weight(sizes, runs, count, weight, w);
      map(numbers, a);
      for (const Run* r = runs; r < runs + count; ++r) {
        if (restored) access.put_x(*r, restored, a.v, kept);
        if (dx) access.put_x(*r, dx, a.d, dkept);
        access.put_h(*r, ds, dt, a.s, a.t);
        if (dweight) add(*r, a.g, dweight + task / cut.parts * sizes.K);
      }
    });
  }

  void take_dlogdet(const Run& r, real* g) const {
    const int64_t n = r.n / (access.s.vectors() ? r.rows : 1);
    for (int64_t i = 0; i < r.n; ++i)
      g[r.at + i] = dlogdet ? dlogdet[access.s.vectors() ? r.b + i / n : r.b] : 0;
  }

  void add(const Run& r, real* g, double* sums) const {
    const int64_t K = access.s.K;
    if (!access.s.vectors())
      return sum_rows(access.pairs, g + r.at, 1, r.n,
                      [&](int64_t, double sum) { sums[r.k] += sum; });
    for (int64_t row = 0; row < r.rows; ++row)
      for (int64_t k = 0; k < K; ++k) sums[k] += g[row * K + k];
  }

  void run(T* to, int64_t threads) {
    const Sizes& sizes = access.s;
    Scratch memory(to ? cut.groups * sizes.K * sizeof(double) : 0);
    dweight = to ? (double*)memory.data : nullptr;
    each(cut.groups * cut.parts, threads, [&](int64_t i) {
      if (!stopped()) task(i);
    });
    for (int64_t k = 0; to && k < sizes.K; ++k) {
      double sum = 0;
      for (int64_t i = 0; i < cut.groups; ++i) sum += dweight[i * sizes.K + k];
      narrow1(to + k, real(sum));
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
    if (B * C * S == 0) {
      for (int64_t k = 0; dweight && k < K; ++k) narrow1((T*)dweight + k, real(0));
      return;
    }
    const auto map = inverse    ? of<real, INVERSE>(scale)
                     : restored ? of<real, END>(scale)
                                : of<real, BEGIN>(scale);
    const in needed = restored ? (z.joined() ? in(s) : in(t)) : nullptr;
    Backward<T>{in(v),        in(dy),
                in(s),        needed,
                in(weight),   (const real*)dlogdet,
                (T*)restored, (T*)dx,
                (T*)ds,       z.joined() ? (T*)ds : (T*)dt,
                Access<T>(z), Cut(z),
                map,          nullptr}
        .run((T*)dweight, threads);
  };
  dtype == 0 ? call(float()) : dtype == 1 ? call(double()) : call(bfloat16());
}

} // namespace fastgen::FASTGEN_ISA
