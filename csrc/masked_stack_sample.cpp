// The sampling loop of a stack of masked convolutions: kernels/masked_stack_sample.py has the math.
//
// A thread takes a group of up to 8 images through the whole raster. A layer that sees rows above
// alone is computed for a whole row before the row begins, and so is what the others get of the
// rows above and of such layers; the rest goes a color of a pixel at a time, all images of the
// group together. Layers of scale s have a pixel for each s x s of the image's, and are computed
// at the first of them.
#include "mixture.h"
#include "ops.h"
#include "raster.h"

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int64_t GROUP = 8;

// What a convolution sees of a map: itself, relu of it, or elu of it and then of its negative.
enum Form { RAW, RELU, ELU, FORMS };
// How a convolution gets its last row, the pixel's own: not at all, all at once, or up to the
// pixel.
enum Own { NONE, ROW, PIXEL };

template <class T> struct Conv {
  int64_t source;          // map: 0 is the image, l + 1 the output of layer l
  int64_t form, own;       // a Form, an Own
  int64_t step;            // pixels of the source for one of the layer's: 1 or 2; 0 means 1 / 2
  int64_t left, width, up; // columns to the left, of the window; rows above
  int64_t inputs;          // numbers of a pixel of what it sees
  const T* above;          // (outputs, width inputs) of each row at once; of step 0 of each phase
  int64_t words;           // of one
  Matrix<T> here[4];       // up to the pixel, of each color; of step 0 of each phase
};

template <class T> struct Layer {
  const Conv<T>* convs;
  int64_t count;              // of convs
  int64_t outputs, own, kept; // all, of a color, and what a gate leaves of these
  int64_t scale, skip;        // skip: a map, or -1
  int64_t bias;               // where its biases are
  bool gate, row, based;      // row: sees rows above alone; based: gets anything of rows at once
};

// The output of a layer, in each form that a later layer wants.
struct Size {
  int64_t channels, scale, up, side; // the largest that any reader looks up, and to each side
  bool wanted[FORMS];
};
template <class T> struct Map : Size {
  Lines<T> lines[FORMS];
};

template <class T> struct Model {
  const Layer<T>* layers;
  const T* biases; // (bias_count, bias_stride)
  int64_t bias_count, bias_stride;
  int64_t L, G, W, columns, widest; // G: colors apart; columns: W up to whole pixels of any scale
  Mixture<T> mixture;               // of M = 0 for logits
};

// What a group of M images works in. Rows are padded for what vectors write beyond their end.
template <class T> struct Arrays {
  Map<T>* maps;        // (L + 1,)
  T** base;            // (L,) of (columns, M, padded outputs): what layers start from in a row
  T* row;              // (columns, padded outputs) of one image and layer
  T *pixel, *p, *elus; // (M, Y) of the layer at hand; (A,) of one image; (2, Y)
  T *logits, *joint, *weights; // (M, Z) (M, mixtures, A) (M, mixtures), A padded
  T* colors;                   // (M, COLORS)
  int64_t Y, Z;

  // Lay the arrays out from `memory`, or with nullptr only measure; returns the bytes.
  int64_t place(const Model<T>& w, const Map<T>* known, int64_t M, char* memory) {
    const auto& mix = w.mixture;
    Y = padded(w.widest) + PAD, Z = mix.M ? padded(mix.A) : Y;
    Layout to{memory};
    to.take(maps, w.L + 1), to.take(base, w.L);
    for (int64_t i = 0; i <= w.L; ++i) {
      Map<T> map = known[i];
      const int64_t columns = w.columns / map.scale + 2 * map.side;
      for (int k = 0; k < FORMS; ++k)
        if (map.wanted[k])
          map.lines[k] = to.lines<T>(M, map.up + 1, columns * map.channels * (k == ELU ? 2 : 1));
      if (memory) maps[i] = map;
    }
    for (int64_t l = 0; l < w.L; ++l) {
      const auto& y = w.layers[l];
      T* rows;
      to.take(rows, y.based && !y.row ? w.columns / y.scale * M * padded(y.outputs) : 0);
      if (memory) base[l] = rows;
    }
    to.take(row, w.columns * Y), to.take(pixel, M * Y), to.take(elus, 2 * Y);
    to.take(p, padded(mix.A)), to.take(logits, mix.M ? M * Z : 0);
    to.take(joint, M * mix.M * Z), to.take(weights, M * padded(mix.M)), to.take(colors, M * COLORS);
    return to.bytes;
  }
};

// One thread's group of M images.
template <class T> class Group : Arrays<T> {
  using A = Arrays<T>;
  using A::maps, A::base, A::row, A::pixel, A::p, A::elus, A::logits, A::joint, A::weights,
      A::colors, A::Y, A::Z;

  const Model<T>& w;
  const int64_t first, M; // images first ... first + M - 1

public:
  static constexpr bool ROWS_APART = false;

  Group(const Model<T>& w, const Map<T>* known, int64_t first, int64_t M, char* memory)
      : w(w), first(first), M(M) {
    A::place(w, known, M, memory);
  }

  void run(const Images<T>& s) { draw(*this, s, first, M, Z, p); }

  bool look_up(int64_t i) {
    for (int64_t l = 0; l < w.L; ++l) {
      const auto& y = w.layers[l];
      for (int64_t m = 0; m < M && y.based && i % y.scale == 0; ++m) {
        if (stopped()) return false;
        look_up(m, i / y.scale, l);
      }
    }
    return true;
  }

  void look_left(int64_t i, int64_t j, int64_t c) {
    for (int64_t l = 0; l < w.L && c < w.G; ++l) {
      const auto& y = w.layers[l];
      if (!y.row && i % y.scale == 0 && j % y.scale == 0) look_left(i / y.scale, j / y.scale, c, l);
    }
  }

  const T* head(int64_t c) {
    const auto& mix = w.mixture;
    for (int64_t m = 0; m < M && mix.M; ++m) {
      T* z = logits + m * Z;
      mix(pixel + m * Y, c, colors + m * COLORS, weights + m * padded(mix.M), joint + m * mix.M * Z,
          z);
      if (!all_finite(w.layers[w.L - 1].outputs, pixel + m * Y)) z[0] = __builtin_nan("");
    }
    return mix.M ? logits : pixel;
  }

  void see(int64_t m, int64_t i, int64_t j, int64_t c, T x) {
    const auto& mix = w.mixture;
    const auto number = [&](int64_t channel, int64_t column, T value) {
      alignas(64) T padded_x[PAD] = {value};
      keep(0, m, i, column, channel, 1, padded_x);
    };
    number(c, j, x);
    if (!mix.M) return;
    // ones, that tell the image from the zeros around
    const int64_t end = c ? j : j == w.W - 1 ? w.columns : j + 1;
    for (int64_t column = j; column < end; ++column) number(mix.C, column, 1);
    colors[m * COLORS + c] = x;
    const auto code = int64_t((x + 1) * (T(mix.A - 1) / 2) + T(0.5));
    mix.see(code, joint + m * mix.M * Z, weights + m * padded(mix.M));
  }

private:
  // What a layer gets of rows at once in its row i of an image, and all of one that sees no more.
  void look_up(int64_t m, int64_t i, int64_t l) {
    const auto& y = w.layers[l];
    const int64_t O = padded(y.outputs), columns = w.columns / y.scale, step = y.row ? O : M * O;
    T* to = y.row ? row : base[l] + m * O;
    for (int64_t j = 0; j < columns; ++j) copy(y.outputs, biases(l, m), to + j * step);
    for (const auto* f = y.convs; f < y.convs + y.count; ++f) {
      const auto add = [&](int64_t k, int64_t from, int64_t count, int64_t source_step, int64_t at,
                           int64_t apart) {
        const Matrix<T> matrix{f->above + k * f->words, y.outputs, f->width * f->inputs};
        const int64_t x_stride = source_step * f->inputs;
        multiply(matrix, count, window(*f, m, from, 0), x_stride, to + at * step, apart * step);
      };
      if (f->step)
        for (int64_t k = 0; k < f->up + (f->own == ROW); ++k)
          add(k, i * f->step - f->up + k, columns, f->step, 0, 1);
      else if (f->own == ROW)
        for (int64_t odd = 0; odd < 2; ++odd) add(i % 2 * 2 + odd, i / 2, columns / 2, 1, odd, 2);
    }
    for (int64_t j = 0; j < columns && y.row; ++j) finish(l, m, i, j, 0, to + j * O);
  }

  // A layer at its pixel i, j, in the channels of color c.
  void look_left(int64_t i, int64_t j, int64_t c, int64_t l) {
    const auto& y = w.layers[l];
    const int64_t O = padded(y.outputs);
    for (int64_t m = 0; m < M; ++m) {
      const T* from = y.based ? base[l] + (j * M + m) * O : biases(l, m);
      copy(y.own, from + c * y.own, pixel + m * Y);
    }
    for (const auto* f = y.convs; f < y.convs + y.count; ++f) {
      if (f->own != PIXEL) continue;
      const bool whole = f->step > 0;
      const T* x = window(*f, 0, whole ? i * f->step : i / 2, whole ? j * f->step : j / 2);
      const int64_t stride = maps[f->source].lines[f->form].stride();
      multiply(f->here[whole ? c : i % 2 * 2 + j % 2], M, x, stride, pixel, Y);
    }
    for (int64_t m = 0; m < M; ++m) finish(l, m, i, j, c, pixel + m * Y);
  }

  const T* biases(int64_t l, int64_t m) {
    return w.biases + (w.bias_count > 1 ? first + m : 0) * w.bias_stride + w.layers[l].bias;
  }

  // A map of an image at a pixel.
  T* at(int64_t map, int64_t form, int64_t m, int64_t i, int64_t j) {
    const auto& y = maps[map];
    const int64_t numbers = form == ELU ? 2 * y.channels : y.channels;
    return y.lines[form].at(m, i) + (y.side + j) * numbers;
  }

  // Where a window begins in a row of an image, at its source's pixel j.
  T* window(const Conv<T>& f, int64_t m, int64_t i, int64_t j) {
    return at(f.source, f.form, m, i, j - f.left);
  }

  // Gate and skip of a layer's sums in color c of a pixel, of rows at once in all; and into its
  // map. x is lost.
  void finish(int64_t l, int64_t m, int64_t i, int64_t j, int64_t c, T* x) {
    const auto& y = w.layers[l];
    for (int64_t q = 0; q < y.kept && y.gate; q += LANES<T>)
      store<T>(x + q, load(x + q) * sigmoid<T>(load(x + y.kept + q)));
    const int64_t count = y.row ? y.kept * w.G : y.kept;
    if (y.skip >= 0) accumulate(count, at(y.skip, RAW, m, i, j) + c * y.kept, x);
    if (l < w.L - 1) keep(l + 1, m, i, j, c * y.kept, count, x);
  }

  // Some channels of a pixel into a map; no more, as zeros stand at a line's end. x is lost.
  void keep(int64_t map, int64_t m, int64_t i, int64_t j, int64_t channel, int64_t count, T* x) {
    const auto& y = maps[map];
    const auto put = [&](Form form, int64_t from, const T* numbers) {
      memcpy(at(map, form, m, i, j) + from, numbers, count * sizeof(T));
    };
    if (y.wanted[RAW]) put(RAW, channel, x);
    if (y.wanted[ELU]) {
      for (int64_t k = 0; k < count; k += LANES<T>) {
        const vec<T> v = load(x + k), e = expm1<T>(-abs<T>(v));
        store<T>(elus + k, v > 0 ? v : e), store<T>(elus + Y + k, v > 0 ? e : -v);
      }
      put(ELU, channel, elus), put(ELU, y.channels + channel, elus + Y);
    }
    if (!y.wanted[RELU]) return;
    relu(count, x);
    put(RELU, channel, x);
  }
};

// The next convolution of a layer, of its numbers in the table; what it wants of its source.
template <class T>
void take(const int64_t* of, const Layer<T>& y, int64_t G, const T*& at, Map<T>* maps, Conv<T>& f) {
  f.source = of[0], f.form = of[1], f.own = of[2], f.step = of[3], f.left = of[4];
  f.width = of[5], f.up = of[6];
  auto& source = maps[f.source];
  f.inputs = source.channels * (f.form == ELU ? 2 : 1);
  f.above = at, f.words = padded(y.outputs) * f.width * f.inputs;
  at += (f.step ? f.up + (f.own == ROW) : f.own == ROW ? 4 : 0) * f.words;
  const int64_t columns = f.left < f.width ? f.left : f.width;
  for (int64_t c = 0; c < (f.step ? G : 4) && f.own == PIXEL; ++c) {
    // of[7]: numbers of the pixel itself that the first color sees, or -1: none does
    const int64_t seen = of[7] < 0 ? 0 : of[7] + (f.step ? c : 0) * (f.inputs / G);
    f.here[c] = next(at, y.own, columns * f.inputs + seen);
  }
  const int64_t right = f.width - 1 - f.left, side = f.left > right ? f.left : right;
  source.up = source.up > f.up ? source.up : f.up;
  source.side = source.side > side ? source.side : side;
  source.wanted[f.form] = true;
}

template <class T>
void start(const void* words, const void* biases, const int64_t* layers, const int64_t* convs,
           int64_t L, int64_t count, int64_t bias_count, int64_t mixtures, const Images<T>& s,
           int64_t threads) {
  const T* at = static_cast<const T*>(words);
  Scratch memory(L * sizeof(Layer<T>) + (L + 1) * sizeof(Map<T>) + count * sizeof(Conv<T>));
  auto* stack = reinterpret_cast<Layer<T>*>(memory.data);
  auto* maps = reinterpret_cast<Map<T>*>(stack + L);
  auto* conv = reinterpret_cast<Conv<T>*>(maps + L + 1);
  Model<T> w{stack, static_cast<const T*>(biases), bias_count, 0, L, mixtures ? 1 : s.C, s.W, 0,
             0,     {s.C, mixtures, s.A}};
  maps[0].channels = s.C + (mixtures > 0), maps[0].scale = 1;
  int64_t coarsest = 1;
  for (int64_t l = 0; l < L; ++l) {
    const int64_t* of = layers + 6 * l;
    auto& y = stack[l];
    y.outputs = of[0], y.gate = of[1], y.skip = of[2], y.row = of[3], y.scale = of[4];
    y.count = of[5], y.own = y.outputs / w.G, y.kept = y.gate ? y.own / 2 : y.own;
    y.convs = conv, y.based = y.row, y.bias = w.bias_stride, w.bias_stride += y.outputs;
    for (int64_t k = 0; k < y.count; ++k, ++conv, convs += 8) {
      take(convs, y, w.G, at, maps, *conv);
      y.based |= conv->up > 0 || conv->own == ROW;
    }
    if (y.skip >= 0) maps[y.skip].wanted[RAW] = true;
    maps[l + 1].channels = y.kept * w.G, maps[l + 1].scale = y.scale;
    w.widest = w.widest > y.outputs ? w.widest : y.outputs;
    coarsest = coarsest > y.scale ? coarsest : y.scale;
  }
  w.bias_stride += PAD;
  w.columns = (s.W + coarsest - 1) / coarsest * coarsest;
  const int64_t bytes = Arrays<T>().place(w, maps, GROUP < s.n ? GROUP : s.n, nullptr);
  groups(s.n, GROUP, threads, bytes, [&](int64_t first, int64_t M, char* memory) {
    Group<T>(w, maps, first, M, memory).run(s);
  });
}

} // namespace

void masked_stack_sample(int64_t dtype, const void* words, const void* biases,
                         const int64_t* layers, const int64_t* convs, const double* uniforms,
                         const double* temperature, const int64_t* given, int64_t* codes,
                         void* logits, int64_t* failed, int64_t n, int64_t H, int64_t W, int64_t C,
                         int64_t L, int64_t count, int64_t bias_count, int64_t A, int64_t mixtures,
                         int64_t threads) {
  const auto run = [&](auto real) {
    using T = decltype(real);
    const Images<T> s{
        n, H, W, C, A, uniforms, temperature, given, codes, static_cast<T*>(logits), failed};
    start<T>(words, biases, layers, convs, L, count, bias_count, mixtures, s, threads);
  };
  if (dtype == 0) run(float{});
  if (dtype == 1) run(double{});
}

} // namespace fastgen::FASTGEN_ISA
