#include "cpu/pair_plan.h"

#include <algorithm>

#include "cpu/tile.h"

namespace bll::cpu {
namespace {

constexpr int64_t kPieceSize = 32768;     // latents; about 30 microseconds
constexpr int64_t kMinRowsOfLabel = 32;   // amortise a piece's row of sums
constexpr int64_t kMaxRowsOfLabel = 256;  // bound the rounding of its float sums

bool contiguous(const Rows& rows, int64_t width) {
  return rows.offsets == nullptr && (rows.stride == width || rows.count <= 1);
}

// Where no row needs to be told from another, the data are one long row.
bool is_flat(const PairArgs& args) {
  return args.labels == nullptr && args.weight == nullptr && args.reduction != Reduction::kNone &&
         family_planes(args.family.id) == 1 && contiguous(args.a, args.width) &&
         contiguous(args.b, args.width);
}

void block_rows(PairPlan& plan, int64_t begin, int64_t end, int64_t size, int64_t label) {
  for (; begin < end; begin += size) {
    plan.blocks.push_back({begin, std::min(begin + size, end), label});
  }
}

// A stable counting sort of the rows by label, then blocks of rows of one label.
void block_by_label(PairPlan& plan, const PairArgs& args, int64_t size) {
  const int64_t labels = args.b.count;
  std::vector<int64_t> end(labels + 1, 0);
  for (int64_t i = 0; i < plan.rows; ++i) ++end[args.labels[i] + 1];
  for (int64_t m = 0; m < labels; ++m) end[m + 1] += end[m];
  plan.order.resize(plan.rows);
  for (int64_t i = 0; i < plan.rows; ++i) plan.order[end[args.labels[i]]++] = i;
  plan.first_of_label.reserve(labels + 1);
  for (int64_t m = 0; m < labels; ++m) {
    plan.first_of_label.push_back(static_cast<int64_t>(plan.blocks.size()));
    block_rows(plan, m == 0 ? 0 : end[m - 1], end[m], size, m);
  }
  plan.first_of_label.push_back(static_cast<int64_t>(plan.blocks.size()));
}

}  // namespace

PairPlan plan_pair(const PairArgs& args) {
  PairPlan plan;
  const bool flat = is_flat(args);
  plan.rows = flat ? 1 : args.a.count;
  plan.width = flat ? args.a.count * args.width : args.width;
  const int64_t unit = args.family.id == FamilyId::kCategorical ? args.family.group : 1;
  plan.segment = std::max(unit, kPieceSize / unit * unit);
  plan.segments = (plan.width + plan.segment - 1) / plan.segment;
  const int64_t rows_per_piece =
      std::max<int64_t>(1, kPieceSize / std::max<int64_t>(1, plan.width));
  if (args.labels != nullptr && args.grad_b != nullptr && reaches_message(args.loss)) {
    block_by_label(plan, args, std::clamp(rows_per_piece, kMinRowsOfLabel, kMaxRowsOfLabel));
  } else {
    block_rows(plan, 0, plan.rows, rows_per_piece, 0);
  }
  return plan;
}

}  // namespace bll::cpu
