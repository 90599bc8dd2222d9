// alpha = N(a, 1), message N(z; b, 1 / tau): b is a mean, tau the message's precision
// (docs/method.md).
#pragma once

#include <cmath>

#include "core/defs.h"
#include "losses/loss.h"
#include "losses/terms.h"

namespace bll {

template <class Real>
struct GaussianPrecision {
  static constexpr int kPlanes = 1;
  Real precision;  // tau, tilted
  Real gain;       // k = tau / (1 + tau): the posterior is N(a + k (b - a), 1 - k)
  Real kl_floor, reverse_kl_floor, evidence_floor;  // values at b = a

  GaussianPrecision(double tau, double tilt) {
    const double t = tau * tilt, k = t / (1 + t), log1p_t = std::log1p(t);
    precision = static_cast<Real>(t);
    gain = static_cast<Real>(k);
    kl_floor = static_cast<Real>((t < 0.05 ? series(t, 1) : log1p_t - k) / 2);
    reverse_kl_floor = static_cast<Real>((t < 0.05 ? series(t, 0) : t - log1p_t) / 2);
    evidence_floor = static_cast<Real>(std::log(6.283185307179586 / k) / 2);
  }

  // t - log1p(t) (grow = 0) or log1p(t) - t / (1 + t) (grow = 1) for small t.
  static double series(double t, int grow) {
    double sum = 0, power = t;
    for (int n = 2; n < 16; ++n) {
      power *= -t;
      sum -= power * (grow ? n - 1 : 1) / n;
    }
    return sum;
  }

  BLL_HD Real prior_mean(const Real (&a)[1]) const { return a[0]; }
  BLL_HD Real posterior_mean(const Real (&a)[1], const Real (&b)[1]) const {
    return a[0] + gain * (b[0] - a[0]);
  }

  template <Loss L>
  BLL_HD PairTerms<Real, 1> terms(const Real (&a)[1], const Real (&b)[1]) const {
    const Real d = b[0] - a[0], k = gain;
    const Real kl = kl_floor + k * k * d * d / 2;
    const Real reverse_kl = reverse_kl_floor + precision * k * d * d / 2;
    switch (L) {
      case Loss::kKl:
        return {kl, {-k * d}, {0}};
      case Loss::kKlFull:
        return {kl, {-k * k * d}, {k * k * d}};
      case Loss::kReverseKl:
        return {reverse_kl, {-precision * d}, {0}};
      case Loss::kReverseKlFull:
        return {reverse_kl, {-precision * k * d}, {precision * k * d}};
      default:
        return {evidence_floor + k * d * d / 2, {-k * d}, {k * d}};
    }
  }
};

}  // namespace bll
