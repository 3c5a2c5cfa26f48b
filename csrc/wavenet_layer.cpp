// One layer of a WaveNet, for training: kernels/wavenet_layer.py has the math.
//
// Time is cut into tiles, which stay in the nearest caches. What a tile reads is first copied into
// a block of rows of one length, zeros outside of the sequence, so that products see no edges and
// no large strides; the block of the next tile is filled while this one's products are computed.
#include "common.h"
#include "ops.h"
#include "simd.h"

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int64_t TILE = WAVENET_LAYER_TILE;
constexpr int64_t ROWS = 8;      // rows of a product that are finished at once
constexpr int64_t PAD = 16;      // columns of a transposed tile are padded to a multiple
constexpr int64_t LINE = 64;     // bytes that memory brings at once
constexpr int64_t PARTIALS = 64; // partial sums of the gradients of weights, at most
constexpr int64_t RUN = 10;      // tiles of one such sum, at least

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

template <class real> void clear(real* to, int64_t n) {
  for (int64_t j = 0; j < n; ++j) to[j] = 0;
}

// What becomes a row of a block: `head` samples from one place, then `tail` from another, then
// zeros. Null: zeros.
template <class real> struct Row {
  const real* first = nullptr;
  int64_t head = 0;
  const real* second = nullptr;
  int64_t tail = 0;
};

template <class real> void copy(real* to, const real* from, int64_t n) {
  constexpr int W = LANES<real>;
  int64_t j = 0;
  for (; j + W <= n; j += W) store(to + j, load(from + j));
  for (; j < n; ++j) to[j] = from[j];
}

// `copy` past the caches.
template <class real> void copy_out(real* to, const real* from, int64_t n) {
  constexpr int W = LANES<real>;
  int64_t j = 0;
  if (uintptr_t(to) % sizeof(vec<real>) == 0)
    for (; j + W <= n; j += W) stream(to + j, load(from + j));
  for (; j + W <= n; j += W) store(to + j, load(from + j));
  for (; j < n; ++j) to[j] = from[j];
}

template <class real> void take(real* to, const Row<real>& row, int64_t N) {
  if (row.first && row.head == TILE) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < TILE; j += LANES<real>) store(to + j, load(row.first + j));
    return;
  }
  row.first ? copy(to, row.first, row.head) : clear(to, row.head);
  to += row.head;
  row.second ? copy(to, row.second, row.tail) : clear(to, row.tail);
  clear(to + row.tail, N - row.head - row.tail);
}

template <class real> void prefetch(const real* from, int64_t n) {
  for (int64_t j = 0; j < n; j += LINE / sizeof(real)) __builtin_prefetch(from + j);
}

// n samples of a sequence from t on, zeros left of it.
template <class real> Row<real> past(const real* x, int64_t t, int64_t n) {
  const int64_t zeros = min(max(-t, 0), n);
  return zeros ? Row<real>{nullptr, zeros, x + t + zeros, n - zeros} : Row<real>{x + t, n};
}

// Rows of a block that lie `stride` apart at their source.
template <class real> struct Part {
  Row<real> row; // the first one
  int64_t rows, stride;
};

// Fills a block with what a job reads of a tile, some rows at each call; the next ones are on their
// way to the caches meanwhile.
template <class real, class Job> struct Feed {
  const Job& job;
  Tile<real> tile;
  real* to;
  int64_t next, parts; // part
  Part<real> part{};
  Row<real> asked[Job::PACE];
  int64_t count = 0;

  Feed(const Job& job, int64_t i, real* block, bool any = true)
      : job(job), tile(job.s, i), to(block), next(0), parts(any ? job.parts() : 0) {}

  void operator()() {
    for (int64_t q = 0; q < count; ++q, to += TILE) take(to, asked[q], tile.N);
    for (count = 0; count < Job::PACE; ++count) {
      while (!part.rows) {
        if (next == parts) return;
        part = job.part(tile, next++);
      }
      Row<real>& row = part.row;
      asked[count] = row;
      if (row.first) prefetch(row.first, row.head), row.first += part.stride;
      if (row.second) prefetch(row.second, row.tail), row.second += part.stride;
      --part.rows;
    }
  }

  void finish() {
    do operator()();
    while (count);
  }
};

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

// K rows of TILE samples.
template <class real> struct Operand {
  const real* rows;
  int64_t K;
};

// to = from + bias + a (b over d) for a tile: `from` and `to` are (rows, T) of a sequence, from its
// sample t; a is (rows, b.K + d.K). A null `from` or `bias` is zero. c has room for ROWS rows.
template <class real, class F>
void product(const Tile<real>& i, int64_t T, int64_t rows, real* to, const real* from,
             const real* bias, const real* a, Operand<real> b, Operand<real> d, real* c, F& feed) {
  for (int64_t r = 0; r < rows; r += ROWS) {
    const int64_t m = min(ROWS, rows - r);
    for (int64_t q = r; q < r + m; ++q) {
      real* row = c + (q - r) * TILE;
      if (from)
        take(row, Row<real>{from + q * T + i.t, i.n}, i.N);
      else
        clear(row, i.N);
      if (bias)
        for (int64_t j = 0; j < i.N; j += LANES<real>) store(row + j, load(row + j) + bias[q]);
    }
    int64_t ahead = r + ROWS; // of `from`, in the time of this product
    auto both = [&] {
      feed();
      for (int64_t end = min(ahead + ROWS / 2, min(r + 2 * ROWS, rows)); ahead < end; ++ahead) {
        if (from) prefetch(from + ahead * T + i.t, i.n);
      }
    };
    const int64_t K = b.K + d.K;
    gemm<Plain<real>>(m, i.N, b.K, a + r * K, K, b.rows, TILE, c, TILE, both);
    if (d.K) gemm<Plain<real>>(m, i.N, d.K, a + r * K + b.K, K, d.rows, TILE, c, TILE, both);
    for (int64_t q = 0; q < m; ++q) copy_out(to + (r + q) * T + i.t, c + q * TILE, i.n);
  }
}

// Tiles [0, count) of a job, in runs, on workers with memory of their own.
template <class real, class Job> struct Workers {
  const Job& job;
  int64_t count, length; // tiles, and tiles of a run
  real* memory;
  int64_t next = 0;

  static void work(void* context, int64_t worker) {
    auto& w = *static_cast<Workers*>(context);
    const int64_t block = w.job.rows() * TILE, size = 2 * block + w.job.size();
    real* memory = w.memory + worker * size;
    for (int64_t run; !stopped();) {
      run = __atomic_fetch_add(&w.next, 1, __ATOMIC_RELAXED);
      const int64_t begin = run * w.length, end = min(begin + w.length, w.count);
      if (begin >= end) return;
      Feed<real, Job>(w.job, begin, memory).finish();
      for (int64_t i = begin; i < end && !stopped(); ++i) {
        real *now = memory + (i - begin) % 2 * block, *later = memory + (i - begin + 1) % 2 * block;
        Feed<real, Job> feed(w.job, i + 1, later, i + 1 < end);
        w.job(run, i, now, memory + 2 * block, feed);
        feed.finish();
      }
    }
  }
};

template <class real, class Job>
void run(int64_t count, int64_t length, int64_t threads, const Job& job) {
  threads = min(threads, ceil(count, length));
  Scratch memory(threads * (2 * job.rows() * TILE + job.size()) * sizeof(real));
  Workers<real, Job> workers{job, count, length, reinterpret_cast<real*>(memory.data)};
  parallel(threads, threads, Workers<real, Job>::work, &workers);
}

template <class real> struct Forward {
  Sizes s;
  const real *x, *skip, *weight, *bias, *res_weight, *res_bias, *skip_weight, *skip_bias, *cond;
  real *out, *skip_out, *gates;
  real* flat; // (2H, K R), weight with its taps side by side

  static constexpr int64_t PACE = 4;
  int64_t rows() const { return s.K * s.R; }
  int64_t size() const { return (3 * s.H + ROWS) * TILE; }

  int64_t parts() const { return s.K; }
  Part<real> part(const Tile<real>& i, int64_t k) const {
    return {past(x + i.b * s.R * s.T, i.t - (s.K - 1 - k) * s.dilation, i.n), s.R, s.T};
  }

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

  template <class F>
  void operator()(int64_t, int64_t index, real* columns, real* memory, F& feed) const {
    const Tile<real> i(s, index);
    real *a = memory, *h = a + 2 * s.H * TILE, *c = h + s.H * TILE;
    for (int64_t g = 0; g < 2 * s.H; ++g) {
      real* row = a + g * TILE;
      for (int64_t j = 0; j < i.N; j += LANES<real>) store(row + j, splat(bias[g]));
      if (cond) add_cond(row, cond + (i.b * 2 * s.H + g) * s.F, i.t, i.n);
    }
    gemm<Plain<real>>(2 * s.H, i.N, s.K * s.R, flat, s.K * s.R, columns, TILE, a, TILE, feed);
    for (int64_t g = 0; g < s.H; ++g) {
      real *f = a + g * TILE, *o = a + (s.H + g) * TILE;
      for (int64_t j = 0; j < i.N; j += LANES<real>) {
        const vec<real> left = tanh<real>(load(f + j)), right = sigmoid<real>(load(o + j));
        store(h + g * TILE + j, left * right);
        if (gates) {
          real* to = gates + (index * 2 * s.H + g) * TILE + j;
          stream<real>(to, left);
          stream<real>(to + s.H * TILE, right);
        }
      }
    }
    if (gates)
      for (int64_t g = 0; g < 2 * s.H; ++g)
        clear(gates + (index * 2 * s.H + g) * TILE + i.N, TILE - i.N);
    const int64_t xb = i.b * s.R * s.T, sb = i.b * s.S * s.T;
    const Operand<real> b{h, s.H};
    if (s.res) product(i, s.T, s.R, out + xb, x + xb, res_bias, res_weight, b, {}, c, feed);
    product(i, s.T, s.S, skip_out + sb, skip + sb, skip_bias, skip_weight, b, {}, c, feed);
  }
};

// Tiles of a run where the result does not depend on it: some for each thread.
int64_t short_run(int64_t tiles, int64_t threads) { return max(1, min(8, tiles / (4 * threads))); }

template <class real> void forward(Forward<real> layer, int64_t threads) {
  const Sizes& s = layer.s;
  Scratch flat(2 * s.H * s.K * s.R * sizeof(real));
  layer.flat = reinterpret_cast<real*>(flat.data);
  layer.flatten();
  run<real>(s.tiles(), short_run(s.tiles(), threads), threads, layer);
}

// dz and, of each run of tiles, the sums that become the gradients of weights.
template <class real> struct Backward {
  Sizes s;
  const real *dout, *dskip, *gates, *x, *weight, *res_weight, *skip_weight;
  real *dz, *dx, *dweight, *dbias, *dres_weight, *dres_bias, *dskip_weight, *dskip_bias, *dcond;
  real* mix;  // (H, R + S), res_weight and skip_weight transposed
  real* sums; // of each run of tiles

  static constexpr int64_t PACE = 4;
  int64_t run_length() const { return max(RUN, ceil(s.tiles(), PARTIALS)); }
  int64_t runs() const { return ceil(s.tiles(), run_length()); }
  int64_t flat() const { return padded(s.K * s.R); }
  int64_t wide() const { return padded(s.H); }
  int64_t partial() const {
    return 2 * s.H * flat() + s.mixed() * wide() + (2 * s.H + s.mixed()) * LANES<real>;
  }
  int64_t rows() const { return s.mixed() + (dweight ? s.K * s.R : 0); }
  int64_t size() const { return (2 * s.H + wide() + flat()) * TILE; }

  int64_t parts() const { return 2 + (dweight ? s.K : 0); }
  Part<real> part(const Tile<real>& i, int64_t p) const {
    if (p == 0) return {{dout + i.b * s.R * s.T + i.t, i.n}, s.res ? s.R : 0, s.T};
    if (p == 1) return {{dskip + i.b * s.S * s.T + i.t, i.n}, s.S, s.T};
    return {past(x + i.b * s.R * s.T, i.t - (s.K + 1 - p) * s.dilation, i.n), s.R, s.T};
  }

  void transpose_weights() {
    const int64_t Q = s.mixed(), R = Q - s.S;
    for (int64_t h = 0; h < s.H; ++h) {
      for (int64_t r = 0; r < R; ++r) mix[h * Q + r] = res_weight[r * s.H + h];
      for (int64_t r = 0; r < s.S; ++r) mix[h * Q + R + r] = skip_weight[r * s.H + h];
    }
  }

  template <class F>
  void operator()(int64_t run, int64_t index, real* dy, real* memory, F& feed) const {
    const Tile<real> i(s, index);
    const int64_t Q = s.mixed();
    real *columns = dy + Q * TILE, *a = dz + index * 2 * s.H * TILE;
    const real* saved = gates + index * 2 * s.H * TILE;
    real *dh = memory, *h = dh + s.H * TILE, *ht = h + s.H * TILE, *xt = ht + wide() * TILE;
    memset(dh, 0, s.H * TILE * sizeof(real));
    gemm<Plain<real>>(s.H, i.N, Q, mix, Q, dy, TILE, dh, TILE, feed);
    for (int64_t g = 0; g < s.H; ++g) {
      const int64_t f = g * TILE, o = (s.H + g) * TILE;
      for (int64_t j = 0; j < i.N; j += LANES<real>) {
        const vec<real> left = load(saved + f + j), right = load(saved + o + j);
        const vec<real> d = load(dh + f + j);
        store(h + f + j, left * right);
        store(a + f + j, d * right * (1 - left * left));
        store(a + o + j, d * left * right * (1 - right));
      }
    }
    for (int64_t g = 0; g < 2 * s.H; ++g) clear(a + g * TILE + i.N, TILE - i.N);
    if (!dweight) return;
    transpose_tile(ht, wide(), h, s.H, i.n);
    transpose_tile(xt, flat(), columns, s.K * s.R, i.n);
    real *sum = sums + run * partial(), *mixes = sum + 2 * s.H * flat();
    real* biases = mixes + Q * wide();
    gemm<Plain<real>>(2 * s.H, flat(), i.n, a, TILE, xt, flat(), sum, flat(), feed);
    gemm<Plain<real>>(Q, wide(), i.n, dy, TILE, ht, wide(), mixes, wide(), feed);
    for (int64_t q = 0; q < 2 * s.H; ++q) add(biases + q * LANES<real>, a + q * TILE, i.N);
    for (int64_t q = 0; q < Q; ++q) add(biases + (2 * s.H + q) * LANES<real>, dy + q * TILE, i.N);
  }

  static void add(real* sum, const real* row, int64_t N) {
    vec<real> y = load(sum);
    for (int64_t j = 0; j < N; j += LANES<real>) y += load(row + j);
    store(sum, y);
  }
};

// dx, from dz.
template <class real> struct Input {
  Sizes s;
  const real *dout, *dz;
  real* dx;
  const real* weight; // (R, K 2H), transposed

  static constexpr int64_t PACE = 8;
  int64_t rows() const { return (s.K - 1) * 2 * s.H; }
  int64_t size() const { return ROWS * TILE; }

  int64_t parts() const { return s.K - 1; }
  Part<real> part(const Tile<real>& i, int64_t k) const {
    const int64_t each = ceil(s.T, TILE), t = i.t + (s.K - 1 - k) * s.dilation, G = 2 * s.H;
    const int64_t j = t / TILE, offset = t % TILE, head = min(TILE - offset, i.n);
    const real* from = dz + (i.b * each + j) * G * TILE;
    return {{j < each ? from + offset : nullptr, head, j + 1 < each ? from + G * TILE : nullptr,
             i.n - head},
            G,
            TILE};
  }

  template <class F>
  void operator()(int64_t, int64_t index, real* columns, real* memory, F& feed) const {
    const Tile<real> i(s, index);
    const int64_t xb = i.b * s.R * s.T;
    const Operand<real> b{columns, rows()}, d{dz + index * 2 * s.H * TILE, 2 * s.H};
    product<real>(i, s.T, s.R, dx + xb, s.res ? dout + xb : nullptr, nullptr, weight, b, d, memory,
                  feed);
  }
};

// Rows of what is left: sums of partial sums, and dcond.
template <class real> struct Rest {
  const Backward<real>& layer;
  const Sizes& s = layer.s;

  int64_t sums() const { return layer.dweight ? 2 * s.H + s.mixed() : 0; }
  int64_t count() const { return sums() + (layer.dcond ? s.B * 2 * s.H : 0); }

  static void work(void* context, int64_t i) {
    auto& rest = *static_cast<Rest*>(context);
    i < rest.sums() ? rest.sum(i) : rest.dcond(i - rest.sums());
  }

  void dcond(int64_t row) const {
    const int64_t each = ceil(s.T, TILE), G = 2 * s.H;
    const real* dz = layer.dz + (row / G * each * G + row % G) * TILE;
    real* to = layer.dcond + row * s.F;
    for (int64_t f = 0; f < s.F; ++f) to[f] = 0;
    for (int64_t t = 0; t < s.T;) {
      const int64_t f = min(t / s.hop, s.F - 1), start = f * s.hop;
      const bool last = f == s.F - 1;
      const int64_t tile_end = min((t / TILE + 1) * TILE, s.T);
      const int64_t end = last ? tile_end : min(tile_end, start + s.hop);
      real sum = 0, right = 0;
      for (; t < end; ++t) {
        const real d = dz[t / TILE * G * TILE + t % TILE];
        sum += d;
        right += real(t - start) / real(s.hop) * d;
      }
      to[f] += last ? sum : sum - right;
      if (!last) to[f + 1] += right;
    }
  }

  // to[j] = the sum over runs of what stands at `offset` + j
  void add(real* to, int64_t offset, int64_t n) const {
    for (int64_t j = 0; j < n; ++j) to[j] = 0;
    for (int64_t run = 0; run < layer.runs(); ++run) {
      const real* from = layer.sums + run * layer.partial() + offset;
      for (int64_t j = 0; j < n; ++j) to[j] += from[j];
    }
  }

  void sum(int64_t row) const {
    const int64_t Q = s.mixed(), R = Q - s.S, mixes = 2 * s.H * layer.flat();
    const int64_t biases = mixes + Q * layer.wide();
    real lanes[LANES<real>], bias = 0;
    add(lanes, biases + row * LANES<real>, LANES<real>);
    for (real y : lanes) bias += y;
    if (row < 2 * s.H) {
      for (int64_t k = 0; k < s.K; ++k)
        for (int64_t r = 0; r < s.R; ++r)
          add(layer.dweight + (row * s.R + r) * s.K + k, row * layer.flat() + k * s.R + r, 1);
      layer.dbias[row] = bias;
      return;
    }
    const int64_t q = row - 2 * s.H;
    add(q < R ? layer.dres_weight + q * s.H : layer.dskip_weight + (q - R) * s.H,
        mixes + q * layer.wide(), s.H);
    (q < R ? layer.dres_bias[q] : layer.dskip_bias[q - R]) = bias;
  }
};

template <class real> void backward(Backward<real> layer, int64_t threads) {
  const Sizes& s = layer.s;
  const int64_t mix = s.H * s.mixed(), turned = s.R * s.K * 2 * s.H;
  Scratch memory((mix + turned + layer.runs() * layer.partial()) * sizeof(real));
  layer.mix = reinterpret_cast<real*>(memory.data);
  real* weight = layer.mix + mix;
  layer.sums = weight + turned;
  layer.transpose_weights();
  run<real>(s.tiles(), layer.run_length(), threads, layer);
  if (layer.dx) {
    for (int64_t r = 0; r < s.R; ++r)
      for (int64_t k = 0; k < s.K; ++k)
        for (int64_t c = 0; c < 2 * s.H; ++c)
          weight[(r * s.K + k) * 2 * s.H + c] = layer.weight[(c * s.R + r) * s.K + k];
    run<real>(s.tiles(), short_run(s.tiles(), threads), threads,
              Input<real>{s, layer.dout, layer.dz, layer.dx, weight});
  }
  Rest<real> rest{layer};
  parallel(rest.count(), threads, Rest<real>::work, &rest);
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
    backward<real>({s, (in)dout, (in)dskip, (in)gates, (in)x, (in)weight, (in)res_weight,
                    (in)skip_weight, (real*)dz, (real*)dx, (real*)dweight, (real*)dbias,
                    (real*)dres_weight, (real*)dres_bias, (real*)dskip_weight, (real*)dskip_bias,
                    (real*)dcond, nullptr, nullptr},
                   threads);
  };
  dtype ? call(double()) : call(float());
}

} // namespace fastgen::FASTGEN_ISA
