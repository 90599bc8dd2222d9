// A class loss on a map pooled to means, in one kernel: what it is given, and its launchers.
#pragma once

#include "cuda/classes.h"
#include "cuda/pool.h"

namespace bll::cuda {

inline constexpr int kPooledThreads = 512;
inline constexpr int kPooledLatents = 8192;  // cells of an image: what its block can keep

// Whether one kernel pools, scores and writes the gradient of the map.
bool serves_pooled(const ClassArgs& args, const PoolArgs& pool);

// As class_loss with kBoth, on `map` instead of `args.a`, whose data is not read; `grad_cells`
// [images, channels, grid, grid], float32, is written instead of the gradient of the map where it
// is given.
struct PooledMap {
  PoolArgs pool;
  float* grad_cells;
};
size_t pooled_workspace(const ClassArgs& args, const PooledMap& map, const Device& device);
cudaError_t pooled_class_loss(const ClassArgs& args, const PooledMap& map, const Device& device,
                              void* workspace, cudaStream_t stream);

// How the threads of a block are shared out over an image.
struct PooledPlan {
  bool divides;     // no pixel belongs to two cells
  bool wide_table;  // 16 bytes of the table at once
  int access;       // bytes of the map at once
  int lanes;        // channels first: threads that share a cell; last: along the channels
  int parts;        // channels last: warps that share a cell's pixels
  int cell_height, cell_width;  // of the largest cell
};
PooledPlan plan_pooled(const ClassArgs& args, const PoolArgs& pool);

// Kernel argument.
struct PooledView {
  ClassView rows;     // `a` and `grad_a` are the map and its gradient
  float* latents;     // the pooled map, where sums over rows follow
  float* grad_cells;  // see PooledMap
  PooledPlan plan;
  int channels, height, width, grid;
};

void run_pooled_planes(const FamilyArgs& family, const PooledView& view, cudaStream_t stream);
void run_pooled_pixels(const FamilyArgs& family, const PooledView& view, cudaStream_t stream);

}  // namespace bll::cuda
