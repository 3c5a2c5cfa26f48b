// Every kernel, declared once for each instruction set: the table of contents.
#pragma once
#include <cstdint>

// Samples of a tile of wavenet_layer: whole vectors of every set, three at a time.
constexpr int64_t WAVENET_LAYER_TILE = 96;

// About how many pixels a tile of pixelcnn_layer has, and how many rows that makes.
constexpr int64_t PIXELCNN_LAYER_COLUMNS = 128;
static constexpr int64_t pixelcnn_layer_rows(int64_t H, int64_t W) {
  const int64_t rows = PIXELCNN_LAYER_COLUMNS / ((W + 15) / 16 * 16);
  return rows < 1 ? 1 : rows < H ? rows : H;
}

// The sets that this machine's compiler can make, the plainest first.
#if defined(__x86_64__)
#define FASTGEN_EACH_ISA(X) X(scalar) X(avx2) X(avx512) X(avx512_bf16)
#elif defined(__aarch64__)
#define FASTGEN_EACH_ISA(X) X(scalar) X(neon)
#else
#define FASTGEN_EACH_ISA(X) X(scalar)
#endif

#define FASTGEN_DECLARE(isa)                                                                       \
  namespace fastgen::isa {                                                                         \
  /* Sample T codes of n streams: kernels/wavenet_sample.py has the math and the layouts. */       \
  void wavenet_sample(                                                                             \
      int64_t dtype,          /* 0 float32, 1 float64, 2 bfloat16, 3 int8; real: the first two */  \
      const void* words,      /* every matrix in panels, in the order of a step */                 \
      const float* scales,    /* int8: a row's scale */                                            \
      const int32_t* offsets, /* int8: 128 times a row's sum */                                    \
      const void* cond_words, /* (L 2H, C) in panels of real */                                    \
      const void* table,      /* (K, A, 2H) real */                                                \
      const void* embed,      /* (A, R) real */                                                    \
      const void* biases,     /* res (L - 1, R), skip (S,), hidden (S,), out (O,) real */          \
      const double* uniforms, /* (n, T), or (n, T, 2) for a mixture */                             \
      const int64_t* prefix,  /* (n, P) */                                                         \
      const void* base,       /* (n or 1, L, 2H) real */                                           \
      const void* cond,       /* (n, C, F) real */                                                 \
      const int64_t* dilations, /* (L,) */                                                         \
      void* rings,              /* (n, sum of (K - 1) d R) real, in and out */                     \
      int64_t* history,         /* (n, K), in and out */                                           \
      int64_t* codes,           /* (n, T), out */                                                  \
      void* logits,             /* (n, T, O) real, out; or null */                                 \
      int64_t* failed,          /* (n,): the step whose logits are not finite, else -1, out */     \
      int64_t n, int64_t T, int64_t step, int64_t P, int64_t bases, int64_t C, int64_t F,          \
      int64_t hop, int64_t L, int64_t K, int64_t R, int64_t H, int64_t S, int64_t O,               \
      int64_t classes, int64_t mixtures, double temperature, int64_t threads);                     \
  /* One layer of a WaveNet, for training: kernels/wavenet_layer.py has the math. */               \
  void wavenet_layer(int64_t dtype,           /* of every pointer here: 0 float32, 1 float64 */    \
                     const void* x,           /* (B, R, T) */                                      \
                     const void* skip,        /* (B, S, T) */                                      \
                     const void* weight,      /* (2H, R, K) */                                     \
                     const void* bias,        /* (2H,) */                                          \
                     const void* res_weight,  /* (R, H), or null: then no res_bias and no out */   \
                     const void* res_bias,    /* (R,) */                                           \
                     const void* skip_weight, /* (S, H) */                                         \
                     const void* skip_bias,   /* (S,) */                                           \
                     const void* cond,        /* (B, 2H, F), or null */                            \
                     void* out,               /* (B, R, T) */                                      \
                     void* skip_out,          /* (B, S, T) */                                      \
                     void* gates,             /* (B, tiles, 2H, TILE): tanh, sigmoid; or null */   \
                     int64_t B, int64_t R, int64_t S, int64_t H, int64_t K, int64_t T, int64_t F,  \
                     int64_t hop, int64_t dilation, int64_t threads);                              \
  /* The gradients of wavenet_layer. */                                                            \
  void                                                                                             \
  wavenet_layer_backward(int64_t dtype,          /* of every pointer here: 0 float32, 1 float64 */ \
                         const void* dout,       /* (B, R, T) */                                   \
                         const void* dskip,      /* (B, S, T) */                                   \
                         const void* gates,      /* (B, tiles, 2H, TILE) */                        \
                         const void* x,          /* (B, R, T) */                                   \
                         const void* weight,     /* (2H, R, K) */                                  \
                         const void* res_weight, /* (R, H), or null: then no dout */               \
                         const void* skip_weight, /* (S, H) */                                     \
                         void* dz,                /* as gates, workspace */                        \
                         void* dx,                /* or null */                                    \
                         void* dweight, /* or null, and then no gradient of any weight or bias */  \
                         void* dbias, void* dres_weight, void* dres_bias, void* dskip_weight,      \
                         void* dskip_bias, void* dcond, /* (B, 2H, F), or null */                  \
                         int64_t B, int64_t R, int64_t S, int64_t H, int64_t K, int64_t T,         \
                         int64_t F, int64_t hop, int64_t dilation, int64_t threads);               \
  /* A discretized mixture of logistics: kernels/logistic_mixture.py has the math. */              \
  void logistic_mixture(int64_t dtype,        /* of real: 0 float32, 1 float64 */                  \
                        const void* params,   /* (B, M (1 + 2C + C (C - 1) / 2), T) real */        \
                        const int64_t* codes, /* (B, C, T) */                                      \
                        void* log_p,          /* (B, T) real, out */                               \
                        int64_t B, int64_t C, int64_t M, int64_t T, int64_t classes, double floor, \
                        int64_t threads);                                                          \
  /* Its gradient. */                                                                              \
  void logistic_mixture_backward(int64_t dtype,      /* of real: 0 float32, 1 float64 */           \
                                 const void* dlog_p, /* (B, T) real */                             \
                                 const void* params, /* (B, M (1 + 2C + C (C - 1) / 2), T) real */ \
                                 const int64_t* codes, /* (B, C, T) */                             \
                                 void* dparams,        /* as params, out */                        \
                                 int64_t B, int64_t C, int64_t M, int64_t T, int64_t classes,      \
                                 double floor, int64_t threads);                                   \
  /* Draw n images in raster order: kernels/pixelcnn_sample.py has the math and the layouts. */    \
  void pixelcnn_sample(                                                                            \
      int64_t dtype,             /* of real: 0 float32, 1 float64 */                               \
      const void* words,         /* every matrix in panels of real */                              \
      const void* biases,        /* res (L, P), hidden (S,), out (C A,) real */                    \
      const void* bases,         /* (base_count, L, V + C G) real: what the gates start from */    \
      const int64_t* kernels,    /* (L,): sizes */                                                 \
      const double* uniforms,    /* (n, C, H, W) */                                                \
      const double* temperature, /* (n, C, H, W) */                                                \
      const int64_t* given,      /* (n, C, H, W): -1 where a level is to be drawn */               \
      int64_t* codes,            /* (n, C, H, W), out */                                           \
      void* logits,              /* (n, C, H, W, A) real, out; or null */                          \
      int64_t* failed,           /* (n,): where the logits are not finite, else -1, out */         \
      int64_t n, int64_t H, int64_t W, int64_t C, int64_t L, int64_t P, int64_t S, int64_t A,      \
      int64_t base_count, /* n or 1 */                                                             \
      int64_t threads);                                                                            \
  /* Sums over pairs of rows of exp(-L1 distance): see kernels/minibatch_discrimination.py. */     \
  void minibatch_discrimination(                                                                   \
      int64_t dtype, /* of every pointer here: 0 float32, 1 float64 */                             \
      const void* m, /* (N, B, C) */                                                               \
      const void* y, /* (M, B, C), or null where M < 0: m, a row but not itself */                 \
      void* o,       /* (N, B) */                                                                  \
      int64_t N, int64_t M, int64_t B, int64_t C, int64_t groups, int64_t keep_self,               \
      int64_t threads);                                                                            \
  /* The gradients of minibatch_discrimination, or with dgrad the gradients of those. */           \
  void minibatch_discrimination_backward(                                                          \
      int64_t dtype,    /* of every pointer here: 0 float32, 1 float64 */                          \
      const void* grad, /* (N, B): of o */                                                         \
      const void* m, const void* y, const void* vm, /* (N, B, C): of dm; or null: zeros */         \
      const void* vy,                               /* (M, B, C): of dy; or null: zeros */         \
      void* dgrad,                                  /* (N, B), or null */                          \
      void* dm,                                     /* or null */                                  \
      void* dy,                                     /* or null */                                  \
      int64_t N, int64_t M, int64_t B, int64_t C, int64_t groups, int64_t threads);                \
  /* Draw n images by a stack of masked convolutions: see kernels/masked_stack_sample.py. */       \
  void masked_stack_sample(                                                                        \
      int64_t dtype,             /* of real: 0 float32, 1 float64 */                               \
      const void* words,         /* every matrix in panels of real */                              \
      const void* biases,        /* (n or 1, of each layer, and 16 zeros) real */                  \
      const int64_t* layers,     /* (L, 6): outputs, gate, skip, rows alone, scale, convs */       \
      const int64_t* convs,      /* (count, 8): source, form, own, step, left, width, up, seen */  \
      const double* uniforms,    /* (n, C, H, W) */                                                \
      const double* temperature, /* (n, C, H, W) */                                                \
      const int64_t* given,      /* (n, C, H, W): -1 where a level is to be drawn */               \
      int64_t* codes,            /* (n, C, H, W), out */                                           \
      void* logits,              /* (n, C, H, W, A) real, out; or null */                          \
      int64_t* failed,           /* (n,): where the logits are not finite, else -1, out */         \
      int64_t n, int64_t H, int64_t W, int64_t C, int64_t L, int64_t count, int64_t bias_count,    \
      int64_t A, int64_t mixtures, /* of the last layer's logistics, or 0: it has logits */        \
      int64_t threads);                                                                            \
  /* One layer of a gated PixelCNN, for training: kernels/pixelcnn_layer.py has the math.          \
     Images are (B, H, W, channels) where `last`. */                                               \
  void pixelcnn_layer(int64_t dtype,        /* of every pointer here: 0 float32, 1 float64 */      \
                      const void* v,        /* (B, V, H, W) */                                     \
                      const void* h,        /* (B, C, H, W) */                                     \
                      const void* v_weight, /* (2P, V, rows, k), the rows that are live */         \
                      const void* v_bias,   /* (2P,) */                                            \
                      const void* h_weight, /* (2P, C, cols), the columns that are live */         \
                      const void* h_bias,   /* (2P,) */                                            \
                      const void* link,     /* (2P, 2P) */                                         \
                      const void* res,      /* (O, P) */                                           \
                      const void* res_bias, /* (O,) */                                             \
                      const void* cond_v,   /* (B, 2P), or null */                                 \
                      const void* cond_h,   /* (B, 2P), or null */                                 \
                      void* v_out,          /* (B, P, H, W) */                                     \
                      void* h_out,          /* (B, O, H, W) */                                     \
                      void* saved, /* (tiles, 4P, columns): a_v, tanh and sigmoid; or null */      \
                      int64_t B, int64_t V, int64_t C, int64_t P, int64_t O, int64_t H, int64_t W, \
                      int64_t k, int64_t rows, int64_t cols, int64_t residual, int64_t last,       \
                      int64_t threads);                                                            \
  /* The gradients of pixelcnn_layer. */                                                           \
  void pixelcnn_layer_backward(int64_t dtype, /* of every pointer here: 0 float32, 1 float64 */    \
                               const void* dv_out,   /* (B, P, H, W), or null */                   \
                               const void* dh_out,   /* (B, O, H, W), or null */                   \
                               const void* saved,    /* (tiles, 4P, columns) */                    \
                               const void* v,        /* (B, V, H, W) */                            \
                               const void* h,        /* (B, C, H, W) */                            \
                               const void* v_weight, /* (2P, V, rows, k) */                        \
                               const void* h_weight, /* (2P, C, cols) */                           \
                               const void* link,     /* (2P, 2P) */                                \
                               const void* res,      /* (O, P) */                                  \
                               void* da,             /* as saved, workspace */                     \
                               void* dv,             /* or null */                                 \
                               void* dh,             /* or null */                                 \
                               void* dv_weight,      /* of weights, all null where dlink is */     \
                               void* dh_weight, void* dlink, void* dres, void* dres_bias,          \
                               void* dconds, /* (B, 4P): of cond_v, of cond_h */                   \
                               int64_t B, int64_t V, int64_t C, int64_t P, int64_t O, int64_t H,   \
                               int64_t W, int64_t k, int64_t rows, int64_t cols, int64_t residual, \
                               int64_t last, int64_t threads);                                     \
  /* An affine coupling or its inverse: kernels/affine_coupling.py has the math. */                \
  void                                                                                             \
  affine_coupling(int64_t dtype, /* 0 float32, 1 float64, 2 bfloat16 */                            \
                  const void* x, /* (B, C, S), of a checkerboard (B, C, S / (W / 2), W) */         \
                  const void* s, /* (B, K, S); (B, 2K, S) without t; t itself where additive */    \
                  const void* t, /* (B, K, S), or null */                                          \
                  const void* weight, /* (K,), or null */                                          \
                  void* y,            /* as x */                                                   \
                  void* logdet,       /* (B,), float32 or float64 */                               \
                  int64_t B, int64_t C, int64_t K, int64_t S, int64_t W,                           \
                  int64_t split, /* 0 x is what changes, 1 channel, 2 alternate, 3 checkerboard */ \
                  int64_t swap,  /* whether the first part changes */                              \
                  int64_t layout, /* 0 s and t apart, 1 st, 2 ts, 3 stst, 4 tsts */                \
                  int64_t scale,  /* 0 tanh, 1 sigmoid, 2 atan, 3 softplus, 4 exp, 5 additive */   \
                  int64_t inverse, int64_t threads);                                               \
  /* The gradients of affine_coupling, not of an additive one; all as there. */                    \
  void affine_coupling_backward(                                                                   \
      int64_t dtype,       /* 0 float32, 1 float64, 2 bfloat16 */                                  \
      const void* v,       /* x; y of the coupling, where x is to be restored; x of an inverse */  \
      const void* dy,      /* (B, C, S) */                                                         \
      const void* dlogdet, /* (B,), or null */                                                     \
      const void* s, const void* t,       /* t is needed for what is restored */                   \
      const void* weight, void* restored, /* the input of what v came out of; or null */           \
      void* dx,                           /* or null */                                            \
      void* ds, void* dt,                 /* as s and t */                                         \
      void* dweight,                      /* (K,), or null */                                      \
      int64_t B, int64_t C, int64_t K, int64_t S, int64_t W, int64_t split, int64_t swap,          \
      int64_t layout, int64_t scale, int64_t inverse, int64_t threads);                            \
  }
FASTGEN_EACH_ISA(FASTGEN_DECLARE)

// What runs on a GPU, once for all. Pointers are the GPU's but where it says host; returns null, or
// what is wrong.
#ifndef FASTGEN_NO_CUDA
namespace fastgen {
// wavenet_sample for up to 8 streams: kernels/_wavenet_sample_cuda.py has layouts and limits.
const char* wavenet_sample_cuda(
    const void* words,        // every matrix in fragments of bfloat16
    const float* table,       // (K, A, 64, 2)
    const float* embed,       // (A, 64)
    const float* biases,      // res (L - 1, 64), skip (S,), hidden (S,), out (O,), S and O padded
    const int64_t* dilations, // (L,), host
    const float* gates,       // (F, L, 8, 32, 4): bias and conditioning
    const float* uniforms,    // (n, T)
    const float* quantiles,   // (n, T) of a mixture
    float* rings,             // (n, sum of (K - 1) d R), in and out
    const int64_t* history,   // (n, K)
    int64_t* codes,           // (n, T): the first P in, the rest out
    float* logits,            // (n, T, O), out; or null
    int64_t* failed,          // (n,): the step whose logits are not finite, else -1, out
    int64_t n, int64_t T, int64_t P, int64_t step, int64_t F, int64_t hop, int64_t L, int64_t K,
    int64_t R, int64_t S, int64_t O, int64_t classes, int64_t mixtures, double temperature,
    int64_t blocks, int64_t bytes, int64_t device, int64_t stream);
// How many clusters of so many blocks and bytes of shared memory a block the GPU can run at once.
const char* wavenet_sample_clusters(int64_t device, int64_t blocks, int64_t bytes,
                                    int64_t* clusters /* host */);
} // namespace fastgen
#endif
