// The loops over a tile for families whose latents are independent.
#pragma once

#include <type_traits>

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

template <class Family, class = void>
struct IsStaged : std::false_type {};
template <class Family>
struct IsStaged<Family, std::void_t<typename Family::Stage>> : std::true_type {};

// One sweep.
template <class Family, Loss L, Want W, class Real>
BLL_HD Real pair_sweep(const Tile<Real>& tile) {
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

// Latents whose stage fits beside them in the first-level cache.
inline constexpr int64_t kStagedRun = 256;

template <class Real>
struct StagedRun {
  alignas(64) Real prior[kStagedRun];
  alignas(64) Real factor[kStagedRun];
  alignas(64) Real growth[kStagedRun];
  alignas(64) Real rest[kStagedRun];
};

// The second of two sweeps.
template <class Family, Loss L, Want W, bool Bounded, class Real>
BLL_HD Real pair_finish(const Family& family, const Tile<Real>& tile, int64_t start, int64_t size,
                        const StagedRun<Real>& run) {
  const Real* __restrict a = tile.a + start;
  const Real* __restrict b = tile.b + start;
  Real* __restrict grad_a = tile.grad_a + start;
  Real* __restrict grad_b = tile.grad_b + start;
  const Real scale = tile.scale, scale_b = tile.scale * family.tilt;
  Real sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < size; ++i) {
    const PairTerms<Real, 1> terms = natural_terms<L>(family.template pair<Bounded>(
        a[i], family.tilt * b[i], {run.prior[i], {run.factor[i], run.growth[i], run.rest[i]}}));
    if constexpr (wants_value(W)) sum += terms.value;
    if constexpr (wants_grad_a(W)) grad_a[i] = scale * terms.a[0];
    if constexpr (wants_grad_b(W)) grad_b[i] = scale_b * terms.b[0];
  }
  return sum;
}

template <class Family, Loss L, Want W, class Real>
BLL_HD Real pair_sweep_staged(const Tile<Real>& tile) {
  const Family family = *static_cast<const Family*>(tile.family);
  StagedRun<Real> run;
  Real sum = 0;
  for (int64_t start = 0; start < tile.size; start += kStagedRun) {
    const int64_t left = tile.size - start, size = left < kStagedRun ? left : kStagedRun;
    const Real* __restrict a = tile.a + start;
    const Real* __restrict b = tile.b + start;
    Real largest = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < size; ++i) {
      const Real message = family.tilt * b[i], latent = family.size(a[i], message);
      const typename Family::Stage stage = family.stage(a[i], message);
      run.prior[i] = stage.prior;
      run.factor[i] = stage.growth.factor;
      run.growth[i] = stage.growth.growth;
      run.rest[i] = stage.growth.rest;
      largest = latent > largest ? latent : largest;
    }
    sum += largest <= Family::kLargest()
               ? pair_finish<Family, L, W, true>(family, tile, start, size, run)
               : pair_finish<Family, L, W, false>(family, tile, start, size, run);
  }
  return sum;
}

template <class Family, Loss L, Want W, class Real>
BLL_HD Real pair_tile(const Tile<Real>& tile) {
  if constexpr (IsStaged<Family>::value) {
    return pair_sweep_staged<Family, L, W>(tile);
  } else {
    return pair_sweep<Family, L, W>(tile);
  }
}

}  // namespace bll::cpu
