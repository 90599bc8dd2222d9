// Steps of one block's parameters, many tensors to a launch.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/api.h"

namespace bll::cuda {

inline constexpr int kOptimTensors = 64;  // of one launch: what fits a kernel's arguments

// One parameter, its gradient and its state, all of one dtype and layout, without gaps.
struct OptimTensor {
  void* parameter;
  const void* gradient;
  void *first, *second;  // moments, or the momentum in `first`; nullptr where there are none
  int64_t size;
  DType dtype;
};

enum class OptimKind : int { kAdam, kAdamW, kSgd, kNesterov };

// Numbers of a step. Device memory: `rate` (instead of lr, if given), `steps` (one per tensor),
// `ticket` (zero between launches), `inverse_scale` and `found` (both or neither). Where found[0]
// is not 0, nothing is written.
struct OptimArgs {
  OptimKind kind;
  double lr, beta1, beta2, eps, weight_decay;  // beta1: of the momentum too
  const float* rate;
  float* steps;
  uint32_t* ticket;
  const float* inverse_scale;
  float* found;
};

// Sets found[0] to 1 where a gradient is not finite: one launch per kOptimTensors. A block is then
// updated by one more per kOptimTensors. Nothing waits.
cudaError_t optim_check(const OptimTensor* tensors, int count, const OptimArgs& args,
                        cudaStream_t stream);
cudaError_t optim_update(const OptimTensor* tensors, int count, const OptimArgs& args,
                         cudaStream_t stream);

// Kernel argument: a tensor's elements are the work of blocks starts[i] to starts[i + 1] - 1.
struct OptimView {
  OptimTensor tensors[kOptimTensors];
  uint32_t starts[kOptimTensors + 1];
  uint64_t wide;  // a bit per tensor: 16 bytes at once
  int count;
  OptimKind kind;
  float lr, eps, weight_decay;
  double beta1, beta2;
  const float *rate, *inverse_scale;
  float *steps, *found;
  uint32_t* ticket;
};
inline constexpr int kOptimThreads = 256;
inline constexpr int64_t kOptimChunk = 8192;  // elements of a block

void run_optim_check(const OptimView& view, cudaStream_t stream);
void run_optim_update(const OptimView& view, cudaStream_t stream);

}  // namespace bll::cuda
