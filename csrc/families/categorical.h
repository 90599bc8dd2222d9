// Categorical latents: groups of `group` logits, A(a) = log sum exp(a), mu = softmax
// (docs/method.md). A group is three sweeps: Range over a and b, Prior over e^a, Tilt (or
// Posterior) over the message; then value and gradients follow per element.
#pragma once

#include "core/special.h"
#include "losses/loss.h"
#include "losses/terms.h"

namespace bll {

template <class Real>
struct Categorical {
  static constexpr int kPlanes = 1;
  Real tilt;

  Categorical(double /*tau*/, double message_tilt) : tilt(static_cast<Real>(message_tilt)) {}

  // Sweep 1: extremes of a, untilted b and r = a + b (they may overlook NaN, which later sweeps
  // carry on), and `anchor`, the b of alpha's most probable element. Messages are taken relative to
  // it, so that the mean message keeps its accuracy when alpha is all but certain.
  struct Range {
    Real max_a, max_b, min_b, max_r, anchor;
  };

  BLL_HD Real message(const Range& range, Real b) const { return tilt * (b - range.anchor); }

  // Sweep 2: z = sum e^(a - max_a), centre = E_alpha[message].
  struct Prior {
    Real inverse_z, centre;
  };

  // Sweep 3, messages that amplify no element beyond e^32: with c = message - centre and
  // x = e^c - 1, excess = E_alpha[x - c] and spread = E_alpha[x c], both free of cancellation.
  struct Tilt {
    Real excess, spread;
  };

  // Sweep 3, other messages: z = sum e^(r - max_r), centre = E_rho[message].
  struct Posterior {
    Real inverse_z, centre;
  };

  enum class Form { kNarrow, kTilt, kDirect };

  // kNarrow: kTilt with |c| <= 1 throughout.
  BLL_HD Form form(const Range& range, const Prior& prior) const {
    const Real c1 = message(range, range.max_b) - prior.centre;
    const Real c2 = message(range, range.min_b) - prior.centre;
    if (magnitude(c1) <= 1 && magnitude(c2) <= 1) return Form::kNarrow;
    return c1 <= 32 && c2 <= 32 ? Form::kTilt : Form::kDirect;
  }

  struct Growth {
    Real factor;  // e^c
    Real x;       // e^c - 1
    Real rest;    // e^c - 1 - c
  };

  template <bool Narrow>
  BLL_HD static Growth growth(Real c) {
    const Real near = expm1_rest_small(c);
    if (Narrow) return {1 + (c + near), c + near, near};
    const Real factor = exp_any(c), far = factor - 1;
    const bool small = magnitude(c) < 1;
    return {factor, small ? c + near : far, small ? near : far - c};
  }

  template <Loss L>
  BLL_HD Real value(const Range& range, const Prior& prior, const Tilt& tilted) const {
    const Real log_mean = log1p_nonnegative(tilted.excess);  // log E_alpha[e^c]
    if (L == Loss::kEvidence) return -(tilt * range.anchor + prior.centre + log_mean);
    if (L == Loss::kReverseKl || L == Loss::kReverseKlFull) return log_mean;
    const Real kl = tilted.spread / (1 + tilted.excess) - log_mean;
    return kl < 0 ? Real(0) : kl;
  }

  template <Loss L>
  BLL_HD Real value(const Range& range, const Prior& prior, const Posterior& posterior) const {
    // log E_alpha[e^message]
    const Real log_mean = (range.max_r - range.max_a - tilt * range.anchor) +
                          Real(::log(prior.inverse_z / posterior.inverse_z));
    if (L == Loss::kEvidence) return -(tilt * range.anchor + log_mean);
    const bool reverse = L == Loss::kReverseKl || L == Loss::kReverseKlFull;
    const Real kl = reverse ? log_mean - prior.centre : posterior.centre - log_mean;
    return kl < 0 ? Real(0) : kl;
  }

  // Gradients of one element: p = alpha's probability, c = message - centre.
  template <Loss L, bool Narrow>
  BLL_HD static PairTerms<Real, 1> element(Real p, Real c, Tilt t) {
    const Growth g = growth<Narrow>(c);
    const Real q = p / (1 + t.excess), rho = q * g.factor;
    const Real mean = t.spread / (1 + t.excess);
    switch (L) {
      case Loss::kKl:
        return {0, {q * (t.excess - g.x)}, {0}};
      case Loss::kKlFull:
        return {0, {q * (g.x * c - g.rest + t.excess - g.factor * mean)}, {rho * (c - mean)}};
      case Loss::kReverseKl:
        return {0, {-p * c}, {0}};
      case Loss::kReverseKlFull:
        return {0, {q * (g.rest - t.excess - c * t.excess)}, {q * (g.x - t.excess)}};
      default:
        return {0, {q * (t.excess - g.x)}, {-rho}};
    }
  }

  // The same from both probabilities.
  template <Loss L>
  BLL_HD static PairTerms<Real, 1> element(Real p, Real rho, Real message, const Prior& prior,
                                           const Posterior& posterior) {
    switch (L) {
      case Loss::kKl:
        return {0, {p - rho}, {0}};
      case Loss::kKlFull: {
        const Real response = rho * (message - posterior.centre);
        return {0, {response + p - rho}, {response}};
      }
      case Loss::kReverseKl:
        return {0, {-p * (message - prior.centre)}, {0}};
      case Loss::kReverseKlFull:
        return {0, {rho - p - p * (message - prior.centre)}, {rho - p}};
      default:
        return {0, {p - rho}, {-rho}};
    }
  }
};

}  // namespace bll
