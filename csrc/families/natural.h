// Families whose message adds to the natural parameter: alpha = EF(a), rho = EF(r), r = a + b.
#pragma once

#include "core/defs.h"

namespace bll {

// What the losses need of one latent, each free of cancellation (docs/method.md). With
// log-partition A, mu = A' and v = A'': a family fills in all of it, and the compiler drops what a
// loss does not read.
template <class Real>
struct NaturalPair {
  Real kl;                  // KL(rho || alpha) = b mu(r) - (A(r) - A(a))
  Real reverse_kl;          // KL(alpha || rho) = A(r) - A(a) - b mu(a)
  Real log_evidence;        // A(r) - A(a)
  Real shift;               // mu(r) - mu(a)
  Real posterior_mean;      // mu(r)
  Real posterior_response;  // v(r) b
  Real prior_response;      // v(a) b
  Real kl_slope;            // v(r) b - shift
  Real reverse_kl_slope;    // shift - v(a) b
};

}  // namespace bll
