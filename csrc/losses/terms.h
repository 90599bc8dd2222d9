// What one latent contributes to a loss.
#pragma once

#include "core/defs.h"

namespace bll {

// One entry of `a` and `b` per parameter of the latent: the gradients by forward and feedback
// message, neither multiplied by any upstream gradient.
template <class Real, int Planes>
struct PairTerms {
  Real value;
  Real a[Planes];
  Real b[Planes];
};

}  // namespace bll
