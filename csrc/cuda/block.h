// Sums over threads in a fixed order: the same bits for the same inputs.
#pragma once

#include "cuda/launch.h"

namespace bll::cuda {

// Sum over runs of `lanes` neighbouring threads of a warp (a power of two up to 32); every thread
// gets its run's. All threads of the warp take part.
__device__ __forceinline__ float warp_sum(float x, int lanes = kWarp) {
  for (int step = 1; step < lanes; step *= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

// Sum over a block; thread 0 gets it. `warps` is shared memory for one float per warp.
__device__ __forceinline__ float block_sum(float x, float* warps) {
  const int warp = threadIdx.x / kWarp, count = blockDim.x / kWarp;
  x = warp_sum(x);
  if (threadIdx.x % kWarp == 0) warps[warp] = x;
  __syncthreads();
  float sum = 0;
  if (threadIdx.x == 0) {
    for (int i = 0; i < count; ++i) sum += warps[i];
  }
  return sum;
}

}  // namespace bll::cuda
