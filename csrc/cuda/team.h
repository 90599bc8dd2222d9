// Reductions over the threads that share a group of latents: a run of lanes of a warp, or the whole
// block. Every thread of the team gets the result, in the same order of operations every time.
#pragma once

#include "cuda/launch.h"

namespace bll::cuda {

struct Sum {
  __device__ __forceinline__ static float combine(float x, float y) { return x + y; }
};
struct Largest {
  __device__ __forceinline__ static float combine(float x, float y) { return x > y ? x : y; }
};

// `whole`: the team is the block of `block` threads; else `lanes` neighbouring threads of a warp.
// All threads of the block call reduce() together.
template <int block, bool whole>
class Team {
 public:
  static constexpr int kShared = whole ? 3 * block / kWarp : 1;  // floats of shared memory

  __device__ __forceinline__ Team(float* shared, int lanes)
      : shared_(shared), lanes_(whole ? kWarp : lanes) {}

  template <class Operation, int count>
  __device__ __forceinline__ void reduce(float (&x)[count]) const {
    static_assert(count <= 3);
#pragma unroll
    for (int k = 0; k < count; ++k) {
      for (int step = 1; step < lanes_; step *= 2) {
        x[k] = Operation::combine(x[k], __shfl_xor_sync(kAllLanes, x[k], step));
      }
    }
    if constexpr (whole) {
      constexpr int warps = block / kWarp;
      __syncthreads();
#pragma unroll
      for (int k = 0; k < count; ++k) {
        if (threadIdx.x % kWarp == 0) shared_[k * warps + threadIdx.x / kWarp] = x[k];
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < count; ++k) {
        x[k] = shared_[k * warps];
        for (int i = 1; i < warps; ++i) x[k] = Operation::combine(x[k], shared_[k * warps + i]);
      }
    }
  }

 private:
  float* shared_;
  int lanes_;
};

}  // namespace bll::cuda
