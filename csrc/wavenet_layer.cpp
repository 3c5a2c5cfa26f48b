// The forward pass of one layer of a WaveNet: kernels/wavenet_layer.py has the math.
#include "wavenet_layer.h"

namespace fastgen::FASTGEN_ISA {
namespace {

template <class real> struct Forward {
  Sizes s;
  const real *x, *skip, *weight, *bias, *res_weight, *res_bias, *skip_weight, *skip_bias, *cond;
  real *out, *skip_out, *gates;
  real* flat; // (2H, K R), weight with its taps side by side

  // A block: x under each tap.
  int64_t rows() const { return s.K * s.R; }
  int64_t parts() const { return s.K; }
  Part<real> part(const Tile& i, int64_t k) const {
    return {past(x + i.b * s.R * s.T, i.t - (s.K - 1 - k) * s.dilation, i.n), s.R, s.T};
  }

  int64_t more_rows() const { return 3 * s.H + ROWS + 1; }

  void flatten() {
    for (int64_t c = 0; c < 2 * s.H; ++c)
      for (int64_t k = 0; k < s.K; ++k)
        for (int64_t r = 0; r < s.R; ++r)
          flat[(c * s.K + k) * s.R + r] = weight[(c * s.R + r) * s.K + k];
  }

  // row += frames (F,), each sample's part of the way from a frame to the next being in `way`.
  void add_cond(const Tile& i, real* row, const real* frames, const real* way) const {
    for (int64_t j = 0; j < i.n;) {
      const int64_t f = min((i.t + j) / s.hop, s.F - 1);
      const bool last = f == s.F - 1;
      const int64_t end = last ? i.n : min(i.n, (f + 1) * s.hop - i.t);
      const real left = frames[f], step = last ? 0 : frames[f + 1] - left;
      for (; j < end; ++j) row[j] += left + way[j] * step;
    }
  }

  template <class F>
  void tile(int64_t, const Tile& i, const real* columns, real* memory, F& feed) const {
    real *a = memory, *h = a + 2 * s.H * TILE, *c = h + s.H * TILE, *way = c + ROWS * TILE;
    for (int64_t j = 0; cond && j < i.n; ++j) way[j] = real((i.t + j) % s.hop) / real(s.hop);
    for (int64_t g = 0; g < 2 * s.H; ++g) {
      for (int64_t j = 0; j < i.N; j += LANES<real>) store(a + g * TILE + j, splat(bias[g]));
      if (cond) add_cond(i, a + g * TILE, cond + (i.b * 2 * s.H + g) * s.F, way);
    }
    gemm<Plain<real>>(2 * s.H, i.N, s.K * s.R, flat, s.K * s.R, columns, TILE, a, TILE, feed);
    activate(i, a, h);
    const int64_t xb = i.b * s.R * s.T, sb = i.b * s.S * s.T;
    const Operand<real> b{h, s.H}, none{nullptr, 0};
    if (s.res) product(i, s.T, s.R, out + xb, x + xb, res_bias, res_weight, b, none, c, feed);
    product(i, s.T, s.S, skip_out + sb, skip + sb, skip_bias, skip_weight, b, none, c, feed);
  }

  // h = tanh(a[:H]) sigmoid(a[H:]); the two go to `gates`.
  void activate(const Tile& i, const real* a, real* h) const {
    const int64_t half = s.H * TILE;
    real* to = gates ? gates + i.index * 2 * half : nullptr;
    for (int64_t g = 0; g < half; g += TILE) {
      for (int64_t j = g; j < g + i.N; j += LANES<real>) {
        const vec<real> f = tanh<real>(load(a + j)), o = sigmoid<real>(load(a + half + j));
        store(h + j, f * o);
        if (to) stream<real>(to + j, f), stream<real>(to + half + j, o);
      }
      if (to) clear(to + g + i.N, TILE - i.N), clear(to + half + g + i.N, TILE - i.N);
    }
  }
};

template <class real> void forward(Forward<real> layer, int64_t threads) {
  const Sizes& s = layer.s;
  Scratch flat(2 * s.H * s.K * s.R * sizeof(real));
  layer.flat = reinterpret_cast<real*>(flat.data);
  layer.flatten();
  each_tile<real>(layer, run_length(s, threads), threads);
}

} // namespace

void wavenet_layer(int64_t dtype, const void* x, const void* skip, const void* weight,
                   const void* bias, const void* res_weight, const void* res_bias,
                   const void* skip_weight, const void* skip_bias, const void* cond, void* out,
                   void* skip_out, void* gates, int64_t B, int64_t R, int64_t S, int64_t H,
                   int64_t K, int64_t T, int64_t F, int64_t hop, int64_t dilation,
                   int64_t threads) {
  const Sizes s{B, R, S, H, K, T, F, hop, dilation, res_weight != nullptr};
  const auto call = [&](auto zero) {
    using real = decltype(zero);
    using in = const real*;
    forward<real>({s, in(x), in(skip), in(weight), in(bias), in(res_weight), in(res_bias),
                   in(skip_weight), in(skip_bias), in(cond), (real*)out, (real*)skip_out,
                   (real*)gates, nullptr},
                  threads);
  };
  dtype ? call(double()) : call(float());
}

} // namespace fastgen::FASTGEN_ISA
