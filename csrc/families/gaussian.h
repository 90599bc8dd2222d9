// Gaussian latents of unit variance with an additive message: A(a) = a^2 / 2 (docs/method.md).
#pragma once

#include "families/natural.h"

namespace bll {

template <class Real>
struct Gaussian {
  static constexpr int kPlanes = 1;
  Real tilt;

  Gaussian(double /*tau*/, double message_tilt) : tilt(static_cast<Real>(message_tilt)) {}

  BLL_HD Real prior_mean(const Real (&a)[1]) const { return a[0]; }
  BLL_HD Real posterior_mean(const Real (&a)[1], const Real (&b)[1]) const {
    return a[0] + tilt * b[0];
  }

  BLL_HD NaturalPair<Real> pair(Real a, Real b) const {
    NaturalPair<Real> out;
    out.kl = out.reverse_kl = b * b / 2;
    out.log_evidence = b * (a + b / 2);
    out.shift = out.posterior_response = out.prior_response = b;
    out.posterior_mean = a + b;
    // v is constant, so a full KL does not depend on a at all.
    out.kl_slope = out.reverse_kl_slope = 0;
    return out;
  }
};

}  // namespace bll
