// The loops over a tile that write the next block's input, behind those of the loss: the tile is
// in the first-level cache by then.
#pragma once

#include <type_traits>

#include "cpu/categorical_tile.h"
#include "cpu/tile.h"
#include "losses/next.h"

namespace bll::cpu {

template <Next N, class Family, class Real>
BLL_HD void next_elements(const Tile<Real>& tile, const NextMix<Real>& mix, Real* __restrict out) {
  constexpr int planes = Family::kPlanes;
  const Family family = *static_cast<const Family*>(tile.family);
  const Real* __restrict a0 = tile.a;
  const Real* __restrict a1 = tile.a + (planes - 1) * tile.a_plane;
  const Real* __restrict b0 = tile.b;
  const Real* __restrict b1 = tile.b + (planes - 1) * tile.b_plane;
  const int64_t size = tile.size;
#pragma omp simd
  for (int64_t i = 0; i < size; ++i) {
    Real a[planes], b[planes];
    a[0] = a0[i];
    b[0] = b0[i];
    if constexpr (planes == 2) {
      a[1] = a1[i];
      b[1] = b1[i];
    }
    out[i] = next_mean<N>(family, mix, a, b);
  }
}

// Probabilities of one group: `mix.alpha` times alpha's, then `mix.rho` times the posterior's.
template <class Real>
BLL_HD void next_group(const Tile<Real>& tile, Next kind, const NextMix<Real>& mix, int64_t start,
                       Real* __restrict out) {
  const Categorical<Real> family = *static_cast<const Categorical<Real>*>(tile.family);
  const Real* a = tile.a + start;
  const Real* b = tile.b + start;
  const Real* __restrict weights = tile.scratch;
  auto range = categorical_range(a, b, tile.group);
  typename Categorical<Real>::Prior prior{0, 0};
  if (kind != Next::kRho) {
    prior = categorical_prior(family, range, a, b, tile.group, tile.scratch);
    const Real factor = mix.alpha * prior.inverse_z;
#pragma omp simd
    for (int64_t i = 0; i < tile.group; ++i) out[i] = factor * weights[i];
  }
  if (kind == Next::kAlpha) return;
  const auto posterior =
      categorical_posterior(family, range, prior, a, b, tile.group, tile.scratch);
  const Real factor = mix.rho * posterior.inverse_z;
  if (kind == Next::kRho) {
#pragma omp simd
    for (int64_t i = 0; i < tile.group; ++i) out[i] = factor * weights[i];
  } else {
#pragma omp simd
    for (int64_t i = 0; i < tile.group; ++i) out[i] += factor * weights[i];
  }
}

// weights = e^(logit - largest logit) of every lane's group; inverse_z = factor / their sum.
template <class Real, class Logit>
BLL_HD void lanes_softmax(int64_t group, Real factor, const Logit& logit, Real* __restrict weights,
                          Real* __restrict inverse_z) {
  alignas(64) Real top[kLanes], z[kLanes] = {};
  for (int l = 0; l < kLanes; ++l) top[l] = -HUGE_VAL;
  for (int64_t j = 0; j < group; ++j) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) {
      const Real x = logit(j, l);
      weights[j * kLanes + l] = x;
      top[l] = x > top[l] ? x : top[l];
    }
  }
  for (int64_t j = 0; j < group; ++j) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) {
      weights[j * kLanes + l] = exp_nonpositive(weights[j * kLanes + l] - top[l]);
      z[l] += weights[j * kLanes + l];
    }
  }
#pragma omp simd
  for (int l = 0; l < kLanes; ++l) inverse_z[l] = factor / z[l];
}

// Longer groups fill vectors of their own.
inline constexpr int64_t kMaxNextLaneGroup = 16;

// `count` small groups from `start` on, side by side (cpu/categorical_lanes.h).
template <class Real>
BLL_HD void next_lanes(const Tile<Real>& tile, Next kind, const NextMix<Real>& mix, int64_t start,
                       int count, Real* out) {
  const Categorical<Real> family = *static_cast<const Categorical<Real>*>(tile.family);
  const int64_t size = tile.group * kLanes;
  LaneBlock<Real> block;
  alignas(64) Real weights[kMaxNextLaneGroup * kLanes], mean[kMaxNextLaneGroup * kLanes];
  alignas(64) Real inverse_z[kLanes];
  lanes_load(tile.a + start, tile.group, count, block.a);
  for (int64_t k = 0; k < size; ++k) mean[k] = 0;
  const auto add = [&] {
    for (int64_t j = 0; j < size; j += kLanes) {
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) mean[j + l] += weights[j + l] * inverse_z[l];
    }
  };
  if (kind != Next::kRho) {
    lanes_softmax(
        tile.group, mix.alpha, [&](int64_t j, int l) { return block.a[j * kLanes + l]; }, weights,
        inverse_z);
    add();
  }
  if (kind != Next::kAlpha) {
    lanes_load(tile.b + start, tile.group, count, block.b);
    lanes_range(tile.group, block);
    lanes_softmax(
        tile.group, mix.rho,
        [&](int64_t j, int l) {
          return block.a[j * kLanes + l] +
                 family.tilt * (block.b[j * kLanes + l] - block.anchor[l]);
        },
        weights, inverse_z);
    add();
  }
  lanes_store(mean, tile.group, count, out);
}

template <class Real>
BLL_HD void next_groups(const Tile<Real>& tile, Next kind, const NextMix<Real>& mix, Real* out) {
  for (int64_t start = 0; start < tile.size; start += tile.group * kLanes) {
    const int64_t left = (tile.size - start) / tile.group;
    const int count = static_cast<int>(left < kLanes ? left : kLanes);
    if (tile.group <= kMaxNextLaneGroup && count >= kMinLaneGroups) {
      next_lanes(tile, kind, mix, start, count, out + start);
      continue;
    }
    for (int k = 0; k < count; ++k) {
      next_group(tile, kind, mix, start + k * tile.group, out + start + k * tile.group);
    }
  }
}

template <class Family, class Real>
BLL_HD void next_tile(const Tile<Real>& tile, Next kind, const NextMix<Real>& mix, Real* out) {
  if constexpr (std::is_same_v<Family, Categorical<Real>>) {
    next_groups(tile, kind, mix, out);
  } else if (kind == Next::kAlpha) {
    next_elements<Next::kAlpha, Family>(tile, mix, out);
  } else if (kind == Next::kRho) {
    next_elements<Next::kRho, Family>(tile, mix, out);
  } else {
    next_elements<Next::kMix, Family>(tile, mix, out);
  }
}

}  // namespace bll::cpu
