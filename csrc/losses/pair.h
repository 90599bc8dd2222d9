// The five losses over a family, one latent at a time: value and gradients together.
#pragma once

#include "families/bernoulli.h"
#include "families/categorical.h"
#include "families/gaussian.h"
#include "families/gaussian_diagonal.h"
#include "families/gaussian_precision.h"
#include "losses/loss.h"
#include "losses/terms.h"

namespace bll {

// The table of docs/method.md, in the family's own quantities.
template <Loss L, class Real>
BLL_HD PairTerms<Real, 1> natural_terms(const NaturalPair<Real>& p) {
  switch (L) {
    case Loss::kKl:
      return {p.kl, {-p.shift}, {0}};
    case Loss::kKlFull:
      return {p.kl, {p.kl_slope}, {p.posterior_response}};
    case Loss::kReverseKl:
      return {p.reverse_kl, {-p.prior_response}, {0}};
    case Loss::kReverseKlFull:
      return {p.reverse_kl, {p.reverse_kl_slope}, {p.shift}};
    default:
      return {-p.log_evidence, {-p.shift}, {-p.posterior_mean}};
  }
}

// Families in natural parameters define pair(a, b), others terms<L>(a, b).
template <Loss L, template <class> class Family, class Real>
BLL_HD auto pair_terms(const Family<Real>& family, const Real (&a)[1], const Real (&b)[1])
    -> decltype(family.pair(a[0], b[0]), PairTerms<Real, 1>()) {
  PairTerms<Real, 1> out = natural_terms<L>(family.pair(a[0], family.tilt * b[0]));
  out.b[0] *= family.tilt;
  return out;
}

template <Loss L, template <class> class Family, class Real, int Planes>
BLL_HD auto pair_terms(const Family<Real>& family, const Real (&a)[Planes], const Real (&b)[Planes])
    -> decltype(family.template terms<L>(a, b)) {
  return family.template terms<L>(a, b);
}

}  // namespace bll
