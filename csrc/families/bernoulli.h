// Bernoulli latents z in {0, 1}: A(a) = log(1 + e^a), mu = sigmoid (docs/method.md).
#pragma once

#include "core/special.h"
#include "families/natural.h"

namespace bll {

template <class Real>
struct Bernoulli {
  static constexpr int kPlanes = 1;
  Real tilt;

  Bernoulli(double /*tau*/, double message_tilt) : tilt(static_cast<Real>(message_tilt)) {}

  // What a loop may compute in a sweep of its own.
  struct Stage {
    Real prior;           // e^-|a|
    Real message;         // b as seen from a <= 0
    Growth<Real> growth;  // of it
  };

  // Good for latents up to kLargest() only.
  BLL_HD static Stage stage(Real a, Real b) {
    constexpr Real bias = sizeof(Real) == 4 ? Real(127) : Real(1023);
    const Real message = mirror(b, a);
    return {exp_biased(-magnitude(a), bias), message, growth_of(message)};
  }

  // Latents of at most this size() are `Bounded`: their odds, and products of three of them, are
  // normal numbers.
  BLL_HD static constexpr Real kLargest() { return sizeof(Real) == 4 ? Real(80) : Real(600); }
  BLL_HD static Real size(Real a, Real b) {
    const Real prior = magnitude(a), twice = magnitude(b) + magnitude(b);
    return prior > twice ? prior : twice;
  }

  BLL_HD static Real mean(Real a) {
    const Real e = exp_nonpositive(-magnitude(a));
    return (a > 0 ? Real(1) : e) / (1 + e);
  }
  BLL_HD Real prior_mean(const Real (&a)[1]) const { return mean(a[0]); }
  BLL_HD Real posterior_mean(const Real (&a)[1], const Real (&b)[1]) const {
    return mean(a[0] + tilt * b[0]);
  }

  BLL_HD NaturalPair<Real> pair(Real a, Real b) const { return pair<false>(a, stage(a, b)); }

  // z -> 1 - z maps (a, b) to (-a, -b): work where a <= 0, so that small probabilities stay exact,
  // and map back with mirror(., a).
  template <bool Bounded>
  BLL_HD static NaturalPair<Real> pair(Real a, const Stage& stage) {
    const NaturalPair<Real> near = bounded(a, stage);
    if constexpr (Bounded) return near;
#if defined(__CUDA_ARCH__)
    // A branch that is never taken costs less than registers for both.
    if (size(a, stage.message) > kLargest()) return unbounded(a, stage.message);
    return near;
#else
    const NaturalPair<Real> far = unbounded(a, stage.message);
    const bool large = size(a, stage.message) > kLargest();
    NaturalPair<Real> out;
    out.kl = large ? far.kl : near.kl;
    out.reverse_kl = large ? far.reverse_kl : near.reverse_kl;
    out.log_evidence = large ? far.log_evidence : near.log_evidence;
    out.shift = large ? far.shift : near.shift;
    out.posterior_mean = large ? far.posterior_mean : near.posterior_mean;
    out.posterior_response = large ? far.posterior_response : near.posterior_response;
    out.prior_response = large ? far.prior_response : near.prior_response;
    out.kl_slope = large ? far.kl_slope : near.kl_slope;
    out.reverse_kl_slope = large ? far.reverse_kl_slope : near.reverse_kl_slope;
    return out;
#endif
  }

 private:
  // In the odds e = e^a, o = e^r and m = e^b - 1 no difference of nearly equal numbers is left:
  // docs/method.md, "Bernoulli without cancellation".
  BLL_HD static NaturalPair<Real> bounded(Real prior, const Stage& stage) {
    const bool flipped = prior > 0;
    const Real a = -magnitude(prior), b = stage.message;
    const Real e = stage.prior, m = stage.growth.growth;
    const Real h = stage.growth.rest;  // e^b - 1 - b
    const Real g = b * m - h;          // b e^b - (e^b - 1)
    const Real em = e * m, o = e + em;
    const Real pa = 1 + e, pr = pa + em;
    // log(pr / pa) = 2 atanh(s), behind r where the posterior is likely.
    const bool above = pr > pa + pa;
    const Real square = e * o;
    const Real top = above ? 1 - square : em;
    const Real sum = pr + (above ? o + square : pa);
    const Real both = pa * pr;
    const Real inverse = 1 / (both * sum);
    const Real product = inverse * sum;
    const Real ia = product * pr, ir = product * pa;  // 1 / pa, 1 / pr
    const Real s = top * (inverse * both);
    const Real tail = 2 * atanh_rest(s);
    NaturalPair<Real> out;
    out.kl = (above ? -(a + b * ir) - (s + s) : e * ir * (g - s * m)) - tail;
    out.reverse_kl = (above ? (a + b) - b * (e * ia) + (s + s) : e * ia * (h - s * m)) + tail;
    out.log_evidence = (above ? (flipped ? a : a + b) : (flipped ? -b : Real(0))) + (s + s) + tail;
    out.shift = mirror(em * product, prior);
    // The sum above forgets small odds.
    const Real odds = e * stage.growth.factor;
    out.posterior_mean = (flipped ? Real(1) : odds) * ir;
    out.posterior_response = mirror(odds * ir * ir * b, prior);
    out.prior_response = mirror(e * ia * ia * b, prior);
    out.kl_slope = mirror(e * (product * ir) * (g + e * (g - m * m)), prior);
    out.reverse_kl_slope = mirror(e * (product * ia) * (pa * h - b * em), prior);
    return out;
  }

  // Any size, infinities too: plain differences, which are accurate for large messages, and of
  // probabilities below the smallest number where only `a` is large.
  BLL_HD static NaturalPair<Real> unbounded(Real prior, Real b) {
    const bool flipped = prior > 0;
    const Real a = -magnitude(prior), r = a + b;
    const bool above = r > 0;
    const Real ea = exp_nonpositive(a), er = exp_nonpositive(-magnitude(r));
    const Real rise = above ? Real(1) : er;  // e^min(r, 0)
    const Real fall = above ? er : Real(1);  // e^-max(r, 0)
    const Real ia = 1 / (1 + ea), ir = 1 / (1 + er);
    const Real s = (er - ea) / (2 + er + ea);
    const Real log_ratio = 2 * (s + atanh_rest(s));  // log((1 + er) / (1 + ea))
    const Real shift = (rise - ea * fall) * (ia * ir);
    const Real posterior_variance = er * ir * ir, prior_variance = ea * ia * ia;
    NaturalPair<Real> out;
    out.kl = positive((above ? -a : Real(0)) + mirror(b, r) * (er * ir) - log_ratio);
    // No difference of an infinite message and itself.
    const Real drift = above ? a + b * ia : -b * (ea * ia);
    out.reverse_kl = positive(drift + log_ratio);
    out.log_evidence = (above ? (flipped ? a : r) : (flipped ? -b : Real(0))) + log_ratio;
    out.shift = mirror(shift, prior);
    out.posterior_mean = (flipped ? fall : rise) * ir;
    out.posterior_response = mirror(posterior_variance * b, prior);
    out.prior_response = mirror(prior_variance * b, prior);
    out.kl_slope = mirror(posterior_variance * b - shift, prior);
    out.reverse_kl_slope = mirror(shift - prior_variance * b, prior);
    return out;
  }

  BLL_HD static Real positive(Real x) { return x < 0 ? Real(0) : x; }
};

}  // namespace bll
