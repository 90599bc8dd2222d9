#include "cuda/pair_plan.h"

#include <algorithm>

#include "cuda/cluster.h"
#include "cuda/groups.h"
#include "cuda/labels.h"
#include "cuda/launch.h"

namespace bll::cuda {
namespace {

constexpr int64_t kMostSections = 64;
constexpr int64_t kLeastRowsOfSection = 32;

int64_t div_up(int64_t x, int64_t y) { return (x + y - 1) / y; }

int64_t item_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

bool aligned(const Rows& rows, int64_t count, bool flat) {
  return aligned(rows.data) && (flat || rows.count <= 1 || rows.stride % count == 0) &&
         rows.plane_stride % count == 0;
}

bool contiguous(const Rows& rows, int64_t width) { return rows.stride == width || rows.count <= 1; }

bool is_flat(const PairArgs& args) {
  return args.labels == nullptr && args.weight == nullptr && args.reduction != Reduction::kNone &&
         family_planes(args.family.id) == 1 && args.family.id != FamilyId::kCategorical &&
         contiguous(args.a, args.width) && contiguous(args.b, args.width);
}

int power_of_two(int64_t x, int most) {
  int power = 1;
  while (power < x && power < most) power *= 2;
  return power;
}

Layout lay_out(int64_t width, int count, int lanes) {
  Layout layout;
  layout.count = count;
  layout.lanes = power_of_two(div_up(width, count), lanes);
  layout.rows = kThreads / layout.lanes;
  layout.columns = int64_t{layout.lanes} * count;
  layout.chunks = div_up(width, layout.columns);
  return layout;
}

// Whether the gradient of a class table is wanted.
bool wants_table(const PairArgs& args) {
  return args.labels != nullptr && args.b.count > 0 && args.grad_b != nullptr &&
         reaches_message(args.loss);
}

// Sections of a class's rows that are worth their sums.
int64_t most_sections(const PairArgs& args) {
  return std::min(div_up(args.a.count, kLeastRowsOfSection), kMostSections);
}

const GroupTier* tiers_of(const PairArgs& args) {
  return wants_table(args) ? kTableTiers : kGroupTiers;
}

// Bytes of shared memory that keep a vector of both operands, and of the sums of a class table's
// gradient, for every thread of a block.
int64_t kept_bytes(const PairArgs& args, bool wide) {
  const int64_t quads = item_size(args.b.dtype) / item_size(args.a.dtype);
  const int64_t sums = wants_table(args) ? 4 / item_size(args.a.dtype) : 0;
  return kLongBlock * (wide ? 16 * (1 + quads + sums) : wants_table(args) ? 12 : 8);
}

// Clusters of long groups that run at once with `blocks` blocks of them on a multiprocessor.
int64_t clusters_at_once(const Device& device, int cluster, int blocks) {
  if (cluster == 1) return int64_t{device.processors} * blocks;
  int size = 0;
  while (2 << size < cluster) ++size;
  return device.clusters[blocks - 1][size];
}

// As few blocks to a group as can keep it with two of them on a multiprocessor, or more where
// there are fewer groups than multiprocessors.
void plan_long_groups(PairPlan& plan, const PairArgs& args, int64_t count, const Device& device) {
  GroupLayout& group = plan.group;
  // With a class table's gradient, a cluster has many groups in turn.
  const int64_t owners = (args.b.count + 1) * most_sections(args) * group.per_row;
  const int64_t turns = wants_table(args) ? std::min(owners, group.count) : group.count;
  const int64_t vectors = div_up(args.family.group, count);
  const int64_t bytes = kept_bytes(args, group.wide);
  const int64_t whole = long_shared(device, 1), half = long_shared(device, 2);
  const int most = std::min(device.cluster, kClusterBlocks);
  const auto share = [&](int64_t blocks) { return div_up(vectors, blocks * kLongBlock); };
  group.cluster = 1;
  while (2 * group.cluster <= most && share(group.cluster) > 1 &&
         (share(group.cluster) * bytes > half || 2 * group.cluster * turns <= device.processors)) {
    group.cluster *= 2;
  }
  const bool two = share(group.cluster) * bytes <= half;
  group.kept = static_cast<int>(std::min(share(group.cluster), (two ? half : whole) / bytes));
  group.shared = group.kept * bytes;
  group.most_shared = whole;
  const int64_t wave = clusters_at_once(device, group.cluster, two ? 2 : 1);
  const int64_t clusters = std::min(std::max<int64_t>(wave, 1), group.count);
  plan.blocks = static_cast<int>(clusters * group.cluster);
}

void plan_groups(PairPlan& plan, const PairArgs& args, int vector, const Device& device) {
  GroupLayout& group = plan.group;
  const int64_t latents = args.family.group;
  group.tier = group_tier(tiers_of(args), latents);
  const GroupTier& tier = tiers_of(args)[group.tier];
  group.wide = vector > 1 && latents % vector == 0;
  group.lanes = tier.whole ? tier.block : power_of_two(div_up(latents, tier.held), kWarp);
  group.per_row = args.width / latents;
  group.count = args.a.count * group.per_row;
  const int64_t wave = int64_t{device.processors} * blocks_per_processor(tier);
  const int64_t teams = tier.block / group.lanes;
  plan.blocks = static_cast<int>(std::min(wave, div_up(group.count, teams)));
  plan.values_per_row = group.per_row;
  if (tier.held == 0) plan_long_groups(plan, args, group.wide ? vector : 1, device);
}

// Columns of a class table as blocks, or clusters, own them; returns their blocks.
int64_t plan_columns(PairPlan& plan, const PairArgs& args, int count) {
  if (args.family.id != FamilyId::kCategorical) {
    plan.table = lay_out(args.width, count, kTableLanes);
    return plan.table.chunks;
  }
  GroupLayout& group = plan.group;
  const GroupTier& tier = kTableTiers[group.tier];
  group.across = tier.whole ? 1 : power_of_two(group.per_row, tier.block / group.lanes);
  plan.table.chunks = div_up(group.per_row, group.across);
  return plan.table.chunks * (tier.held == 0 ? group.cluster : 1);
}

void plan_table(PairPlan& plan, const PairArgs& args, int count, const Device& device) {
  const bool groups = args.family.id == FamilyId::kCategorical;
  // Rows without a class are one more owner.
  const int64_t owners = (args.b.count + 1) * plan_columns(plan, args, count);
  const int64_t wanted = div_up(int64_t{device.processors} * 8, owners);
  plan.sections = std::clamp<int64_t>(wanted, 1, most_sections(args));
  plan.table_blocks = plan.sections * owners;
  // Long groups have their sums in float32 throughout.
  const bool in_float = groups && kTableTiers[plan.group.tier].held == 0;
  plan.table_scratch = plan.sections > 1 || (in_float && args.b.dtype != DType::kFloat32);
  plan.sort_rows = sort_chunk_rows(args.a.count, args.b.count);
  plan.sort_chunks = div_up(args.a.count, plan.sort_rows);
}

}  // namespace

PairPlan plan_pair(const PairArgs& args, const Device& device) {
  PairPlan plan{};
  const int vector = static_cast<int>(16 / item_size(args.a.dtype));
  plan.flat = is_flat(args);
  const bool at_vectors = aligned(args.a, vector, plan.flat) &&
                          aligned(args.b, vector, plan.flat) && aligned(args.grad_a) &&
                          aligned(args.grad_b) && aligned(args.next);
  plan.rows = plan.flat ? 1 : args.a.count;
  plan.width = plan.flat ? args.a.count * args.width : args.width;
  const bool wide = at_vectors && (plan.flat || args.width % vector == 0) && plan.width >= vector;
  const int count = wide ? vector : 1;
  plan.tail = plan.flat ? plan.width % count : 0;
  plan.width -= plan.tail;
  plan.layout = lay_out(plan.width, count, kThreads);
  plan.units = div_up(plan.rows, plan.layout.rows) * plan.layout.chunks;
  if (args.family.id == FamilyId::kCategorical) {
    plan_groups(plan, args, at_vectors ? vector : 1, device);
  } else {
    const int64_t items = items_per_thread(count, family_planes(args.family.id));
    const int64_t wave = int64_t{device.processors} * kBlocksPerProcessor;
    plan.blocks = static_cast<int>(std::min(wave, div_up(plan.units, items)));
    plan.values_per_row = plan.layout.chunks;
  }
  const bool table = wants_table(args);
  if (table) plan_table(plan, args, wide ? vector : 1, device);
  const int64_t blocks = table ? plan.table_blocks : plan.blocks;
  if (table && args.family.id != FamilyId::kCategorical) plan.values_per_row = plan.table.chunks;
  const bool per_row = args.reduction == Reduction::kNone;
  plan.partials = per_row ? plan.rows * plan.values_per_row : blocks;
  plan.two_stages = per_row ? plan.values_per_row > 1 : blocks > 1;
  return plan;
}

}  // namespace bll::cuda
