// The loops over a tile for families with a Stage: two short sweeps, which overlap better in a
// processor than one long one.
#pragma once

#include <type_traits>

#include "cpu/pair_tile.h"
#include "cpu/tile.h"
#include "losses/pair.h"

namespace bll::cpu {

template <class Family, class = void>
struct IsStaged : std::false_type {};
template <class Family>
struct IsStaged<Family, std::void_t<typename Family::Stage>> : std::true_type {};

// Latents whose stage fits beside them in the first-level cache.
inline constexpr int64_t kStagedRun = 256;

template <class Family>
struct StagedRun {
  using Real = decltype(Family::tilt);
  using Stage = typename Family::Stage;

  alignas(64) Real prior[kStagedRun];
  alignas(64) Real message[kStagedRun];
  alignas(64) Real factor[kStagedRun];
  alignas(64) Real growth[kStagedRun];
  alignas(64) Real rest[kStagedRun];

  // Fills the run; returns the size() of its largest latent.
  BLL_HD Real fill(const Family& family, const Real* __restrict a, const Real* __restrict b,
                   int64_t size) {
    Real largest = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < size; ++i) {
      const Real latent = a[i], tilted = family.tilt * b[i];
      const Real reach = family.size(latent, tilted);
      const Stage stage = family.stage(latent, tilted);
      prior[i] = stage.prior;
      message[i] = stage.message;
      factor[i] = stage.growth.factor;
      growth[i] = stage.growth.growth;
      rest[i] = stage.growth.rest;
      largest = reach > largest ? reach : largest;
    }
    return largest;
  }

  BLL_HD Stage stage(int64_t i) const {
    return {prior[i], message[i], {factor[i], growth[i], rest[i]}};
  }
};

// All of a loss for a run with a latent beyond Family::kLargest(). Rare, so one copy serves every
// Want: wrapped into a function by cpu/pair_table.inc.
template <class Real>
struct FarTerms {
  alignas(64) Real value[kStagedRun];
  alignas(64) Real a[kStagedRun];
  alignas(64) Real b[kStagedRun];
};

template <class Family, Loss L, class Real>
BLL_HD void fill_far_terms(const Family& family, const Real* __restrict a, const Real* __restrict b,
                           int64_t size, FarTerms<Real>& out) {
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    const PairTerms<Real, 1> terms = natural_terms<L>(family.pair(a[i], family.tilt * b[i]));
    out.value[i] = terms.value;
    out.a[i] = terms.a[0];
    out.b[i] = terms.b[0];
  }
}

template <class Family, class Real>
using FillFarTerms = void (*)(const Family& family, const Real* a, const Real* b, int64_t size,
                              FarTerms<Real>& out);

template <class Family, Loss L, Want W, class Real>
BLL_HD Real staged_tile(const Tile<Real>& tile, FillFarTerms<Family, Real> far) {
  const Family family = *static_cast<const Family*>(tile.family);
  const Real scale = tile.scale, scale_b = tile.scale * family.tilt;
  StagedRun<Family> run;
  Real sum = 0;
  for (int64_t start = 0; start < tile.size; start += kStagedRun) {
    const int64_t left = tile.size - start, size = left < kStagedRun ? left : kStagedRun;
    const Real* __restrict a = tile.a + start;
    const Real* __restrict b = tile.b + start;
    Real* __restrict grad_a = tile.grad_a + start;
    Real* __restrict grad_b = tile.grad_b + start;
    const Real largest = run.fill(family, a, b, size);
    Real part = 0;
    if (largest <= Family::kLargest()) {
#pragma omp simd reduction(+ : part)
      for (int64_t i = 0; i < size; ++i) {
        const PairTerms<Real, 1> terms =
            natural_terms<L>(Family::template pair<true>(a[i], run.stage(i)));
        if constexpr (wants_value(W)) part += terms.value;
        if constexpr (wants_grad_a(W)) grad_a[i] = scale * terms.a[0];
        if constexpr (wants_grad_b(W)) grad_b[i] = scale_b * terms.b[0];
      }
    } else {
      FarTerms<Real> terms;
      far(family, a, b, size, terms);
      for (int64_t i = 0; i < size; ++i) {
        if constexpr (wants_value(W)) part += terms.value[i];
        if constexpr (wants_grad_a(W)) grad_a[i] = scale * terms.a[i];
        if constexpr (wants_grad_b(W)) grad_b[i] = scale_b * terms.b[i];
      }
    }
    sum += part;
  }
  return sum;
}

}  // namespace bll::cpu
