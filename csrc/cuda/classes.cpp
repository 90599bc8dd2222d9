// The door and the launch table of the class losses.
#include "cuda/classes.h"

#include <algorithm>

#include "cuda/classes_stages.h"
#include "cuda/launch.h"

namespace bll::cuda {
namespace {

constexpr int64_t kMostSections = 64;
// Rows that a section of the table gradient has at least.
constexpr int64_t kLeastRows = 64;
constexpr int kTableLanes = 64;

int64_t div_up(int64_t x, int64_t y) { return (x + y - 1) / y; }

int64_t item_size(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

bool aligned(const Rows& rows, int64_t count) {
  return aligned(rows.data) && (rows.count <= 1 || rows.stride % count == 0);
}

const ClassLaunchers& launchers_of(FamilyId id) {
  return id == FamilyId::kBernoulli ? kBernoulliClasses : kLinearClasses;
}

}  // namespace

bool wants_sums(const ClassArgs& args, ClassPass pass) {
  return pass != ClassPass::kValue && (args.grad_table != nullptr || args.grad_bias != nullptr);
}

ClassScratch::ClassScratch(const ClassArgs& args, ClassPass pass, const ClassPlan& plan,
                           Workspace& workspace) {
  const int64_t classes = args.table.count;
  if (pass != ClassPass::kGradients && plan.value_stage) {
    values = workspace.take<float>(plan.row_blocks);
  }
  if (!wants_sums(args, pass)) return;
  if (pass == ClassPass::kBoth) residual = workspace.take<float>(args.a.count * classes);
  if (!plan.table_stage) return;
  if (args.grad_table != nullptr) {
    tables = workspace.take<float>(plan.sections * classes * args.width);
  }
  if (args.grad_bias != nullptr) biases = workspace.take<float>(plan.sections * classes);
}

ClassView view_of(const ClassArgs& args, ClassPass pass, const ClassPlan& plan,
                  const ClassScratch& scratch) {
  ClassView v{};
  v.a = args.a.data;
  v.table = args.table.data;
  v.a_dtype = args.a.dtype;
  v.table_dtype = args.table.dtype;
  v.rows = args.a.count;
  v.width = args.width;
  v.a_row = args.a.stride;
  v.table_row = args.table.stride;
  v.classes = static_cast<int>(args.table.count);
  v.normalize = args.normalize_message;
  v.per_row = args.reduction == Reduction::kNone;
  const bool mean = args.reduction == Reduction::kBatchMean;
  v.scale = mean ? 1.0f / static_cast<float>(args.a.count) : 1.0f;
  v.value_scale = plan.value_stage ? 1.0f : v.scale;
  v.residual = pass == ClassPass::kBoth ? scratch.residual : static_cast<float*>(args.residual);
  if (pass != ClassPass::kGradients) {
    v.labels = args.labels;
    v.bias = static_cast<const float*>(args.bias);
    v.weight = static_cast<const float*>(args.weight);
    v.value = plan.value_stage ? scratch.values : static_cast<float*>(args.value);
  } else {
    v.grad = static_cast<const float*>(args.grad);
    v.grad_stride = v.per_row ? 1 : 0;
  }
  if (pass != ClassPass::kValue) v.grad_a = args.grad_a;
  return v;
}

void run_sums(const ClassArgs& args, const ClassPlan& plan, const ClassView& rows,
              const ClassScratch& scratch, cudaStream_t stream) {
  ClassTableView t{};
  t.rows = rows;
  t.table = plan.table_stage ? scratch.tables : args.grad_table;
  t.bias = plan.table_stage ? scratch.biases : static_cast<float*>(args.grad_bias);
  t.dtype = plan.table_stage ? DType::kFloat32 : args.table.dtype;
  t.sections = plan.sections;
  t.section_rows = plan.section_rows;
  t.lanes = plan.table_lanes;
  // A bias alone needs no columns.
  t.chunks = args.grad_table != nullptr ? static_cast<uint32_t>(plan.table_chunks) : 1;
  t.tiles = static_cast<uint32_t>(plan.table_tiles);
  launchers_of(args.family.id).table(args.family, plan, t, stream);
}

void finish(const ClassArgs& args, const ClassPlan& plan, const ClassView& view,
            const ClassScratch& scratch, cudaStream_t stream) {
  ClassSums s{};
  s.values = scratch.values;
  s.tables = scratch.tables;
  s.biases = scratch.biases;
  s.value = static_cast<float*>(args.value);
  s.table = args.grad_table;
  s.bias = static_cast<float*>(args.grad_bias);
  s.dtype = args.table.dtype;
  s.blocks = plan.row_blocks;
  s.sections = plan.sections;
  s.size = args.table.count * args.width;
  s.classes = view.classes;
  s.scale = view.scale;
  if (s.values != nullptr || s.tables != nullptr || s.biases != nullptr) sum_classes(s, stream);
}

namespace {

cudaError_t zero(void* memory, int64_t bytes, cudaStream_t stream) {
  if (memory == nullptr || bytes == 0) return cudaSuccess;
  return cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream);
}

}  // namespace

cudaError_t clear(const ClassArgs& args, ClassPass pass, cudaStream_t stream) {
  cudaError_t error = cudaSuccess;
  if (pass != ClassPass::kGradients && args.reduction != Reduction::kNone) {
    error = zero(args.value, sizeof(float), stream);
  }
  if (pass == ClassPass::kValue || error != cudaSuccess) return error;
  const int64_t classes = args.table.count, size = classes * args.width;
  error = zero(args.grad_table, size * item_size(args.table.dtype), stream);
  if (error != cudaSuccess) return error;
  return zero(args.grad_bias, classes * int64_t{sizeof(float)}, stream);
}

bool serves_classes(const ClassArgs& args) {
  const FamilyId id = args.family.id;
  const bool family =
      id == FamilyId::kGaussian || id == FamilyId::kGaussianPrecision || id == FamilyId::kBernoulli;
  return family && args.table.count <= kMostClasses;
}

ClassPlan plan_classes(const ClassArgs& args, const Device& device) {
  ClassPlan plan{};
  const ClassLaunchers& launchers = launchers_of(args.family.id);
  const bool half = args.a.dtype != DType::kFloat32 || args.table.dtype != DType::kFloat32;
  const int vector = half ? 8 : 4;
  const int64_t rows = args.a.count, processors = device.processors;
  plan.wide = args.width % vector == 0 && aligned(args.a, vector) && aligned(args.table, vector) &&
              aligned(args.grad_a) && aligned(args.grad_table);
  const int count = plan.wide ? vector : 1;
  const int several = launchers.most_rows[count == 8];
  // Several rows share what is read of the table, once every processor has its rows.
  plan.many_rows = several > 1 && rows >= several * processors;
  plan.row_blocks = div_up(rows, plan.many_rows ? several : 1);
  plan.value_stage = args.reduction != Reduction::kNone && plan.row_blocks > 1;

  const int tile = launchers.table_latents / (count == 1 ? 4 : count);
  plan.table_lanes = 1;
  while (plan.table_lanes < kTableLanes && int64_t{plan.table_lanes} * count < args.width) {
    plan.table_lanes *= 2;
  }
  plan.table_chunks = std::max<int64_t>(1, div_up(args.width, int64_t{plan.table_lanes} * count));
  plan.table_tiles = div_up(args.table.count, tile);
  const int64_t owners = plan.table_chunks * plan.table_tiles;
  const int64_t wanted = div_up(kClassBlocks * processors, owners);
  const int64_t most = std::min(kMostSections, std::max<int64_t>(1, div_up(rows, kLeastRows)));
  plan.section_rows = div_up(rows, std::clamp<int64_t>(wanted, 1, most));
  plan.sections = rows == 0 ? 1 : div_up(rows, plan.section_rows);
  plan.table_stage = plan.sections > 1;
  return plan;
}

size_t class_workspace(const ClassArgs& args, ClassPass pass, const Device& device) {
  if (args.a.count == 0) return 0;
  Workspace counter(nullptr);
  ClassScratch(args, pass, plan_classes(args, device), counter);
  return counter.used();
}

cudaError_t class_loss(const ClassArgs& args, ClassPass pass, const Device& device, void* memory,
                       cudaStream_t stream) {
  if (!serves_classes(args)) return cudaErrorNotSupported;
  if (args.a.count == 0) return clear(args, pass, stream);
  const ClassPlan plan = plan_classes(args, device);
  if (plan.row_blocks > INT32_MAX) return cudaErrorInvalidValue;
  Workspace workspace(memory);
  const ClassScratch scratch(args, pass, plan, workspace);
  const ClassView view = view_of(args, pass, plan, scratch);
  if (view.labels != nullptr || view.grad_a != nullptr) {
    launchers_of(args.family.id).rows(args.family, plan, view, stream);
  }
  if (wants_sums(args, pass)) run_sums(args, plan, view, scratch, stream);
  finish(args, plan, view, scratch, stream);
  return cudaGetLastError();
}

}  // namespace bll::cuda
