// The loop over a tile for families whose latents are independent.
#pragma once

#include "cpu/tile.h"
#include "losses/pair.h"

namespace bll::cpu {

constexpr bool wants_value(Want want) {
  return want == Want::kValue || want == Want::kGradAValue || want == Want::kGradABValue;
}
constexpr bool wants_grad_a(Want want) { return want != Want::kValue; }
constexpr bool wants_grad_b(Want want) {
  return want == Want::kGradAB || want == Want::kGradABValue;
}

template <class Family, Loss L, Want W, class Real>
BLL_HD Real pair_tile(const Tile<Real>& tile) {
  constexpr int planes = Family::kPlanes;
  const Family family = *static_cast<const Family*>(tile.family);
  const Real* __restrict a0 = tile.a;
  const Real* __restrict a1 = tile.a + (planes - 1) * tile.a_plane;
  const Real* __restrict b0 = tile.b;
  const Real* __restrict b1 = tile.b + (planes - 1) * tile.b_plane;
  Real* __restrict grad_a0 = tile.grad_a;
  Real* __restrict grad_a1 = tile.grad_a + (planes - 1) * tile.grad_a_plane;
  Real* __restrict grad_b0 = tile.grad_b;
  Real* __restrict grad_b1 = tile.grad_b + (planes - 1) * tile.grad_b_plane;
  const Real scale = tile.scale;
  const int64_t size = tile.size;
  Real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) {
    Real a[planes], b[planes];
    a[0] = a0[i];
    b[0] = b0[i];
    if constexpr (planes == 2) {
      a[1] = a1[i];
      b[1] = b1[i];
    }
    const PairTerms<Real, planes> terms = pair_terms<L>(family, a, b);
    if constexpr (wants_value(W)) sum += terms.value;
    if constexpr (wants_grad_a(W)) {
      grad_a0[i] = scale * terms.a[0];
      if constexpr (planes == 2) grad_a1[i] = scale * terms.a[1];
    }
    if constexpr (wants_grad_b(W)) {
      grad_b0[i] = scale * terms.b[0];
      if constexpr (planes == 2) grad_b1[i] = scale * terms.b[1];
    }
  }
  return sum;
}

}  // namespace bll::cpu
