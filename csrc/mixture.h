// The discretized mixture of logistics: kernels/logistic_mixture.py has the math.
#pragma once
#include "sample.h"

namespace fastgen::FASTGEN_ISA {

// log(sigmoid(a) sigmoid(b)) without overflow.
template <class T> vec<T> log_sigmoids(vec<T> a, vec<T> b) {
  const vec<T> zero{}, low = (a < 0 ? a : zero) + (b < 0 ? b : zero);
  return low - log<T>((1 + exp<T>(-abs<T>(a))) * (1 + exp<T>(-abs<T>(b))));
}

// M logistics of C colors of A levels.
template <class T> struct Mixture {
  int64_t C, M, A;

  // The log-probability of each level of color c of a pixel together with x, the colors before.
  // params: (1 + 2C + C (C - 1) / 2, M)    joint: (M, A padded), each logistic's part
  // weights: (M,), in and out: the part of the colors before    logits: (A,), padded
  void operator()(const T* params, int64_t c, const T* x, T* weights, T* joint, T* logits) const {
    if (c == 0) start(params, weights);
    const int64_t stride = padded(A);
    const T* k = params + (1 + 2 * C + c * (c - 1) / 2) * M;
    for (int64_t m = 0; m < M; ++m) {
      T mean = params[(1 + c) * M + m];
      for (int64_t d = 0; d < c; ++d) mean += tanh<T>(splat(k[d * M + m]))[0] * x[d];
      part(mean, params[(1 + C + c) * M + m], weights[m], joint + m * stride);
    }
    for (int64_t a = 0; a < A; a += LANES<T>) {
      vec<T> top = load(joint + a), sum{};
      for (int64_t m = 1; m < M; ++m) {
        const vec<T> y = load(joint + m * stride + a);
        top = y > top ? y : top;
      }
      for (int64_t m = 0; m < M; ++m) sum += exp<T>(load(joint + m * stride + a) - top);
      store<T>(logits + a, top + log<T>(sum));
    }
  }

  // Update the weights once a color is known.
  void see(int64_t code, const T* joint, T* weights) const {
    for (int64_t m = 0; m < M; ++m) weights[m] = joint[m * padded(A) + code];
  }

private:
  // log softmax
  void start(const T* z, T* weights) const {
    const T top = largest(z, M);
    T sum = 0;
    for (int64_t m = 0; m < M; ++m) sum += exp<T>(splat(z[m] - top))[0];
    const T log_sum = log<T>(splat(sum))[0];
    for (int64_t m = 0; m < M; ++m) weights[m] = z[m] - top - log_sum;
  }

  // A logistic's log-probability of each level, `weight` added.
  void part(T mean, T log_scale, T weight, T* to) const {
    const T half = T(1) / T(A - 1);
    log_scale = log_scale < -7 ? -7 : log_scale > 60 ? 60 : log_scale;
    const T rate = exp<T>(splat(-log_scale))[0];
    const T norm = log<T>(-expm1<T>(splat(-2 * half * rate)))[0] + weight;
    T lanes[LANES<T>];
    for (int k = 0; k < LANES<T>; ++k) lanes[k] = T(k);
    const auto above = [&](vec<T> code) { return rate * (code * (2 * half) - 1 - mean + half); };
    const auto below = [&](vec<T> code) { return rate * (code * (2 * half) - 1 - mean - half); };
    for (int64_t a = 0; a < A; a += LANES<T>) {
      const vec<T> code = load(lanes) + T(a);
      store<T>(to + a, log_sigmoids<T>(above(code), -below(code)) + norm);
    }
    const vec<T> sure = splat(T(100)); // whose sigmoid is 1
    const vec<T> first = above(vec<T>{}), last = -below(splat(T(A - 1)));
    to[0] = log_sigmoids<T>(first, sure)[0] + weight;
    to[A - 1] = log_sigmoids<T>(last, sure)[0] + weight;
  }
};

} // namespace fastgen::FASTGEN_ISA
