// Categorical latents: groups of `group` logits, A(a) = log sum exp(a), mu = softmax
// (docs/method.md). Sweeps over a group find Range, Prior and Tilt (or Posterior); then value and
// gradients follow per element.
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

  // Sweep 1: extremes of a and of the untilted b (they may overlook NaN, which later sweeps carry
  // on). Sweep 2: `anchor`, the b of alpha's most probable element or 0 where that is infinite, and
  // the largest posterior logit. Messages count from the anchor, so that the mean message keeps its
  // accuracy when alpha is all but certain.
  struct Range {
    Real max_a, max_b, min_b, anchor, max_r;
  };

  // Where messages may count from.
  BLL_HD static Real origin(Real x) { return magnitude(x) == Real(HUGE_VAL) ? Real(0) : x; }

  BLL_HD Real message(const Range& range, Real b) const { return tilt * (b - range.anchor); }
  BLL_HD Real logit(const Range& range, Real a, Real b) const { return a + message(range, b); }

  // p x with 0 inf = 0: a masked element (a = -inf) contributes nothing. NaN stays NaN: both
  // comparisons let it pass. Selecting by `x != x` instead would keep loops from being vectors.
  BLL_HD static Real weighted(Real p, Real x) {
    const Real above = x < Real(-1) ? Real(-1) : x;
    const Real finite = above > Real(1) ? Real(1) : above;
    return p * (p > 0 ? x : finite);
  }

  // Sweep 3: z = sum e^(a - max_a), centre = E_alpha[message].
  struct Prior {
    Real inverse_z, centre;
  };

  // Sweep 4, messages that amplify no element beyond e^32: with c = message - centre and
  // x = e^c - 1, excess = E_alpha[x - c], spread = E_alpha[x c] and gap = their difference, each
  // free of cancellation.
  struct Tilt {
    Real excess, spread, gap;
    BLL_HD Real mean() const { return spread / (1 + excess); }  // E_rho[c]
  };

  // Sweep 4, other messages: z = sum e^(r - max_r), mean = E_rho[c]. An infinite centre is that of
  // an element that rho rules out (b = -inf): only the reverse loss still needs it.
  struct Posterior {
    Real inverse_z, mean;
  };

  enum class Form { kNarrow, kTilt, kDirect };

  // kNarrow: kTilt with |c| <= 1 throughout.
  BLL_HD Form form(const Range& range, const Prior& prior) const {
    const Real c1 = message(range, range.max_b) - prior.centre;
    const Real c2 = message(range, range.min_b) - prior.centre;
    if (magnitude(c1) <= 1 && magnitude(c2) <= 1) return Form::kNarrow;
    const bool finite = magnitude(c1) < Real(HUGE_VAL) && magnitude(c2) < Real(HUGE_VAL);
    return finite && c1 <= 32 && c2 <= 32 ? Form::kTilt : Form::kDirect;
  }

  template <Loss L>
  BLL_HD static Prior direct(Prior prior) {
    if (L != Loss::kReverseKl && L != Loss::kReverseKlFull) prior.centre = origin(prior.centre);
    return prior;
  }

  struct Growth {
    Real factor;  // e^c
    Real x;       // e^c - 1
    Real rest;    // e^c - 1 - c
    Real gap;     // x c - rest
  };

  template <bool Narrow>
  BLL_HD static Growth growth(Real c) {
    const Real ratio = expm1_rest_ratio(c), square = c * c;
    const Real rest = square * ratio, gap = square * (1 - (1 - c) * ratio);
    if (Narrow) return {1 + (c + rest), c + rest, rest, gap};
    const Real factor = exp_any(c), far = factor - 1;
    const bool small = magnitude(c) < 1;
    return {factor, small ? c + rest : far, small ? rest : far - c,
            small ? gap : far * c - (far - c)};
  }

  template <Loss L>
  BLL_HD Real value(const Range& range, const Prior& prior, const Tilt& tilted) const {
    const Real log_mean = log1p_nonnegative(tilted.excess);  // log E_alpha[e^c]
    if (L == Loss::kEvidence) return -(tilt * range.anchor + prior.centre + log_mean);
    if (L == Loss::kReverseKl || L == Loss::kReverseKlFull) return log_mean;
    const Real kl = tilted.mean() - log_mean;
    return kl < 0 ? Real(0) : kl;
  }

  template <Loss L>
  BLL_HD Real value(const Range& range, const Prior& prior, const Posterior& posterior) const {
    // log E_alpha[e^c]; an infinite logit is the whole sum.
    const Real log_ratio = Real(::log(prior.inverse_z / posterior.inverse_z));
    const bool infinite = range.max_r == Real(HUGE_VAL);
    const Real log_mean =
        range.max_r - range.max_a - prior.centre + (infinite ? 0 * prior.inverse_z : log_ratio);
    if (L == Loss::kEvidence) return -(tilt * range.anchor + prior.centre + log_mean);
    const bool reverse = L == Loss::kReverseKl || L == Loss::kReverseKlFull;
    const Real kl = reverse ? log_mean : posterior.mean - log_mean;
    return kl < 0 ? Real(0) : kl;
  }

  // Gradients of one element: p = alpha's probability, c = message - centre.
  template <Loss L, bool Narrow>
  BLL_HD static PairTerms<Real, 1> element(Real p, Real c, Tilt t) {
    const Growth g = growth<Narrow>(c);
    const Real q = p / (1 + t.excess), rho = q * g.factor;
    switch (L) {
      case Loss::kKl:
        return {0, {q * (t.excess - g.x)}, {0}};
      case Loss::kKlFull: {
        const Real mean = t.mean(), offset = (t.excess * t.excess - t.gap) / (1 + t.excess);
        return {0, {q * (g.gap + offset - g.x * mean)}, {rho * (c - mean)}};
      }
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
  BLL_HD static PairTerms<Real, 1> element(Real p, Real rho, Real c, Posterior posterior) {
    switch (L) {
      case Loss::kKl:
        return {0, {p - rho}, {0}};
      case Loss::kKlFull: {
        const Real response = weighted(rho, c - posterior.mean);
        return {0, {response + p - rho}, {response}};
      }
      case Loss::kReverseKl:
        return {0, {-weighted(p, c)}, {0}};
      case Loss::kReverseKlFull:
        return {0, {rho - p - weighted(p, c)}, {rho - p}};
      default:
        return {0, {p - rho}, {-rho}};
    }
  }
};

}  // namespace bll
