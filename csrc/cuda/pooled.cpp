// The door and the launch table of class losses on pooled maps.
#include "cuda/pooled.h"

#include <algorithm>

#include "cuda/classes_stages.h"
#include "cuda/launch.h"

namespace bll::cuda {
namespace {

constexpr int kWarps = kPooledThreads / kWarp;

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

int power_of_two(int64_t x, int64_t most) {
  int power = 1;
  while (power < x && power < most) power *= 2;
  return power;
}

int64_t largest_cell(int64_t size, int64_t grid) {
  int64_t most = 0;
  for (int64_t i = 0; i < grid; ++i) {
    most = std::max(most, ((i + 1) * size + grid - 1) / grid - i * size / grid);
  }
  return most;
}

// The widest access that stays within a row of a cell.
int plane_access(const PoolArgs& pool, bool divides, int64_t item) {
  if (!divides || !aligned(pool.map) || !aligned(pool.grad_map)) return static_cast<int>(item);
  const int64_t bytes = pool.width / pool.grid * item;
  for (const int access : {16, 8, 4}) {
    // Images begin at multiples of a whole number of cell rows.
    if (bytes % access == 0) return access;
  }
  return static_cast<int>(item);
}

struct Scratch : ClassScratch {
  float* latents = nullptr;

  Scratch(const ClassArgs& args, const ClassPlan& plan, Workspace& workspace)
      : ClassScratch(args, ClassPass::kBoth, plan, workspace) {
    if (wants_sums(args, ClassPass::kBoth))
      latents = workspace.take<float>(args.a.count * args.width);
  }
};

// A block per image; what follows reads float32 latents.
ClassArgs with_latents(const ClassArgs& given, float* latents) {
  ClassArgs args = given;
  args.a.data = latents;
  args.a.dtype = DType::kFloat32;
  args.a.stride = args.width;
  args.grad_a = nullptr;
  args.residual = nullptr;
  return args;
}

ClassPlan plan_rows(const ClassArgs& args, const Device& device) {
  ClassPlan plan = plan_classes(with_latents(args, nullptr), device);
  plan.many_rows = false;
  plan.row_blocks = args.a.count;
  plan.value_stage = args.reduction != Reduction::kNone && plan.row_blocks > 1;
  return plan;
}

PooledView view_of(const ClassArgs& args, const PooledMap& map, const ClassView& rows,
                   const Scratch& scratch) {
  PooledView v{};
  v.rows = rows;
  v.rows.a = map.pool.map;
  v.rows.grad_a = map.pool.grad_map;
  v.rows.a_dtype = map.pool.dtype;
  v.latents = scratch.latents;
  v.grad_cells = map.grad_cells;
  v.plan = plan_pooled(args, map.pool);
  v.channels = static_cast<int>(map.pool.channels);
  v.height = static_cast<int>(map.pool.height);
  v.width = static_cast<int>(map.pool.width);
  v.grid = static_cast<int>(map.pool.grid);
  return v;
}

}  // namespace

bool serves_pooled(const ClassArgs& args, const PoolArgs& pool) {
  const FamilyId id = args.family.id;
  const bool linear = id == FamilyId::kGaussian || id == FamilyId::kGaussianPrecision;
  return linear && pool.kind == Pool::kMean && args.table.count <= kMostClasses &&
         args.width <= kPooledLatents && args.width > 0 &&
         pool.channels * pool.height * pool.width <= INT32_MAX / 4;
}

PooledPlan plan_pooled(const ClassArgs& args, const PoolArgs& pool) {
  PooledPlan plan{};
  const int64_t item = pool.dtype == DType::kFloat32 ? 4 : 2;
  const int64_t count = args.table.dtype == DType::kFloat32 ? 4 : 8;
  plan.divides = pool.height % pool.grid == 0 && pool.width % pool.grid == 0;
  plan.wide_table = args.width % count == 0 && aligned(args.table.data) &&
                    (args.table.count <= 1 || args.table.stride % count == 0);
  plan.cell_height = static_cast<int>(largest_cell(pool.height, pool.grid));
  plan.cell_width = static_cast<int>(largest_cell(pool.width, pool.grid));
  if (!pool.channels_last) {
    plan.access = plane_access(pool, plan.divides, item);
    const int64_t runs = plan.cell_width * item / plan.access;
    plan.lanes = power_of_two(plan.cell_height * runs, kWarp);
    return plan;
  }
  const bool wide = pool.channels * item % 16 == 0 && aligned(pool.map) && aligned(pool.grad_map);
  const int64_t vector = wide ? 16 / item : 1;
  plan.access = static_cast<int>(vector * item);
  plan.lanes = power_of_two((pool.channels + vector - 1) / vector, kChannelLanes);
  const int64_t chunk = plan.lanes * vector;
  const int64_t units = (pool.channels + chunk - 1) / chunk * pool.grid * pool.grid;
  plan.parts = 1;
  while (2 * plan.parts * units <= kWarps) plan.parts *= 2;
  return plan;
}

size_t pooled_workspace(const ClassArgs& args, const PooledMap&, const Device& device) {
  if (args.a.count == 0) return 0;
  Workspace counter(nullptr);
  Scratch(args, plan_rows(args, device), counter);
  return counter.used();
}

cudaError_t pooled_class_loss(const ClassArgs& args, const PooledMap& map, const Device& device,
                              void* memory, cudaStream_t stream) {
  if (!serves_pooled(args, map.pool)) return cudaErrorNotSupported;
  if (args.a.count == 0) return clear(args, ClassPass::kBoth, stream);
  if (args.a.count > INT32_MAX) return cudaErrorInvalidValue;
  const ClassPlan plan = plan_rows(args, device);
  Workspace workspace(memory);
  const Scratch scratch(args, plan, workspace);
  const ClassArgs sums = with_latents(args, scratch.latents);
  const ClassView rows = view_of(sums, ClassPass::kBoth, plan, scratch);
  const auto run = map.pool.channels_last ? run_pooled_pixels : run_pooled_planes;
  run(args.family, view_of(args, map, rows, scratch), stream);
  if (wants_sums(args, ClassPass::kBoth)) run_sums(sums, plan, rows, scratch, stream);
  finish(sums, plan, rows, scratch, stream);
  return cudaGetLastError();
}

}  // namespace bll::cuda
