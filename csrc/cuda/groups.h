// What the kernels of categorical groups are given, and their launch table.
#pragma once

#include <cstdint>

#include "cuda/pair.h"

namespace bll::cuda {

// How the threads of a block share groups. Groups up to `most` latents stay in registers, longer
// ones in the shared memory of a cluster's blocks, read once; what that does not hold is streamed,
// read once per sweep.
struct GroupTier {
  int64_t most;
  int block;   // threads per block
  bool whole;  // the block has one group at a time
  int held;    // latents a thread holds; 0: in shared memory
};

inline constexpr int kLongBlock = 128;   // threads of a block that has a long group, or a part
inline constexpr int kLongShared = 512;  // most bytes of its shared memory beside latents

inline constexpr GroupTier kGroupTiers[] = {
    {256, 256, false, 8},
    {1024, 128, true, 8},
    {4096, 256, true, 16},
    {8192, 512, true, 16},
    {INT64_MAX, kLongBlock, true, 0},
};

// Blocks of a tier that fit a multiprocessor at once.
inline constexpr int blocks_per_processor(const GroupTier& tier) {
  return tier.whole ? 512 / tier.block : 2;
}

template <int tier>
inline constexpr int kTierBlocks = blocks_per_processor(kGroupTiers[tier]);

inline int group_tier(int64_t group) {
  int tier = 0;
  while (group > kGroupTiers[tier].most) ++tier;
  return tier;
}

// Sweeps of a streamed group over its latents.
inline constexpr int kStreamedReads = 4;

struct GroupView {
  PairView pair;       // value: one partial per block, or [rows, groups of a row]
  DType grad_b_dtype;  // float32 where pair.grad_b is scratch memory
  bool per_row;        // of pair.value
  int64_t group, groups_per_row, groups;
  int lanes;  // threads per group, in tiers that are not `whole`
  // Long groups: blocks that share one, vectors that a thread keeps, bytes of shared memory.
  int cluster, kept;
  size_t shared;
};

// A launcher per tier, for one loss.
void run_groups(const FamilyArgs& family, Loss loss, int tier, bool wide, const GroupView& view,
                int blocks, cudaStream_t stream);

// Sums rows of float32 gradients per class: the table kernel of pair_elements.cuh without a family.
void run_class_sums(bool wide, const TableView& view, int64_t blocks, cudaStream_t stream);

}  // namespace bll::cuda
