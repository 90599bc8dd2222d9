// Scores that are linear in a: s_c = slope a . b_c + curvature |b_c|^2, up to what all classes
// share.
#pragma once

#include "cuda/classes.h"
#include "cuda/launch.h"

namespace bll::cuda {

struct LinearScore {
  static constexpr int kPlanes = 1;
  // Rows of a block that has several, classes that a warp takes at once, and classes of a tile of
  // the table gradient, by latents per access.
  static constexpr int rows(int /*count*/) { return 4; }
  static constexpr int classes(int count) { return count == 8 ? 4 : 8; }
  static constexpr int kTableLatents = 32;
  static constexpr int kLoads = 4;  // of the table in flight where the gradient to a is formed

  float slope, curvature;

  LinearScore(const FamilyArgs& family, bool normalize) {
    const double t = family.tilt, precision = family.tau * t, gain = precision / (1 + precision);
    const bool additive = family.id == FamilyId::kGaussian;
    slope = static_cast<float>(additive ? t : gain);
    curvature = static_cast<float>(additive ? (normalize ? 0 : t * t / 2) : -gain / 2);
  }

  // The sums below leave out what all classes share and add up the terms of a difference apart. A
  // result that is not finite may be theirs only: it is made again from whole terms.
  static constexpr bool kShortened = true;
  __device__ __forceinline__ static bool holds(float x) { return x - x == 0; }
  // Messages are densities: s_c = curvature |b_c - a|^2.
  __device__ __forceinline__ bool density() const { return curvature < 0; }

  // A latent's whole term of a score, and its derivatives.
  __device__ __forceinline__ float whole_score(float a, float b) const {
    if (density()) return curvature * ((b - a) * (b - a));
    const float message = slope * b, score = message * (a + message / 2);
    return curvature == 0 ? score - message * message / 2 : score;
  }
  __device__ __forceinline__ float whole_slope(float a, float b) const {
    return slope * (density() ? b - a : b);
  }
  __device__ __forceinline__ float whole_message_slope(float a, float b) const {
    if (density()) return slope * (a - b);
    return slope * (curvature == 0 ? a : a + slope * b);
  }

  __device__ __forceinline__ void stage(float a, float (&out)[1]) const { out[0] = a; }
  __device__ __forceinline__ static float staged_number(float x) { return x; }

  template <int R, int K, int count>
  struct Scores {
    float dot[R][K] = {}, square[K] = {};

    __device__ __forceinline__ void add(const LinearScore& family, int k,
                                        const float (&a)[R][1][count], const float (&b)[count],
                                        const float*, int) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
#pragma unroll
        for (int r = 0; r < R; ++r) dot[r][k] += a[r][0][i] * b[i];
      }
      if (family.curvature == 0) return;
#pragma unroll
      for (int i = 0; i < count; ++i) square[k] += b[i] * b[i];
    }

    __device__ __forceinline__ float score(const LinearScore& family, int r, int k) const {
      return family.slope * dot[r][k] + family.curvature * square[k];
    }
  };

  // Gradient to `count` latents of R rows.
  template <int R, int count>
  struct Gradient {
    float sum[R][count] = {};

    __device__ __forceinline__ Gradient(const LinearScore&, const float (&)[R][count]) {}

    __device__ __forceinline__ void add(const LinearScore&, const float* coefficients,
                                        const float (&b)[count]) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const float coefficient = coefficients[r];
#pragma unroll
        for (int i = 0; i < count; ++i) sum[r][i] += coefficient * b[i];
      }
    }

    __device__ __forceinline__ float result(const LinearScore& family, int r, int i) const {
      return family.slope * sum[r][i];
    }
  };
  static constexpr bool kNeedsPrior = false;

  // Gradient to `count` latents of C classes' messages.
  template <int C, int count>
  struct TableGradient {
    float sum[C][count] = {};

    __device__ __forceinline__ TableGradient(const LinearScore&, const float (&)[C][count]) {}

    __device__ __forceinline__ void add(const LinearScore&, bool, const float* coefficients,
                                        const float (&a)[count]) {
#pragma unroll
      for (int c = 0; c < C; ++c) {
        const float coefficient = coefficients[c];
#pragma unroll
        for (int i = 0; i < count; ++i) sum[c][i] += coefficient * a[i];
      }
    }

    // `total`: the sum of the class's coefficients.
    __device__ __forceinline__ float result(const LinearScore& family, bool, int c, int i, float b,
                                            float total) const {
      return family.slope * sum[c][i] + 2 * family.curvature * total * b;
    }
  };
};

}  // namespace bll::cuda
