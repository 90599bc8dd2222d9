// The doors of the optimiser steps: tensors cut into chunks, and those into launches.
#include "cuda/optim.h"

#include <algorithm>

#include "cuda/launch.h"

namespace bll::cuda {
namespace {

bool aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

OptimView view_of(const OptimTensor* tensors, int count, const OptimArgs& args) {
  OptimView v{};
  v.count = count;
  v.kind = args.kind;
  v.lr = static_cast<float>(args.lr);
  v.eps = static_cast<float>(args.eps);
  v.weight_decay = static_cast<float>(args.weight_decay);
  v.beta1 = args.beta1;
  v.beta2 = args.beta2;
  v.rate = args.rate;
  v.inverse_scale = args.inverse_scale;
  v.steps = args.steps;
  v.found = args.found;
  v.ticket = args.ticket;
  for (int i = 0; i < count; ++i) {
    const OptimTensor& t = tensors[i];
    v.tensors[i] = t;
    v.starts[i + 1] = v.starts[i] + static_cast<uint32_t>(ceil_div(t.size, kOptimChunk));
    const bool wide =
        aligned(t.parameter) && aligned(t.gradient) && aligned(t.first) && aligned(t.second);
    if (wide) v.wide |= uint64_t{1} << i;
  }
  return v;
}

template <class Run>
cudaError_t each_launch(const OptimTensor* tensors, int count, const OptimArgs& args, Run&& run) {
  for (int first = 0; first < count; first += kOptimTensors) {
    OptimArgs part = args;
    if (args.steps != nullptr) part.steps = args.steps + first;
    run(view_of(tensors + first, std::min(kOptimTensors, count - first), part));
  }
  return cudaGetLastError();
}

}  // namespace

cudaError_t optim_check(const OptimTensor* tensors, int count, const OptimArgs& args,
                        cudaStream_t stream) {
  return each_launch(tensors, count, args, [&](const OptimView& view) {
    if (view.starts[view.count] > 0) run_optim_check(view, stream);
  });
}

cudaError_t optim_update(const OptimTensor* tensors, int count, const OptimArgs& args,
                         cudaStream_t stream) {
  return each_launch(tensors, count, args, [&](const OptimView& view) {
    // Empty tensors have steps to count too.
    if (view.starts[view.count] > 0 || view.steps != nullptr) run_optim_update(view, stream);
  });
}

}  // namespace bll::cuda
