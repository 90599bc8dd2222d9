// Standardised channels: what their kernels are given, their launch table and their doors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/api.h"

namespace bll::cuda {

using cpu::StandardizeArgs;

// As the CPU doors, with pointers to device memory and nothing in float64; see cuda/api.h.
size_t standardize_workspace(const StandardizeArgs& args, const Device& device);
cudaError_t standardize_forward(const StandardizeArgs& args, const Device& device, void* workspace,
                                cudaStream_t stream);
cudaError_t standardize_backward(const StandardizeArgs& args, const Device& device, void* workspace,
                                 cudaStream_t stream);

inline constexpr int kStandardizeThreads = 512;
// Numbers that a block reads without another one sharing its channels.
inline constexpr int64_t kStandardizeValues = 65536;
inline constexpr int64_t kStandardizeSections = 64;
inline constexpr int64_t kStandardizeState = 12;

// A block has some channels of some rows. Where blocks share channels, a first launch gathers what
// each section of the rows says of them and a second one applies it; else one launch does both.
struct StandardizePlan {
  int64_t group;     // channels of a block: as many as fit the lanes of a warp, or one
  int64_t sections;  // of the rows
  int64_t blocks;
};
StandardizePlan plan_standardize(const StandardizeArgs& args, const Device& device);

// Kernel argument.
struct StandardizeView {
  const float *x, *standard;  // forward: what is standardised, nullptr; backward: gradient, rows
  const float* known_scale;   // backward
  float* scale;               // forward
  float* out;
  void* partial;  // [sections, channels], kStandardizeState bytes each; nullptr: one launch
  int64_t rows, channels, cells, group, section_rows;
  int sections;
  float eps;
  bool applies;  // the second of two launches
};
void run_standardize(const StandardizeView& view, int64_t blocks, cudaStream_t stream);

}  // namespace bll::cuda
