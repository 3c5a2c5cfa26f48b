// An affine coupling and its inverse: kernels/affine_coupling.py has the math.
#include "affine_coupling.h"

namespace fastgen::FASTGEN_ISA {
namespace {

// v is overwritten by what it becomes, s by its share of the logdet.
template <class real, template <class> class Map>
void change(int64_t count, bool inverse, real* v, real* s, const real* t, const real* w) {
  for (int64_t i = 0; i < count; i += LANES<real>) {
    const vec<real> f = Map<real>::map(load(s + i));
    const vec<real> l = bounded<real>(w ? load(w + i) * f : f), signed_l = inverse ? -l : l;
    const vec<real> e = exp<real>(signed_l), x = load(v + i), shift = load(t + i);
    store(v + i, inverse ? (x - shift) * e : x * e + shift);
    store(s + i, signed_l);
  }
}

template <class real>
void shift(int64_t count, bool inverse, real* v, real*, const real* t, const real*) {
  for (int64_t i = 0; i < count; i += LANES<real>)
    store(v + i, inverse ? load(v + i) - load(t + i) : load(v + i) + load(t + i));
}

template <class real> auto changer(int64_t scale) {
  constexpr decltype(&shift<real>) maps[] = {change<real, Tanh>,     change<real, Sigmoid>,
                                             change<real, Atan>,     change<real, Softplus>,
                                             change<real, Exponent>, shift<real>};
  return maps[scale];
}

template <class T> struct Forward {
  using real = computed<T>;
  const T *x, *s, *t, *weight;
  T* y;
  real* logdet;
  Access<T> access;
  Cut cut;
  decltype(changer<real>(0)) map;
  bool inverse;
  double* sums; // (B, parts) of the logdet

  void task(int64_t task) const {
    const Sizes& sizes = access.s;
    const int64_t most = room<real>(sizes);
    Scratch memory(5 * most * sizeof(real));
    real *v = (real*)memory.data, *kept = v + most, *ms = kept + most, *mt = ms + most,
         *w = weight ? mt + most : nullptr;
    copy_kept(sizes, cut, task, y, x);
    each_tile(sizes, cut, task, most, [&](const Run* runs, int64_t count, int64_t numbers) {
      for (const Run* r = runs; r < runs + count; ++r) {
        access.take_x(*r, x, v, kept);
        access.take_h(*r, s, t, ms, mt);
      }
      if (w) take_weight(sizes, runs, count, weight, w);
      map(numbers, inverse, v, ms, mt, w);
      for (const Run* r = runs; r < runs + count; ++r) {
        access.put_x(*r, y, v, kept);
        if (!sizes.additive) add(*r, ms, task % cut.parts);
      }
    });
  }

  void add(const Run& r, real* l, int64_t part) const {
    if (access.s.vectors())
      sum_rows(access.pairs, l, r.rows, r.n / r.rows,
               [&](int64_t row, double sum) { sums[r.b + row] = sum; });
    else
      sum_rows(access.pairs, l + r.at, 1, r.n,
               [&](int64_t, double sum) { sums[r.b * cut.parts + part] += sum; });
  }

  void run(int64_t threads) {
    Scratch memory(access.s.B * cut.parts * sizeof(double));
    sums = (double*)memory.data;
    each(cut.groups * cut.parts, threads, [&](int64_t i) {
      if (!stopped()) task(i);
    });
    for (int64_t b = 0; b < access.s.B; ++b) {
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
  for (int64_t b = 0; b < s.B; ++b) ((real*)logdet)[b] = 0;
  if (s.B * s.C * s.S == 0) return;
  const void* t = s.additive ? hs : s.joined() ? hs : ht;
  Forward<T>{(const T*)x,   (const T*)hs, (const T*)t, (const T*)weight,     (T*)y,
             (real*)logdet, Access<T>(s), Cut(s),      changer<real>(scale), inverse,
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
