// Small categorical groups, sixteen side by side: the tile is transposed, so that lane l holds
// group l and every sweep over a group's elements is a sweep over full vectors.
#pragma once

#include "cpu/pair_tile.h"

namespace bll::cpu {

template <class Real>
struct LaneBlock {
  alignas(64) Real a[kMaxLaneGroup * kLanes];  // later the weights e^(a - max_a)
  alignas(64) Real b[kMaxLaneGroup * kLanes];
  alignas(64) Real max_a[kLanes], max_b[kLanes], min_b[kLanes], anchor[kLanes];
  alignas(64) Real inverse_z[kLanes], centre[kLanes], excess[kLanes];
  alignas(64) Real spread[kLanes], gap[kLanes];

  BLL_HD typename Categorical<Real>::Range range(int lane) const {
    return {max_a[lane], max_b[lane], min_b[lane], anchor[lane], Real(-HUGE_VAL)};
  }
  BLL_HD typename Categorical<Real>::Prior prior(int lane) const {
    return {inverse_z[lane], centre[lane]};
  }
  BLL_HD typename Categorical<Real>::Tilt tilted(int lane) const {
    return {excess[lane], spread[lane], gap[lane]};
  }
};

// Lanes beyond `count` repeat the last group.
template <class Real>
BLL_HD void lanes_load(const Real* __restrict from, int64_t group, int count, Real* __restrict to) {
  int64_t row[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) row[lane] = (lane < count ? lane : count - 1) * group;
  for (int64_t j = 0; j < group; ++j) {
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes; ++lane) to[j * kLanes + lane] = from[row[lane] + j];
  }
}

template <class Real>
BLL_HD void lanes_store(const Real* __restrict from, int64_t group, int count,
                        Real* __restrict to) {
  for (int64_t j = 0; j < group; ++j) {
    for (int lane = 0; lane < count; ++lane) to[lane * group + j] = from[j * kLanes + lane];
  }
}

template <class Real>
BLL_HD void lanes_range(int64_t group, LaneBlock<Real>& block) {
#pragma omp simd
  for (int l = 0; l < kLanes; ++l) {
    block.max_a[l] = block.max_b[l] = -HUGE_VAL;
    block.min_b[l] = HUGE_VAL;
    block.anchor[l] = -HUGE_VAL;
  }
  for (int64_t j = 0; j < group; ++j) {
    const Real* a = block.a + j * kLanes;
    const Real* b = block.b + j * kLanes;
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) {
      block.anchor[l] = a[l] > block.max_a[l] ? b[l] : block.anchor[l];
      block.max_a[l] = a[l] > block.max_a[l] ? a[l] : block.max_a[l];
      block.max_b[l] = b[l] > block.max_b[l] ? b[l] : block.max_b[l];
      block.min_b[l] = b[l] < block.min_b[l] ? b[l] : block.min_b[l];
    }
  }
#pragma omp simd
  for (int l = 0; l < kLanes; ++l) block.anchor[l] = Categorical<Real>::origin(block.anchor[l]);
}

template <class Real>
BLL_HD void lanes_prior(const Categorical<Real>& family, int64_t group, LaneBlock<Real>& block) {
  alignas(64) Real z[kLanes] = {}, moment[kLanes] = {};
  for (int64_t j = 0; j < group; ++j) {
    Real* a = block.a + j * kLanes;
    const Real* b = block.b + j * kLanes;
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) {
      a[l] = exp_nonpositive(a[l] - block.max_a[l]);
      z[l] += a[l];
      moment[l] += family.weighted(a[l], family.message(block.range(l), b[l]));
    }
  }
#pragma omp simd
  for (int l = 0; l < kLanes; ++l) {
    block.inverse_z[l] = 1 / z[l];
    block.centre[l] = moment[l] / z[l];
  }
}

template <bool Narrow, class Real>
BLL_HD void lanes_tilt(const Categorical<Real>& family, int64_t group, LaneBlock<Real>& block) {
  alignas(64) Real excess[kLanes] = {}, spread[kLanes] = {}, gap[kLanes] = {};
  for (int64_t j = 0; j < group; ++j) {
    const Real* weights = block.a + j * kLanes;
    const Real* b = block.b + j * kLanes;
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) {
      const Real c = family.message(block.range(l), b[l]) - block.centre[l];
      const auto growth = Categorical<Real>::template growth<Narrow>(c);
      excess[l] += weights[l] * growth.rest;
      spread[l] += weights[l] * (growth.x * c);
      gap[l] += weights[l] * growth.gap;
    }
  }
#pragma omp simd
  for (int l = 0; l < kLanes; ++l) {
    block.excess[l] = excess[l] * block.inverse_z[l];
    block.spread[l] = spread[l] * block.inverse_z[l];
    block.gap[l] = gap[l] * block.inverse_z[l];
  }
}

// Gradients overwrite the block's weights (to a) and messages (to b).
template <Loss L, Want W, bool Narrow, class Real>
BLL_HD Real lanes_finish(const Categorical<Real>& family, const Tile<Real>& tile, int64_t start,
                         int count, LaneBlock<Real>& block) {
  lanes_tilt<Narrow>(family, tile.group, block);
  if constexpr (wants_grad_a(W)) {
    const Real scale = tile.scale, scale_b = tile.scale * family.tilt;
    for (int64_t j = 0; j < tile.group; ++j) {
      Real* a = block.a + j * kLanes;
      Real* b = block.b + j * kLanes;
#pragma omp simd
      for (int l = 0; l < kLanes; ++l) {
        const Real c = family.message(block.range(l), b[l]) - block.centre[l];
        const auto terms = Categorical<Real>::template element<L, Narrow>(a[l] * block.inverse_z[l],
                                                                          c, block.tilted(l));
        a[l] = scale * terms.a[0];
        if constexpr (wants_grad_b(W)) b[l] = scale_b * terms.b[0];
      }
    }
    lanes_store(block.a, tile.group, count, tile.grad_a + start);
    if constexpr (wants_grad_b(W)) lanes_store(block.b, tile.group, count, tile.grad_b + start);
  }
  Real sum = 0;
  if constexpr (wants_value(W)) {
#pragma omp simd reduction(+ : sum)
    for (int l = 0; l < kLanes; ++l) {
      const Real value = family.template value<L>(block.range(l), block.prior(l), block.tilted(l));
      sum += l < count ? value : Real(0);
    }
  }
  return sum;
}

// `count` groups from `start` on; false where their messages need another form (nothing is then
// written).
template <Loss L, Want W, class Real>
BLL_HD bool lanes_block(const Tile<Real>& tile, int64_t start, int count, Real& sum) {
  using Family = Categorical<Real>;
  const Family family = *static_cast<const Family*>(tile.family);
  LaneBlock<Real> block;
  lanes_load(tile.a + start, tile.group, count, block.a);
  lanes_load(tile.b + start, tile.group, count, block.b);
  lanes_range(tile.group, block);
  lanes_prior(family, tile.group, block);
  bool narrow = true;
  for (int l = 0; l < kLanes; ++l) {
    const auto form = family.form(block.range(l), block.prior(l));
    if (form == Family::Form::kDirect) return false;
    narrow = narrow && form == Family::Form::kNarrow;
  }
  sum += narrow ? lanes_finish<L, W, true>(family, tile, start, count, block)
                : lanes_finish<L, W, false>(family, tile, start, count, block);
  return true;
}

}  // namespace bll::cpu
