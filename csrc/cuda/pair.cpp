// The door of the pair losses: plans, hands out scratch memory, queues the kernels in order.

#include "cuda/groups.h"
#include "cuda/labels.h"
#include "cuda/launch.h"
#include "cuda/reduce.h"
#include "cuda/workspace.h"

namespace bll::cuda {
namespace {

int64_t item_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

const PairLaunchers& launchers_of(FamilyId id) {
  switch (id) {
    case FamilyId::kBernoulli:
      return kBernoulliLaunchers;
    case FamilyId::kGaussian:
      return kGaussianLaunchers;
    case FamilyId::kGaussianPrecision:
      return kGaussianPrecisionLaunchers;
    default:
      return kGaussianDiagonalLaunchers;
  }
}

// Where the stages of one call leave what the next one reads.
struct Scratch {
  float* partials = nullptr;
  float* sections = nullptr;
  LabelSort sort{};

  Scratch(const PairArgs& args, const PairPlan& plan, Workspace& workspace) {
    if (args.value != nullptr && plan.two_stages) {
      partials = workspace.take<float>(plan.partials);
    }
    if (plan.sections == 0) return;
    const int planes = family_planes(args.family.id);
    sort.rows = args.a.count;
    sort.classes = args.b.count;
    sort.chunks = plan.sort_chunks;
    sort.chunk_rows = plan.sort_rows;
    sort.labels = args.labels;
    sort.take(workspace);
    if (plan.table_scratch) {
      sections = workspace.take<float>(plan.sections * args.b.count * planes * args.width);
    }
  }
};

float mean_scale(const PairArgs& args) {
  return args.reduction == Reduction::kBatchMean ? 1.0f / static_cast<float>(args.a.count) : 1.0f;
}

PairView view_of(const PairArgs& args, const PairPlan& plan, const Scratch& scratch) {
  PairView v{};
  v.a = args.a.data;
  v.b = args.b.data;
  v.labels = args.labels;
  v.weight = static_cast<const float*>(args.weight);
  v.grad = static_cast<const float*>(args.grad);
  v.value = plan.two_stages ? scratch.partials : static_cast<float*>(args.value);
  v.grad_a = args.grad_a;
  const bool dense_b = args.labels == nullptr && reaches_message(args.loss);
  v.grad_b = dense_b ? args.grad_b : nullptr;
  v.a_dtype = args.a.dtype;
  v.b_dtype = args.b.dtype;
  v.rows = plan.rows;
  v.width = plan.width;
  v.classes = args.b.count;
  v.tail = plan.tail;
  v.a_row = args.a.stride;
  v.a_plane = args.a.plane_stride;
  v.b_row = args.b.stride;
  v.b_plane = args.b.plane_stride;
  v.per_row = args.reduction == Reduction::kNone;
  v.grad_stride = v.per_row ? 1 : 0;
  v.scale = mean_scale(args);
  v.value_scale = plan.two_stages ? 1.0f : v.scale;
  v.units = static_cast<uint32_t>(plan.units);
  v.chunks = static_cast<uint32_t>(plan.layout.chunks);
  v.lanes = plan.layout.lanes;
  v.unit_rows = plan.layout.rows;
  v.unit_columns = static_cast<int>(plan.layout.columns);
  v.next = args.next;
  v.next_dtype = args.next_dtype;
  v.mix = NextMix<float>(args.next_mix);
  return v;
}

bool writes(const PairView& v) {
  return v.value != nullptr || v.grad_a != nullptr || v.grad_b != nullptr || v.next != nullptr;
}

GroupView groups_of(const PairArgs& args, const PairPlan& plan, const PairView& view) {
  GroupView v{};
  v.pair = view;
  v.per_row = view.per_row;
  v.group = args.family.group;
  v.groups_per_row = plan.group.per_row;
  v.groups = plan.group.count;
  v.lanes = plan.group.lanes;
  v.cluster = plan.group.cluster;
  v.kept = plan.group.kept;
  v.shared = static_cast<size_t>(plan.group.shared);
  v.most_shared = static_cast<size_t>(plan.group.most_shared);
  return v;
}

void run_rows(const PairArgs& args, const PairPlan& plan, const PairView& view,
              cudaStream_t stream) {
  if (!writes(view)) return;
  if (args.family.id == FamilyId::kCategorical) {
    const GroupView groups = groups_of(args, plan, view);
    return run_groups(args.family, args.loss, plan.group.tier, plan.group.wide, groups, plan.blocks,
                      stream);
  }
  launchers_of(args.family.id)
      .elements(args.family, args.loss, plan.layout.wide(), view, plan.blocks, stream);
}

void finish_value(const PairArgs& args, const PairPlan& plan, const PairView& view,
                  cudaStream_t stream) {
  if (args.value == nullptr || !plan.two_stages) return;
  float* value = static_cast<float*>(args.value);
  if (view.per_row) {
    sum_rows(view.value, plan.rows, plan.values_per_row, value, stream);
  } else {
    sum_all(view.value, plan.partials, view.scale, value, stream);
  }
}

void run_table(const PairArgs& args, const PairPlan& plan, const PairView& view,
               const Scratch& scratch, cudaStream_t stream) {
  sort_labels(scratch.sort, stream);
  TableShare share{};
  share.order = scratch.sort.order;
  share.start = scratch.sort.start;
  share.out = plan.table_scratch ? scratch.sections : args.grad_b;
  share.out_dtype = plan.table_scratch ? DType::kFloat32 : args.b.dtype;
  share.sections = plan.sections;
  share.chunks = static_cast<uint32_t>(plan.table.chunks);
  if (args.family.id == FamilyId::kCategorical) {
    const GroupTableView t{groups_of(args, plan, view), share, plan.group.across};
    run_group_table(args.family, args.loss, plan.group.tier, plan.group.wide, t, plan.table_blocks,
                    stream);
  } else {
    const TableView t{view, share, plan.table.lanes, static_cast<int>(plan.table.columns)};
    launchers_of(args.family.id)
        .table(args.family, args.loss, plan.table.wide(), t, plan.table_blocks, stream);
  }
  if (!plan.table_scratch) return;
  const int64_t size = args.b.count * family_planes(args.family.id) * args.width;
  sum_sections(scratch.sections, plan.sections, size, args.grad_b, args.b.dtype, stream);
}

cudaError_t zero(void* memory, int64_t bytes, cudaStream_t stream) {
  if (bytes == 0) return cudaSuccess;
  return cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream);
}

// What no kernel writes: values of nothing, gradients of stopped messages and of unused tables.
cudaError_t clear(const PairArgs& args, cudaStream_t stream) {
  const bool empty = args.a.count == 0 || args.width == 0;
  if (empty && args.value != nullptr) {
    const int64_t count = args.reduction == Reduction::kNone ? args.a.count : 1;
    const cudaError_t error = zero(args.value, count * int64_t{sizeof(float)}, stream);
    if (error != cudaSuccess) return error;
  }
  if (args.grad_b == nullptr || (!empty && reaches_message(args.loss))) return cudaSuccess;
  const int64_t size = args.b.count * family_planes(args.family.id) * args.width;
  return zero(args.grad_b, size * item_size(args.b.dtype), stream);
}

}  // namespace

size_t pair_workspace(const PairArgs& args, const Device& device) {
  if (args.a.count == 0 || args.width == 0) return 0;
  Workspace counter(nullptr);
  Scratch(args, plan_pair(args, device), counter);
  return counter.used();
}

cudaError_t pair_loss(const PairArgs& args, const Device& device, void* memory,
                      cudaStream_t stream) {
  const cudaError_t cleared = clear(args, stream);
  if (cleared != cudaSuccess || args.a.count == 0 || args.width == 0) return cleared;
  const PairPlan plan = plan_pair(args, device);
  constexpr int64_t most_latents = 1 << 30;  // of a group: the kernels count them in 32 bits
  const bool rows_fit = plan.sections == 0 || args.a.count <= INT32_MAX;
  const bool blocks_fit = plan.units <= UINT32_MAX / 2 && plan.table_blocks <= INT32_MAX;
  if (!blocks_fit || !rows_fit || args.family.group > most_latents) return cudaErrorInvalidValue;
  Workspace workspace(memory);
  const Scratch scratch(args, plan, workspace);
  const PairView view = view_of(args, plan, scratch);
  if (plan.sections > 0) {
    run_table(args, plan, view, scratch, stream);
  } else {
    run_rows(args, plan, view, stream);
  }
  finish_value(args, plan, view, stream);
  return cudaGetLastError();
}

}  // namespace bll::cuda
