// How a pair loss is cut into pieces of work. The cut depends on the shapes and labels alone, never
// on the number of threads, and partial results are added in its order: so bits are repeatable.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/api.h"

namespace bll::cpu {

// Rows order[begin..end) (or rows begin..end where there is no order), all of label `label` where
// the gradient of a table is wanted.
struct RowBlock {
  int64_t begin, end, label;
};

struct PairPlan {
  int64_t rows, width;                  // as cut: a flat plan sees one long row
  int64_t segment;                      // latents of a row per piece
  int64_t segments;                     // per row
  std::vector<int64_t> order;           // rows sorted by label, or empty
  std::vector<RowBlock> blocks;         // a piece is a block times a segment
  std::vector<int64_t> first_of_label;  // blocks of label m: [first_of_label[m], [m + 1])

  int64_t pieces() const { return static_cast<int64_t>(blocks.size()) * segments; }
};

PairPlan plan_pair(const PairArgs& args);

}  // namespace bll::cpu
