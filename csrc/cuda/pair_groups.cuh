// The kernels of categorical groups: short ones several to a block or one each, long ones one to
// the blocks of a cluster.
#pragma once

#include "cuda/cluster.h"
#include "cuda/group_sweeps.cuh"
#include "cuda/group_tiers.cuh"

namespace bll::cuda {

template <Loss L, class Access, int held, int block, bool whole, int resident>
__global__ void __launch_bounds__(block, resident)
    pair_groups(const Categorical<float> family, const GroupView v) {
  BLL_SHARED(float, shared, 3 * block / kWarp);
  Team<block, whole> team(shared, v.lanes);
  const int step = whole ? block : v.lanes, teams = block / step;
  const int lane = threadIdx.x % step, slot = threadIdx.x / step;
  GroupValues values(v);
  for (int64_t first = int64_t{blockIdx.x} * teams; first < v.groups;
       first += int64_t{gridDim.x} * teams) {
    const int64_t group = first + slot;
    GroupPlace place{};
    float weight = 0, factor = 0;
    if (group < v.groups) {
      const int64_t row = v.groups_per_row == 1 ? group : group / v.groups_per_row;
      place = place_of_group(v, group, row, message_row(v.pair, row), lane, step);
      weight = row_weight(v.pair, row);
      factor = weight * row_grad(v.pair, row);
    }
    GroupSweeps<Access, Resident<Access, held>, Team<block, whole>> sweeps(family, v, place, team);
    sweeps.template find<L>();
    if (!place.inside) continue;
    if (lane == 0) values.add<L>(sweeps, group, weight);
    sweeps.template store_gradients<L>(factor);
  }
  values.store(shared);
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
  GroupValues values(v);
  for (int64_t group = blockIdx.x / v.cluster; group < v.groups; group += gridDim.x / v.cluster) {
    const int64_t row = v.groups_per_row == 1 ? group : group / v.groups_per_row;
    const GroupPlace place =
        place_of_group(v, group, row, message_row(v.pair, row), first, v.cluster * kLongBlock);
    const float weight = row_weight(v.pair, row);
    GroupSweeps<Access, Staged<Access>, Threads> sweeps(family, v, place, team, latents);
    sweeps.template find<L>();
    if (first == 0) values.add<L>(sweeps, group, weight);
    sweeps.template store_gradients<L>(weight * row_grad(v.pair, row));
  }
  team.leave();
  values.store(shared);
}

template <Loss L>
void run_groups_of(const FamilyArgs& args, int tier, bool wide, const GroupView& view, int blocks,
                   cudaStream_t stream) {
  const Categorical<float> family(args.tau, args.tilt);
  with_tier(tier, wide, view.pair.a_dtype, [&](auto access, auto chosen) {
    using Access = decltype(access);
    constexpr GroupTier t = kGroupTiers[chosen.value];
    if constexpr (t.held == 0) {
      BLL_LAUNCH_CLUSTER((pair_groups_long<L, Access>), static_cast<unsigned>(blocks), kLongBlock,
                         view.cluster, view.shared, view.most_shared, stream, family, view);
    } else {
      constexpr int resident = blocks_per_processor(t);
      BLL_LAUNCH((pair_groups<L, Access, t.held, t.block, t.whole, resident>), blocks, t.block,
                 stream, family, view);
    }
  });
}

}  // namespace bll::cuda
