// One layer of a WaveNet, for training: kernels/wavenet_layer.py has the math.
//
// Time is cut into tiles. What a tile needs is copied into rows of one length, zeros around the
// sequence, so that the products see neither edges nor strides, and stay in the nearest caches.
#include "common.h"
#include "ops.h"
#include "simd.h"

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int64_t TILE = 96;     // samples; a multiple of every vector, and of three
constexpr int64_t ROWS = 8;      // rows of a product that are finished at once
constexpr int64_t PAD = 16;      // columns of a transposed tile are padded to a multiple of it
constexpr int64_t RUN = 6;       // tiles of one partial sum of the gradients of weights, at least
constexpr int64_t PARTIALS = 32; // partial sums, at most

int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
int64_t ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t padded(int64_t columns) { return ceil(columns, PAD) * PAD; }

struct Sizes {
  int64_t B, R, S, H, K, T, F, hop, dilation;
  bool res;
  int64_t tiles() const { return B * ceil(T, TILE); }
  int64_t mixed() const { return (res ? R : 0) + S; } // rows of res_weight and skip_weight
};

// A tile of one sequence: n samples from t; N is n in whole vectors.
template <class real> struct Tile {
  int64_t b, t, n, N;
  Tile(const Sizes& s, int64_t i) {
    const int64_t each = ceil(s.T, TILE);
    b = i / each, t = i % each * TILE, n = min(TILE, s.T - t);
    N = ceil(n, LANES<real>) * LANES<real>;
  }
};

template <class real> void copy(real* to, const real* from, int64_t n) {
  constexpr int W = LANES<real>;
  int64_t j = 0;
  for (; j + W <= n; j += W) store(to + j, load(from + j));
  for (; j < n; ++j) to[j] = from[j];
}

// to[j] = row[t + j] + bias for j < n, with zeros for what lies outside of the row's T; then
// zeros up to N.
template <class real>
void take(real* to, const real* row, int64_t T, int64_t t, int64_t n, int64_t N) {
  const int64_t left = min(max(-t, 0), n), right = max(min(T - t, n), left);
  for (int64_t j = 0; j < left; ++j) to[j] = 0;
  copy(to + left, row + t + left, right - left);
  for (int64_t j = right; j < N; ++j) to[j] = 0;
}

// to (n x columns, rows `stride` apart) = the transpose of from (columns x TILE).
template <class real>
void transpose(real* to, int64_t stride, const real* from, int64_t columns, int64_t n) {
  for (int64_t c = 0; c < columns; ++c)
    for (int64_t j = 0; j < n; ++j) to[j * stride + c] = from[c * TILE + j];
}

template <class real> real total(const real* row, int64_t n) {
  vec<real> sum{};
  int64_t j = 0;
  for (; j + LANES<real> <= n; j += LANES<real>) sum += load(row + j);
  real y = 0;
  for (int i = 0; i < LANES<real>; ++i) y += sum[i];
  for (; j < n; ++j) y += row[j];
  return y;
}

// to = from + bias + a b for a tile: `from` and `to` are (rows, T) of a sequence, from its sample
// t; a is (rows, K), b (K, TILE). A null `from` or `bias` is zero. c has room for ROWS rows.
template <class real>
void product(const Tile<real>& i, int64_t T, int64_t rows, int64_t K, real* to, const real* from,
             const real* bias, const real* a, const real* b, real* c) {
  for (int64_t r = 0; r < rows; r += ROWS) {
    const int64_t m = min(ROWS, rows - r);
    for (int64_t q = 0; q < m; ++q) {
      real* row = c + q * TILE;
      if (from)
        take(row, from + (r + q) * T, T, i.t, i.n, i.N);
      else
        memset(row, 0, i.N * sizeof(real));
      if (bias)
        for (int64_t j = 0; j < i.N; j += LANES<real>) store(row + j, load(row + j) + bias[r + q]);
    }
    gemm<Plain<real>>(m, i.N, K, a + r * K, K, b, TILE, c, TILE);
    for (int64_t q = 0; q < m; ++q) copy(to + (r + q) * T + i.t, c + q * TILE, i.n);
  }
}

// Items [0, count) of a job, on workers that have `size` numbers of memory each.
template <class real, class Job> struct Workers {
  const Job& job;
  int64_t count, size;
  real* memory;
  int64_t next = 0;

  static void work(void* context, int64_t worker) {
    auto& w = *static_cast<Workers*>(context);
    for (int64_t i; !stopped() && (i = __atomic_fetch_add(&w.next, 1, __ATOMIC_RELAXED)) < w.count;)
      w.job(i, w.memory + worker * w.size);
  }
};

template <class real, class Job>
void run(int64_t count, int64_t threads, int64_t size, const Job& job) {
  threads = min(threads, count);
  Scratch memory(threads * size * sizeof(real));
  Workers<real, Job> workers{job, count, size, reinterpret_cast<real*>(memory.data)};
  parallel(threads, threads, Workers<real, Job>::work, &workers);
}

// The taps of x side by side: row k C + c holds channel c `(K - 1 - k) dilation` samples away.
template <class real>
void taps(const Sizes& s, const Tile<real>& i, real* to, const real* x, int64_t C, int64_t sign) {
  for (int64_t k = 0; k < s.K; ++k)
    for (int64_t c = 0; c < C; ++c)
      take(to + (k * C + c) * TILE, x + (i.b * C + c) * s.T, s.T,
           i.t + sign * (s.K - 1 - k) * s.dilation, i.n, i.N);
}

template <class real> struct Forward {
  Sizes s;
  const real *x, *skip, *weight, *bias, *res_weight, *res_bias, *skip_weight, *skip_bias, *cond;
  real *out, *skip_out, *gates;
  real* flat; // (2H, K R), weight with its taps side by side

  int64_t size() const { return (s.K * s.R + 3 * s.H + ROWS) * TILE; }

  void flatten() {
    for (int64_t c = 0; c < 2 * s.H; ++c)
      for (int64_t k = 0; k < s.K; ++k)
        for (int64_t r = 0; r < s.R; ++r)
          flat[(c * s.K + k) * s.R + r] = weight[(c * s.R + r) * s.K + k];
  }

  // row += the frames between which samples t ... t + n lie.
  void add_cond(real* row, const real* frames, int64_t t, int64_t n) const {
    for (int64_t j = 0; j < n;) {
      const int64_t f = min((t + j) / s.hop, s.F - 1), start = f * s.hop;
      const int64_t end = f == s.F - 1 ? n : min(n, start + s.hop - t);
      const real left = frames[f], step = f == s.F - 1 ? 0 : frames[f + 1] - left;
      for (; j < end; ++j) row[j] += left + real(t + j - start) / real(s.hop) * step;
    }
  }

  void operator()(int64_t index, real* memory) const {
    const Tile<real> i(s, index);
    real *columns = memory, *a = columns + s.K * s.R * TILE, *h = a + 2 * s.H * TILE;
    real* c = h + s.H * TILE;
    taps(s, i, columns, x, s.R, -1);
    for (int64_t g = 0; g < 2 * s.H; ++g) {
      real* row = a + g * TILE;
      for (int64_t j = 0; j < i.N; ++j) row[j] = bias[g];
      if (cond) add_cond(row, cond + (i.b * 2 * s.H + g) * s.F, i.t, i.n);
    }
    gemm<Plain<real>>(2 * s.H, i.N, s.K * s.R, flat, s.K * s.R, columns, TILE, a, TILE);
    for (int64_t g = 0; g < s.H; ++g) {
      real *f = a + g * TILE, *o = a + (s.H + g) * TILE;
      for (int64_t j = 0; j < i.N; j += LANES<real>) {
        const vec<real> left = tanh<real>(load(f + j)), right = sigmoid<real>(load(o + j));
        store(f + j, left);
        store(o + j, right);
        store(h + g * TILE + j, left * right);
      }
    }
    if (gates)
      for (int64_t g = 0; g < 2 * s.H; ++g)
        copy(gates + (i.b * 2 * s.H + g) * s.T + i.t, a + g * TILE, i.n);
    const int64_t xb = i.b * s.R * s.T, sb = i.b * s.S * s.T;
    if (s.res) product(i, s.T, s.R, s.H, out + xb, x + xb, res_bias, res_weight, h, c);
    product(i, s.T, s.S, s.H, skip_out + sb, skip + sb, skip_bias, skip_weight, h, c);
  }
};

template <class real> void forward(Forward<real> layer, int64_t threads) {
  const Sizes& s = layer.s;
  Scratch flat(2 * s.H * s.K * s.R * sizeof(real));
  layer.flat = reinterpret_cast<real*>(flat.data);
  layer.flatten();
  run<real>(s.tiles(), threads, layer.size(), layer);
}

template <class real> struct Backward {
  Sizes s;
  const real *dout, *dskip, *gates, *x, *weight, *res_weight, *skip_weight;
  real *dz, *dx, *dweight, *dbias, *dres_weight, *dres_bias, *dskip_weight, *dskip_bias, *dcond;
  real* mix;    // (H, R + S), res_weight and skip_weight transposed
  real* turned; // (R, K 2H), weight transposed
  real* sums;   // of each run of tiles: see `partial`

  int64_t run_length() const { return max(RUN, ceil(s.tiles(), PARTIALS)); }
  int64_t runs() const { return ceil(s.tiles(), run_length()); }
  int64_t flat() const { return padded(s.K * s.R); }
  int64_t wide() const { return padded(s.H); }
  int64_t rows() const { return 2 * s.H + s.mixed(); }
  int64_t partial() const { return 2 * s.H * flat() + s.mixed() * wide() + rows(); }

  void transpose_weights() {
    const int64_t Q = s.mixed();
    for (int64_t h = 0; h < s.H; ++h)
      for (int64_t q = 0; q < Q; ++q)
        mix[h * Q + q] =
            q < Q - s.S ? res_weight[q * s.H + h] : skip_weight[(q - (Q - s.S)) * s.H + h];
    for (int64_t r = 0; r < s.R; ++r)
      for (int64_t k = 0; k < s.K; ++k)
        for (int64_t c = 0; c < 2 * s.H; ++c)
          turned[(r * s.K + k) * 2 * s.H + c] = weight[(c * s.R + r) * s.K + k];
  }

  int64_t activation_size() const {
    return (s.mixed() + 4 * s.H + s.K * s.R + wide() + flat()) * TILE;
  }

  void tile(int64_t index, real* memory, real* sum) const {
    const Tile<real> i(s, index);
    const int64_t Q = s.mixed();
    real *dy = memory, *a = dy + Q * TILE, *h = a + 2 * s.H * TILE, *dh = h + s.H * TILE;
    real *columns = dh + s.H * TILE, *ht = columns + s.K * s.R * TILE, *xt = ht + wide() * TILE;
    for (int64_t q = 0; q < Q; ++q)
      take(dy + q * TILE,
           q < Q - s.S ? dout + (i.b * s.R + q) * s.T : dskip + (i.b * s.S + q - (Q - s.S)) * s.T,
           s.T, i.t, i.n, i.N);
    for (int64_t g = 0; g < 2 * s.H; ++g)
      take(a + g * TILE, gates + (i.b * 2 * s.H + g) * s.T, s.T, i.t, i.n, i.N);
    memset(dh, 0, s.H * TILE * sizeof(real));
    gemm<Plain<real>>(s.H, i.N, Q, mix, Q, dy, TILE, dh, TILE);
    for (int64_t g = 0; g < s.H; ++g) {
      real *f = a + g * TILE, *o = a + (s.H + g) * TILE;
      for (int64_t j = 0; j < i.N; j += LANES<real>) {
        const vec<real> left = load(f + j), right = load(o + j), d = load(dh + g * TILE + j);
        store(h + g * TILE + j, left * right);
        store(f + j, d * right * (1 - left * left));
        store(o + j, d * left * right * (1 - right));
      }
    }
    for (int64_t g = 0; g < 2 * s.H; ++g)
      copy(dz + (i.b * 2 * s.H + g) * s.T + i.t, a + g * TILE, i.n);
    if (!dweight) return;
    taps(s, i, columns, x, s.R, -1);
    transpose(ht, wide(), h, s.H, i.n);
    transpose(xt, flat(), columns, s.K * s.R, i.n);
    real *mixes = sum + 2 * s.H * flat(), *biases = mixes + Q * wide();
    gemm<Plain<real>>(2 * s.H, flat(), i.n, a, TILE, xt, flat(), sum, flat());
    gemm<Plain<real>>(Q, wide(), i.n, dy, TILE, ht, wide(), mixes, wide());
    for (int64_t g = 0; g < 2 * s.H; ++g) biases[g] += total(a + g * TILE, i.n);
    for (int64_t q = 0; q < Q; ++q) biases[2 * s.H + q] += total(dy + q * TILE, i.n);
  }
};

// dz and the partial sums, run of tiles by run.
template <class real> struct Activations {
  const Backward<real>& layer;
  void operator()(int64_t run, real* memory) const {
    const int64_t length = layer.run_length(), end = min(layer.s.tiles(), (run + 1) * length);
    for (int64_t i = run * length; i < end && !stopped(); ++i)
      layer.tile(i, memory, layer.sums + run * layer.partial());
  }
};

// What follows from dz and the partial sums: dx by tiles, dcond and the sums by rows.
template <class real> struct Rest {
  const Backward<real>& layer;

  int64_t tiles() const { return layer.dx ? layer.s.tiles() : 0; }
  int64_t conds() const { return layer.dcond ? layer.s.B * 2 * layer.s.H : 0; }
  int64_t count() const { return tiles() + conds() + (layer.dweight ? layer.rows() : 0); }
  int64_t size() const { return (layer.s.K * 2 * layer.s.H + ROWS) * TILE; }

  void operator()(int64_t i, real* memory) const {
    if (i < tiles()) return dx(i, memory);
    if ((i -= tiles()) < conds()) return dcond(i);
    row(i - conds());
  }

  void dx(int64_t index, real* memory) const {
    const Sizes& s = layer.s;
    const Tile<real> i(s, index);
    const int64_t xb = i.b * s.R * s.T;
    real* c = memory + s.K * 2 * s.H * TILE;
    taps(s, i, memory, layer.dz, 2 * s.H, +1);
    product<real>(i, s.T, s.R, s.K * 2 * s.H, layer.dx + xb, s.res ? layer.dout + xb : nullptr,
                  nullptr, layer.turned, memory, c);
  }

  void dcond(int64_t row) const {
    const Sizes& s = layer.s;
    const real* dz = layer.dz + row * s.T;
    real* to = layer.dcond + row * s.F;
    for (int64_t f = 0; f < s.F; ++f) to[f] = 0;
    for (int64_t f = 0; f < s.F && f * s.hop < s.T; ++f) {
      const bool last = f == s.F - 1;
      const int64_t n = last ? s.T - f * s.hop : min(s.hop, s.T - f * s.hop);
      real sum = 0, right = 0;
      for (int64_t j = 0; j < n; ++j) {
        const real d = dz[f * s.hop + j];
        sum += d;
        right += real(j) / real(s.hop) * d;
      }
      to[f] += last ? sum : sum - right;
      if (!last) to[f + 1] += right;
    }
  }

  real sum(int64_t offset) const {
    real y = 0;
    for (int64_t run = 0; run < layer.runs(); ++run)
      y += layer.sums[run * layer.partial() + offset];
    return y;
  }

  void row(int64_t row) const {
    const Sizes& s = layer.s;
    const int64_t Q = s.mixed(), mixes = 2 * s.H * layer.flat(), biases = mixes + Q * layer.wide();
    if (row < 2 * s.H) {
      for (int64_t k = 0; k < s.K; ++k)
        for (int64_t r = 0; r < s.R; ++r)
          layer.dweight[(row * s.R + r) * s.K + k] = sum(row * layer.flat() + k * s.R + r);
      layer.dbias[row] = sum(biases + row);
      return;
    }
    const int64_t q = row - 2 * s.H, skip = q - (Q - s.S);
    real* to = skip < 0 ? layer.dres_weight + q * s.H : layer.dskip_weight + skip * s.H;
    for (int64_t h = 0; h < s.H; ++h) to[h] = sum(mixes + q * layer.wide() + h);
    (skip < 0 ? layer.dres_bias[q] : layer.dskip_bias[skip]) = sum(biases + row);
  }
};

template <class real> void backward(Backward<real> layer, int64_t threads) {
  const Sizes& s = layer.s;
  const int64_t mix = s.H * s.mixed(), turned = s.R * s.K * 2 * s.H;
  Scratch memory((mix + turned + layer.runs() * layer.partial()) * sizeof(real));
  layer.mix = reinterpret_cast<real*>(memory.data);
  layer.turned = layer.mix + mix;
  layer.sums = layer.turned + turned;
  layer.transpose_weights();
  run<real>(layer.runs(), threads, layer.activation_size(), Activations<real>{layer});
  const Rest<real> rest{layer};
  run<real>(rest.count(), threads, rest.size(), rest);
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
    forward<real>({s, (in)x, (in)skip, (in)weight, (in)bias, (in)res_weight, (in)res_bias,
                   (in)skip_weight, (in)skip_bias, (in)cond, (real*)out, (real*)skip_out,
                   (real*)gates, nullptr},
                  threads);
  };
  dtype ? call(double()) : call(float());
}

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
    backward<real>({s,
                    (in)dout,
                    (in)dskip,
                    (in)gates,
                    (in)x,
                    (in)weight,
                    (in)res_weight,
                    (in)skip_weight,
                    (real*)dz,
                    (real*)dx,
                    (real*)dweight,
                    (real*)dbias,
                    (real*)dres_weight,
                    (real*)dres_bias,
                    (real*)dskip_weight,
                    (real*)dskip_bias,
                    (real*)dcond,
                    nullptr,
                    nullptr,
                    nullptr},
                   threads);
  };
  dtype ? call(double()) : call(float());
}

} // namespace fastgen::FASTGEN_ISA
