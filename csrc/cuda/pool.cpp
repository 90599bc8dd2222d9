// The door and the launch table of grid pooling.
#include "cuda/pool.h"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/workspace.h"

namespace bll::cuda {
namespace {

// Pixels of a cell from which on a whole block shares it.
constexpr int64_t kBlockCell = 2048;
// Pixels that a block has at least, where there are several planes to take.
constexpr int64_t kBlockPixels = 4096;
// What threads spend on a cell beside its pixels, and where several warps meet, as pixels.
constexpr int64_t kCellCost = 4, kMeetCost = 4;

int64_t div_up(int64_t x, int64_t y) { return (x + y - 1) / y; }

int power_of_two(int64_t x, int64_t most) {
  int power = 1;
  while (power < x && power < most) power *= 2;
  return power;
}

// Runs of lanes that share a cell, channels last: as many as cost a block's threads the least time
// over all cells. Many cells of few pixels go to one run each, which merges nothing.
int choose_sharers(int64_t cells, int64_t pixels, int lanes) {
  const int slots = kPoolThreads / lanes, of_warp = kWarp / lanes;
  int best = 1;
  int64_t least = INT64_MAX;
  for (int sharers = 1, steps = 0; sharers <= slots; sharers *= 2, steps += sharers <= of_warp) {
    const int64_t merging = steps + (sharers > of_warp ? kMeetCost : 0);
    const int64_t turn = kCellCost + div_up(pixels, sharers) + merging;
    const int64_t cost = div_up(cells, slots / sharers) * turn;
    if (cost < least) least = cost, best = sharers;
  }
  return best;
}

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

struct Scratch {
  float *shift = nullptr, *centre = nullptr, *slope = nullptr;
  int32_t* place = nullptr;

  Scratch(const PoolArgs& args, Workspace& workspace) {
    const int64_t cells = args.batch * args.channels * args.grid * args.grid;
    if (args.kind == Pool::kMax) place = workspace.take<int32_t>(cells);
    if (args.kind != Pool::kStd) return;
    shift = workspace.take<float>(cells);
    centre = workspace.take<float>(cells);
    slope = workspace.take<float>(cells);
  }
};

bool too_large(const PoolArgs& args) {
  const int64_t side = std::max(args.height, args.width) + 1;
  return args.height * args.width > INT32_MAX / 2 || args.grid > 1024 ||
         side > INT32_MAX / (args.grid + 1);
}

cudaError_t run(const PoolArgs& args, PoolView view, cudaStream_t stream) {
  const PoolPlan plan = plan_pool(args);
  if (plan.blocks == 0) return cudaSuccess;
  if (too_large(args) || plan.blocks > INT32_MAX) return cudaErrorInvalidValue;
  view.map = args.map;
  view.dtype = args.dtype;
  view.images = args.batch;
  view.channels = args.channels;
  view.planes = args.batch * args.channels;
  view.height = static_cast<int>(args.height);
  view.width = static_cast<int>(args.width);
  view.grid = static_cast<int>(args.grid);
  view.lanes = plan.lanes;
  view.sharers = plan.sharers;
  view.block_planes = plan.planes;
  const auto launch = args.channels_last ? run_pool_pixels : run_pool_planes;
  launch(args.kind, plan.count > 1, view, plan.blocks, stream);
  return cudaGetLastError();
}

}  // namespace

PoolPlan plan_pool(const PoolArgs& args) {
  PoolPlan plan{};
  const int64_t planes = args.batch * args.channels, pixels = args.height * args.width;
  const int vector = args.dtype == DType::kFloat32 ? 4 : 8;
  const bool at_vectors = aligned(args.map) && aligned(args.grad_map);
  if (planes == 0 || pixels == 0) return plan;
  const int64_t cell = div_up(args.height, args.grid) * div_up(args.width, args.grid);
  if (args.channels_last) {
    plan.count = at_vectors && args.channels % vector == 0 ? vector : 1;
    plan.lanes = power_of_two(div_up(args.channels, plan.count), kChannelLanes);
    plan.sharers = choose_sharers(args.grid * args.grid, cell, plan.lanes);
    plan.planes = plan.lanes * plan.count;
    plan.blocks = args.batch * div_up(args.channels, plan.planes);
    return plan;
  }
  plan.lanes = cell >= kBlockCell ? kPoolThreads : power_of_two(cell, kWarp);
  // A multiple of a vector's pixels in every block, so that its first one is aligned.
  plan.planes = static_cast<int>(std::clamp<int64_t>(kBlockPixels / pixels / 8 * 8, 1, 256));
  const bool whole = planes * pixels % vector == 0 && plan.planes * pixels % vector == 0;
  plan.count = at_vectors && whole ? vector : 1;
  plan.blocks = div_up(planes, plan.planes);
  return plan;
}

size_t pool_workspace(const PoolArgs& args) {
  Workspace counter(nullptr);
  if (args.grad_map != nullptr) Scratch(args, counter);
  return counter.used();
}

cudaError_t grid_pool_forward(const PoolArgs& args, cudaStream_t stream) {
  PoolView view{};
  view.pooled = static_cast<float*>(args.pooled);
  return run(args, view, stream);
}

cudaError_t grid_pool_backward(const PoolArgs& args, void* memory, cudaStream_t stream) {
  Workspace workspace(memory);
  const Scratch scratch(args, workspace);
  PoolView view{};
  view.grad = static_cast<const float*>(args.grad_pooled);
  view.grad_map = args.grad_map;
  view.shift = scratch.shift;
  view.centre = scratch.centre;
  view.slope = scratch.slope;
  view.place = scratch.place;
  return run(args, view, stream);
}

}  // namespace bll::cuda
