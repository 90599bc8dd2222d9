// Scores of Bernoulli latents: E_alpha[beta_c] is the product over latents of q + u e^b, with
// u = sigmoid(a) and q = 1 - u. Many factors meet one logarithm.
#pragma once

#include "core/special.h"
#include "cuda/classes.h"
#include "cuda/launch.h"

namespace bll::cuda {

// e^b = up / down, both in (0, 1], and their difference without cancellation.
struct Odds {
  float up, down, gap;
};

__device__ __forceinline__ float fall_below_one(float x, float e) {
  return x <= 0.5f ? -expm1_small(x <= 0.5f ? -x : 0.0f) : 1 - e;  // 1 - e^-x, e = e^-x
}

__device__ __forceinline__ Odds odds_of(float b) {
  const float size = magnitude(b), e = exp_nonpositive(-size);
  const bool above = b > 0;
  return {above ? 1.0f : e, above ? e : 1.0f, mirror(-fall_below_one(size, e), b)};
}

// The two probabilities of a latent. Where the rarer one is hardly a number, it is kept as a
// negative logarithm instead, and the other is 1.
struct Chance {
  float u, q;

  __device__ __forceinline__ bool far() const { return u < 0 || q < 0; }
  __device__ __forceinline__ float latent() const { return u < 0 ? u : -q; }  // where far
};

inline constexpr float kFar = 80;

__device__ __forceinline__ Chance chance_of(float a) {
  const float size = magnitude(a), e = exp_nonpositive(-size), inverse = 1 / (1 + e);
  const float rare = size > kFar ? -size : e * inverse;
  return {a < 0 ? rare : inverse, a < 0 ? inverse : rare};
}

__device__ __forceinline__ float factor_of(const Chance& chance, float up, float down) {
  return chance.u * up + chance.q * down;
}

__device__ __forceinline__ float sigmoid(float x) {
  const float e = exp_nonpositive(-magnitude(x)), inverse = 1 / (1 + e);
  return x < 0 ? e * inverse : inverse;
}

__device__ __forceinline__ float softplus(float x) {
  return (x > 0 ? x : 0.0f) + log1p_nonnegative(exp_nonpositive(-magnitude(x)));
}

struct BernoulliScore {
  static constexpr int kPlanes = 2;
  static constexpr int rows(int count) { return count == 8 ? 1 : 2; }
  static constexpr int classes(int count) { return count == 8 ? 2 : 4; }
  static constexpr int kTableLatents = 8;
  static constexpr int kLoads = 2;
  static constexpr bool kNeedsPrior = true;
  static constexpr bool kShortened = false;
  // Products of four factors within e^+-20 stay far inside the range of a float.
  static constexpr float kDeep = 20;

  float tilt;
  bool normalize;

  BernoulliScore(const FamilyArgs& family, bool normalized)
      : tilt(static_cast<float>(family.tilt)), normalize(normalized) {}

  __device__ __forceinline__ void stage(float a, float (&out)[2]) const {
    const Chance chance = chance_of(a);
    out[0] = chance.u, out[1] = chance.q;
  }

  // What a far latent's logarithm is to products.
  __device__ __forceinline__ static float staged_number(float x) { return x < 0 ? 0.0f : x; }

  // A product as mantissa and exponent.
  struct Product {
    float mantissa = 1;
    int exponent = 0;

    __device__ __forceinline__ void settle() {
      const uint32_t power = float_bits(mantissa) >> 23;
      mantissa *= bits_float((254u - power) << 23);
      exponent += static_cast<int>(power) - 127;
    }
    __device__ __forceinline__ void multiply_exp(float x) {
      const float power = floorf(x * 1.44269504f);
      mantissa *= exp_any((x - power * 0.693145752f) - power * 1.42860677e-6f);
      // Within an int even where the power is infinite or NaN, as the mantissa then is NaN.
      const float total = fmaxf(static_cast<float>(exponent) + power, -1e9f);
      exponent = static_cast<int>(fminf(total, 1e9f));
      settle();
    }
    __device__ __forceinline__ float log() const {
      BLL_COUNT_SPECIAL();
      return static_cast<float>(exponent) * 0.693147181f + logf(mantissa);
    }
  };

  template <int R, int K, int count>
  struct Scores {
    Product product[R][K];
    float offset[K] = {};

    __device__ __forceinline__ void add(const BernoulliScore& family, int k,
                                        const float (&a)[R][2][count], const float (&b)[count],
                                        const float* staged, int distance) {
      constexpr int run = count == 1 ? 1 : 4;
#pragma unroll
      for (int first = 0; first < count; first += run) {
        float message[run], most = 0;
#pragma unroll
        for (int i = 0; i < run; ++i) {
          message[i] = family.tilt * b[first + i];
          // NaN counts as small and goes through the product.
          most = magnitude(message[i]) > most ? magnitude(message[i]) : most;
        }
        if (most > kDeep) {
          add_deep(k, staged + first, distance, message);
        } else {
          add_near(k, first, a, message);
        }
        if (!family.normalize) continue;
#pragma unroll
        for (int i = 0; i < run; ++i) {
          const float x = message[i];
          offset[k] -= softplus(x);
        }
      }
    }

    __device__ __forceinline__ float score(const BernoulliScore&, int r, int k) const {
      return product[r][k].log() + offset[k];
    }

   private:
    template <int run>
    __device__ __forceinline__ void add_near(int k, int first, const float (&a)[R][2][count],
                                             const float (&message)[run]) {
      float ratio[run];
#pragma unroll
      for (int i = 0; i < run; ++i) ratio[i] = exp_any(message[i]);
#pragma unroll
      for (int r = 0; r < R; ++r) {
        float p = product[r][k].mantissa;
#pragma unroll
        for (int i = 0; i < run; ++i) p *= a[r][0][first + i] * ratio[i] + a[r][1][first + i];
        product[r][k].mantissa = p;
        product[r][k].settle();
      }
    }

    // `staged`: chances of row r, plane p at distance (p * R + r).
    template <int run>
    __device__ __forceinline__ void add_deep(int k, const float* staged, int distance,
                                             const float (&message)[run]) {
#pragma unroll
      for (int i = 0; i < run; ++i) {
        const Odds odds = odds_of(message[i]);
        offset[k] += message[i] > 0 ? message[i] : 0.0f;
#pragma unroll
        for (int r = 0; r < R; ++r) {
          const Chance chance = {staged[r * distance + i], staged[(R + r) * distance + i]};
          if (chance.far()) {
            const float x = chance.latent(), base = message[i] > 0 ? message[i] : 0.0f;
            product[r][k].multiply_exp(softplus(x + message[i]) - softplus(x) - base);
          } else {
            product[r][k].mantissa *= factor_of(chance, odds.up, odds.down);
            product[r][k].settle();
          }
        }
      }
    }
  };

  // d/da log(q + u e^b) = u q (up - down) / (u up + q down); mu(a + b) - mu(a) of a far latent.
  template <int R, int count>
  struct Gradient {
    Chance chance[R][count];
    float sum[R][count] = {};

    __device__ __forceinline__ Gradient(const BernoulliScore&, const float (&a)[R][count]) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int i = 0; i < count; ++i) chance[r][i] = chance_of(a[r][i]);
      }
    }

    __device__ __forceinline__ void add(const BernoulliScore& family, const float* coefficients,
                                        const float (&b)[count]) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const float message = family.tilt * b[i];
        const Odds odds = odds_of(message);
#pragma unroll
        for (int r = 0; r < R; ++r) {
          float slope;
          if (chance[r][i].far()) {
            const float x = chance[r][i].latent();
            slope = mirror(sigmoid(mirror(x + message, x)), x);
          } else {
            slope = odds.gap / factor_of(chance[r][i], odds.up, odds.down);
          }
          sum[r][i] += coefficients[r] * slope;
        }
      }
    }

    __device__ __forceinline__ float result(const BernoulliScore&, int r, int i) const {
      return (chance[r][i].far() ? 1.0f : chance[r][i].u * chance[r][i].q) * sum[r][i];
    }
  };

  // d/db = tilt mu(a + b) = tilt u up / f; of a normalised message
  // tilt (mu(a + b) - mu(b)) = tilt (u - q) up down / (f (up + down)).
  template <int C, int count>
  struct TableGradient {
    float message[C][count], up[C][count], down[C][count];
    float sum[C][count] = {};

    __device__ __forceinline__ TableGradient(const BernoulliScore& family,
                                             const float (&b)[C][count]) {
#pragma unroll
      for (int c = 0; c < C; ++c) {
#pragma unroll
        for (int i = 0; i < count; ++i) {
          message[c][i] = family.tilt * b[c][i];
          const Odds odds = odds_of(message[c][i]);
          up[c][i] = odds.up, down[c][i] = odds.down;
        }
      }
    }

    __device__ __forceinline__ void add(const BernoulliScore&, bool normalize,
                                        const float* coefficients, const float (&a)[count]) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        const Chance chance = chance_of(a[i]);
        float rise = chance.u;
        if (normalize) {
          const float size = magnitude(a[i]), e = exp_nonpositive(-size);
          rise = mirror(-fall_below_one(size, e), a[i]) / (1 + e);
        }
#pragma unroll
        for (int c = 0; c < C; ++c) {
          const float own = up[c][i], other = down[c][i];
          float slope;
          if (chance.far()) {
            slope = sigmoid(a[i] + message[c][i]);
            if (normalize) slope -= own / (own + other);
          } else {
            const float share = normalize ? own * other / (own + other) : own;
            slope = rise * share / factor_of(chance, own, other);
          }
          sum[c][i] += coefficients[c] * slope;
        }
      }
    }

    __device__ __forceinline__ float result(const BernoulliScore& family, bool, int c, int i, float,
                                            float) const {
      return family.tilt * sum[c][i];
    }
  };
};

}  // namespace bll::cuda
