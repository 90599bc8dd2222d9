// The gradient of a class table of categorical groups, rows of one class after the other, with what
// else is wanted of those rows: every latent is read once (long groups: as group_sums.cuh says),
// the class's message once, and its gradient is nowhere but in the sum.
#pragma once

#include "cuda/cluster.h"
#include "cuda/group_sums.cuh"
#include "cuda/group_sweeps.cuh"
#include "cuda/group_tiers.cuh"
#include "cuda/table_share.cuh"

namespace bll::cuda {

// A block owns a class, `across` groups of a row and a section of the class's rows. Its teams lie
// along the row first; further ones take other rows, and are added up in order.
template <Loss L, class Access, int held, int block, bool whole, int resident>
__global__ void __launch_bounds__(block, resident)
    group_table(const Categorical<float> family, const GroupTableView t) {
  using Latents = ResidentSums<Access, held, block>;
  BLL_SHARED(float, shared, 3 * block / kWarp);
  BLL_SHARED(float, sums, held* block);
  const GroupView& v = t.groups;
  Team<block, whole> team(shared, v.lanes);
  const int step = whole ? block : v.lanes, width = step * t.across;
  const int lane = threadIdx.x % step;
  const int slot = threadIdx.x / width, slots = block / width;
  const TablePart part = part_of(t.share, v.pair.classes, blockIdx.x);
  const int64_t member = int64_t{part.chunk} * t.across + threadIdx.x / step % t.across;
  const int64_t message = part.exists ? part.label : -1;
  GroupPlace of_message{};
  if (member < v.groups_per_row) of_message = place_of_group(v, member, 0, message, lane, step);
  Latents latents(sums);
  latents.load_message(v.pair, of_message);
  GroupValues values(v);
  // The same number of turns for all threads: teams of a warp reduce together.
  for (int64_t start = part.begin; start < part.end; start += slots) {
    GroupPlace place{};
    int64_t number = 0;
    float weight = 0, factor = 0;
    if (of_message.inside && start + slot < part.end) {
      const int64_t row = BLL_LOAD(t.share.order + start + slot);
      number = row * v.groups_per_row + member;
      place = place_of_group(v, number, row, message, lane, step);
      weight = row_weight(v.pair, row);
      factor = weight * row_grad(v.pair, row);
    }
    GroupSweeps<Access, Latents&, Team<block, whole>> sweeps(family, v, place, team, latents);
    sweeps.template find<L>();
    if (!place.inside) continue;
    if (lane == 0) values.add<L>(sweeps, number, weight);
    sweeps.template store_gradients<L>(factor);
  }
  __syncthreads();
  if (slot == 0 && part.exists) {
    const int64_t row = part.section * v.pair.classes + part.label;
    latents.store(t.share.out, t.share.out_dtype, row * v.pair.width + member * v.group, of_message,
                  width);
  }
  values.store(shared);
}

// Long groups: a cluster owns a class, one group of a row and a section of the class's rows.
template <Loss L, class Access>
__global__ void __launch_bounds__(kLongBlock, 2)
    group_table_long(const Categorical<float> family, const GroupTableView t) {
  using Threads = ClusterTeam<kLongBlock>;
  static_assert(sizeof(float) * Threads::kShared <= kLongShared);
  BLL_SHARED(float, shared, Threads::kShared);
  BLL_DYNAMIC_SHARED(staged);
  const GroupView& v = t.groups;
  Threads team(shared, v.cluster);
  const int rank = static_cast<int>(blockIdx.x) % v.cluster, step = v.cluster * kLongBlock;
  const int first = rank * kLongBlock + static_cast<int>(threadIdx.x);
  const TablePart part = part_of(t.share, v.pair.classes, blockIdx.x / v.cluster);
  const int64_t member = part.chunk, message = part.exists ? part.label : -1;
  const int64_t row_of_sums = part.section * v.pair.classes + part.label;
  float* sums = static_cast<float*>(t.share.out) + row_of_sums * v.pair.width + member * v.group;
  StagedSums<Access> latents(reinterpret_cast<uint4*>(staged), v.kept,
                             part.exists ? sums : nullptr);
  const GroupPlace of_message = place_of_group(v, member, 0, message, first, step);
  latents.load_message(v.pair, of_message);
  GroupValues values(v);
  for (int64_t at = part.begin; at < part.end; ++at) {
    const int64_t row = BLL_LOAD(t.share.order + at);
    const int64_t number = row * v.groups_per_row + member;
    const GroupPlace place = place_of_group(v, number, row, message, first, step);
    const float weight = row_weight(v.pair, row);
    GroupSweeps<Access, StagedSums<Access>&, Threads> sweeps(family, v, place, team, latents);
    sweeps.template find<L>();
    if (first == 0) values.add<L>(sweeps, number, weight);
    sweeps.template store_gradients<L>(weight * row_grad(v.pair, row));
  }
  latents.store(v.pair, of_message);
  team.leave();
  values.store(shared);
}

template <Loss L>
void run_group_table_of(const FamilyArgs& args, int tier, bool wide, const GroupTableView& view,
                        int64_t blocks, cudaStream_t stream) {
  const Categorical<float> family(args.tau, args.tilt);
  with_tier(tier, wide, view.groups.pair.a_dtype, [&](auto access, auto chosen) {
    using Access = decltype(access);
    constexpr GroupTier t = kTableTiers[chosen.value];
    const auto grid = static_cast<unsigned>(blocks);
    if constexpr (t.held == 0) {
      BLL_LAUNCH_CLUSTER((group_table_long<L, Access>), grid, kLongBlock, view.groups.cluster,
                         view.groups.shared, view.groups.most_shared, stream, family, view);
    } else {
      constexpr int resident = blocks_per_processor(t);
      BLL_LAUNCH((group_table<L, Access, t.held, t.block, t.whole, resident>), grid, t.block,
                 stream, family, view);
    }
  });
}

}  // namespace bll::cuda
