// Grid pooling: what its kernels are given, their launch table and their door.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/api.h"

namespace bll::cuda {

using cpu::Pool;
using cpu::PoolArgs;

// As the CPU door, with pointers to device memory and nothing in float64; see cuda/api.h.
size_t pool_workspace(const PoolArgs& args);
cudaError_t grid_pool_forward(const PoolArgs& args, cudaStream_t stream);
cudaError_t grid_pool_backward(const PoolArgs& args, void* workspace, cudaStream_t stream);

inline constexpr int kPoolThreads = 256;
// Most threads along the channels, where they are last: 128 bytes with vector accesses.
inline constexpr int kChannelLanes = 8;

// A block pools `planes` planes (one image's pixels of one channel), and may then spread their
// gradient. Channels first: `lanes` threads share a cell. Channels last: `lanes` threads lie along
// the channels, `count` channels each; `sharers` such runs share a cell, and the others take other
// cells.
struct PoolPlan {
  int count;  // pixels (channels first) or channels (last) of one access where gradients spread
  int lanes;
  int sharers;  // channels last, a power of two
  int planes;
  int64_t blocks;
};

PoolPlan plan_pool(const PoolArgs& args);

// Kernel argument.
struct PoolView {
  const void* map;
  float* pooled;          // forward: [planes, grid, grid]
  const float* grad;      // backward: the same shape
  void* grad_map;         // backward: in the map's dtype and layout
  float *shift, *centre;  // backward of std: the mean of every cell is their sum
  float* slope;           // backward of std: what multiplies x - shift - centre
  int32_t* place;         // backward of max: position of the first maximum in its cell
  DType dtype;
  int64_t images, channels, planes;
  int height, width, grid;
  int lanes, sharers, block_planes;
};

void run_pool_planes(Pool kind, bool wide, const PoolView& view, int64_t blocks,
                     cudaStream_t stream);
void run_pool_pixels(Pool kind, bool wide, const PoolView& view, int64_t blocks,
                     cudaStream_t stream);

}  // namespace bll::cuda
