// Launch tables of the pair losses: pure functions of sizes, alignment and the device.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/api.h"

namespace bll::cuda {

inline constexpr int kThreads = 256;
// Blocks of the element kernels that fit a multiprocessor at once: one wave is that many times the
// multiprocessors.
inline constexpr int kBlocksPerProcessor = 2;
// Lanes along a row in the table kernel; the other threads of a block take other rows.
inline constexpr int kTableLanes = 32;

// How the threads of a block lie over rows and columns. A unit is a run of `rows` rows and
// `columns` columns that a block takes at once, every thread `count` latents of one row.
struct Layout {
  int count;        // latents a thread takes at once; 1 without vector accesses
  int lanes;        // threads along a row, a power of two
  int rows;         // rows per unit
  int64_t columns;  // columns per unit
  int64_t chunks;   // units along a row

  bool wide() const { return count > 1; }
};

// How categorical groups are shared out; see groups.h.
struct GroupLayout {
  int tier;
  int lanes;  // threads per group, in tiers that are not whole blocks
  bool wide;
  int64_t per_row, count;  // groups
  int across;              // of a row that a block of the table kernel has side by side
  // Long groups: blocks that share one, vectors that a thread keeps in shared memory, its bytes,
  // and the most bytes that any plan for the device has.
  int cluster, kept;
  int64_t shared, most_shared;
};

struct PairPlan {
  bool flat;            // no row needs to be told from another: one long row
  int64_t rows, width;  // as cut; `tail` latents of a flat run are left over
  int64_t tail;
  Layout layout;
  int64_t units;
  int blocks;
  GroupLayout group;       // categorical
  int64_t values_per_row;  // that the first stage leaves where rows are told apart
  int64_t partials;        // floats that it leaves in all: those, or one per block
  bool two_stages;         // whether they need adding up

  // The gradient of a class table; sections == 0: not wanted. Its kernel has the rows' outputs too.
  int64_t table_blocks;
  Layout table;         // categorical: chunks only
  bool table_scratch;   // whether the first stage leaves float32 sections in scratch memory
  int64_t sections;     // parts of a class's rows, added up by a second stage
  int64_t sort_chunks;  // of `sort_rows` rows, counted by one block each
  int64_t sort_rows;
};

PairPlan plan_pair(const PairArgs& args, const Device& device);

}  // namespace bll::cuda
