// The doors and the launch table of standardised channels.
#include "cuda/standardize.h"

#include <algorithm>

#include "cuda/launch.h"
#include "cuda/workspace.h"

namespace bll::cuda {
namespace {

// Blocks of every multiprocessor, where there is work for them.
constexpr int64_t kOccupancy = 2;

int64_t partial_bytes(const StandardizeArgs& args, const StandardizePlan& plan) {
  return plan.sections * args.channels * kStandardizeState;
}

cudaError_t run(const StandardizeArgs& args, StandardizeView view, const Device& device,
                void* memory, cudaStream_t stream) {
  const StandardizePlan plan = plan_standardize(args, device);
  if (plan.blocks == 0) return cudaSuccess;
  if (plan.blocks > INT32_MAX) return cudaErrorInvalidValue;
  view.out = static_cast<float*>(args.out);
  view.rows = args.rows;
  view.channels = args.channels;
  view.cells = args.cells;
  view.group = plan.group;
  view.sections = static_cast<int>(plan.sections);
  view.section_rows = ceil_div(args.rows, plan.sections);
  if (plan.sections == 1) {
    run_standardize(view, plan.blocks, stream);
    return cudaGetLastError();
  }
  Workspace workspace(memory);
  view.partial = workspace.take<char>(partial_bytes(args, plan));
  run_standardize(view, plan.blocks, stream);
  view.applies = true;
  run_standardize(view, plan.blocks, stream);
  return cudaGetLastError();
}

}  // namespace

StandardizePlan plan_standardize(const StandardizeArgs& args, const Device& device) {
  StandardizePlan plan{};
  if (args.rows * args.channels * args.cells == 0) return plan;
  plan.group = std::max<int64_t>(kWarp / args.cells, 1);
  const int64_t groups = ceil_div(args.channels, plan.group);
  const int64_t values = args.rows * std::min(plan.group, args.channels) * args.cells;
  plan.sections = 1;
  if (values > kStandardizeValues) {
    plan.sections = std::min({ceil_div(kOccupancy * device.processors, groups),
                              ceil_div(values, kStandardizeValues / 2), kStandardizeSections});
    // Every section has rows.
    plan.sections = ceil_div(args.rows, ceil_div(args.rows, plan.sections));
  }
  plan.blocks = groups * plan.sections;
  return plan;
}

size_t standardize_workspace(const StandardizeArgs& args, const Device& device) {
  const StandardizePlan plan = plan_standardize(args, device);
  Workspace counter(nullptr);
  if (plan.sections > 1) counter.take<char>(partial_bytes(args, plan));
  return counter.used();
}

cudaError_t standardize_forward(const StandardizeArgs& args, const Device& device, void* memory,
                                cudaStream_t stream) {
  StandardizeView view{};
  view.x = static_cast<const float*>(args.x);
  view.scale = static_cast<float*>(args.scale);
  view.eps = static_cast<float>(args.eps);
  return run(args, view, device, memory, stream);
}

cudaError_t standardize_backward(const StandardizeArgs& args, const Device& device, void* memory,
                                 cudaStream_t stream) {
  StandardizeView view{};
  view.x = static_cast<const float*>(args.grad);
  view.standard = static_cast<const float*>(args.standard);
  view.known_scale = static_cast<const float*>(args.known_scale);
  return run(args, view, device, memory, stream);
}

}  // namespace bll::cuda
