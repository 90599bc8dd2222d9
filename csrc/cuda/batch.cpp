// The doors and launch tables of the Gram loss and of class means.
#include "cuda/batch.h"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/workspace.h"

namespace bll::cuda {
namespace {

constexpr int64_t kMostParts = 16;
constexpr int kMeansLanes = 64;
constexpr int64_t kMeansWave = 4;  // blocks of the class means that a processor should have
constexpr int64_t kMostSections = 64;

int64_t padded(int64_t width) { return ceil_div(width, 4) * 4; }

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

struct GramScratch {
  float *unit, *inverse, *target = nullptr, *target_inverse = nullptr;
  float *values = nullptr, *pulls = nullptr;

  GramScratch(const GramArgs& args, int64_t parts, Workspace& workspace) {
    const int64_t rows = args.x.count;
    unit = workspace.take<float>(rows * padded(args.width));
    inverse = workspace.take<float>(rows);
    if (args.vectors.data != nullptr) {
      target = workspace.take<float>(rows * padded(args.vectors_width));
      target_inverse = workspace.take<float>(rows);
    }
    if (args.value != nullptr) values = workspace.take<float>(parts * rows);
    if (args.grad_x != nullptr) pulls = workspace.take<float>(parts * rows * padded(args.width));
  }
};

UnitRows unit_of(const Rows& rows, int64_t width, bool center, float* unit, float* inverse) {
  return {rows.data, unit,        inverse,       rows.dtype, rows.count,
          width,     rows.stride, padded(width), center};
}

GramView view_of(const GramArgs& args, const GramScratch& scratch, int64_t parts) {
  GramView v{};
  v.unit = scratch.unit;
  v.inverse = scratch.inverse;
  v.target = scratch.target;
  v.labels = args.labels;
  v.weight = static_cast<const float*>(args.weight);
  v.grad = static_cast<const float*>(args.grad);
  v.values = scratch.values;
  v.pulls = scratch.pulls;
  v.value = static_cast<float*>(args.value);
  v.grad_x = args.grad_x;
  v.dtype = args.x.dtype;
  v.rows = args.x.count;
  v.width = args.width;
  v.padded = padded(args.width);
  v.target_padded = padded(args.vectors_width);
  v.parts = parts;
  v.part_tiles = ceil_div(ceil_div(v.rows, kGramTile), parts);
  v.same = static_cast<float>(args.same);
  v.other = static_cast<float>(args.other);
  v.per_row = args.reduction == Reduction::kNone;
  const bool mean = args.reduction == Reduction::kBatchMean;
  v.scale = mean ? 1.0f / static_cast<float>(v.rows) : 1.0f;
  return v;
}

cudaError_t zero(void* memory, int64_t bytes, cudaStream_t stream) {
  if (memory == nullptr || bytes == 0) return cudaSuccess;
  return cudaMemsetAsync(memory, 0, static_cast<size_t>(bytes), stream);
}

struct MeansScratch {
  LabelSort sort{};
  float* sums = nullptr;

  MeansScratch(const ClassMeansArgs& args, const MeansPlan& plan, Workspace& workspace) {
    sort.rows = args.x.count;
    sort.classes = args.classes;
    sort.chunk_rows = sort_chunk_rows(sort.rows, sort.classes);
    sort.chunks = ceil_div(sort.rows, sort.chunk_rows);
    sort.labels = args.labels;
    sort.take(workspace);
    const int64_t sections = plan.sections > 1 ? plan.sections : 0;
    if (sections > 0) sums = workspace.take<float>(sections * args.classes * args.width);
  }
};

MeansView view_of(const ClassMeansArgs& args, const MeansPlan& plan, const MeansScratch& scratch) {
  MeansView v{};
  v.x = args.x.data;
  v.order = scratch.sort.order;
  v.start = scratch.sort.start;
  v.means = static_cast<float*>(args.means);
  v.sums = scratch.sums;
  v.counts = args.counts;
  v.dtype = args.x.dtype;
  v.rows = args.x.count;
  v.width = args.width;
  v.stride = args.x.stride;
  v.classes = args.classes;
  v.chunks = plan.chunks;
  v.sections = plan.sections;
  v.lanes = plan.lanes;
  return v;
}

}  // namespace

// Runs of column tiles, so that every processor has work, and every run the same number of tiles.
int64_t gram_parts(int64_t rows, const Device& device) {
  const int64_t tiles = std::max<int64_t>(1, ceil_div(rows, kGramTile));
  const int64_t wanted = ceil_div(2 * device.processors, tiles);
  const int64_t parts = std::clamp<int64_t>(wanted, 1, std::min(kMostParts, tiles));
  return ceil_div(tiles, ceil_div(tiles, parts));
}

size_t gram_workspace(const GramArgs& args, const Device& device) {
  Workspace counter(nullptr);
  GramScratch(args, gram_parts(args.x.count, device), counter);
  return counter.used();
}

cudaError_t gram_loss(const GramArgs& args, const Device& device, void* memory,
                      cudaStream_t stream) {
  const int64_t rows = args.x.count;
  if (rows == 0) {
    return args.reduction == Reduction::kNone ? cudaSuccess : zero(args.value, 4, stream);
  }
  const int64_t parts = gram_parts(rows, device);
  if (ceil_div(rows, kGramTile) * parts > INT32_MAX || rows > INT32_MAX) {
    return cudaErrorInvalidValue;
  }
  Workspace workspace(memory);
  const GramScratch scratch(args, parts, workspace);
  run_unit_rows(unit_of(args.x, args.width, args.center, scratch.unit, scratch.inverse), stream);
  if (scratch.target != nullptr) {
    run_unit_rows(unit_of(args.vectors, args.vectors_width, args.center, scratch.target,
                          scratch.target_inverse),
                  stream);
  }
  const GramView view = view_of(args, scratch, parts);
  run_gram_tiles(view, stream);
  if (view.pulls != nullptr) run_gram_project(view, stream);
  if (view.value != nullptr) run_gram_value(view, stream);
  return cudaGetLastError();
}

// Sections so that every processor has work, if each thread then has its rows of an average class.
MeansPlan plan_means(const ClassMeansArgs& args, const Device& device) {
  MeansPlan plan{};
  const int64_t vector = args.x.dtype == DType::kFloat32 ? 4 : 8;
  plan.wide = args.width % vector == 0 && args.x.stride % vector == 0 && aligned(args.x.data);
  const int64_t vectors = plan.wide ? args.width / vector : args.width;
  plan.lanes = 1;
  while (plan.lanes < kMeansLanes && plan.lanes < vectors) plan.lanes *= 2;
  plan.chunks = std::max<int64_t>(ceil_div(vectors, plan.lanes), 1);
  const int64_t wanted =
      ceil_div(int64_t{device.processors} * kMeansWave, args.classes * plan.chunks);
  const int64_t least = int64_t{kMeansThreads} / plan.lanes * kMeansRows;
  const int64_t rows = args.width > 0 ? args.x.count : 0;
  const int64_t most = std::min(rows / (args.classes * least), kMostSections);
  plan.sections = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(most, 1));
  return plan;
}

size_t means_workspace(const ClassMeansArgs& args, const Device& device) {
  if (args.x.count == 0) return 0;
  Workspace counter(nullptr);
  MeansScratch(args, plan_means(args, device), counter);
  return counter.used();
}

cudaError_t class_means(const ClassMeansArgs& args, const Device& device, void* memory,
                        cudaStream_t stream) {
  if (args.x.count == 0) {
    const cudaError_t error = zero(args.means, args.classes * args.width * 4, stream);
    return error != cudaSuccess ? error : zero(args.counts, args.classes * 8, stream);
  }
  const MeansPlan plan = plan_means(args, device);
  const bool fits = args.x.count <= INT32_MAX && args.classes <= INT32_MAX / 2;
  if (!fits || plan.sections * args.classes * plan.chunks > INT32_MAX) return cudaErrorInvalidValue;
  Workspace workspace(memory);
  const MeansScratch scratch(args, plan, workspace);
  sort_labels(scratch.sort, stream);
  run_class_means(view_of(args, plan, scratch), plan.wide, stream);
  return cudaGetLastError();
}

cudaError_t class_means_backward(const ClassMeansGradArgs& args, cudaStream_t stream) {
  if (args.rows * args.width == 0) return cudaSuccess;
  if (args.rows > INT32_MAX) return cudaErrorInvalidValue;
  run_means_spread(args, stream);
  return cudaGetLastError();
}

}  // namespace bll::cuda
