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

  // What a loop may compute in a sweep of its own: two short sweeps overlap better in a processor
  // than one long one.
  struct Stage {
    Real prior, posterior;  // e^-|a|, e^-|a + b|
  };

  BLL_HD Stage stage(Real a, Real b) const {
    return {exp_nonpositive(-magnitude(a)), exp_nonpositive(-magnitude(a + b))};
  }

  // Messages below this size can be told to pair() to be `Small`.
  static constexpr Real kSmall = sizeof(Real) == 4 ? Real(0.4) : Real(0.05);

  BLL_HD NaturalPair<Real> pair(Real a, Real b) const { return pair<false>(a, b, stage(a, b)); }

  template <bool Small>
  BLL_HD NaturalPair<Real> pair(Real a, Real b, const Stage& stage) const {
    // z -> 1 - z maps (a, b) to (-a, -b): work where a <= 0, so that small probabilities stay
    // exact, and map back with mirror(., a).
    const Frame<Small> f(-magnitude(a), mirror(b, a), stage);
    NaturalPair<Real> out;
    out.kl = f.kl();
    out.reverse_kl = f.reverse_kl();
    out.log_evidence = f.log_evidence(a > 0);
    out.shift = mirror(f.shift, a);
    out.posterior_mean = (a > 0 ? f.fall : f.rise) * f.ir;
    out.posterior_response = f.posterior_variance() * b;
    out.prior_response = f.prior_variance() * b;
    out.kl_slope = mirror(f.kl_slope(), a);
    out.reverse_kl_slope = mirror(f.reverse_kl_slope(), a);
    return out;
  }

 private:
  // One latent with a <= 0. For a small message every difference is a product with expm1(b) times
  // a series in b (Euler-Maclaurin between a and r); for others plain differences are accurate.
  template <bool Small>
  struct Frame {
    Real a, b, r;
    Real ea, er;      // e^-|a|, e^-|r|
    Real rise, fall;  // e^min(r, 0), e^-max(r, 0)
    Real ia, ir;      // 1 / (1 + ea), 1 / (1 + er)
    Real product;     // ia ir
    Real slope;       // (er - ea) / (2 + er + ea)
    Real shift;       // mu(r) - mu(a)
    bool small, above;

    BLL_HD Frame(Real prior, Real message, const Stage& stage) {
      a = prior;
      b = message;
      r = a + b;
      above = r > 0;
      small = Small || magnitude(b) < kSmall;
      ea = stage.prior;
      er = stage.posterior;
      rise = above ? Real(1) : er;
      fall = above ? er : Real(1);
      const Real pa = 1 + ea, pr = 1 + er, sum = pa + pr;
      const Real both = pa * pr;
      const Real inverse = 1 / (both * sum);
      product = inverse * sum;
      ia = product * pr;
      ir = product * pa;
      slope = (er - ea) * (inverse * both);
      const Real near = -expm1_small(-b) * rise;
      const Real far = rise - ea * fall;
      shift = (small ? near : far) * product;
    }

    BLL_HD Real posterior_variance() const { return er * ir * ir; }
    BLL_HD Real prior_variance() const { return ea * ia * ia; }

    // 1 - mu(r) - mu(a).
    BLL_HD Real balance() const { return (fall - ea * rise) * product; }

    // log((1 + er) / (1 + ea)).
    BLL_HD Real log_ratio() const { return 2 * (slope + atanh_rest(slope)); }

    // (b (mu(r) + mu(a)) / 2 - (A(r) - A(a))) / (b^2 shift balance), for a small message.
    BLL_HD Real asymmetry(Real w) const {
      const Real w2 = w * w, d2 = shift * shift, b2 = b * b;
      const Real q = w2 + d2;  // v(r) + v(a) = (1 - q) / 2
      if constexpr (sizeof(Real) == 4) {
        return b2 * (q * Real(-1.0 / 240) + Real(1.0 / 360)) + Real(1.0 / 12);
      } else {
        const Real s = (1 - q) / 2;
        return Real(1) / 12 -
               b2 * ((1 - 6 * s) / 720 - b2 * (1 - 30 * s + 90 * s * s + 30 * d2 * w2) / 30240);
      }
    }

    BLL_HD Real kl() const {
      const Real w = balance();
      const Real near = b * shift * (Real(0.5) + b * w * asymmetry(w));
      const Real far = (above ? -a : Real(0)) + mirror(b, r) * (er * ir) - log_ratio();
      const Real value = small ? near : far;
      return value < 0 ? Real(0) : value;
    }

    BLL_HD Real reverse_kl() const {
      const Real w = balance();
      const Real near = b * shift * (Real(0.5) - b * w * asymmetry(w));
      // At a = 0 the two sides agree; |b| / 2 also says so of an infinite message.
      const Real drift = a == 0 ? magnitude(b) / 2 : (above ? r : Real(0)) - b * (ea * ia);
      const Real value = small ? near : drift + log_ratio();
      return value < 0 ? Real(0) : value;
    }

    // A(r) - A(a), mapped back.
    BLL_HD Real log_evidence(bool flipped) const {
      const Real w = balance();
      const Real mean = (rise * ir + ea * ia) / 2 - b * shift * w * asymmetry(w);
      const Real near = flipped ? b * mean - b : b * mean;
      const Real far = (above ? r : Real(0)) + log_ratio() - (flipped ? b : Real(0));
      return small ? near : far;
    }

    // 1 - 2 mu(h), given e^-|h| and 1 / (1 + e^-|h|): tanh(-h / 2), accurate near h = 0.
    BLL_HD static Real lean(Real h, Real e, Real inverse) {
      const Real m = -magnitude(h);
      const Real size = (m > Real(-0.5) ? -expm1_small(m) : 1 - e) * inverse;
      return mirror(size, h);
    }

    // v(r) b - shift = mu(r) (1 - mu(a)) cubic_rest(b) + b shift lean(r) / 2.
    BLL_HD Real kl_slope() const {
      const Real near = rise * product * cubic_rest(b) + b * shift * (lean(r, er, ir) / 2);
      return small || magnitude(b) < 1 ? near : posterior_variance() * b - shift;
    }

    // The same with a and r exchanged and b negated.
    BLL_HD Real reverse_kl_slope() const {
      const Real near = ea * fall * product * cubic_rest(-b) + b * shift * (lean(a, ea, ia) / 2);
      return small || magnitude(b) < 1 ? near : shift - prior_variance() * b;
    }

    // b - (1 - e^-b) (1 + b / 2) = b^3 / 12 - b^4 / 24 + ... for |b| < 1.
    BLL_HD static float cubic_rest(float x) {
      float y = 9.622881407267414e-6f;
      y = y * x - 7.632630877196789e-5f;
      y = y * x + 4.962611710652709e-4f;
      y = y * x - 2.7768362779170275e-3f;
      y = y * x + 1.249989029020071e-2f;
      y = y * x - 4.166677966713905e-2f;
      y = y * x + 8.33333432674408e-2f;
      return x * x * x * y;
    }

    BLL_HD static double cubic_rest(double x) {
      double y = 1.0 / 14311188283392000.0;
      y = y * x - 1.0 / 800296713216000.0;
      y = y * x + 1.0 / 47424990412800.0;
      y = y * x - 1.0 / 2988969984000.0;
      y = y * x + 1.0 / 201180672000.0;
      y = y * x - 1.0 / 14529715200.0;
      y = y * x + 1.0 / 1132185600.0;
      y = y * x - 1.0 / 95800320.0;
      y = y * x + 1.0 / 8870400.0;
      y = y * x - 1.0 / 907200.0;
      y = y * x + 1.0 / 103680.0;
      y = y * x - 1.0 / 13440.0;
      y = y * x + 1.0 / 2016.0;
      y = y * x - 1.0 / 360.0;
      y = y * x + 1.0 / 80.0;
      y = y * x - 1.0 / 24.0;
      y = y * x + 1.0 / 12.0;
      return x * x * x * y;
    }
  };
};

}  // namespace bll
