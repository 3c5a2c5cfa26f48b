// What the passes of wavenet_layer share: sequences cut into tiles of time.
//
// A tile's intermediates stay in the nearest caches. What a tile reads is first copied into a block
// of rows of one length, zeros around the sequence, so that products see no edges and no large
// strides. The next tile's block is filled while this one's products are computed.
#pragma once
#include "common.h"
#include "ops.h"
#include "simd.h"

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int64_t TILE = WAVENET_LAYER_TILE;
constexpr int64_t LINE = 64; // bytes that memory brings at once
constexpr int64_t PACE = 3;  // rows that a block is filled with at once
constexpr int64_t ROWS = 8;  // rows of a product that are finished at once

[[maybe_unused]] int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
[[maybe_unused]] int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
[[maybe_unused]] int64_t ceil(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Sizes {
  int64_t B, R, S, H, K, T, F, hop, dilation;
  bool res;
  int64_t tiles() const { return B * ceil(T, TILE); }
};

// n samples of sequence b from t on; N is n in whole vectors.
struct Tile {
  int64_t index, b, t, n, N;
  Tile(const Sizes& s, int64_t i, int64_t lanes)
      : index(i), b(i / ceil(s.T, TILE)), t(i % ceil(s.T, TILE) * TILE), n(min(TILE, s.T - t)),
        N(ceil(n, lanes) * lanes) {}
};

template <class real> void clear(real* to, int64_t n) {
  for (int64_t j = 0; j < n; ++j) to[j] = 0;
}

template <class real> void copy(real* to, const real* from, int64_t n) {
  int64_t j = 0;
  for (; j + LANES<real> <= n; j += LANES<real>) store(to + j, load(from + j));
  for (; j < n; ++j) to[j] = from[j];
}

// `copy` past the caches.
template <class real> void copy_out(real* to, const real* from, int64_t n) {
  if (uintptr_t(to) % sizeof(vec<real>)) return copy(to, from, n);
  int64_t j = 0;
  for (; j + LANES<real> <= n; j += LANES<real>) stream(to + j, load(from + j));
  for (; j < n; ++j) to[j] = from[j];
}

template <class real> void prefetch(const real* from, int64_t n) {
  for (int64_t j = 0; j < n; j += LINE / sizeof(real)) __builtin_prefetch(from + j);
}

// What becomes a row of a block: `head` samples from one place, `tail` from another, then zeros. A
// null place is zeros too.
template <class real> struct Row {
  const real* first = nullptr;
  int64_t head = 0;
  const real* second = nullptr;
  int64_t tail = 0;
};

// n samples of a sequence from sample t on, zeros left of the sequence.
template <class real> Row<real> past(const real* x, int64_t t, int64_t n) {
  const int64_t zeros = min(max(-t, 0), n);
  return zeros ? Row<real>{nullptr, zeros, x + t + zeros, n - zeros} : Row<real>{x + t, n};
}

template <class real> void take(real* to, const Row<real>& row, int64_t N) {
  if (row.first && row.head == TILE) {
#pragma GCC unroll 8
    for (int64_t j = 0; j < TILE; j += LANES<real>) store(to + j, load(row.first + j));
    return;
  }
  row.first ? copy(to, row.first, row.head) : clear(to, row.head);
  row.second ? copy(to + row.head, row.second, row.tail) : clear(to + row.head, row.tail);
  clear(to + row.head + row.tail, N - row.head - row.tail);
}

// Rows of a block that lie `stride` apart where they come from.
template <class real> struct Part {
  Row<real> row; // the first one
  int64_t rows, stride;
};

// Fills a block with the parts that a job reads of a tile, PACE rows at each call. Memory is asked
// for the next rows a call ahead.
template <class real, class Job> struct Feed {
  const Job& job;
  Tile tile;
  real* to;
  int64_t next = 0, parts;
  Part<real> part{};
  Row<real> asked[PACE];
  int64_t count = 0;

  Feed(const Job& job, const Tile& tile, real* block, bool any)
      : job(job), tile(tile), to(block), parts(any ? job.parts() : 0) {}

  void operator()() {
    for (int64_t q = 0; q < count; ++q, to += TILE) take(to, asked[q], tile.N);
    for (count = 0; count < PACE; ++count) {
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

// to[j] = from[j] + bias for the n samples of a tile, and bias up to N. A null `from` is zeros.
template <class real> void offset(real* to, const real* from, real bias, const Tile& i) {
  constexpr int W = LANES<real>;
  const int64_t whole = from ? i.n / W * W : 0;
  for (int64_t j = 0; j < whole; j += W) store(to + j, load(from + j) + bias);
  for (int64_t j = whole; j < i.N; j += W) store(to + j, splat(bias));
  for (int64_t j = whole; from && j < i.n; ++j) to[j] += from[j];
}

// K rows of TILE samples.
template <class real> struct Operand {
  const real* rows;
  int64_t K;
};

// to = from + bias + a b for a tile, b being `b` on top of `d`; `from` and `to` are (rows, T) of a
// sequence. A null `from` or `bias` is zero. c has room for ROWS rows.
template <class real, class F>
void product(const Tile& i, int64_t T, int64_t rows, real* to, const real* from, const real* bias,
             const real* a, Operand<real> b, Operand<real> d, real* c, F& feed) {
  const int64_t K = b.K + d.K;
  for (int64_t r = 0; r < rows; r += ROWS) {
    const int64_t m = min(ROWS, rows - r);
    for (int64_t q = r; q < r + m; ++q)
      offset(c + (q - r) * TILE, from ? from + q * T + i.t : nullptr, bias ? bias[q] : 0, i);
    int64_t ahead = r + ROWS; // rows of `from` that the next product starts from
    auto both = [&] {
      feed();
      const int64_t end = min(ahead + ROWS / 2, min(r + 2 * ROWS, rows));
      for (; from && ahead < end; ++ahead) prefetch(from + ahead * T + i.t, i.n);
    };
    gemm<Plain<real>>(m, i.N, b.K, a + r * K, K, b.rows, TILE, c, TILE, both);
    gemm<Plain<real>>(m, i.N, d.K, a + r * K + b.K, K, d.rows, TILE, c, TILE, both);
    for (int64_t q = 0; q < m; ++q) copy_out(to + (r + q) * T + i.t, c + q * TILE, i.n);
  }
}

// Tiles [0, count) of a job, in runs, on workers with two blocks and some memory of their own.
template <class real, class Job> struct Workers {
  const Job& job;
  int64_t count, length; // tiles, and tiles of a run
  real* memory;
  int64_t next = 0;

  static int64_t size(const Job& job) { return (2 * job.rows() + job.more_rows()) * TILE; }

  static void work(void* context, int64_t worker) {
    auto& w = *static_cast<Workers*>(context);
    while (!stopped()) {
      const int64_t run = __atomic_fetch_add(&w.next, 1, __ATOMIC_RELAXED);
      if (run * w.length >= w.count) break;
      w.tiles(run, w.memory + worker * size(w.job));
    }
    fence();
  }

  void tiles(int64_t run, real* block) const {
    const int64_t begin = run * length, end = min(begin + length, count);
    real *other = block + job.rows() * TILE, *rest = other + job.rows() * TILE;
    const auto at = [&](int64_t i) { return Tile(job.s, i, LANES<real>); };
    Feed<real, Job>(job, at(begin), block, true).finish();
    for (int64_t i = begin; i < end && !stopped(); ++i) {
      Feed<real, Job> feed(job, at(i + 1), other, i + 1 < end);
      job.tile(run, at(i), block, rest, feed);
      feed.finish();
      real* filled = other;
      other = block, block = filled;
    }
  }
};

template <class real, class Job> void each_tile(const Job& job, int64_t length, int64_t threads) {
  const int64_t count = job.s.tiles();
  threads = min(threads, ceil(count, length));
  Scratch memory(threads * Workers<real, Job>::size(job) * sizeof(real));
  Workers<real, Job> workers{job, count, length, reinterpret_cast<real*>(memory.data)};
  parallel(threads, threads, Workers<real, Job>::work, &workers);
}

// How many tiles make a run where no result depends on it: some runs for each thread.
[[maybe_unused]] int64_t run_length(const Sizes& s, int64_t threads) {
  return max(1, min(8, s.tiles() / (4 * threads)));
}

} // namespace
} // namespace fastgen::FASTGEN_ISA
