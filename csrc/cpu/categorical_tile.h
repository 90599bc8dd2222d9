// The loops over a tile of categorical groups, one group after the other; small groups go to
// categorical_lanes.h first.
#pragma once

#include "cpu/categorical_lanes.h"

namespace bll::cpu {

// Sums run in the accumulate type over blocks of this size, and in double over blocks.
inline constexpr int64_t kSumBlock = 512;

template <class Real>
BLL_HD typename Categorical<Real>::Range categorical_range(const Real* __restrict a,
                                                           const Real* __restrict b, int64_t size) {
  Real max_a = -HUGE_VAL, max_b = -HUGE_VAL, min_b = HUGE_VAL;
#pragma omp simd reduction(max : max_a, max_b) reduction(min : min_b)
  for (int64_t i = 0; i < size; ++i) {
    max_a = a[i] > max_a ? a[i] : max_a;
    max_b = b[i] > max_b ? b[i] : max_b;
    min_b = b[i] < min_b ? b[i] : min_b;
  }
  Real anchor = -HUGE_VAL;
#pragma omp simd reduction(max : anchor)
  for (int64_t i = 0; i < size; ++i) {
    const Real candidate = a[i] == max_a ? b[i] : Real(-HUGE_VAL);
    anchor = candidate > anchor ? candidate : anchor;
  }
  return {max_a, max_b, min_b, Categorical<Real>::origin(anchor), Real(-HUGE_VAL)};
}

// Weights e^(a - max_a), left unnormalised.
template <class Real>
BLL_HD typename Categorical<Real>::Prior categorical_prior(
    const Categorical<Real>& family, const typename Categorical<Real>::Range& range,
    const Real* __restrict a, const Real* __restrict b, int64_t size, Real* __restrict weights) {
  double z = 0, moment = 0;
  for (int64_t start = 0; start < size; start += kSumBlock) {
    const int64_t stop = size - start < kSumBlock ? size : start + kSumBlock;
    Real block_z = 0, block_moment = 0;
#pragma omp simd reduction(+ : block_z, block_moment)
    for (int64_t i = start; i < stop; ++i) {
      const Real weight = exp_nonpositive(a[i] - range.max_a);
      weights[i] = weight;
      block_z += weight;
      block_moment += family.weighted(weight, family.message(range, b[i]));
    }
    z += static_cast<double>(block_z);
    moment += static_cast<double>(block_moment);
  }
  return {static_cast<Real>(1 / z), static_cast<Real>(moment / z)};
}

// Completes the range; weights e^(r - max_r), left unnormalised.
template <class Real>
BLL_HD typename Categorical<Real>::Posterior categorical_posterior(
    const Categorical<Real>& family, typename Categorical<Real>::Range& range,
    const typename Categorical<Real>::Prior& prior, const Real* __restrict a,
    const Real* __restrict b, int64_t size, Real* __restrict weights) {
  Real max_r = -HUGE_VAL;
#pragma omp simd reduction(max : max_r)
  for (int64_t i = 0; i < size; ++i) {
    const Real r = family.logit(range, a[i], b[i]);
    max_r = r > max_r ? r : max_r;
  }
  range.max_r = max_r;
  double z = 0, moment = 0;
  for (int64_t start = 0; start < size; start += kSumBlock) {
    const int64_t stop = size - start < kSumBlock ? size : start + kSumBlock;
    Real block_z = 0, block_moment = 0;
#pragma omp simd reduction(+ : block_z, block_moment)
    for (int64_t i = start; i < stop; ++i) {
      const Real weight = exp_nonpositive(family.logit(range, a[i], b[i]) - max_r);
      weights[i] = weight;
      block_z += weight;
      block_moment += family.weighted(weight, family.message(range, b[i]) - prior.centre);
    }
    z += static_cast<double>(block_z);
    moment += static_cast<double>(block_moment);
  }
  return {static_cast<Real>(1 / z), static_cast<Real>(moment / z)};
}

template <bool Narrow, class Real>
BLL_HD typename Categorical<Real>::Tilt categorical_tilt(
    const Categorical<Real>& family, const typename Categorical<Real>::Range& range,
    const typename Categorical<Real>::Prior& prior, const Real* __restrict weights,
    const Real* __restrict b, int64_t size) {
  double excess = 0, spread = 0, gap = 0;
  for (int64_t start = 0; start < size; start += kSumBlock) {
    const int64_t stop = size - start < kSumBlock ? size : start + kSumBlock;
    Real block_excess = 0, block_spread = 0, block_gap = 0;
#pragma omp simd reduction(+ : block_excess, block_spread, block_gap)
    for (int64_t i = start; i < stop; ++i) {
      const Real c = family.message(range, b[i]) - prior.centre;
      const auto growth = Categorical<Real>::template growth<Narrow>(c);
      block_excess += weights[i] * growth.rest;
      block_spread += weights[i] * (growth.x * c);
      block_gap += weights[i] * growth.gap;
    }
    excess += static_cast<double>(block_excess);
    spread += static_cast<double>(block_spread);
    gap += static_cast<double>(block_gap);
  }
  return {static_cast<Real>(excess * prior.inverse_z), static_cast<Real>(spread * prior.inverse_z),
          static_cast<Real>(gap * prior.inverse_z)};
}

template <Loss L, Want W, bool Narrow, class Real>
BLL_HD Real categorical_tilted(const Tile<Real>& tile, int64_t start,
                               const typename Categorical<Real>::Range& range,
                               const typename Categorical<Real>::Prior& prior) {
  const Categorical<Real> family = *static_cast<const Categorical<Real>*>(tile.family);
  const Real* __restrict b = tile.b + start;
  const Real* __restrict weights = tile.scratch;
  Real* __restrict grad_a = tile.grad_a + start;
  Real* __restrict grad_b = tile.grad_b + start;
  const auto tilted = categorical_tilt<Narrow>(family, range, prior, weights, b, tile.group);
  if constexpr (wants_grad_a(W)) {
    const Real scale = tile.scale, scale_b = tile.scale * family.tilt;
#pragma omp simd
    for (int64_t i = 0; i < tile.group; ++i) {
      const Real c = family.message(range, b[i]) - prior.centre;
      const auto terms =
          Categorical<Real>::template element<L, Narrow>(weights[i] * prior.inverse_z, c, tilted);
      grad_a[i] = scale * terms.a[0];
      if constexpr (wants_grad_b(W)) grad_b[i] = scale_b * terms.b[0];
    }
  }
  if constexpr (!wants_value(W)) return 0;
  return family.template value<L>(range, prior, tilted);
}

template <Loss L, Want W, class Real>
BLL_HD Real categorical_direct(const Tile<Real>& tile, int64_t start,
                               typename Categorical<Real>::Range range,
                               const typename Categorical<Real>::Prior& prior) {
  const Categorical<Real> family = *static_cast<const Categorical<Real>*>(tile.family);
  const Real* __restrict a = tile.a + start;
  const Real* __restrict b = tile.b + start;
  Real* __restrict grad_a = tile.grad_a + start;
  Real* __restrict grad_b = tile.grad_b + start;
  const auto posterior =
      categorical_posterior(family, range, prior, a, b, tile.group, tile.scratch);
  if constexpr (wants_grad_a(W)) {
    const Real* __restrict weights = tile.scratch;
    const Real scale = tile.scale, scale_b = tile.scale * family.tilt;
#pragma omp simd
    for (int64_t i = 0; i < tile.group; ++i) {
      const Real p = exp_nonpositive(a[i] - range.max_a) * prior.inverse_z;
      const Real rho = weights[i] * posterior.inverse_z;
      const Real c = family.message(range, b[i]) - prior.centre;
      const auto terms = Categorical<Real>::template element<L>(p, rho, c, posterior);
      grad_a[i] = scale * terms.a[0];
      if constexpr (wants_grad_b(W)) grad_b[i] = scale_b * terms.b[0];
    }
  }
  if constexpr (!wants_value(W)) return 0;
  return family.template value<L>(range, prior, posterior);
}

template <Loss L, Want W, class Real>
BLL_HD Real categorical_group(const Tile<Real>& tile, int64_t start) {
  using Family = Categorical<Real>;
  const Family family = *static_cast<const Family*>(tile.family);
  const Real* a = tile.a + start;
  const Real* b = tile.b + start;
  const auto range = categorical_range(a, b, tile.group);
  const auto prior = categorical_prior(family, range, a, b, tile.group, tile.scratch);
  switch (family.form(range, prior)) {
    case Family::Form::kNarrow:
      return categorical_tilted<L, W, true>(tile, start, range, prior);
    case Family::Form::kTilt:
      return categorical_tilted<L, W, false>(tile, start, range, prior);
    default:
      return categorical_direct<L, W>(tile, start, range, Family::template direct<L>(prior));
  }
}

template <Loss L, Want W, class Real>
BLL_HD Real categorical_tile(const Tile<Real>& tile) {
  Real sum = 0;
  for (int64_t start = 0; start < tile.size; start += tile.group * kLanes) {
    const int64_t left = (tile.size - start) / tile.group;
    const int count = static_cast<int>(left < kLanes ? left : kLanes);
    // In double the special functions are libm's, which lanes do not speed up.
    if constexpr (sizeof(Real) == 4) {
      if (tile.group <= kMaxLaneGroup && count >= kMinLaneGroups &&
          lanes_block<L, W>(tile, start, count, sum)) {
        continue;
      }
    }
    for (int k = 0; k < count; ++k) sum += categorical_group<L, W>(tile, start + k * tile.group);
  }
  return sum;
}

}  // namespace bll::cpu
