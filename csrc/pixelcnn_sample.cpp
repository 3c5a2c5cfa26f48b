// The sampling loop of a gated PixelCNN: kernels/pixelcnn_sample.py has the math and the layouts.
//
// A thread takes a group of up to 8 images through the whole raster; nothing is shared between
// groups. The vertical stack of a row depends on rows above it alone, so it is computed for the
// whole row at once, an image after the other; then the horizontal stack goes a color of a pixel
// at a time, all images of the group together.
#include "ops.h"
#include "raster.h"

namespace fastgen::FASTGEN_ISA {
namespace {

constexpr int64_t GROUP = 8;

// C colors; P channels of both stacks, Q of a color; A levels, S channels of the head.
struct Sizes {
  int64_t W, C, L, P, Q, S, A, bases;
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
  const T *hidden_bias, *out_bias, *bases;
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

  // Lay the arrays out from `memory`, or with nullptr only measure; returns the bytes.
  int64_t place(const Sizes& z, const Layer<T>* layers, int64_t M, char* memory) {
    V = padded(2 * z.P), G = padded(2 * z.Q), CG = z.C * G;
    P = padded(z.P) + PAD, S = padded(z.S) + PAD, O = padded(z.A);
    Layout to{memory};
    to.take(v, z.L), to.take(h, z.L);
    for (int64_t l = 0; l < z.L; ++l) {
      const auto& y = layers[l];
      const Lines<T> both = to.lines<T>(M, y.r + 1, (z.W + 2 * y.r) * y.inputs);
      const Lines<T> row = l ? to.lines<T>(M, 1, (z.W + y.r) * y.inputs) : both;
      if (memory) v[l] = both, h[l] = row;
    }
    to.take(base, z.L * z.W * M * CG), to.take(vertical, z.W * V);
    to.take(gated, z.L * M * P), to.take(top, M * P), to.take(hidden, M * S);
    to.take(out, M * O), to.take(p, O);
    return to.bytes;
  }
};

// One thread's group of M images.
template <class T> class Group : Arrays<T> {
  using A = Arrays<T>;
  using A::V, A::G, A::CG, A::P, A::S, A::O, A::v, A::h, A::base, A::vertical, A::gated, A::top,
      A::hidden, A::out, A::p;

  const Model<T>& w;
  const Sizes& z;
  const int64_t first, M; // images first ... first + M - 1

public:
  static constexpr bool ROWS_APART = true;

  Group(const Model<T>& w, const Sizes& z, int64_t first, int64_t M, char* memory)
      : w(w), z(z), first(first), M(M) {
    A::place(z, w.layers, M, memory);
  }

  void run(const Images<T>& s) { draw(*this, s, first, M, O, p); }

  bool look_up(int64_t i) {
    for (int64_t m = 0; m < M; ++m)
      for (int64_t l = 0; l < z.L; ++l) {
        if (stopped()) return false;
        look_up(m, i, l);
      }
    return true;
  }

  void look_left(int64_t i, int64_t j, int64_t c) {
    for (int64_t l = 0; l < z.L; ++l) look_left(i, j, c, l);
  }

  const T* head(int64_t c) {
    const int64_t part = z.S / z.C;
    for (int64_t m = 0; m < M; ++m) {
      copy(part, w.hidden_bias + c * part, hidden + m * S + c * part);
      copy(z.A, w.out_bias + c * z.A, out + m * O);
    }
    multiply(w.hidden[c], M, top, P, hidden + c * part, S);
    for (int64_t m = 0; m < M; ++m) relu(part, hidden + m * S + c * part);
    multiply(w.out[c], M, hidden, S, out, O);
    return out;
  }

  void see(int64_t m, int64_t i, int64_t j, int64_t c, T x) {
    v[0].at(m, i)[(w.layers[0].r + j) * z.C + c] = x;
  }

private:
  // The vertical stack's layer in row i of an image, and what the horizontal one gets of it.
  void look_up(int64_t m, int64_t i, int64_t l) {
    const auto& layer = w.layers[l];
    const T* bias = w.bases + ((z.bases > 1 ? first + m : 0) * z.L + l) * (V + CG);
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
};

template <class T>
void start(const void* words, const void* biases, const void* bases, const int64_t* kernels,
           const Sizes& z, const Images<T>& s, int64_t threads) {
  const T* at = static_cast<const T*>(words);
  Scratch memory(z.L * sizeof(Layer<T>));
  auto* layers = reinterpret_cast<Layer<T>*>(memory.data);
  Model<T> w{};
  w.layers = layers, w.bases = static_cast<const T*>(bases);
  const T* bias = static_cast<const T*>(biases);
  for (int64_t l = 0; l < z.L; ++l) {
    auto& layer = layers[l];
    layer.r = kernels[l] / 2, layer.inputs = l ? z.P : z.C;
    layer.above = l ? layer.r + 1 : layer.r;
    layer.vertical = at;
    layer.vertical_words = padded(2 * z.P) * kernels[l] * layer.inputs;
    at += layer.above * layer.vertical_words;
    layer.link = next(at, z.C * padded(2 * z.Q), 2 * z.P);
    layer.res_bias = bias, bias += z.P;
  }
  for (int64_t l = 0; l < z.L; ++l)
    for (int64_t c = 0; c < z.C; ++c) {
      auto& layer = layers[l];
      const int64_t seen = l ? (c + 1) * z.Q : c; // of the pixel itself
      layer.gates[c] = next(at, 2 * z.Q, layer.r * layer.inputs + seen);
      layer.res[c] = next(at, z.Q, (c + 1) * z.Q);
    }
  for (int64_t c = 0; c < z.C; ++c) {
    w.hidden[c] = next(at, z.S / z.C, (c + 1) * z.Q);
    w.out[c] = next(at, z.A, (c + 1) * (z.S / z.C));
  }
  w.hidden_bias = bias, w.out_bias = bias + z.S;
  const int64_t bytes = Arrays<T>().place(z, layers, GROUP < s.n ? GROUP : s.n, nullptr);
  groups(s.n, GROUP, threads, bytes,
         [&](int64_t first, int64_t M, char* memory) { Group<T>(w, z, first, M, memory).run(s); });
}

} // namespace

void pixelcnn_sample(int64_t dtype, const void* words, const void* biases, const void* bases,
                     const int64_t* kernels, const double* uniforms, const double* temperature,
                     const int64_t* given, int64_t* codes, void* logits, int64_t* failed, int64_t n,
                     int64_t H, int64_t W, int64_t C, int64_t L, int64_t P, int64_t S, int64_t A,
                     int64_t base_count, int64_t threads) {
  const Sizes z{W, C, L, P, P / C, S, A, base_count};
  const auto run = [&](auto real) {
    using T = decltype(real);
    const Images<T> s{
        n, H, W, C, A, uniforms, temperature, given, codes, static_cast<T*>(logits), failed};
    start<T>(words, biases, bases, kernels, z, s, threads);
  };
  if (dtype == 0) run(float{});
  if (dtype == 1) run(double{});
}

} // namespace fastgen::FASTGEN_ISA
