// The next block's input: the mean of alpha, of the posterior rho, or a mix of both.
#pragma once

#include "core/defs.h"

namespace bll {

enum class Next : int { kAlpha, kRho, kMix };

// A mean that has no weight is not looked at: an infinite message leaves that of alpha alone.
constexpr Next next_kind(double mix) {
  return mix == 0 ? Next::kAlpha : mix == 1 ? Next::kRho : Next::kMix;
}

// Weights of the two means; sums of terms of one sign keep the accuracy of each.
template <class Real>
struct NextMix {
  Real alpha, rho;

  NextMix() = default;
  explicit NextMix(double mix) : alpha(static_cast<Real>(1 - mix)), rho(static_cast<Real>(mix)) {}
};

// For families whose latents are independent of each other.
template <Next N, template <class> class Family, class Real, int Planes>
BLL_HD Real next_mean(const Family<Real>& family, const NextMix<Real>& mix, const Real (&a)[Planes],
                      const Real (&b)[Planes]) {
  if (N == Next::kAlpha) return family.prior_mean(a);
  if (N == Next::kRho) return family.posterior_mean(a, b);
  return mix.alpha * family.prior_mean(a) + mix.rho * family.posterior_mean(a, b);
}

// The same where the mix is told apart as the kernel runs.
template <template <class> class Family, class Real, int Planes>
BLL_HD Real next_mean(const Family<Real>& family, const NextMix<Real>& mix, const Real (&a)[Planes],
                      const Real (&b)[Planes]) {
  Real mean = 0;
  if (mix.alpha != 0) mean = mix.alpha * family.prior_mean(a);
  if (mix.rho != 0) mean += mix.rho * family.posterior_mean(a, b);
  return mean;
}

}  // namespace bll
