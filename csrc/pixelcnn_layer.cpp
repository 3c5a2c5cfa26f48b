// The forward pass of one layer of a gated PixelCNN: kernels/pixelcnn_layer.py has the math.
#include "pixelcnn_layer.h"

namespace fastgen::FASTGEN_ISA {
namespace {

template <class real> struct Forward {
  Sizes s;
  const real *v, *h, *v_bias, *h_bias, *link, *res, *res_bias, *cond_v, *cond_h;
  real *v_out, *h_out, *saved;
  const real *v_taps, *h_taps; // (2P, taps, channels)

  int64_t above() const { return s.n() + s.r(); } // rows of v's block
  int64_t v_block() const { return s.V * above() * s.pitch(); }
  int64_t h_block() const { return s.C * s.n() * s.pitch(); }
  int64_t memory() const { return padded(v_block() + h_block()) + (5 * s.P + s.O) * s.columns(); }

  void tile(int64_t, const Tile& i, real* x) const {
    const int64_t G = 2 * s.P, all = s.columns(), N = i.n * s.N(), image = s.H * s.W;
    real *y = x + v_block(), *own = x + padded(v_block() + h_block());
    real* a_v = saved ? saved + i.index * 2 * G * all : own;
    real *a_h = a_v + G * all, *g = own + 2 * G * all, *out = g + s.P * all;
    take(s, x, v + i.b * s.V * image, s.V, i.y - s.r(), i.n + s.r());
    take(s, y, h + i.b * s.C * image, s.C, i.y, i.n);
    start(a_v, v_bias, cond_v, i), start(a_h, h_bias, cond_h, i);
    const int64_t row = s.V * s.pitch(), line = s.C * s.pitch(), taps = s.rows * s.k;
    tap_product<real>({taps, s.k, row, 1}, i.n, G, s.N(), s.V, v_taps, taps * s.V, s.V, x,
                      s.pitch(), row, a_v, all, s.N());
    tap_product<real>({s.cols, s.k, 0, 1}, i.n, G, s.N(), s.C, h_taps, s.cols * s.C, s.C, y,
                      s.pitch(), line, a_h, all, s.N());
    product(G, N, G, link, G, a_v, all, a_h, all);
    activate(a_v, nullptr, g, N);
    put(s, v_out, g, s.P, i);
    activate(a_h, saved ? a_h : nullptr, g, N);
    for (int64_t o = 0; o < s.O; ++o)
      for (int64_t j = 0; j < i.n; ++j) begin(out + o * all + j * s.N(), o, y, j);
    product(s.O, N, s.P, res, s.P, g, all, out, all);
    put(s, h_out, out, s.O, i);
  }

  // a = bias + cond
  void start(real* a, const real* bias, const real* cond, const Tile& i) const {
    for (int64_t g = 0; g < 2 * s.P; ++g)
      fill(a + g * s.columns(), bias[g] + (cond ? cond[i.b * 2 * s.P + g] : 0), i.n * s.N());
  }

  // A row of h_out before the product: its bias, and h.
  void begin(real* to, int64_t o, const real* y, int64_t j) const {
    fill(to, res_bias[o], s.N());
    if (!s.residual) return;
    const real* from = y + (j * s.C + o) * s.pitch() + s.r();
    for (int64_t x = 0; x < s.N(); x += LANES<real>) store(to + x, load(to + x) + load(from + x));
  }

  // g = tanh(a[:P]) sigmoid(a[P:]); the two go to `gates`, which may be a.
  void activate(const real* a, real* gates, real* g, int64_t N) const {
    const int64_t half = s.P * s.columns();
    for (int64_t p = 0; p < half; p += s.columns())
      for (int64_t j = p; j < p + N; j += LANES<real>) {
        if (!gates) {
          store(g + j, gated<real>(load(a + j), load(a + half + j)));
          continue;
        }
        const vec<real> f = tanh<real>(load(a + j)), o = sigmoid<real>(load(a + half + j));
        store(g + j, f * o);
        store(gates + j, f), store(gates + half + j, o);
      }
  }
};

// (2P, channels, taps) -> (2P, taps, channels)
template <class real>
void split(real* to, const real* weight, int64_t G, int64_t channels, int64_t taps) {
  for (int64_t g = 0; g < G; ++g)
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t t = 0; t < taps; ++t)
        to[(g * taps + t) * channels + c] = weight[(g * channels + c) * taps + t];
}

} // namespace

void pixelcnn_layer(int64_t dtype, const void* v, const void* h, const void* v_weight,
                    const void* v_bias, const void* h_weight, const void* h_bias, const void* link,
                    const void* res, const void* res_bias, const void* cond_v, const void* cond_h,
                    void* v_out, void* h_out, void* saved, int64_t B, int64_t V, int64_t C,
                    int64_t P, int64_t O, int64_t H, int64_t W, int64_t k, int64_t rows,
                    int64_t cols, int64_t residual, int64_t last, int64_t threads) {
  const Sizes s{B, V, C, P, O, H, W, k, rows, cols, residual != 0, last != 0};
  const auto call = [&](auto zero) {
    using real = decltype(zero);
    using in = const real*;
    const int64_t G = 2 * P, first = G * V * rows * k;
    Scratch taps((first + G * C * cols) * sizeof(real));
    real* to = reinterpret_cast<real*>(taps.data);
    split(to, in(v_weight), G, V, rows * k);
    split(to + first, in(h_weight), G, C, cols);
    const Forward<real> job{s,
                            in(v),
                            in(h),
                            in(v_bias),
                            in(h_bias),
                            in(link),
                            in(res),
                            in(res_bias),
                            in(cond_v),
                            in(cond_h),
                            (real*)v_out,
                            (real*)h_out,
                            (real*)saved,
                            to,
                            to + first};
    each_tile<real>(job, 1, threads);
  };
  dtype ? call(double()) : call(float());
}

} // namespace fastgen::FASTGEN_ISA
