// An affine coupling and its inverse: kernels/affine_coupling.py has the math.
#include "affine_coupling.h"

namespace fastgen::FASTGEN_ISA {
namespace {

// Numbers of which a coupling is computed: v becomes y, and l is their share of the logdet.
template <class T> struct Numbers {
  int64_t count;
  bool inverse, past;
  const T *v, *s, *t;
  const computed<T>* w;
  T* y;
  computed<T>* l;
  // of numbers that lie in pairs: v and y are whole rows of x, s those of h
  const Access<T>* access = nullptr;
};

template <class T, template <class> class Map, bool pairs>
__attribute__((flatten)) void change(const Numbers<T>& a) {
  using real = computed<T>;
  constexpr int64_t L = LANES<real>;
  for (int64_t i = 0, off = 0; i < a.count; i += L) {
    vec<real> v, kept, s, t;
    if constexpr (pairs)
      a.access->even.get(a.v, i, off, v, kept), a.access->h.get(a.s, i, off, s, t);
    else
      v = widen(a.v + i), s = widen(a.s + i), t = widen(a.t + i);
    const vec<real> f = Map<real>::map(s);
    const vec<real> m = bounded<real>(a.w ? load(a.w + i) * f : f), l = a.inverse ? -m : m;
    const vec<real> e = exp_inside<real>(l), y = a.inverse ? (v - t) * e : v * e + t;
    if constexpr (pairs)
      a.access->even.put(a.y, i, off, y, kept, a.past);
    else
      narrow(a.y + i, y, a.past);
    store(a.l + i, l);
    if constexpr (pairs) off = off + L == a.access->s.K ? 0 : off + L;
  }
}

template <class T> void shift(const Numbers<T>& a) {
  for (int64_t i = 0; i < a.count; i += LANES<computed<T>>) {
    const auto v = widen(a.v + i), t = widen(a.t + i);
    narrow(a.y + i, a.inverse ? v - t : v + t, a.past);
  }
}

template <class T> using Change = void (*)(const Numbers<T>&);
template <class T, bool pairs> Change<T> changer(int64_t scale) {
  constexpr Change<T> maps[] = {change<T, Tanh, pairs>,     change<T, Sigmoid, pairs>,
                                change<T, Atan, pairs>,     change<T, Softplus, pairs>,
                                change<T, Exponent, pairs>, shift<T>};
  return maps[scale];
}

template <class T> struct Forward {
  using real = computed<T>;
  const T *x, *s, *t;
  const real* weight;
  T* y;
  real* logdet;
  Access<T> access;
  Cut cut;
  int64_t scale;
  bool inverse;
  double* sums; // (B, parts) of the logdet

  void task(int64_t task) const {
    const Sizes& sizes = access.s;
    const int64_t most = room<real>(sizes);
    Scratch memory(6 * most * sizeof(real));
    real *v = (real*)memory.data, *kept = v + most, *ms = kept + most, *mt = ms + most,
         *l = mt + most, *w = weight ? l + most : nullptr;
    const Change<T> where_it_lies = changer<T, false>(scale), in_pairs = changer<T, true>(scale);
    const Change<real> in_tile = changer<real, false>(scale);
    const bool direct = in_place<T>(sizes);
    copy_kept(sizes, cut, task, y, x, access.past);
    each_tile(sizes, cut, task, most, [&](const Run* runs, int64_t count, int64_t numbers) {
      for (const Run* r = runs; w && r < runs + count; ++r) spread_channels(sizes, *r, weight, w);
      const int64_t paired = access.in_pairs(numbers), rest = numbers - paired;
      if (paired)
        in_pairs({paired, inverse, access.past && aligned(y + runs->x), x + runs->x, s + runs->s,
                  nullptr, w, y + runs->x, l, &access});
      for (const Run* r = runs; r < runs + count && rest; ++r) {
        if (direct) {
          const bool past = access.past && aligned(y + r->x);
          where_it_lies({r->n, inverse, past, x + r->x, s + r->s, t + r->t, w ? w + r->at : w,
                         y + r->x, l + r->at});
          continue;
        }
        access.take_x(r->after(paired), x, v, kept);
        access.take_h(r->after(paired), s, t, ms, mt);
      }
      if (!direct)
        in_tile({rest, inverse, false, v + paired, ms + paired, mt + paired, w ? w + paired : w,
                 v + paired, l + paired});
      for (const Run* r = runs; r < runs + count; ++r) {
        if (!direct && rest) access.put_x(r->after(paired), y, v, kept);
        if (!sizes.additive) add(*r, l, task % cut.parts);
      }
    });
    fence();
  }

  void add(const Run& r, real* l, int64_t part) const {
    if (access.s.vectors())
      sum_rows(access.pairs, l, r.rows, access.s.K,
               [&](int64_t row, double sum) { logdet[r.b + row] = sum; });
    else
      sum_rows(access.pairs, l + r.at, 1, r.n,
               [&](int64_t, double sum) { sums[r.b * cut.parts + part] += sum; });
  }

  void run(int64_t threads) {
    const int64_t B = access.s.B;
    const bool apart = !access.s.vectors() && !access.s.additive;
    Scratch memory(apart ? B * cut.parts * sizeof(double) : 0);
    sums = (double*)memory.data;
    each(cut.groups * cut.parts, threads, [&](int64_t i) {
      if (!stopped()) task(i);
    });
    for (int64_t b = 0; apart && b < B; ++b) {
      double sum = 0;
      for (int64_t i = 0; i < cut.parts; ++i) sum += sums[b * cut.parts + i];
      logdet[b] = sum;
    }
  }
};

template <class T>
void forward(const Sizes& s, const void* x, const void* hs, const void* ht, const void* weight,
             void* y, void* logdet, int64_t scale, bool inverse, int64_t threads) {
  using real = computed<T>;
  if (s.additive || s.B * s.C * s.S == 0) memset(logdet, 0, s.B * sizeof(real));
  if (s.B * s.C * s.S == 0) return;
  const T* t = (const T*)(s.additive || s.joined() ? hs : ht);
  Forward<T>{(const T*)x,
             (const T*)hs,
             t,
             (const real*)weight,
             (T*)y,
             (real*)logdet,
             Access<T>(s, large<T>(s)),
             Cut(s),
             scale,
             inverse,
             nullptr}
      .run(threads);
}

} // namespace

void affine_coupling(int64_t dtype, const void* x, const void* s, const void* t, const void* weight,
                     void* y, void* logdet, int64_t B, int64_t C, int64_t K, int64_t S, int64_t W,
                     int64_t split, int64_t swap, int64_t layout, int64_t scale, int64_t inverse,
                     int64_t threads) {
  const Sizes sizes{B, C, K, S, W, split, swap, layout, scale == ADDITIVE};
  const auto call = dtype == 0 ? forward<float> : dtype == 1 ? forward<double> : forward<bfloat16>;
  call(sizes, x, s, t, weight, y, logdet, scale, inverse, threads);
}

} // namespace fastgen::FASTGEN_ISA
