// alpha = N(m_a, e^s_a), message N(z; m_b, e^s_b): two parameters per latent, (mean, log-variance)
// (docs/method.md).
#pragma once

#include <cmath>

#include "core/special.h"
#include "losses/loss.h"
#include "losses/terms.h"

namespace bll {

template <class Real>
struct GaussianDiagonal {
  static constexpr int kPlanes = 2;
  Real log_tilt;

  GaussianDiagonal(double /*tau*/, double tilt) : log_tilt(static_cast<Real>(std::log(tilt))) {}

  BLL_HD Real prior_mean(const Real (&a)[2]) const { return a[0]; }
  BLL_HD Real posterior_mean(const Real (&a)[2], const Real (&b)[2]) const {
    const Real z = a[1] - (b[1] - log_tilt);
    const Real e = exp_nonpositive(-magnitude(z));
    const Real k = (z > 0 ? Real(1) : e) / (1 + e);
    return a[0] + k * (b[0] - a[0]);
  }

  template <Loss L>
  BLL_HD PairTerms<Real, 2> terms(const Real (&a)[2], const Real (&b)[2]) const {
    const Real sa = a[1], sb = b[1] - log_tilt, d = b[0] - a[0];
    const Real z = sa - sb;
    const bool wide = z > 0;  // alpha is wider than the message
    // k = sigmoid(z): the posterior is N(m_a + k d, e^s_a (1 - k)).
    const Real e = exp_nonpositive(-magnitude(z));
    const Real inverse = 1 / ((1 + e) * (2 + e));
    const Real half = inverse * (2 + e);  // 1 / (1 + e)
    const Real k = wide ? half : e * half;
    const Real rest = wide ? e * half : half;  // 1 - k
    // log(1 + e) = 2 atanh(s): what is left of it beside its first orders never cancels.
    const Real s = e * (inverse * (1 + e));
    const Real tail = 2 * atanh_rest(s);
    const Real overlap = exp_any(wide ? -sa : -sb) * half;  // 1 / (e^s_a + e^s_b)
    const Real w = overlap * d * d;
    if (L == Loss::kEvidence) {
      const Real log_sum = (wide ? sa : sb) + 2 * s + tail;
      const Real value = (Real(1.8378770664093453) + log_sum + w) / 2;
      const Real mean = overlap * d;
      return {value, {-mean, k * (1 - w) / 2}, {mean, rest * (1 - w) / 2}};
    }
    if (L == Loss::kKl || L == Loss::kKlFull) {
      const Real value = ((wide ? z + 2 * s - k : s * k) + tail + k * w) / 2;
      if (L == Loss::kKl) return {value, {-overlap * d, k * (1 - w) / 2}, {0, 0}};
      const Real mean = k * overlap * d;
      return {value, {-mean, k * (k + w * (1 - 2 * k)) / 2}, {mean, -k * (k + 2 * rest * w) / 2}};
    }
    const Real ratio = exp_any(z);  // k / (1 - k)
    const Real precision = exp_any(-sb);
    const Real spread = k * precision * d * d;
    const Real value = ((wide ? ratio - z - 2 * s : s * ratio) - tail + spread) / 2;
    if (L == Loss::kReverseKl) return {value, {-precision * d, ratio / 2}, {0, 0}};
    const Real mean = k * precision * d;
    return {value, {-mean, k * (ratio + w) / 2}, {mean, -(k * ratio + spread * (1 + rest)) / 2}};
  }
};

}  // namespace bll
