// The CUDA kernels' door: raw device pointers, sizes and strides in, and a stream. The arguments
// are those of the CPU kernels; what is asked of them beyond that is said here.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "cpu/api.h"

namespace bll::cuda {

using bll::Loss;
using cpu::DType;
using cpu::FamilyArgs;
using cpu::PairArgs;
using cpu::Reduction;
using cpu::Rows;

inline constexpr int kClusterSizes = 3;  // of clusters: 2, 4 and 8 blocks

// What launch tables ask of a device.
struct Device {
  int processors;      // streaming multiprocessors
  int cluster = 1;     // blocks that one cluster may have; 1 where there are none
  int64_t shared = 0;  // bytes of shared memory that a block may ask for
  // Clusters by size that run at once where a multiprocessor has one block of a long group, and
  // where it has two. Fewer than the multiprocessors suggest: a cluster lies within a GPC.
  int clusters[2][kClusterSizes] = {};
};

// Pointers are device pointers. Rows have no offsets. Nothing is float64. A label outside the
// table makes its row's value and gradient NaN and touches no memory: nothing reads labels on the
// host. Work is queued on `stream` and nothing waits; `workspace` has pair_workspace() bytes,
// aligned to 16, which may be reused by later work on the same stream.
size_t pair_workspace(const PairArgs& args, const Device& device);
cudaError_t pair_loss(const PairArgs& args, const Device& device, void* workspace,
                      cudaStream_t stream);

}  // namespace bll::cuda
