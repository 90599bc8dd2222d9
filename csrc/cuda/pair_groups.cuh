// The kernels of categorical groups: sweeps over a group's latents find its statistics, then value
// and gradients follow per latent.
#pragma once

#include "cuda/block.h"
#include "cuda/group_latents.cuh"
#include "cuda/groups.h"
#include "cuda/pair_items.cuh"
#include "cuda/team.h"
#include "losses/pair.h"

namespace bll::cuda {

template <class Access, class Latents, class Threads>
class GroupSweeps {
 public:
  using Family = Categorical<float>;
  static constexpr int kCount = Access::kCount;

  __device__ __forceinline__ GroupSweeps(const Family& family, const GroupView& view,
                                         const GroupPlace& place, Threads& team,
                                         const Latents& latents = {})
      : family_(family), view_(view), place_(place), team_(team), latents_(latents) {
    latents_.load(view.pair, place);
  }

  __device__ __forceinline__ void find_range() {
    float most[3] = {-HUGE_VALF, -HUGE_VALF, -HUGE_VALF};  // of a, of b, of -b
    float anchor[1] = {-HUGE_VALF};
    latents_.each(view_.pair, place_,
                  [&](const float (&a)[kCount], const float (&b)[kCount], int64_t) {
#pragma unroll
                    for (int i = 0; i < kCount; ++i) {
                      const bool above = a[i] > most[0], level = a[i] == most[0];
                      if (above || (level && b[i] > anchor[0])) anchor[0] = b[i];
                      most[0] = above ? a[i] : most[0];
                      most[1] = Largest::combine(b[i], most[1]);
                      most[2] = Largest::combine(-b[i], most[2]);
                    }
                  });
    const float own = most[0];
    team_.template reduce<Largest>(most);
    if (own != most[0]) anchor[0] = -HUGE_VALF;
    team_.template reduce<Largest>(anchor);
    range_ = {most[0], most[1], -most[2], anchor[0], -HUGE_VALF};
  }

  __device__ __forceinline__ void find_prior() {
    float sums[2] = {0, 0}, most[1] = {-HUGE_VALF};
    latents_.each(view_.pair, place_,
                  [&](const float (&a)[kCount], const float (&b)[kCount], int64_t) {
#pragma unroll
                    for (int i = 0; i < kCount; ++i) {
                      const float weight = exp_nonpositive(a[i] - range_.max_a);
                      sums[0] += weight;
                      sums[1] += family_.weighted(weight, family_.message(range_, b[i]));
                      most[0] = Largest::combine(family_.logit(range_, a[i], b[i]), most[0]);
                    }
                  });
    team_.template reduce<Sum>(sums);
    team_.template reduce<Largest>(most);
    range_.max_r = most[0];
    prior_ = {1 / sums[0], sums[1] / sums[0]};
    form_ = family_.form(range_, prior_);
  }

  __device__ __forceinline__ void find_tilt() {
    float sums[3] = {0, 0, 0};
    if (form_ == Family::Form::kNarrow) {
      add_tilt<true>(sums);
    } else if (form_ == Family::Form::kTilt) {
      add_tilt<false>(sums);
    } else {
      add_posterior(sums);
    }
    team_.template reduce<Sum>(sums);
    tilted_ = {sums[0] * prior_.inverse_z, sums[1] * prior_.inverse_z, sums[2] * prior_.inverse_z};
    posterior_ = {1 / sums[0], sums[1] / sums[0]};
  }

  template <Loss L>
  __device__ __forceinline__ float value() const {
    return form_ == Family::Form::kDirect ? family_.template value<L>(range_, prior_, posterior_)
                                          : family_.template value<L>(range_, prior_, tilted_);
  }

  template <Loss L>
  __device__ __forceinline__ void store_gradients(float factor) const {
    const PairView& v = view_.pair;
    if (v.grad_a == nullptr && v.grad_b == nullptr && v.next == nullptr) return;
    if (form_ == Family::Form::kNarrow) {
      store<L>(factor, [&](float a, float b) { return tilted_element<L, true>(a, b); });
    } else if (form_ == Family::Form::kTilt) {
      store<L>(factor, [&](float a, float b) { return tilted_element<L, false>(a, b); });
    } else {
      store<L>(factor, [&](float a, float b) { return direct_element<L>(a, b); });
    }
  }

 private:
  const Family& family_;
  const GroupView& view_;
  const GroupPlace& place_;
  Threads& team_;
  Latents latents_;
  typename Family::Range range_;
  typename Family::Prior prior_;
  typename Family::Form form_;
  typename Family::Tilt tilted_;
  typename Family::Posterior posterior_;

  template <bool Narrow>
  __device__ __forceinline__ void add_tilt(float (&sums)[3]) const {
    latents_.each(view_.pair, place_,
                  [&](const float (&a)[kCount], const float (&b)[kCount], int64_t) {
#pragma unroll
                    for (int i = 0; i < kCount; ++i) {
                      const float weight = exp_nonpositive(a[i] - range_.max_a);
                      const float c = family_.message(range_, b[i]) - prior_.centre;
                      const auto growth = Family::template growth<Narrow>(c);
                      sums[0] += weight * growth.rest;
                      sums[1] += weight * (growth.x * c);
                      sums[2] += weight * growth.gap;
                    }
                  });
  }

  __device__ __forceinline__ void add_posterior(float (&sums)[3]) const {
    latents_.each(
        view_.pair, place_, [&](const float (&a)[kCount], const float (&b)[kCount], int64_t) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) {
            const float r = family_.logit(range_, a[i], b[i]);
            const float weight = exp_nonpositive(r - range_.max_r);
            sums[0] += weight;
            sums[1] += family_.weighted(weight, family_.message(range_, b[i]) - prior_.centre);
          }
        });
  }

  template <Loss L, bool Narrow>
  __device__ __forceinline__ PairTerms<float, 1> tilted_element(float a, float b) const {
    const float p = exp_nonpositive(a - range_.max_a) * prior_.inverse_z;
    const float c = family_.message(range_, b) - prior_.centre;
    return Family::template element<L, Narrow>(p, c, tilted_);
  }

  template <Loss L>
  __device__ __forceinline__ PairTerms<float, 1> direct_element(float a, float b) const {
    const float p = exp_nonpositive(a - range_.max_a) * prior_.inverse_z;
    const float r = family_.logit(range_, a, b);
    const float rho = exp_nonpositive(r - range_.max_r) * posterior_.inverse_z;
    const float c = family_.message(range_, b) - prior_.centre;
    return Family::template element<L>(p, rho, c, posterior_);
  }

  // Probabilities under alpha and rho, mixed.
  __device__ __forceinline__ void store_next(const float (&a)[kCount], const float (&b)[kCount],
                                             int64_t column) const {
    const PairView& v = view_.pair;
    const bool direct = form_ == Family::Form::kDirect;
    float means[kCount];
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      means[i] = 0;
      if (v.mix.alpha != 0) {
        means[i] = v.mix.alpha * (exp_nonpositive(a[i] - range_.max_a) * prior_.inverse_z);
      }
      if (v.mix.rho != 0) {
        const float message = family_.message(range_, b[i]);
        // One exponent: alpha's probability may vanish where the message brings it back.
        const float above = direct ? a[i] + message - range_.max_r
                                   : a[i] - range_.max_a + (message - prior_.centre);
        const float scale = direct ? posterior_.inverse_z : prior_.inverse_z / (1 + tilted_.excess);
        means[i] += v.mix.rho * (exp_any(above) * scale);
      }
    }
    store_means(v.next, v.next_dtype, place_.out + column, means);
  }

  template <Loss L, class Element>
  __device__ __forceinline__ void store(float factor, Element&& element) const {
    const PairView& v = view_.pair;
    const float factor_b = factor * family_.tilt;
    latents_.each(v, place_,
                  [&](const float (&a)[kCount], const float (&b)[kCount], int64_t column) {
                    if (v.next != nullptr) store_next(a, b, column);
                    float grad_a[kCount], grad_b[kCount];
#pragma unroll
                    for (int i = 0; i < kCount; ++i) {
                      const PairTerms<float, 1> terms = element(a[i], b[i]);
                      grad_a[i] = factor * terms.a[0];
                      grad_b[i] = factor_b * terms.b[0];
                    }
                    if (v.grad_a != nullptr)
                      Access::store(v.grad_a, v.a_dtype, place_.out + column, grad_a);
                    if (kReachesMessage<L> && v.grad_b != nullptr) {
                      Access::store(v.grad_b, view_.grad_b_dtype, place_.out + column, grad_b);
                    }
                  });
  }
};

__device__ __forceinline__ GroupPlace place_of_group(const GroupView& v, int64_t group, int64_t row,
                                                     int first, int step) {
  GroupPlace place;
  const int64_t column = (group - row * v.groups_per_row) * v.group;
  const int64_t b_row = message_row(v.pair, row);
  place.a = row * v.pair.a_row + column;
  place.b = b_row < 0 ? -1 : b_row * v.pair.b_row + column;
  place.out = row * v.pair.width + column;
  place.group = v.group;
  place.first = first;
  place.step = step;
  place.inside = true;
  return place;
}

template <Loss L, class Access, int held, int block, bool whole, int resident>
__global__ void __launch_bounds__(block, resident)
    pair_groups(const Categorical<float> family, const GroupView v) {
  BLL_SHARED(float, shared, 3 * block / kWarp);
  Team<block, whole> team(shared, v.lanes);
  const int step = whole ? block : v.lanes, teams = block / step;
  const int lane = threadIdx.x % step, slot = threadIdx.x / step;
  float sum = 0;
  for (int64_t first = int64_t{blockIdx.x} * teams; first < v.groups;
       first += int64_t{gridDim.x} * teams) {
    const int64_t group = first + slot;
    GroupPlace place{};
    float weight = 0, factor = 0;
    if (group < v.groups) {
      const int64_t row = v.groups_per_row == 1 ? group : group / v.groups_per_row;
      place = place_of_group(v, group, row, lane, step);
      weight = row_weight(v.pair, row);
      factor = weight * row_grad(v.pair, row);
    }
    GroupSweeps<Access, Resident<Access, held>, Team<block, whole>> sweeps(family, v, place, team);
    sweeps.find_range();
    sweeps.find_prior();
    sweeps.find_tilt();
    if (!place.inside) continue;
    if (v.pair.value != nullptr && lane == 0) {
      const float value = weight * sweeps.template value<L>();
      if (v.per_row) v.pair.value[group] = value;
      sum += value;
    }
    sweeps.template store_gradients<L>(factor);
  }
  if (v.pair.value == nullptr || v.per_row) return;
  __syncthreads();
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) v.pair.value[blockIdx.x] = v.pair.value_scale * sum;
}

// Long groups: the blocks of a cluster have one at a time, each every so many vectors of it.
template <Loss L, class Access>
__global__ void __launch_bounds__(kLongBlock, 2)
    pair_groups_long(const Categorical<float> family, const GroupView v) {
  using Threads = ClusterTeam<kLongBlock>;
  static_assert(sizeof(float) * Threads::kShared <= kLongShared);
  BLL_SHARED(float, shared, Threads::kShared);
  BLL_DYNAMIC_SHARED(staged);
  Threads team(shared, v.cluster);
  const int rank = static_cast<int>(blockIdx.x) % v.cluster;
  const int first = rank * kLongBlock + static_cast<int>(threadIdx.x);
  const Staged<Access> latents{{reinterpret_cast<uint4*>(staged)}, v.kept};
  float sum = 0;
  for (int64_t group = blockIdx.x / v.cluster; group < v.groups; group += gridDim.x / v.cluster) {
    const int64_t row = v.groups_per_row == 1 ? group : group / v.groups_per_row;
    const GroupPlace place = place_of_group(v, group, row, first, v.cluster * kLongBlock);
    const float weight = row_weight(v.pair, row);
    GroupSweeps<Access, Staged<Access>, Threads> sweeps(family, v, place, team, latents);
    sweeps.find_range();
    sweeps.find_prior();
    sweeps.find_tilt();
    if (v.pair.value != nullptr && first == 0) {
      const float value = weight * sweeps.template value<L>();
      if (v.per_row) v.pair.value[group] = value;
      sum += value;
    }
    sweeps.template store_gradients<L>(weight * row_grad(v.pair, row));
  }
  team.leave();
  if (v.pair.value == nullptr || v.per_row) return;
  __syncthreads();
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) v.pair.value[blockIdx.x] = v.pair.value_scale * sum;
}

template <Loss L, class Access>
void launch_long_groups(const FamilyArgs& args, const GroupView& view, int blocks,
                        cudaStream_t stream) {
  const Categorical<float> family(args.tau, args.tilt);
  BLL_LAUNCH_CLUSTER((pair_groups_long<L, Access>), static_cast<unsigned>(blocks), kLongBlock,
                     view.cluster, view.shared, stream, family, view);
}

template <Loss L, class Access, int tier>
void launch_groups(const FamilyArgs& args, const GroupView& view, int blocks, cudaStream_t stream) {
  constexpr GroupTier t = kGroupTiers[tier];
  const Categorical<float> family(args.tau, args.tilt);
  BLL_LAUNCH((pair_groups<L, Access, t.held, t.block, t.whole, kTierBlocks<tier>>), blocks, t.block,
             stream, family, view);
}

template <Loss L, class Access>
void run_tier(const FamilyArgs& family, int tier, const GroupView& view, int blocks,
              cudaStream_t stream) {
  switch (tier) {
    case 0:
      return launch_groups<L, Access, 0>(family, view, blocks, stream);
    case 1:
      return launch_groups<L, Access, 1>(family, view, blocks, stream);
    case 2:
      return launch_groups<L, Access, 2>(family, view, blocks, stream);
    case 3:
      return launch_groups<L, Access, 3>(family, view, blocks, stream);
    default:
      return launch_long_groups<L, Access>(family, view, blocks, stream);
  }
}

template <Loss L>
void run_groups_of(const FamilyArgs& family, int tier, bool wide, const GroupView& view, int blocks,
                   cudaStream_t stream) {
  if (!wide) return run_tier<L, Single>(family, tier, view, blocks, stream);
  switch (view.pair.a_dtype) {
    case DType::kBFloat16:
      return run_tier<L, Wide<__nv_bfloat16>>(family, tier, view, blocks, stream);
    case DType::kFloat16:
      return run_tier<L, Wide<__half>>(family, tier, view, blocks, stream);
    default:
      return run_tier<L, Wide<float>>(family, tier, view, blocks, stream);
  }
}

}  // namespace bll::cuda
