// What the samplers of images share: going through a raster with the images of a group.
#pragma once
#include "common.h"
#include "sample.h"

namespace fastgen::FASTGEN_ISA {

constexpr int64_t COLORS = 3;

template <class T> struct Matrix {
  const T* words; // in panels
  int64_t rows, K;
};

template <class T>
void multiply(const Matrix<T>& w, int64_t M, const T* x, int64_t x_stride, T* out, int64_t stride) {
  product<Plain<T>>(w.rows, w.K, w.words, M, x, x_stride, out, stride);
}

// The matrix whose words are next.
template <class T> Matrix<T> next(const T*& at, int64_t rows, int64_t K) {
  const Matrix<T> matrix{at, rows, K};
  at += padded(rows) * K;
  return matrix;
}

// n images of C colors and A levels, and what belongs to them: see ops.h.
template <class T> struct Images {
  int64_t n, H, W, C, A;
  const double *uniforms, *temperature;
  const int64_t* given;
  int64_t* codes;
  T* logits;
  int64_t* failed;

  int64_t place(int64_t image, int64_t i, int64_t j, int64_t c) const {
    return ((image * C + c) * H + i) * W + j;
  }
  bool wanted(int64_t place) const { return logits || given[place] < 0; }
};

// The last rows of a map of the images: a ring of lines for each image, zeros at their ends.
template <class T> struct Lines {
  T* data;
  int64_t depth, length; // lines of an image, numbers of a line
  T* at(int64_t m, int64_t i) const { return data + (m * depth + (i + depth) % depth) * length; }
  int64_t stride() const { return depth * length; } // from an image to the next
};

// Arrays laid out one after the other in `memory`, or with nullptr only measured.
struct Layout {
  char* memory;
  int64_t bytes = 64;

  template <class A> void take(A*& array, int64_t count) {
    array = reinterpret_cast<A*>(memory + bytes - 64);
    bytes += (count * int64_t(sizeof(A)) + 63) / 64 * 64;
  }
  template <class T> Lines<T> lines(int64_t M, int64_t depth, int64_t numbers) {
    Lines<T> made{nullptr, depth, padded(numbers) + PAD};
    take(made.data, M * depth * made.length);
    return made;
  }
};

// Draw images first ... first + M - 1 by a network. It says
//   look_up(i)             what row i needs of the rows above it, of all images
//   look_left(i, j, c)     color c of a pixel, of all images
//   head(c)                the logits of what it looked at last: (M, A), O apart
//   see(m, i, j, c, x)     takes what was drawn, in [-1, 1]
//   ROWS_APART             whether look_up needs nothing of what look_left did
// p has room for A numbers, padded.
template <class T, class Network>
void draw(Network& net, const Images<T>& s, int64_t first, int64_t M, int64_t O, T* p) {
  const auto wanted = [&](int64_t i, int64_t j) { // whether any image needs logits at a pixel
    bool found = false;
    for (int64_t m = 0; m < M; ++m)
      for (int64_t c = 0; c < s.C; ++c) found |= s.wanted(s.place(first + m, i, j, c));
    return found;
  };
  for (int64_t i = 0; i < s.H; ++i) {
    int64_t last = s.W; // where look_left ends: at a row's last pixel to draw
    while (Network::ROWS_APART && last > 0 && !wanted(i, last - 1)) --last;
    if (!net.look_up(i)) return;
    for (int64_t j = 0; j < s.W; ++j) {
      if (stopped()) return;
      const bool any = wanted(i, j);
      for (int64_t c = 0; c < s.C; ++c) {
        if (j < last) net.look_left(i, j, c);
        const T* logits = any ? net.head(c) : nullptr;
        for (int64_t m = 0; m < M; ++m) {
          const int64_t place = s.place(first + m, i, j, c);
          const T* z = any ? logits + m * O : nullptr;
          if (s.wanted(place) && !all_finite(s.A, z)) {
            s.failed[first + m] = (i * s.W + j) * s.C + c;
            return;
          }
          if (s.logits) memcpy(s.logits + place * s.A, z, s.A * sizeof(T));
          int64_t code = s.given[place];
          if (code < 0) code = choose(z, s.A, s.uniforms[place], s.temperature[place], p);
          s.codes[place] = code;
          net.see(m, i, j, c, T(code) * (T(2) / T(s.A - 1)) - 1);
        }
      }
    }
  }
}

// Call task(first, M, memory) for groups of up to `group` of n images on up to `threads` threads.
// bytes: of a group's memory, which a thread keeps from one to the next, zeroed at first
template <class Task>
void groups(int64_t n, int64_t group, int64_t threads, int64_t bytes, Task task) {
  // As few groups as hold all images, but one for each thread, of sizes as equal as can be.
  int64_t count = (n + group - 1) / group;
  count = (count + threads - 1) / threads * threads;
  count = count < n ? count : n;
  const int64_t workers = count < threads ? count : threads;
  Scratch scratch(workers * bytes);
  each(workers, threads, [&](int64_t i) {
    char* memory = scratch.data + i * bytes;
    for (int64_t g = i; g < count && !stopped(); g += workers) {
      if (g > i) memset(memory, 0, bytes);
      task(g * n / count, (g + 1) * n / count - g * n / count, memory);
    }
  });
}

} // namespace fastgen::FASTGEN_ISA
