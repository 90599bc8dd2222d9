// Reductions over the threads that share a group of latents: a run of lanes of a warp, the whole
// block, or the blocks of a cluster. Every thread of the team gets the result, in the same order of
// operations every time.
#pragma once

#include "cuda/cluster.h"
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

// The blocks of a cluster, `block` threads each. All their threads call reduce() together, and
// leave() before a block ends: others may still read what it has.
template <int block>
class ClusterTeam {
  using Own = Team<block, true>;
  static constexpr int kSums = 3;

 public:
  static constexpr int kShared = Own::kShared + 2 * kSums + kSums * kClusterBlocks;

  __device__ __forceinline__ ClusterTeam(float* shared, int blocks)
      : own_(shared, kWarp),
        totals_(shared + Own::kShared),
        others_(totals_ + 2 * kSums),
        blocks_(blocks) {}

  template <class Operation, int count>
  __device__ __forceinline__ void reduce(float (&x)[count]) {
    own_.template reduce<Operation>(x);
    if (blocks_ == 1) return;
    // Two sets in turn: a block that is ahead never writes what another still reads.
    float* totals = totals_ + phase_ * kSums;
    phase_ ^= 1;
    const int at = static_cast<int>(threadIdx.x);
#pragma unroll
    for (int k = 0; k < count; ++k) {
      if (at == k) totals[k] = x[k];
    }
    BLL_CLUSTER_SYNC();
    if (at < count * blocks_) others_[at] = *BLL_OF_BLOCK(totals + at / blocks_, at % blocks_);
    __syncthreads();
#pragma unroll
    for (int k = 0; k < count; ++k) {
      x[k] = others_[k * blocks_];
      for (int i = 1; i < blocks_; ++i) {
        x[k] = Operation::combine(x[k], others_[k * blocks_ + i]);
      }
    }
  }

  __device__ __forceinline__ void leave() const {
    if (blocks_ > 1) BLL_CLUSTER_SYNC();
  }

 private:
  Own own_;
  float *totals_, *others_;
  int blocks_, phase_ = 0;
};

}  // namespace bll::cuda
