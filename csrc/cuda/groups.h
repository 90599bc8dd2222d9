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

// With the gradient of a class table threads hold fewer latents: with more, registers would spill.
inline constexpr GroupTier kTableTiers[] = {
    {256, 256, false, 8},
    {1024, 128, true, 8},
    {2048, 256, true, 8},
    {4096, 512, true, 8},
    {INT64_MAX, kLongBlock, true, 0},
};

// Blocks of a tier that fit a multiprocessor at once.
inline constexpr int blocks_per_processor(const GroupTier& tier) {
  return tier.whole ? 512 / tier.block : 2;
}

inline int group_tier(const GroupTier* tiers, int64_t group) {
  int tier = 0;
  while (group > tiers[tier].most) ++tier;
  return tier;
}

// Bytes of shared memory for latents that a block of a long group may have where a multiprocessor
// has `blocks` of them.
inline int64_t long_shared(const Device& device, int blocks) {
  constexpr int64_t reserved = 1024;  // by the system, per block
  const int64_t bytes = (device.shared + reserved) / blocks - reserved - kLongShared;
  return bytes > 0 ? bytes : 0;
}

// Asks the current device, whose other properties are known, for `clusters` and `cluster`.
void find_clusters(Device& device);

// Sweeps of a streamed group over its latents.
inline constexpr int kStreamedReads = 4;

struct GroupView {
  PairView pair;  // value: one partial per block, or [rows, groups of a row]
  bool per_row;   // of pair.value
  int64_t group, groups_per_row, groups;
  int lanes;  // threads per group, in tiers that are not `whole`
  // Long groups: blocks that share one, vectors that a thread keeps, bytes of shared memory, and
  // the most that any launch on the device asks for.
  int cluster, kept;
  size_t shared, most_shared;
};

// Kernel argument of the table gradient. Long groups: the blocks of a cluster share what a block
// has, and sums are float32.
struct GroupTableView {
  GroupView groups;  // b is the table
  TableShare share;  // a run of columns: `across` groups
  int across;
};

// A launcher per tier, for one loss.
void run_groups(const FamilyArgs& family, Loss loss, int tier, bool wide, const GroupView& view,
                int blocks, cudaStream_t stream);

void run_group_table(const FamilyArgs& family, Loss loss, int tier, bool wide,
                     const GroupTableView& view, int64_t blocks, cudaStream_t stream);

}  // namespace bll::cuda
