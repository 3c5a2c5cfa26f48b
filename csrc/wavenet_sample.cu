// wavenet_sample for up to 8 streams on one cluster of Hopper: kernels/wavenet_sample.py has the
// math, kernels/_wavenet_sample_cuda.py the layouts and the limits.
//
// The blocks of a cluster hold all weights, consecutive layers to a block: those that y waits for
// in registers, the rest in shared memory. The columns of every product are the 8 streams. A step:
//
//   chain    y comes from the block before, passes the layers and goes to the next block
//   skips    so does the sum of the skip products; the last block gives it to all
//   hidden, out    each block has some of the rows: of hidden for all, of out for block 0
//   draw     block 0, a warp a stream, and begins the next step
//   prepare  what the next step's gates are without y of that step: taps of the past, conditioning
//
// Vectors go by st.async, which counts bytes at the receiver's barrier. None is overrun: a sender
// of step t + 1 has seen, by way of y, the codes of step t, and these wait for all that anybody
// receives before the draw of step t. Only prepare reads later, and what it reads, y, has two
// boxes: the codes of t + 1 wait for it. So a block that waits for a vector must send one on, and
// every barrier is waited for by the step's parity.
//
// Floor of REF (20 layers, 64, 128, 256, 256) in cycles of a step: 20 layers of some 350 (two
// products of 70, gate 80, two barriers and their loads and stores), 6 handovers of 300, skips
// 300, hidden and out 400 each with their exchange, lookups 600, draw 450: 11,000, or 160,000
// samples/s at 1.75 GHz. Not measured.
#include "device.h"
#include "ops.h"

namespace fastgen {
namespace {

using namespace device;

constexpr int N = 8;    // streams, the columns of a product
constexpr int W = 64;   // R and H, padded
constexpr int DEEP = 3; // layers of a block
constexpr int MOST_LAYERS = 48;
constexpr int WARPS = 8, LANES = 32, THREADS = WARPS * LANES;
constexpr int TILE = 16;         // rows and columns of a fragment: a uint4 a lane
constexpr int DEPTH = W / TILE;  // fragments of a row of tiles
constexpr int GATES = 2 * DEPTH; // tiles of 2H rows: a warp each
static_assert(GATES == WARPS && W == 2 * LANES && N <= WARPS);

// From one stream to the next, in elements; no two of a load meet in a bank.
__host__ __device__ constexpr int narrow_stride(int length) { return TILE * (length / TILE | 1); }
__host__ __device__ constexpr int wide_stride(int length) { return length + 4; }
constexpr int OPERAND = N * narrow_stride(W), VECTOR = N * wide_stride(W);

enum Box { Y, SUMS, SKIPS, HIDDEN, LOGITS, BOXES }; // what a block receives in a step

struct Arguments {
  const uint4* words;
  const float2 *table, *embed, *biases;
  const float4* gates;
  const float *uniforms, *quantiles;
  float* rings;
  const int64_t* history;
  int64_t* codes;
  float* logits;
  int64_t* failed;
  int64_t T, P, start, F, hop, phase;
  int n, L, K, R, O, rows, classes, mixtures, blocks;
  int SB, OB; // S and O in tiles
  int most;   // layers of a block
  float slope, temperature, rate;
  int dilations[MOST_LAYERS];
  // where things lie in a block's shared memory, in bytes
  int past, skip, hidden, out, y, sums, logit, operands, h, taps, skips, hiddens, recent, bytes;
};

// Give everything its place in shared memory.
void lay_out(Arguments& a) {
  const int tile = LANES * sizeof(uint4), S = a.SB * TILE, O = a.OB * TILE;
  int end = 64; // after the barriers
  const auto take = [&end](int bytes) {
    const int place = end;
    end += bytes;
    return place;
  };
  a.past = take(a.most * (a.K - 1) * GATES * DEPTH * tile);
  a.skip = take(a.most * a.SB * DEPTH * tile);
  a.hidden = take((a.SB + a.blocks - 1) / a.blocks * a.SB * tile);
  a.out = take((a.OB + a.blocks - 1) / a.blocks * a.SB * tile);
  a.y = take((a.most + 1) * VECTOR * 4);
  a.sums = take(N * wide_stride(S) * 4);
  a.logit = take(N * wide_stride(O) * 4);
  a.operands = take(a.most * OPERAND * 2);
  a.h = take(a.most * OPERAND * 2);
  a.taps = take(a.most * (a.K - 1) * OPERAND * 2);
  a.skips = take(N * narrow_stride(S) * 2);
  a.hiddens = take(N * narrow_stride(S) * 2);
  a.recent = take(a.K * N * 4);
  a.bytes = end;
}

__device__ inline float4 operator+(float4 a, float4 b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}
// The same number for both streams of a lane.
__device__ inline float4 both(float2 v) { return {v.x, v.x, v.y, v.y}; }
__device__ inline float4 mix(float4 a, float4 b, float f) {
  return {a.x + f * (b.x - a.x), a.y + f * (b.y - a.y), a.z + f * (b.z - a.z),
          a.w + f * (b.w - a.w)};
}
__device__ inline float relu(float x) { return x < 0 ? 0 : x; } // a NaN stays one
__device__ inline float sigmoid(float x) { return inverse(1 + exponential(-x)); }
__device__ inline float gate(float f, float g) { return (2 * sigmoid(2 * f) - 1) * sigmoid(g); }

// The number of entries of cdf(softmax(rate z)) <= u, at most the last class of positive
// probability; without a rate the likeliest class. z: (A,), A <= 8 * LANES
__device__ int choose(const float* z, int A, float u, float rate, bool likeliest) {
  constexpr int EACH = 8;
  const int lane = thread() % LANES, left = A - EACH * lane;
  float v[EACH], top = -__builtin_huge_valf();
#pragma unroll
  for (int j = 0; j < EACH; ++j) {
    v[j] = j < left ? z[EACH * lane + j] : -__builtin_huge_valf();
    top = v[j] > top ? v[j] : top;
  }
#pragma unroll
  for (int half = LANES / 2; half > 0; half /= 2) {
    const float other = shuffle_xor(top, half);
    top = other > top ? other : top;
  }
  float cdf[EACH], total = 0;
  int last = 0, best = A - 1;
#pragma unroll
  for (int j = 0; j < EACH; ++j) {
    const float p = j < left ? exponential((v[j] - top) * rate) : 0;
    cdf[j] = total += p;
    if (p > 0) last = EACH * lane + j;
    if (j < left && v[j] == top && EACH * lane + j < best) best = EACH * lane + j;
  }
  float end = total;
#pragma unroll
  for (int by = 1; by < LANES; by *= 2) {
    const float before = shuffle_up(end, by);
    if (lane >= by) end += before;
  }
  float start = shuffle_up(end, 1);
  if (lane == 0) start = 0;
  const float bound = u * shuffle(end, LANES - 1);
  int below = 0;
#pragma unroll
  for (int j = 0; j < EACH; ++j) below += j < left && start + cdf[j] <= bound;
  below = sum(below), last = largest(last), best = smallest(best);
  return likeliest ? best : below < last ? below : last;
}

// The code nearest to a quantile of a logistic, held at the ends.
__device__ int place(float mean, float log_scale, float quantile, float temperature, int classes) {
  float x = mean;
  if (temperature > 0 && quantile != 0) x += temperature * exponential(log_scale) * quantile;
  x = x > -1 ? x < 1 ? x : 1 : -1;
  return __builtin_rintf((x + 1) * (0.5f * (classes - 1)));
}

// A thread's view of its block. A lane of a product's result has two rows, those of a pair of
// channels or the two halves of a gate, of two streams: x, y are the first row's, z, w the
// second's.
struct Block {
  const Arguments& a;
  char* memory = shared_memory();
  const int me = rank(), warp = thread() / LANES, lane = thread() % LANES;
  const int stream = lane % 4 * 2, pair = lane / 4; // the first of two; the channels' or the gate's
  const int first = me * a.most;                    // layer
  const int count = a.L - first < a.most ? a.L - first : a.most; // not positive: none
  const bool last = first + count == a.L && count > 0;
  Barrier* barriers = reinterpret_cast<Barrier*>(memory);
  uint4 now[DEEP][DEPTH], res[DEEP][DEPTH]; // the weights that y waits for
  float2 bias[DEEP], hidden_bias, out_bias;
  float4 next[DEEP]; // of gates, in the next step
  float* ring[DEEP]; // of a stream, the warp's, and the lane's pair of channels
  int depth[DEEP], slot[DEEP];
  int64_t frame = 0;
  int within = 0; // steps since the frame
  int head = 0;   // where the code of K steps before the next one stands
  int64_t broken = -1;

  __device__ Block(const Arguments& arguments) : a(arguments) {}

  template <class T> __device__ T* at(int place) { return reinterpret_cast<T*>(memory + place); }
  __device__ const uint4* fragments(int64_t i) { return a.words + i * LANES; }
  // Of a vector of channels, the lane's two in the tile.
  __device__ static int channels(int tile, int pair) { return TILE * tile + 2 * pair; }

  // The lane's part of fragment k of an operand.
  __device__ uint2 operand(const uint16_t* x, int stride, int k) {
    return *reinterpret_cast<const uint2*>(x + pair * stride + TILE * k + 2 * stream);
  }

  // A tile of rows, its fragments one after another, times a vector of `length` fragments.
  __device__ float4 product(float4 c, const uint4* tile, const uint16_t* x, int stride,
                            int length) {
    float4 part[4] = {c};
    for (int k = 0; k < length; k += 4)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        if (k + j < length) mma(part[j], tile[(k + j) * LANES + lane], operand(x, stride, k + j));
    return (part[0] + part[1]) + (part[2] + part[3]);
  }

  __device__ float4 product(float4 c, const uint4 (&tile)[DEPTH], const uint16_t* x) {
    float4 other{};
#pragma unroll
    for (int k = 0; k < DEPTH; ++k)
      mma(k % 2 ? other : c, tile[k], operand(x, narrow_stride(W), k));
    return c + other;
  }

  // What is received in a step, in bytes.
  __device__ int expected(int box) {
    const int S = a.SB * TILE, O = a.OB * TILE;
    return a.n * (box == Y ? W * 6 : box == SUMS ? S * 4 : box == LOGITS ? O * 4 : S * 2);
  }

  __device__ void receive(int box, int64_t t) {
    wait(barriers + box, t & 1);
    sync_warp(); // lanes of streams that are not there hold nothing back, and must not come too
                 // late
    if (thread() == 0) expect(barriers + box, expected(box));
  }

  // Send a lane's channels of a vector, of the streams that there are.
  __device__ void send_wide(int to, int box, float* vector, int stride, int channel, float4 v) {
    const Address barrier = remote(address(barriers + box), to);
    const Address place = remote(address(vector + stream * stride + channel), to);
    if (stream < a.n) send(place, barrier, v.x, v.z);
    if (stream + 1 < a.n) send(place + 4 * stride, barrier, v.y, v.w);
  }
  __device__ void send_narrow(int to, int box, uint16_t* vector, int stride, int channel,
                              float4 v) {
    const Address barrier = remote(address(barriers + box), to);
    const Address place = remote(address(vector + stream * stride + channel), to);
    if (stream < a.n) send(place, barrier, narrow(v.x, v.z));
    if (stream + 1 < a.n) send(place + 2 * stride, barrier, narrow(v.y, v.w));
  }

  // The lane's part of rows `code` of a table; of a mixture, the value times a row plus another.
  __device__ float2 row(const float2* table, int width, int code, int column) {
    if (code < 0) return {0, 0};
    if (a.mixtures == 0) return table[int64_t(code) * width + column];
    const float2 slope = table[column], offset = table[width + column];
    const float value = code * a.slope - 1;
    return {value * slope.x + offset.x, value * slope.y + offset.y};
  }
  __device__ int* codes(int k) {
    return at<int>(a.recent) + (head + k < a.K ? head + k : head + k - a.K) * N;
  }
  __device__ float4 lookup(const float2* table, int width, int k, int column) {
    const int* codes = this->codes(k);
    const float2 x = row(table, width, codes[stream], column);
    const float2 y = row(table, width, codes[stream + 1], column);
    return {x.x, y.x, x.y, y.y};
  }
  __device__ float4 lookup_gates(int k) {
    return lookup(a.table + int64_t(k) * a.rows * W, W, k, GATES * warp + pair);
  }

  __device__ void copy(int to, const uint4* from, int fragments) {
    for (int i = thread(); i < fragments * LANES; i += THREADS) at<uint4>(to)[i] = from[i];
  }

  // Take up the block's weights and state.
  __device__ void load() {
    const int64_t now_size = GATES * DEPTH, res_size = DEPTH * DEPTH;
    const int64_t past_size = (a.K - 1) * now_size, skip_size = a.SB * DEPTH;
    const int64_t res_at = (a.L - 1) * now_size, past_at = res_at + (a.L - 1) * res_size;
    const int64_t skip_at = past_at + (a.L - 1) * past_size, hidden_at = skip_at + a.L * skip_size;
    const int64_t out_at = hidden_at + int64_t(a.SB) * a.SB;
    const int tile = LANES * sizeof(uint4);
    float* start = a.rings + 2 * lane;
    for (int l = 1; l < a.L; ++l) start += warp * int64_t(a.K - 1) * a.dilations[l] * a.R;
    for (int l = 1; l < first; ++l) start += int64_t(a.K - 1) * a.dilations[l] * a.R;
#pragma unroll
    for (int i = 0; i < DEEP; ++i) {
      const int l = first + i;
      if (i >= count) break;
#pragma unroll
      for (int k = 0; k < DEPTH; ++k) {
        if (l > 0) now[i][k] = fragments((l - 1) * now_size + warp * DEPTH + k)[lane];
        if (l < a.L - 1 && warp < DEPTH)
          res[i][k] = fragments(res_at + l * res_size + warp * DEPTH + k)[lane];
      }
      if (l < a.L - 1 && warp < DEPTH) bias[i] = a.biases[(l * W + channels(warp, pair)) / 2];
      depth[i] = (a.K - 1) * a.dilations[l];
      slot[i] = a.start % depth[i];
      ring[i] = start;
      if (l > 0) {
        copy(a.past + i * past_size * tile, fragments(past_at + (l - 1) * past_size), past_size);
        start += int64_t(depth[i]) * a.R;
      }
      copy(a.skip + i * skip_size * tile, fragments(skip_at + l * skip_size), skip_size);
    }
    for (int j = 0; me + j * a.blocks < a.SB; ++j)
      copy(a.hidden + j * a.SB * tile, fragments(hidden_at + (me + j * a.blocks) * a.SB), a.SB);
    for (int j = 0; me + j * a.blocks < a.OB; ++j)
      copy(a.out + j * a.SB * tile, fragments(out_at + (me + j * a.blocks) * a.SB), a.SB);
    const int tile_of = me + warp * a.blocks, S = a.SB * TILE;
    const float2* after = a.biases + ((a.L - 1) * W + S + channels(tile_of, pair)) / 2;
    if (tile_of < a.SB) hidden_bias = after[0];
    if (tile_of < a.OB) out_bias = after[S / 2];
    for (int i = thread(); i < a.K * N; i += THREADS)
      at<int>(a.recent)[i] = i % N < a.n ? a.history[i % N * a.K + i / N] : -1;
    frame = a.phase / a.hop, within = a.phase % a.hop;
  }

  // y through the block's layers.
  __device__ void chain(int64_t t) {
    const int stride = wide_stride(W), channel = channels(warp, pair);
    float* box = at<float>(a.y) + (t & 1) * VECTOR;
    float4 y{};
    if (me > 0) receive(Y, t);
    if (warp < DEPTH) {
      const float *v = box + stream * stride + channel, *u = v + stride;
      y = me > 0 ? float4{v[0], u[0], v[1], u[1]} : lookup(a.embed, W / 2, a.K - 1, channel / 2);
    }
#pragma unroll
    for (int i = 0; i < DEEP; ++i) {
      if (i >= count) break;
      const uint16_t* x = at<uint16_t>(a.operands) + i * OPERAND;
      uint16_t* h = at<uint16_t>(a.h) + i * OPERAND;
      float4 c = next[i];
      c = first + i > 0 ? product(c, now[i], x) : c + lookup_gates(a.K - 1);
      uint16_t* to = h + stream * narrow_stride(W) + GATES * warp + pair;
      const uint32_t v = narrow(gate(c.x, c.z), gate(c.y, c.w));
      to[0] = v, to[narrow_stride(W)] = v >> 16;
      sync();
      if (first + i == a.L - 1) break; // the last residual feeds nothing
      if (warp < DEPTH) {
        y = product(y + both(bias[i]), res[i], h);
        pass(i, t, y, channel);
      }
      if (i + 1 < count) sync();
    }
  }

  // Hand y to the block's next layer, or to the next block.
  __device__ void pass(int i, int64_t t, float4 y, int channel) {
    const int stride = wide_stride(W), half = narrow_stride(W);
    if (i + 1 == count) {
      send_wide(me + 1, Y, at<float>(a.y) + (t & 1) * VECTOR, stride, channel, y);
      send_narrow(me + 1, Y, at<uint16_t>(a.operands), half, channel, y);
      return;
    }
    float* wide = at<float>(a.y) + (2 + i) * VECTOR + stream * stride + channel;
    uint16_t* x = at<uint16_t>(a.operands) + (i + 1) * OPERAND + stream * half + channel;
    *reinterpret_cast<float2*>(wide) = {y.x, y.z};
    *reinterpret_cast<float2*>(wide + stride) = {y.y, y.w};
    *reinterpret_cast<uint32_t*>(x) = narrow(y.x, y.z);
    *reinterpret_cast<uint32_t*>(x + half) = narrow(y.y, y.w);
  }

  // The sum of the skip products so far.
  __device__ void skips(int64_t t) {
    const int S = a.SB * TILE, stride = wide_stride(S), width = a.SB * DEPTH * LANES;
    float* box = at<float>(a.sums);
    for (int tile = warp; tile < a.SB; tile += WARPS) {
      const int channel = channels(tile, pair);
      float4 s{};
      for (int i = 0; i < count; ++i)
        s = product(s, at<uint4>(a.skip) + i * width + tile * DEPTH * LANES,
                    at<uint16_t>(a.h) + i * OPERAND, narrow_stride(W), DEPTH);
      if (me == 0) {
        s = s + both(a.biases[((a.L - 1) * W + channel) / 2]);
      } else {
        if (tile == warp) receive(SUMS, t);
        const float *v = box + stream * stride + channel, *u = v + stride;
        s = s + float4{v[0], u[0], v[1], u[1]};
      }
      if (!last) {
        send_wide(me + 1, SUMS, box, stride, channel, s);
        continue;
      }
      s = {relu(s.x), relu(s.y), relu(s.z), relu(s.w)};
      for (int to = 0; to < a.blocks && to < a.SB; ++to)
        send_narrow(to, SKIPS, at<uint16_t>(a.skips), narrow_stride(S), channel, s);
    }
  }

  // The warp's rows of the two products of the end. Who has none does not wait: it would be too
  // late for a barrier that nothing of its own holds back.
  __device__ void tail(int64_t t) {
    const int S = a.SB * TILE, O = a.OB * TILE, half = narrow_stride(S);
    const int tile = me + warp * a.blocks, channel = channels(tile, pair);
    if (tile < a.SB) {
      receive(SKIPS, t);
      const uint4* rows = at<uint4>(a.hidden) + warp * a.SB * LANES;
      float4 s = product(both(hidden_bias), rows, at<uint16_t>(a.skips), half, a.SB);
      s = {relu(s.x), relu(s.y), relu(s.z), relu(s.w)};
      for (int to = 0; to < a.blocks && to < a.OB; ++to)
        send_narrow(to, HIDDEN, at<uint16_t>(a.hiddens), half, channel, s);
    }
    if (tile < a.OB) {
      receive(HIDDEN, t);
      const uint4* rows = at<uint4>(a.out) + warp * a.SB * LANES;
      const float4 z = product(both(out_bias), rows, at<uint16_t>(a.hiddens), half, a.SB);
      send_wide(0, LOGITS, at<float>(a.logit), wide_stride(O), channel, z);
    }
  }

  // The next codes, a warp a stream.
  __device__ void draw(int64_t t) {
    const int64_t i = warp * a.T + t;
    float u = 0, quantile = 0;
    if (warp < a.n) u = a.uniforms[i];
    if (warp < a.n && a.mixtures > 0) quantile = a.quantiles[i];
    receive(LOGITS, t);
    if (warp < a.n) {
      const float* z = at<float>(a.logit) + warp * wide_stride(a.OB * TILE);
      int bad = 0;
      for (int c = lane; c < a.O; c += LANES) {
        bad |= !(z[c] - z[c] == 0);
        if (a.logits) a.logits[i * a.O + c] = z[c];
      }
      if (sum(bad) > 0 && broken < 0) broken = t;
      const bool likeliest = a.temperature == 0;
      int code = choose(z, a.mixtures > 0 ? a.mixtures : a.O, u, a.rate, likeliest);
      if (a.mixtures > 0)
        code = place(z[a.mixtures + code], z[2 * a.mixtures + code], quantile, a.temperature,
                     a.classes);
      if (t < a.P) code = a.codes[i];
      if (lane == 0) a.codes[i] = codes(a.K - 1)[warp] = code;
    }
    sync();
  }

  // Store y of this step, if there is one, and add up what is known of the next step's gates.
  __device__ void prepare(int64_t t, bool store) {
    const int channel = 2 * lane, half = narrow_stride(W);
#pragma unroll
    for (int i = 0; i < DEEP; ++i) {
      if (i >= count || first + i == 0 || warp >= a.n) continue;
      const float* y = at<float>(a.y) + (i > 0 ? 1 + i : t & 1) * VECTOR;
      y += warp * wide_stride(W) + channel;
      if (store) {
        put(ring[i] + int64_t(slot[i]) * a.R, y[0], y[1]);
        slot[i] = slot[i] + 1 < depth[i] ? slot[i] + 1 : 0;
      }
      uint16_t* x = at<uint16_t>(a.taps) + i * (a.K - 1) * OPERAND + warp * half + channel;
      int s = slot[i]; // of the oldest tap
      for (int k = 0; k < a.K - 1; ++k, x += OPERAND) {
        *reinterpret_cast<uint32_t*>(x) = get(ring[i] + int64_t(s) * a.R);
        s += a.dilations[first + i];
        if (s >= depth[i]) s -= depth[i];
      }
    }
    sync();
    const float fraction = float(within) / a.hop;
#pragma unroll
    for (int i = 0; i < DEEP; ++i) {
      if (i >= count) break;
      next[i] = conditioning(first + i, fraction);
      if (first + i == 0)
        for (int k = 0; k < a.K - 1; ++k) next[i] = next[i] + lookup_gates(k);
      else
        for (int k = 0; k < a.K - 1; ++k)
          next[i] = product(
              next[i], at<uint4>(a.past) + ((i * (a.K - 1) + k) * WARPS + warp) * DEPTH * LANES,
              at<uint16_t>(a.taps) + (i * (a.K - 1) + k) * OPERAND, half, DEPTH);
    }
    if (++within == a.hop) within = 0, ++frame;
  }
  __device__ float4 conditioning(int l, float fraction) {
    const int64_t f = frame < a.F ? frame : a.F - 1, g = f + 1 < a.F ? f + 1 : f;
    const int i = warp * LANES + lane, layer = GATES * LANES;
    const float4 before = a.gates[(f * a.L + l) * layer + i];
    return f == g ? before : mix(before, a.gates[(g * a.L + l) * layer + i], fraction);
  }
  // The lane's pair of channels in a ring: R may be odd, or smaller than the lane's.
  __device__ void put(float* to, float x, float y) {
    if (2 * lane < a.R) to[0] = x;
    if (2 * lane + 1 < a.R) to[1] = y;
  }
  __device__ uint32_t get(const float* from) {
    return narrow(2 * lane < a.R ? from[0] : 0, 2 * lane + 1 < a.R ? from[1] : 0);
  }

  __device__ void run() {
    if (thread() == 0) {
      for (int box = 0; box < BOXES; ++box) init(barriers + box);
      show_barriers();
      for (int box = 0; box < BOXES; ++box) expect(barriers + box, expected(box));
    }
    load();
    sync_cluster();
    prepare(0, false);
    const bool early = 2 * first < a.L; // else the end would wait for what this block prepares
    for (int64_t t = 0; t < a.T; ++t) {
      if (count > 0) chain(t);
      head = head + 1 < a.K ? head + 1 : 0;
      if (count > 0) skips(t);
      if (early) prepare(t, true);
      tail(t);
      if (me == 0) draw(t);
      if (!early) prepare(t, true);
    }
    if (me == 0 && warp < a.n && lane == 0) a.failed[warp] = broken < 0 ? -1 : a.start + broken;
    sync_cluster(); // nobody's memory goes before the others are done
  }
};

__global__ void __launch_bounds__(THREADS, 1) sample_kernel(const __grid_constant__ Arguments a) {
  if constexpr (RUNS)
    Block(a).run();
  else
    trap(); // never launched: wavenet_sample_clusters says that none can run
}

} // namespace

const char* wavenet_sample_clusters(int64_t device, int64_t blocks, int64_t bytes,
                                    int64_t* clusters) {
  return clusters_that_run(sample_kernel, device, blocks, THREADS, bytes, clusters);
}

const char* wavenet_sample_cuda(const void* words, const float* table, const float* embed,
                                const float* biases, const int64_t* dilations, const float* gates,
                                const float* uniforms, const float* quantiles, float* rings,
                                const int64_t* history, int64_t* codes, float* logits,
                                int64_t* failed, int64_t n, int64_t T, int64_t P, int64_t step,
                                int64_t F, int64_t hop, int64_t L, int64_t K, int64_t R, int64_t S,
                                int64_t O, int64_t classes, int64_t mixtures, double temperature,
                                int64_t blocks, int64_t bytes, int64_t device, int64_t stream) {
  Arguments a{};
  a.words = static_cast<const uint4*>(words);
  a.table = reinterpret_cast<const float2*>(table);
  a.embed = reinterpret_cast<const float2*>(embed);
  a.biases = reinterpret_cast<const float2*>(biases);
  a.gates = reinterpret_cast<const float4*>(gates);
  a.uniforms = uniforms, a.quantiles = quantiles, a.rings = rings, a.history = history;
  a.codes = codes, a.logits = logits, a.failed = failed;
  a.T = T, a.P = P, a.start = step, a.F = F, a.hop = hop, a.phase = step % hop;
  a.n = n, a.L = L, a.K = K, a.R = R, a.O = O, a.rows = mixtures > 0 ? 2 : classes;
  a.classes = classes, a.mixtures = mixtures, a.blocks = blocks;
  a.SB = (S + TILE - 1) / TILE, a.OB = (O + TILE - 1) / TILE, a.most = (L + blocks - 1) / blocks;
  a.slope = 2.0 / (classes - 1), a.temperature = temperature;
  a.rate = 1 / (temperature > 1e-30 ? temperature : 1e-30);
  lay_out(a);
  if (L > MOST_LAYERS || a.most > DEEP || R > W || n > N || O > 8 * LANES || a.bytes != bytes ||
      a.SB > WARPS * blocks)
    return "wavenet_sample: the kernel is not the one that was planned for";
  for (int l = 0; l < L; ++l) a.dilations[l] = dilations[l];
  return launch(sample_kernel, a, blocks, THREADS, bytes, device, stream);
}

} // namespace fastgen
