// The backward pass of one layer of a gated PixelCNN: kernels/pixelcnn_layer.py has the math.
//
// From the gradients of the outputs follow those of a_v and a_h, then those of v and h. Runs of
// tiles sum the gradients of weights; the runs depend on sizes alone, and so do all bits.
#include "pixelcnn_layer.h"

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int64_t RUNS = 16; // at most

// A tile of a gradient, zero beyond the image; a null one is zero.
template <class real>
void get(const Sizes& s, real* to, const real* from, int64_t channels, const Tile& i) {
  for (int64_t j = 0; j < i.n; ++j) {
    const int64_t n = from ? s.W : 0;
    for (int64_t c = 0; c < channels; ++c) clear(to + c * s.columns() + j * s.N() + n, s.N() - n);
    if (n)
      take_row(s, to + j * s.N(), s.columns(), from + i.b * channels * s.H * s.W, channels,
               i.y + j);
  }
}

// da, and the sums of each run.
template <class real> struct Activations {
  Sizes s;
  const real *dv_out, *dh_out, *saved, *v, *h;
  const real *link_t, *res_t; // transposed
  real* da;                   // (tiles, 4P, columns): of a_v, then of a_h
  real* totals;               // (tiles, 4P + O), the sums of da and dh_out
  real* sums;                 // of each run; or null

  int64_t length() const { return max(1, ceil(s.tiles(), RUNS)); }
  int64_t runs() const { return ceil(s.tiles(), length()); }

  // The sums of a run: (taps, 2P, padded(V)), (taps, 2P, padded(C)), link, res.
  int64_t h_sums() const { return s.rows * s.k * 2 * s.P * padded(s.V); }
  int64_t link_sums() const { return h_sums() + s.cols * 2 * s.P * padded(s.C); }
  int64_t res_sums() const { return link_sums() + 2 * s.P * padded(2 * s.P); }
  int64_t size() const { return res_sums() + s.O * padded(s.P); }

  int64_t above() const { return s.n() + s.r(); }
  int64_t v_block() const { return above() * s.pitch(); }
  int64_t h_block() const { return s.n() * s.pitch(); }
  int64_t blocks() const { return padded(s.V * v_block()) + padded(s.C * h_block()); }
  int64_t widest() const {
    return max(max(padded(s.V) * v_block(), padded(s.C) * h_block()),
               max(padded(2 * s.P), padded(s.P)) * s.columns());
  }
  int64_t memory() const { return blocks() + (2 * s.P + s.O) * s.columns() + widest(); }

  void tile(int64_t run, const Tile& i, real* x) const {
    const int64_t G = 2 * s.P, all = s.columns(), N = i.n * s.N();
    real *g = x + blocks(), *dg = g + s.P * all, *dy = dg + s.P * all, *turned = dy + s.O * all;
    const real *a_v = saved + i.index * 2 * G * all, *gates = a_v + G * all;
    real *da_v = da + i.index * 2 * G * all, *da_h = da_v + G * all;
    get(s, dy, dh_out, s.O, i);
    clear(dg, s.P * all);
    product(s.P, N, s.O, res_t, s.O, dy, all, dg, all);
    for (int64_t p = 0; p < s.P * all; p += all)
      for (int64_t j = p; j < p + N; j += LANES<real>) {
        const vec<real> f = load(gates + j), o = load(gates + s.P * all + j);
        store(g + j, f * o);
        shut(da_h, j, f, o, load(dg + j));
      }
    get(s, dg, dv_out, s.P, i);
    for (int64_t p = 0; p < s.P * all; p += all)
      for (int64_t j = p; j < p + N; j += LANES<real>)
        shut(da_v, j, tanh<real>(load(a_v + j)), sigmoid<real>(load(a_v + s.P * all + j)),
             load(dg + j));
    product(G, N, G, link_t, G, da_h, all, da_v, all);
    real* total = totals + i.index * (2 * G + s.O);
    for (int64_t c = 0; c < 2 * G; ++c) total[c] = sum(da_v + c * all, N);
    for (int64_t o = 0; o < s.O; ++o) total[2 * G + o] = sum(dy + o * all, N);
    if (sums) add_sums(i, x, g, dy, a_v, da_v, turned, sums + run * size());
  }

  void shut(real* da, int64_t j, vec<real> f, vec<real> o, vec<real> d) const {
    store(da + j, d * o * (1 - f * f));
    store(da + s.P * s.columns() + j, d * f * o * (1 - o));
  }

  static real sum(const real* row, int64_t N) {
    vec<real> y{};
    for (int64_t j = 0; j < N; j += LANES<real>) y += load(row + j);
    real lanes[LANES<real>], all = 0;
    store(lanes, y);
    for (real lane : lanes) all += lane;
    return all;
  }

  void add_sums(const Tile& i, real* x, const real* g, const real* dy, const real* a_v,
                const real* da_v, real* turned, real* sum) const {
    const int64_t G = 2 * s.P, all = s.columns(), N = i.n * s.N(), image = s.H * s.W;
    const real* da_h = da_v + G * all;
    real* y = x + padded(s.V * v_block());
    turn(turned, padded(G), a_v, all, G, N);
    product(G, padded(G), N, da_h, all, turned, padded(G), sum + link_sums(), padded(G));
    turn(turned, padded(s.P), g, all, s.P, N);
    product(s.O, padded(s.P), N, dy, all, turned, padded(s.P), sum + res_sums(), padded(s.P));
    const int64_t wide = padded(s.V), deep = padded(s.C), row = s.pitch();
    take_turned(turned, x, v + i.b * s.V * image, s.V, i.y - s.r(), i.n + s.r());
    for (int64_t t = 0; t < s.rows * s.k; ++t)
      tap_product<real>({i.n, 1, row * wide, 0}, 1, G, wide, s.W, da_v, all, s.N(),
                        turned + (t / s.k * row + t % s.k) * wide, wide, 0, sum + t * G * wide,
                        wide, 0);
    take_turned(turned, y, h + i.b * s.C * image, s.C, i.y, i.n);
    for (int64_t t = 0; t < s.cols; ++t)
      tap_product<real>({i.n, 1, row * deep, 0}, 1, G, deep, s.W, da_h, all, s.N(),
                        turned + t * deep, deep, 0, sum + h_sums() + t * G * deep, deep, 0);
  }

  // Rows [first, first + rows) of an image, into a block (rows, pitch, padded(channels)) with zeros
  // around the image; `block` is one as take() wants it.
  void take_turned(real* to, real* block, const real* image, int64_t channels, int64_t first,
                   int64_t rows) const {
    const int64_t wide = padded(channels), row = s.pitch();
    if (!s.last) take(s, block, image, channels, first, rows);
    for (int64_t j = 0; j < rows; ++j, to += row * wide) {
      const int64_t y = first + j, W = y >= 0 && y < s.H ? s.W : 0;
      if (!s.last) {
        turn(to, wide, block + j * channels * row, row, channels, row);
        continue;
      }
      clear(to, s.r() * wide);
      for (int64_t x = 0; x < W; ++x)
        copy(to + (s.r() + x) * wide, image + (y * s.W + x) * channels, channels);
      clear(to + (s.r() + W) * wide, (row - s.r() - W) * wide);
    }
  }
};

// dv and dh from da.
template <class real> struct Inputs {
  Sizes s;
  const real *dh_out, *da;
  const real *v_taps, *h_taps; // (channels, taps, 2P)
  real *dv, *dh;               // or null

  int64_t below() const { return s.n() + s.r(); }
  int64_t block() const { return padded(2 * s.P * below() * s.pitch()); }
  int64_t memory() const { return block() + max(s.V, s.C) * s.columns(); }

  void tile(int64_t, const Tile& i, real* x) const {
    const int64_t G = 2 * s.P, r = s.r();
    real* to = x + block();
    const int64_t row = G * s.pitch(), taps = s.rows * s.k;
    if (dv) {
      take_rows(x, i, 0, i.n + r);
      clear(to, s.V * s.columns());
      tap_product<real>({taps, s.k, -row, -1}, i.n, s.V, s.N(), G, v_taps, taps * G, G,
                        x + r * row + 2 * r, s.pitch(), row, to, s.columns(), s.N());
      put(s, dv, to, s.V, i);
    }
    if (!dh) return;
    take_rows(x, i, G, i.n);
    get(s, to, s.residual ? dh_out : nullptr, s.C, i);
    tap_product<real>({s.cols, s.k, 0, -1}, i.n, s.C, s.N(), G, h_taps, s.cols * G, G, x + 2 * r,
                      s.pitch(), row, to, s.columns(), s.N());
    put(s, dh, to, s.C, i);
  }

  // Rows of da from those of a tile on, 2P channels from `first` on, into a block.
  void take_rows(real* x, const Tile& i, int64_t first, int64_t rows) const {
    const int64_t G = 2 * s.P;
    for (int64_t j = 0; j < rows; ++j)
      for (int64_t c = 0; c < G; ++c) {
        real* to = x + (j * G + c) * s.pitch() + s.r();
        const int64_t y = i.y + j, tile = i.b * s.each() + y / s.n();
        if (y < s.H)
          copy(to, da + (tile * 2 * G + first + c) * s.columns() + y % s.n() * s.N(), s.W);
        else
          clear(to, s.W);
      }
  }
};

// (2P, channels, taps) -> (channels, taps, 2P)
template <class real>
void split(real* to, const real* weight, int64_t G, int64_t channels, int64_t taps) {
  for (int64_t g = 0; g < G; ++g)
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t t = 0; t < taps; ++t)
        to[(c * taps + t) * G + g] = weight[(g * channels + c) * taps + t];
}

template <class real> void turned(real* to, const real* from, int64_t rows, int64_t columns) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) to[j * rows + i] = from[i * columns + j];
}

template <class real> struct Layer {
  Sizes s;
  const real *dv_out, *dh_out, *saved, *v, *h, *v_weight, *h_weight, *link, *res;
  real *da, *dv, *dh, *dv_weight, *dh_weight, *dlink, *dres, *dres_bias, *dconds;

  void backward(int64_t threads) const {
    const int64_t G = 2 * s.P;
    Activations<real> a{s, dv_out, dh_out, saved, v, h, nullptr, nullptr, da, nullptr, nullptr};
    Scratch weights((G * G + s.P * s.O) * sizeof(real));
    Scratch totals(s.tiles() * (2 * G + s.O) * sizeof(real));
    Scratch sums(dlink ? max(1, a.runs()) * a.size() * sizeof(real) : 0);
    real* to = reinterpret_cast<real*>(weights.data);
    turned(to, link, G, G), turned(to + G * G, res, s.O, s.P);
    a.link_t = to, a.res_t = to + G * G;
    a.totals = reinterpret_cast<real*>(totals.data);
    a.sums = dlink ? reinterpret_cast<real*>(sums.data) : nullptr;
    each_tile<real>(a, a.length(), threads);
    add_totals(a);
    if (dlink) add_runs(a, threads);
    if (dv || dh) inputs(threads);
  }

  void inputs(int64_t threads) const {
    const int64_t G = 2 * s.P, first = G * s.V * s.rows * s.k;
    Scratch taps((first + G * s.C * s.cols) * sizeof(real));
    real* to = reinterpret_cast<real*>(taps.data);
    split(to, v_weight, G, s.V, s.rows * s.k), split(to + first, h_weight, G, s.C, s.cols);
    const Inputs<real> job{s, dh_out, da, to, to + first, dv, dh};
    each_tile<real>(job, 1, threads);
  }

  // dconds (B, 4P) and dres_bias
  void add_totals(const Activations<real>& a) const {
    const int64_t G = 4 * s.P, size = G + s.O;
    clear(dconds, s.B * G), clear(dres_bias, s.O);
    for (int64_t i = 0; i < s.tiles(); ++i) {
      for (int64_t g = 0; g < G; ++g) dconds[i / s.each() * G + g] += a.totals[i * size + g];
      for (int64_t o = 0; o < s.O; ++o) dres_bias[o] += a.totals[i * size + G + o];
    }
  }

  // The gradients of weights from the sums of runs.
  void add_runs(const Activations<real>& a, int64_t threads) const {
    const int64_t G = 2 * s.P, V = padded(s.V), C = padded(s.C), taps = s.rows * s.k;
    const auto total = [&](int64_t offset) {
      real y = 0;
      for (int64_t run = 0; run < a.runs(); ++run) y += a.sums[run * a.size() + offset];
      return y;
    };
    each(G, threads, [&](int64_t g) {
      for (int64_t t = 0; t < taps; ++t)
        for (int64_t c = 0; c < s.V; ++c)
          dv_weight[(g * s.V + c) * taps + t] = total((t * G + g) * V + c);
      for (int64_t t = 0; t < s.cols; ++t)
        for (int64_t c = 0; c < s.C; ++c)
          dh_weight[(g * s.C + c) * s.cols + t] = total(a.h_sums() + (t * G + g) * C + c);
      for (int64_t c = 0; c < G; ++c) dlink[g * G + c] = total(a.link_sums() + g * padded(G) + c);
    });
    for (int64_t o = 0; o < s.O; ++o)
      for (int64_t p = 0; p < s.P; ++p)
        dres[o * s.P + p] = total(a.res_sums() + o * padded(s.P) + p);
  }
};

} // namespace

void pixelcnn_layer_backward(int64_t dtype, const void* dv_out, const void* dh_out,
                             const void* saved, const void* v, const void* h, const void* v_weight,
                             const void* h_weight, const void* link, const void* res, void* da,
                             void* dv, void* dh, void* dv_weight, void* dh_weight, void* dlink,
                             void* dres, void* dres_bias, void* dconds, int64_t B, int64_t V,
                             int64_t C, int64_t P, int64_t O, int64_t H, int64_t W, int64_t k,
                             int64_t rows, int64_t cols, int64_t residual, int64_t last,
                             int64_t threads) {
  const Sizes s{B, V, C, P, O, H, W, k, rows, cols, residual != 0, last != 0};
  const auto call = [&](auto zero) {
    using real = decltype(zero);
    using in = const real*;
    const Layer<real> layer{s,
                            in(dv_out),
                            in(dh_out),
                            in(saved),
                            in(v),
                            in(h),
                            in(v_weight),
                            in(h_weight),
                            in(link),
                            in(res),
                            (real*)da,
                            (real*)dv,
                            (real*)dh,
                            (real*)dv_weight,
                            (real*)dh_weight,
                            (real*)dlink,
                            (real*)dres,
                            (real*)dres_bias,
                            (real*)dconds};
    layer.backward(threads);
  };
  dtype ? call(double()) : call(float());
}

} // namespace fastgen::FASTGEN_ISA
