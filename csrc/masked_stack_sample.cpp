// The sampling loop of a stack of masked convolutions: kernels/masked_stack_sample.py has the math.
//
// A thread takes a group of up to 8 images through the whole raster. What a layer gets of the rows
// above is a product for a whole row, an image after the other, before the row begins; the rest
// goes a color of a pixel at a time, all images of the group together.
#include "ops.h"
#include "raster.h"

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int64_t GROUP = 8;

template <class T> struct Layer {
  int64_t source, skip;         // maps: 0 is the image, l + 1 the output of layer l; -1: none
  bool positive;                // whether it sees relu(source)
  int64_t up, side;             // rows above, and columns to each side
  int64_t inputs, outputs, own; // channels of its source, its own, its own of a color
  const T* above;               // for each row above a matrix (outputs, (2 side + 1) inputs)
  int64_t above_words;          // of one
  Matrix<T> left[COLORS];       // (own, side inputs + those seen of the pixel)
  const T* bias;                // (outputs,)
};

// The output of a layer, as it is and as relu makes it, where a later layer wants it.
template <class T> struct Map {
  int64_t channels, up, side; // the largest that any reader looks up, and to each side
  bool raw, positive;
  Lines<T> lines[2];
};

template <class T> struct Model {
  const Layer<T>* layers;
  int64_t L, C, W, widest; // widest: channels of any layer
};

// What a group of M images works in. Rows are padded for what vectors write beyond their end.
template <class T> struct Arrays {
  Map<T>* maps; // (L + 1,)
  T** base;     // (L,) of (W, M, padded outputs): what layers that look up start from in a row
  T *pixel, *p; // (M, Y) of the layer at hand; (Y,) of one image
  int64_t Y;

  // Lay the arrays out from `memory`, or with nullptr only measure; returns the bytes.
  int64_t place(const Model<T>& w, const Map<T>* known, int64_t M, char* memory) {
    Y = padded(w.widest) + PAD;
    Layout to{memory};
    to.take(maps, w.L + 1), to.take(base, w.L);
    for (int64_t i = 0; i <= w.L; ++i) {
      Map<T> map = known[i];
      for (int k = 0; k < 2; ++k)
        if (k ? map.positive : map.raw)
          map.lines[k] = to.lines<T>(M, map.up + 1, (w.W + 2 * map.side) * map.channels);
      if (memory) maps[i] = map;
    }
    for (int64_t l = 0; l < w.L; ++l) {
      T* row;
      to.take(row, w.layers[l].up ? w.W * M * padded(w.layers[l].outputs) : 0);
      if (memory) base[l] = row;
    }
    to.take(pixel, M * Y), to.take(p, Y);
    return to.bytes;
  }
};

// One thread's group of M images.
template <class T> class Group : Arrays<T> {
  using A = Arrays<T>;
  using A::maps, A::base, A::pixel, A::p, A::Y;

  const Model<T>& w;
  const int64_t first, M; // images first ... first + M - 1

public:
  static constexpr bool ROWS_APART = false;

  Group(const Model<T>& w, const Map<T>* known, int64_t first, int64_t M, char* memory)
      : w(w), first(first), M(M) {
    A::place(w, known, M, memory);
  }

  void run(const Images<T>& s) { draw(*this, s, first, M, Y, p); }

  bool look_up(int64_t m, int64_t i) {
    for (int64_t l = 0; l < w.L; ++l) {
      const auto& y = w.layers[l];
      if (stopped()) return false;
      if (!y.up) continue;
      const int64_t O = padded(y.outputs);
      T* to = base[l] + m * O;
      for (int64_t j = 0; j < w.W; ++j) copy(y.outputs, y.bias, to + j * M * O);
      for (int64_t k = 0; k < y.up; ++k) {
        const Matrix<T> row{y.above + k * y.above_words, y.outputs, (2 * y.side + 1) * y.inputs};
        multiply(row, w.W, seen_from(l, m, i - y.up + k), y.inputs, to, M * O);
      }
    }
    return true;
  }

  void look_left(int64_t i, int64_t j, int64_t c) {
    for (int64_t l = 0; l < w.L; ++l) {
      const auto& y = w.layers[l];
      const int64_t O = y.up ? padded(y.outputs) : 0;
      const T* from = (y.up ? base[l] + j * M * O : y.bias) + c * y.own;
      for (int64_t m = 0; m < M; ++m) {
        copy(y.own, from + m * O, pixel + m * Y);
        if (y.skip >= 0) accumulate(y.own, at(y.skip, 0, m, i, j) + c * y.own, pixel + m * Y);
      }
      const int64_t stride = maps[y.source].lines[y.positive].stride();
      const T* x = seen_from(l, 0, i) + j * y.inputs;
      multiply(y.left[c], M, x, stride, pixel, Y);
      if (l < w.L - 1)
        for (int64_t m = 0; m < M; ++m) keep(l + 1, m, i, j, c * y.own, y.own, pixel + m * Y);
    }
  }

  const T* head(int64_t) { return pixel; }

  void see(int64_t m, int64_t i, int64_t j, int64_t c, T x) {
    alignas(64) T padded_x[PAD] = {x};
    keep(0, m, i, j, c, 1, padded_x);
  }

private:
  // A map of an image at a pixel.
  T* at(int64_t map, bool positive, int64_t m, int64_t i, int64_t j) {
    const auto& y = maps[map];
    return y.lines[positive].at(m, i) + (y.side + j) * y.channels;
  }

  // Where the window of layer l begins in row i of an image, at its first pixel.
  T* seen_from(int64_t l, int64_t m, int64_t i) {
    const auto& y = w.layers[l];
    return at(y.source, y.positive, m, i, -y.side);
  }

  // Some channels of a pixel into a map; no more, as zeros stand at a line's end. x is lost.
  void keep(int64_t map, int64_t m, int64_t i, int64_t j, int64_t channel, int64_t count, T* x) {
    if (maps[map].raw) memcpy(at(map, 0, m, i, j) + channel, x, count * sizeof(T));
    if (!maps[map].positive) return;
    relu(count, x);
    memcpy(at(map, 1, m, i, j) + channel, x, count * sizeof(T));
  }
};

// layers: of each (source, skip, relu, up, side, outputs), and whether it sees the pixel's own
// color
template <class T>
void start(const void* words, const void* biases, const int64_t* layers, int64_t L,
           const Images<T>& s, int64_t threads) {
  const T *at = static_cast<const T*>(words), *bias = static_cast<const T*>(biases);
  Scratch memory(L * sizeof(Layer<T>) + (L + 1) * sizeof(Map<T>));
  auto* stack = reinterpret_cast<Layer<T>*>(memory.data);
  auto* maps = reinterpret_cast<Map<T>*>(stack + L);
  Model<T> w{stack, L, s.C, s.W, 0};
  maps[0].channels = s.C;
  for (int64_t l = 0; l < L; ++l) {
    const int64_t* of = layers + 7 * l;
    auto& y = stack[l];
    y.source = of[0], y.skip = of[1], y.positive = of[2], y.up = of[3], y.side = of[4];
    y.outputs = maps[l + 1].channels = of[5];
    y.inputs = maps[y.source].channels, y.own = y.outputs / s.C;
    y.bias = bias, bias += y.outputs;
    y.above = at, y.above_words = padded(y.outputs) * (2 * y.side + 1) * y.inputs;
    at += y.up * y.above_words;
    for (int64_t c = 0; c < s.C; ++c)
      y.left[c] = next(at, y.own, y.side * y.inputs + (c + of[6]) * (y.inputs / s.C));
    auto& source = maps[y.source];
    source.up = source.up > y.up ? source.up : y.up;
    source.side = source.side > y.side ? source.side : y.side;
    (y.positive ? source.positive : source.raw) = true;
    if (y.skip >= 0) maps[y.skip].raw = true;
    w.widest = w.widest > y.outputs ? w.widest : y.outputs;
  }
  const int64_t bytes = Arrays<T>().place(w, maps, GROUP < s.n ? GROUP : s.n, nullptr);
  groups(s.n, GROUP, threads, bytes, [&](int64_t first, int64_t M, char* memory) {
    Group<T>(w, maps, first, M, memory).run(s);
  });
}

} // namespace

void masked_stack_sample(int64_t dtype, const void* words, const void* biases,
                         const int64_t* layers, const double* uniforms, const double* temperature,
                         const int64_t* given, int64_t* codes, void* logits, int64_t* failed,
                         int64_t n, int64_t H, int64_t W, int64_t C, int64_t L, int64_t A,
                         int64_t threads) {
  const auto run = [&](auto real) {
    using T = decltype(real);
    const Images<T> s{
        n, H, W, C, A, uniforms, temperature, given, codes, static_cast<T*>(logits), failed};
    start<T>(words, biases, layers, L, s, threads);
  };
  if (dtype == 0) run(float{});
  if (dtype == 1) run(double{});
}

} // namespace fastgen::FASTGEN_ISA
