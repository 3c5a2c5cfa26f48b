// The sampling loop of a gated PixelCNN: kernels/pixelcnn_sample.py has the math and the layouts.
//
// A thread takes a group of up to 8 images through the whole raster; nothing is shared between
// groups. The vertical stack of a row depends on rows above it alone, so it is computed for the
// whole row at once, an image after the other; then the horizontal stack goes a color of a pixel
// at a time, all images of the group together.
#include "common.h"
#include "ops.h"
#include "sample.h"

#include <type_traits>

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int64_t GROUP = 8, COLORS = 3;

template <class T> struct Matrix {
  const T* words;
  int64_t rows, K;
};

template <class T>
void multiply(const Matrix<T>& w, int64_t M, const T* x, int64_t x_stride, T* out, int64_t stride) {
  product<Plain<T>>(w.rows, w.K, w.words, M, x, x_stride, out, stride);
}

// C colors; P channels of both stacks, Q of a color; A levels, S channels of the head.
struct Sizes {
  int64_t n, H, W, C, L, P, Q, S, A, bases;
};

template <class T> struct Layer {
  int64_t r, inputs;      // k / 2, channels of its input
  int64_t above;          // rows of the vertical kernel: r, and from layer 1 on the own row too
  const T* vertical;      // for each of them a matrix (2P, k inputs)
  int64_t vertical_words; // of one
  Matrix<T> link;         // (C G, 2P)
  Matrix<T> gates[COLORS], res[COLORS]; // (2Q, r inputs + those seen of the pixel), (Q, (c + 1) Q)
  const T* res_bias;                    // (P,)
};

template <class T> struct Model {
  const Layer<T>* layers;
  Matrix<T> hidden[COLORS], out[COLORS]; // (S / C, (c + 1) Q), (A, (c + 1) S / C)
  const T *hidden_bias, *out_bias;
};

// What belongs to the images: see ops.h.
template <class T> struct Images {
  const T* bases;
  const double *uniforms, *temperature;
  const int64_t* given;
  int64_t* codes;
  T* logits;
  int64_t* failed;
};

// The last rows of what a stack's layer sees: a ring of lines for each image, with zeros at their
// left and, of the vertical stack, at their right.
template <class T> struct Lines {
  T* data;
  int64_t depth, length; // lines of an image, numbers of a line
  T* at(int64_t m, int64_t i) const { return data + (m * depth + (i + depth) % depth) * length; }
  int64_t stride() const { return depth * length; } // from an image to the next
};

// What a group of M images works in. Rows are padded for what vectors write beyond their end.
template <class T> struct Arrays {
  int64_t V, G, CG, P, S, O;
  Lines<T>*v, *h;        // (L,): the inputs of the layers; of layer 0 both are the image
  T* base;               // (L, W, M, CG): what the gates of h start from in this row
  T* vertical;           // (W, V): the gates of v, of one image and layer
  T* gated;              // (L, M, P): the gates' output in this pixel
  T *top, *hidden, *out; // (M, P) (M, S) (M, O)
  T* p;                  // (O,) of one image
  int64_t bytes;

  // Lay the arrays out from `memory`, or with nullptr only measure.
  void place(const Sizes& z, const Layer<T>* layers, int64_t M, char* memory) {
    V = padded(2 * z.P), G = padded(2 * z.Q), CG = z.C * G;
    P = padded(z.P) + PAD, S = padded(z.S) + PAD, O = padded(z.A);
    int64_t at = 0;
    const auto take = [&](auto*& array, int64_t count) {
      array = reinterpret_cast<std::remove_reference_t<decltype(array)>>(memory + at);
      at += (count * int64_t(sizeof *array) + 63) / 64 * 64;
    };
    take(v, z.L), take(h, z.L);
    for (int64_t l = 0; l < z.L; ++l) {
      const auto& layer = layers[l];
      const auto lines = [&](int64_t depth, int64_t pixels) {
        Lines<T> made{nullptr, depth, padded(pixels * layer.inputs) + PAD};
        take(made.data, M * depth * made.length);
        return made;
      };
      const Lines<T> both = lines(layer.r + 1, z.W + 2 * layer.r);
      const Lines<T> row = l ? lines(1, z.W + layer.r) : both;
      if (memory) v[l] = both, h[l] = row;
    }
    take(base, z.L * z.W * M * CG), take(vertical, z.W * V);
    take(gated, z.L * M * P), take(top, M * P), take(hidden, M * S), take(out, M * O), take(p, O);
    bytes = at + 64;
  }
};

// One thread's group of M images.
template <class T> class Group : Arrays<T> {
  using A = Arrays<T>;
  using A::V, A::G, A::CG, A::P, A::S, A::O, A::v, A::h, A::base, A::vertical, A::gated, A::top,
      A::hidden, A::out, A::p;

  const Model<T>& w;
  const Sizes& z;
  const Images<T>& s;
  const int64_t first, M; // images first ... first + M - 1

public:
  Group(const Model<T>& w, const Sizes& z, const Images<T>& s, int64_t first, int64_t M,
        char* memory)
      : w(w), z(z), s(s), first(first), M(M) {
    A::place(z, w.layers, M, nullptr);
    memset(memory, 0, A::bytes);
    A::place(z, w.layers, M, memory);
  }

  void run() {
    for (int64_t i = 0; i < z.H; ++i) {
      int64_t last = z.W; // pixels after the row's last one to draw need no horizontal stack
      while (last > 0 && !wanted(i, last - 1)) --last;
      for (int64_t m = 0; m < M; ++m)
        for (int64_t l = 0; l < z.L; ++l) {
          if (stopped()) return;
          look_up(m, i, l);
        }
      for (int64_t j = 0; j < z.W; ++j) {
        if (stopped()) return;
        for (int64_t c = 0; c < z.C; ++c)
          if (!step(i, j, c, j < last)) return;
      }
    }
  }

private:
  int64_t place_of(int64_t m, int64_t i, int64_t j, int64_t c) {
    return (((first + m) * z.C + c) * z.H + i) * z.W + j;
  }

  // Whether any image needs logits at this pixel.
  bool wanted(int64_t i, int64_t j) {
    bool found = s.logits;
    for (int64_t m = 0; m < M; ++m)
      for (int64_t c = 0; c < z.C; ++c) found |= s.given[place_of(m, i, j, c)] < 0;
    return found;
  }

  // The vertical stack's layer in row i of an image, and what the horizontal one gets of it.
  void look_up(int64_t m, int64_t i, int64_t l) {
    const auto& layer = w.layers[l];
    const T* bias = s.bases + ((z.bases > 1 ? first + m : 0) * z.L + l) * (V + CG);
    const int64_t k = 2 * layer.r + 1;
    for (int64_t j = 0; j < z.W; ++j) copy(V, bias, vertical + j * V);
    for (int64_t y = 0; y < layer.above; ++y) {
      const Matrix<T> row{layer.vertical + y * layer.vertical_words, 2 * z.P, k * layer.inputs};
      multiply(row, z.W, v[l].at(m, i - layer.r + y), layer.inputs, vertical, V);
    }
    T* to = base + (l * z.W * M + m) * CG;
    for (int64_t j = 0; j < z.W; ++j) copy(CG, bias + V, to + j * M * CG);
    multiply(layer.link, z.W, vertical, V, to, M * CG);
    if (l == z.L - 1) return;
    T* line = v[l + 1].at(m, i) + w.layers[l + 1].r * z.P;
    for (int64_t j = 0; j < z.W; ++j) {
      gate(z.P, vertical + j * V, gated);
      memcpy(line + j * z.P, gated, z.P * sizeof(T)); // no more: zeros stand after the last
    }
  }

  // tanh of Q numbers times sigmoid of the next Q.
  void gate(int64_t Q, const T* a, T* to) {
    for (int64_t q = 0; q < Q; q += LANES<T>)
      store<T>(to + q, fastgen::FASTGEN_ISA::gated<T>(load(a + q), load(a + Q + q)));
  }

  // A color of a pixel for each image; false where the logits are not finite.
  bool step(int64_t i, int64_t j, int64_t c, bool look) {
    if (look) {
      for (int64_t l = 0; l < z.L; ++l) look_left(i, j, c, l);
      if (wanted(i, j)) {
        head(c);
        for (int64_t m = 0; m < M; ++m)
          if ((s.logits || s.given[place_of(m, i, j, c)] < 0) && !all_finite(O, out + m * O)) {
            s.failed[first + m] = (i * z.W + j) * z.C + c;
            return false;
          }
      }
    }
    for (int64_t m = 0; m < M; ++m) emit(m, i, j, c);
    return true;
  }

  // The horizontal stack's layer, in the channels of color c.
  void look_left(int64_t i, int64_t j, int64_t c, int64_t l) {
    const auto& layer = w.layers[l];
    const int64_t Q = z.Q;
    T* a = base + (l * z.W + j) * M * CG + c * G;
    const T* in = h[l].at(0, i) + j * layer.inputs;
    multiply(layer.gates[c], M, in, h[l].stride(), a, CG);
    const bool last = l == z.L - 1;
    T* to = last ? top : h[l + 1].at(0, i) + (w.layers[l + 1].r + j) * z.P;
    const int64_t stride = last ? P : h[l + 1].stride();
    T* gates = gated + l * M * P;
    const T* here = in + layer.r * layer.inputs; // the input at the pixel itself
    for (int64_t m = 0; m < M; ++m) {
      gate(Q, a + m * CG, gates + m * P + c * Q);
      copy(Q, layer.res_bias + c * Q, to + m * stride + c * Q);
      if (l) accumulate(Q, here + m * h[l].stride() + c * Q, to + m * stride + c * Q);
    }
    multiply(layer.res[c], M, gates, P, to + c * Q, stride);
    if (last)
      for (int64_t m = 0; m < M; ++m) relu(Q, top + m * P + c * Q);
  }

  void head(int64_t c) {
    const int64_t part = z.S / z.C;
    for (int64_t m = 0; m < M; ++m) {
      copy(part, w.hidden_bias + c * part, hidden + m * S + c * part);
      copy(z.A, w.out_bias + c * z.A, out + m * O);
    }
    multiply(w.hidden[c], M, top, P, hidden + c * part, S);
    for (int64_t m = 0; m < M; ++m) relu(part, hidden + m * S + c * part);
    multiply(w.out[c], M, hidden, S, out, O);
  }

  void emit(int64_t m, int64_t i, int64_t j, int64_t c) {
    const int64_t place = place_of(m, i, j, c);
    const T* logits = out + m * O;
    if (s.logits) memcpy(s.logits + place * z.A, logits, z.A * sizeof(T));
    int64_t code = s.given[place];
    if (code < 0) code = choose(logits, z.A, s.uniforms[place], s.temperature[place], p);
    s.codes[place] = code;
    v[0].at(m, i)[(w.layers[0].r + j) * z.C + c] = T(code) * (T(2) / T(z.A - 1)) - 1;
  }
};

template <class T>
void sample(const Model<T>& w, const Sizes& z, const Images<T>& s, int64_t threads) {
  // As few groups as hold all images, but one for each thread, of sizes as equal as can be.
  int64_t groups = (z.n + GROUP - 1) / GROUP;
  groups = (groups + threads - 1) / threads * threads;
  groups = groups < z.n ? groups : z.n;
  const int64_t workers = groups < threads ? groups : threads;
  Arrays<T> arrays;
  arrays.place(z, w.layers, GROUP < z.n ? GROUP : z.n, nullptr);
  Scratch scratch(workers * arrays.bytes);
  each(workers, threads, [&](int64_t i) {
    for (int64_t g = i; g < groups && !stopped(); g += workers) {
      const int64_t first = g * z.n / groups, M = (g + 1) * z.n / groups - first;
      Group<T>(w, z, s, first, M, scratch.data + i * arrays.bytes).run();
    }
  });
}

template <class T>
void start(const void* words, const void* biases, const int64_t* kernels, const Sizes& z,
           const Images<T>& s, int64_t threads) {
  const T* at = static_cast<const T*>(words);
  const auto next = [&at](int64_t rows, int64_t K) {
    const Matrix<T> matrix{at, rows, K};
    at += padded(rows) * K;
    return matrix;
  };
  Scratch memory(z.L * sizeof(Layer<T>));
  auto* layers = reinterpret_cast<Layer<T>*>(memory.data);
  Model<T> w{};
  w.layers = layers;
  const T* bias = static_cast<const T*>(biases);
  for (int64_t l = 0; l < z.L; ++l) {
    auto& layer = layers[l];
    layer.r = kernels[l] / 2, layer.inputs = l ? z.P : z.C;
    layer.above = l ? layer.r + 1 : layer.r;
    layer.vertical = at;
    layer.vertical_words = padded(2 * z.P) * kernels[l] * layer.inputs;
    at += layer.above * layer.vertical_words;
    layer.link = next(z.C * padded(2 * z.Q), 2 * z.P);
    layer.res_bias = bias, bias += z.P;
  }
  for (int64_t l = 0; l < z.L; ++l)
    for (int64_t c = 0; c < z.C; ++c) {
      auto& layer = layers[l];
      const int64_t seen = l ? (c + 1) * z.Q : c; // of the pixel itself
      layer.gates[c] = next(2 * z.Q, layer.r * layer.inputs + seen);
      layer.res[c] = next(z.Q, (c + 1) * z.Q);
    }
  for (int64_t c = 0; c < z.C; ++c) {
    w.hidden[c] = next(z.S / z.C, (c + 1) * z.Q);
    w.out[c] = next(z.A, (c + 1) * (z.S / z.C));
  }
  w.hidden_bias = bias, w.out_bias = bias + z.S;
  sample<T>(w, z, s, threads);
}

} // namespace

void pixelcnn_sample(int64_t dtype, const void* words, const void* biases, const void* bases,
                     const int64_t* kernels, const double* uniforms, const double* temperature,
                     const int64_t* given, int64_t* codes, void* logits, int64_t* failed, int64_t n,
                     int64_t H, int64_t W, int64_t C, int64_t L, int64_t P, int64_t S, int64_t A,
                     int64_t base_count, int64_t threads) {
  const Sizes z{n, H, W, C, L, P, P / C, S, A, base_count};
  const auto run = [&](auto real) {
    using T = decltype(real);
    const Images<T> s{static_cast<const T*>(bases), uniforms, temperature, given, codes,
                      static_cast<T*>(logits),      failed};
    start<T>(words, biases, kernels, z, s, threads);
  };
  if (dtype == 0) run(float{});
  if (dtype == 1) run(double{});
}

} // namespace fastgen::FASTGEN_ISA
