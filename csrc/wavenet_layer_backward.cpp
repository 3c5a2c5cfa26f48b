// The backward pass of one layer of a WaveNet: kernels/wavenet_layer.py has the math.
//
// From the gradients of the outputs follows dz, that of the sum that the activations are of. Runs
// of tiles sum the gradients of weights; the runs depend on sizes alone, and so do all bits.
#include "wavenet_layer.h"

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int64_t PAD = 16;  // columns of a transposed tile are padded to a multiple
constexpr int64_t RUN = 10;  // tiles of a run, at least
constexpr int64_t RUNS = 64; // at most

int64_t padded(int64_t columns) { return ceil(columns, PAD) * PAD; }

// to (n x columns, rows `stride` apart) = the transpose of from (columns x TILE).
template <class real>
void transpose_tile(real* to, int64_t stride, const real* from, int64_t columns, int64_t n) {
  constexpr int W = LANES<real>;
  int64_t c = 0;
  for (; c + W <= columns; c += W)
    for (int64_t j = 0; j < n; j += W)
      transpose(to + j * stride + c, stride, from + c * TILE + j, TILE);
  for (; c < columns; ++c)
    for (int64_t j = 0; j < n; ++j) to[j * stride + c] = from[c * TILE + j];
}

// sum += row, lane by lane.
template <class real> void add(real* sum, const real* row, int64_t N) {
  vec<real> y = load(sum);
  for (int64_t j = 0; j < N; j += LANES<real>) y += load(row + j);
  store(sum, y);
}

// dz, and the sums of each run.
template <class real> struct Activations {
  Sizes s;
  const real *dout, *dskip, *gates, *x;
  const real* mix; // (H, Q), res_weight on top of skip_weight, transposed
  real* dz;        // (B, tiles, 2H, TILE)
  real* sums;      // of each run; or null

  int64_t length() const { return max(RUN, ceil(s.tiles(), RUNS)); }
  int64_t runs() const { return ceil(s.tiles(), length()); }

  // The sums of a run: dweight (2H, padded(K R)), those of res_weight and skip_weight (Q,
  // padded(H)), and of the biases of both (2H + Q, lanes).
  int64_t Q() const { return (s.res ? s.R : 0) + s.S; }
  int64_t mixes() const { return 2 * s.H * padded(s.K * s.R); }
  int64_t biases() const { return mixes() + Q() * padded(s.H); }
  int64_t size() const { return biases() + (2 * s.H + Q()) * LANES<real>; }

  // A block: dout, dskip, and x under each tap.
  int64_t rows() const { return Q() + (sums ? s.K * s.R : 0); }
  int64_t parts() const { return 2 + (sums ? s.K : 0); }
  Part<real> part(const Tile& i, int64_t p) const {
    if (p == 0) return {{dout + i.b * s.R * s.T + i.t, i.n}, s.res ? s.R : 0, s.T};
    if (p == 1) return {{dskip + i.b * s.S * s.T + i.t, i.n}, s.S, s.T};
    return {past(x + i.b * s.R * s.T, i.t - (s.K + 1 - p) * s.dilation, i.n), s.R, s.T};
  }

  int64_t more_rows() const { return 2 * s.H + padded(s.H) + padded(s.K * s.R); }

  template <class F>
  void tile(int64_t run, const Tile& i, const real* dy, real* memory, F& feed) const {
    real *dh = memory, *h = dh + s.H * TILE, *turned = h + s.H * TILE;
    real* a = dz + i.index * 2 * s.H * TILE;
    clear(dh, s.H * TILE);
    gemm<Plain<real>>(s.H, i.N, Q(), mix, Q(), dy, TILE, dh, TILE, feed);
    activate(i, dh, h, a);
    if (sums) add_sums(i, dy, h, a, sums + run * size(), turned, feed);
  }

  // h from the gates, and dz.
  void activate(const Tile& i, const real* dh, real* h, real* a) const {
    const int64_t half = s.H * TILE;
    const real* from = gates + i.index * 2 * half;
    for (int64_t g = 0; g < half; g += TILE) {
      for (int64_t j = g; j < g + i.N; j += LANES<real>) {
        const vec<real> f = load(from + j), o = load(from + half + j), d = load(dh + j);
        store(h + j, f * o);
        store(a + j, d * o * (1 - f * f));
        store(a + half + j, d * f * o * (1 - o));
      }
      clear(a + g + i.N, TILE - i.N), clear(a + half + g + i.N, TILE - i.N);
    }
  }

  template <class F>
  void add_sums(const Tile& i, const real* dy, const real* h, const real* a, real* sum,
                real* turned, F& feed) const {
    const int64_t wide = padded(s.H), flat = padded(s.K * s.R);
    real *ht = turned, *xt = ht + wide * TILE, *bias = sum + biases();
    transpose_tile(ht, wide, h, s.H, i.n);
    transpose_tile(xt, flat, dy + Q() * TILE, s.K * s.R, i.n);
    gemm<Plain<real>>(2 * s.H, flat, i.n, a, TILE, xt, flat, sum, flat, feed);
    gemm<Plain<real>>(Q(), wide, i.n, dy, TILE, ht, wide, sum + mixes(), wide, feed);
    for (int64_t g = 0; g < 2 * s.H; ++g, bias += LANES<real>) add(bias, a + g * TILE, i.N);
    for (int64_t q = 0; q < Q(); ++q, bias += LANES<real>) add(bias, dy + q * TILE, i.N);
  }
};

// dx = dout + the sum over k of weight[:, :, k]^T dz, (K - 1 - k) dilation samples later.
template <class real> struct Input {
  Sizes s;
  const real *dout, *dz;
  const real* weight; // (R, K 2H), transposed
  real* dx;

  // A block: dz under each tap but the last, which needs no copy.
  int64_t rows() const { return (s.K - 1) * 2 * s.H; }
  int64_t parts() const { return s.K - 1; }
  Part<real> part(const Tile& i, int64_t k) const {
    const int64_t each = ceil(s.T, TILE), size = 2 * s.H * TILE;
    const int64_t t = i.t + (s.K - 1 - k) * s.dilation, j = t / TILE, offset = t % TILE;
    const int64_t head = min(TILE - offset, i.n);
    const real* from = dz + (i.b * each + j) * size;
    return {{j < each ? from + offset : nullptr, head, j + 1 < each ? from + size : nullptr,
             i.n - head},
            2 * s.H,
            TILE};
  }

  int64_t more_rows() const { return ROWS; }

  template <class F>
  void tile(int64_t, const Tile& i, const real* columns, real* c, F& feed) const {
    const int64_t xb = i.b * s.R * s.T;
    const Operand<real> b{columns, rows()}, d{dz + i.index * 2 * s.H * TILE, 2 * s.H};
    const real *from = s.res ? dout + xb : nullptr, *bias = nullptr;
    product(i, s.T, s.R, dx + xb, from, bias, weight, b, d, c, feed);
  }
};

// dcond (B 2H, F): the transpose of linear interpolation, row by row.
template <class real> struct Frames {
  Sizes s;
  const real* dz;
  real* dcond;

  static void row(void* context, int64_t r) {
    const auto& c = *static_cast<Frames*>(context);
    const Sizes& s = c.s;
    const int64_t G = 2 * s.H, first = r / G * ceil(s.T, TILE);
    real* to = c.dcond + r * s.F;
    clear(to, s.F);
    for (int64_t t = 0, end; t < s.T; t = end) {
      const int64_t f = min(t / s.hop, s.F - 1);
      const bool last = f == s.F - 1;
      end = min(s.T, (t / TILE + 1) * TILE);
      if (!last) end = min(end, (f + 1) * s.hop);
      const real* from = c.dz + ((first + t / TILE) * G + r % G) * TILE + t % TILE;
      real sum = 0, moment = 0;
      add(from, end - t, sum, moment);
      const real right = last ? 0 : (moment + real(t - f * s.hop) * sum) / real(s.hop);
      to[f] += sum - right;
      if (!last) to[f + 1] += right;
    }
  }

  // sum += row[j], moment += j row[j], for j < n
  static void add(const real* row, int64_t n, real& sum, real& moment) {
    constexpr int W = LANES<real>;
    vec<real> a{}, b{}, place{};
    for (int l = 0; l < W; ++l) place[l] = l;
    int64_t j = 0;
    for (; j + W <= n; j += W, place += W) {
      const vec<real> d = load(row + j);
      a += d;
      b += d * place;
    }
    for (int l = 0; l < W; ++l) sum += a[l], moment += b[l];
    for (; j < n; ++j) sum += row[j], moment += real(j) * row[j];
  }
};

// The gradients of weights and biases from the sums of runs, row by row.
template <class real> struct Totals {
  Activations<real> a;
  real *dweight, *dbias, *dres_weight, *dres_bias, *dskip_weight, *dskip_bias;

  static void row(void* context, int64_t r) { static_cast<Totals*>(context)->row(r); }

  // n sums at `offset` of a run's, over all runs; they end up in the first one's place.
  real* total(int64_t offset, int64_t n) const {
    real* to = a.sums + offset;
    for (int64_t run = 1; run < a.runs(); ++run)
      for (int64_t j = 0; j < n; ++j) to[j] += to[run * a.size() + j];
    return to;
  }

  void row(int64_t r) const {
    const Sizes& s = a.s;
    const real* lanes = total(a.biases() + r * LANES<real>, LANES<real>);
    real bias = 0;
    for (int l = 0; l < LANES<real>; ++l) bias += lanes[l];
    if (r < 2 * s.H) {
      const real* from = total(r * padded(s.K * s.R), s.K * s.R);
      for (int64_t k = 0; k < s.K; ++k)
        for (int64_t c = 0; c < s.R; ++c) dweight[(r * s.R + c) * s.K + k] = from[k * s.R + c];
      dbias[r] = bias;
      return;
    }
    const int64_t q = r - 2 * s.H, skip = q - (a.Q() - s.S);
    copy(skip < 0 ? dres_weight + q * s.H : dskip_weight + skip * s.H,
         total(a.mixes() + q * padded(s.H), s.H), s.H);
    (skip < 0 ? dres_bias[q] : dskip_bias[skip]) = bias;
  }
};

template <class real> struct Layer {
  Sizes s;
  const real *dout, *dskip, *gates, *x, *weight, *res_weight, *skip_weight;
  real *dz, *dx, *dweight, *dbias, *dres_weight, *dres_bias, *dskip_weight, *dskip_bias, *dcond;

  void backward(int64_t threads) const {
    Activations<real> a{s, dout, dskip, gates, x, nullptr, dz, nullptr};
    Scratch mix(s.H * a.Q() * sizeof(real));
    Scratch sums(dweight ? max(a.runs(), 1) * a.size() * sizeof(real) : 0);
    a.mix = transposed_mix(reinterpret_cast<real*>(mix.data), a.Q());
    a.sums = dweight ? reinterpret_cast<real*>(sums.data) : nullptr;
    each_tile<real>(a, a.length(), threads);
    if (dx) {
      Scratch turned(s.R * s.K * 2 * s.H * sizeof(real));
      const real* w = transposed_weight(reinterpret_cast<real*>(turned.data));
      each_tile<real>(Input<real>{s, dout, dz, w, dx}, run_length(s, threads), threads);
    }
    Frames<real> frames{s, dz, dcond};
    if (dcond) parallel(s.B * 2 * s.H, threads, Frames<real>::row, &frames);
    Totals<real> totals{a, dweight, dbias, dres_weight, dres_bias, dskip_weight, dskip_bias};
    if (dweight) parallel(2 * s.H + a.Q(), threads, Totals<real>::row, &totals);
  }

  const real* transposed_mix(real* to, int64_t Q) const {
    const int64_t res = Q - s.S;
    for (int64_t h = 0; h < s.H; ++h) {
      for (int64_t r = 0; r < res; ++r) to[h * Q + r] = res_weight[r * s.H + h];
      for (int64_t r = 0; r < s.S; ++r) to[h * Q + res + r] = skip_weight[r * s.H + h];
    }
    return to;
  }

  const real* transposed_weight(real* to) const {
    for (int64_t r = 0; r < s.R; ++r)
      for (int64_t k = 0; k < s.K; ++k)
        for (int64_t c = 0; c < 2 * s.H; ++c)
          to[(r * s.K + k) * 2 * s.H + c] = weight[(c * s.R + r) * s.K + k];
    return to;
  }
};

} // namespace

void wavenet_layer_backward(int64_t dtype, const void* dout, const void* dskip, const void* gates,
                            const void* x, const void* weight, const void* res_weight,
                            const void* skip_weight, void* dz, void* dx, void* dweight, void* dbias,
                            void* dres_weight, void* dres_bias, void* dskip_weight,
                            void* dskip_bias, void* dcond, int64_t B, int64_t R, int64_t S,
                            int64_t H, int64_t K, int64_t T, int64_t F, int64_t hop,
                            int64_t dilation, int64_t threads) {
  const Sizes s{B, R, S, H, K, T, F, hop, dilation, res_weight != nullptr};
  const auto call = [&](auto zero) {
    using real = decltype(zero);
    using in = const real*;
    const Layer<real> layer{s,
                            in(dout),
                            in(dskip),
                            in(gates),
                            in(x),
                            in(weight),
                            in(res_weight),
                            in(skip_weight),
                            (real*)dz,
                            (real*)dx,
                            (real*)dweight,
                            (real*)dbias,
                            (real*)dres_weight,
                            (real*)dres_bias,
                            (real*)dskip_weight,
                            (real*)dskip_bias,
                            (real*)dcond};
    layer.backward(threads);
  };
  dtype ? call(double()) : call(float());
}

} // namespace fastgen::FASTGEN_ISA
