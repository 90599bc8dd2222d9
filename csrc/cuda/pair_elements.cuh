// The kernels of families whose latents are independent: value and gradients in one pass.
#pragma once

#include "cuda/block.h"
#include "cuda/pair_items.cuh"
#include "cuda/pair_table.cuh"

namespace bll::cuda {

// Values of the rows of a block's units, from every thread's share.
template <int items>
__device__ __forceinline__ void store_row_values(const PairView& v, uint32_t first,
                                                 const Place (&places)[items],
                                                 const float (&values)[items], float* warps) {
  const int along = v.lanes < kWarp ? v.lanes : kWarp;
  float sums[items];
#pragma unroll
  for (int u = 0; u < items; ++u) sums[u] = warp_sum(values[u], along);
  const int warps_of_row = v.lanes / along, warp = threadIdx.x / kWarp;
  if (warps_of_row > 1) {
#pragma unroll
    for (int u = 0; u < items; ++u) {
      if (threadIdx.x % kWarp == 0) warps[u * (kThreads / kWarp) + warp] = sums[u];
    }
    __syncthreads();
#pragma unroll
    for (int u = 0; u < items; ++u) {
      sums[u] = 0;
      for (int i = 0; i < warps_of_row; ++i) {
        sums[u] += warps[u * (kThreads / kWarp) + warp / warps_of_row * warps_of_row + i];
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int u = 0; u < items; ++u) {
    if (places[u].inside && (threadIdx.x & (v.lanes - 1)) == 0) {
      const uint32_t chunk = v.chunks > 1 ? (first + u) % v.chunks : 0;
      v.value[places[u].row * v.chunks + chunk] = sums[u];
    }
  }
}

// The latents of a flat run that fill no vector: fewer than a vector's, one per thread.
template <class Family, Loss L>
__device__ __forceinline__ float finish_tail(const Family& family, const PairView& v) {
  if constexpr (Family::kPlanes == 1) {
    if (blockIdx.x == 0 && threadIdx.x < v.tail) {
      const Place place{0, v.width + threadIdx.x, true};
      Item<Single, 1> item;
      item.load(v, place, place.row);  // a flat run has no labels
      return finish<Family, L, Single>(family, v, place, item);
    }
  }
  return 0;
}

template <class Family, Loss L, class Access>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    pair_elements(const Family family, const PairView v) {
  constexpr int planes = Family::kPlanes, count = Access::kCount;
  constexpr int items = kItems<count, planes>;
  BLL_SHARED(float, warps, items* kThreads / kWarp);
  float sum = 0;
  for (uint32_t first = blockIdx.x * items; first < v.units; first += gridDim.x * items) {
    Place places[items];
    Item<Access, planes> loaded[items];
    int64_t b_rows[items];
#pragma unroll
    for (int u = 0; u < items; ++u) places[u] = place_of(v, first + u, count);
    message_rows(v, places, b_rows);
#pragma unroll
    for (int u = 0; u < items; ++u) {
      if (places[u].inside) loaded[u].load(v, places[u], b_rows[u]);
    }
    float values[items];
#pragma unroll
    for (int u = 0; u < items; ++u) {
      values[u] = 0;
      if (places[u].inside) {
        const float value = finish<Family, L, Access>(family, v, places[u], loaded[u]);
        values[u] = loaded[u].weight * value;
      }
      sum += values[u];
    }
    if (v.value != nullptr && v.per_row) store_row_values(v, first, places, values, warps);
  }
  if (v.value != nullptr && !v.per_row) {
    if (count > 1) sum += finish_tail<Family, L>(family, v);
    sum = block_sum(sum, warps);
    if (threadIdx.x == 0) v.value[blockIdx.x] = v.value_scale * sum;
  } else if (count > 1 && v.tail > 0) {
    finish_tail<Family, L>(family, v);
  }
}

template <template <class> class Family, Loss L, class Access>
void launch_elements(const FamilyArgs& args, const PairView& view, int blocks,
                     cudaStream_t stream) {
  const Family<float> family(args.tau, args.tilt);
  BLL_LAUNCH((pair_elements<Family<float>, L, Access>), blocks, kThreads, stream, family, view);
}

template <template <class> class Family, Loss L>
struct OfLoss {
  static void elements(const FamilyArgs& family, bool wide, const PairView& view, int blocks,
                       cudaStream_t stream) {
    if (!wide) return launch_elements<Family, L, Single>(family, view, blocks, stream);
    switch (view.a_dtype) {
      case DType::kBFloat16:
        return launch_elements<Family, L, Wide<__nv_bfloat16>>(family, view, blocks, stream);
      case DType::kFloat16:
        return launch_elements<Family, L, Wide<__half>>(family, view, blocks, stream);
      default:
        return launch_elements<Family, L, Wide<float>>(family, view, blocks, stream);
    }
  }

  static void table(const FamilyArgs& family, bool wide, const TableView& view, int64_t blocks,
                    cudaStream_t stream) {
    if (!wide) return launch_table<Family, L, Single>(family, view, blocks, stream);
    switch (view.pair.a_dtype) {
      case DType::kBFloat16:
        return launch_table<Family, L, Wide<__nv_bfloat16>>(family, view, blocks, stream);
      case DType::kFloat16:
        return launch_table<Family, L, Wide<__half>>(family, view, blocks, stream);
      default:
        return launch_table<Family, L, Wide<float>>(family, view, blocks, stream);
    }
  }
};

// Calls function(OfLoss<Family, loss>).
template <template <class> class Family, class Function>
void with_loss(Loss loss, Function&& function) {
  switch (loss) {
    case Loss::kKl:
      return function(OfLoss<Family, Loss::kKl>());
    case Loss::kKlFull:
      return function(OfLoss<Family, Loss::kKlFull>());
    case Loss::kReverseKl:
      return function(OfLoss<Family, Loss::kReverseKl>());
    case Loss::kReverseKlFull:
      return function(OfLoss<Family, Loss::kReverseKlFull>());
    case Loss::kEvidence:
      return function(OfLoss<Family, Loss::kEvidence>());
  }
}

template <template <class> class Family>
void run_elements(const FamilyArgs& family, Loss loss, bool wide, const PairView& view, int blocks,
                  cudaStream_t stream) {
  with_loss<Family>(loss, [&](auto of) { of.elements(family, wide, view, blocks, stream); });
}

template <template <class> class Family>
void run_table(const FamilyArgs& family, Loss loss, bool wide, const TableView& view,
               int64_t blocks, cudaStream_t stream) {
  with_loss<Family>(loss, [&](auto of) { of.table(family, wide, view, blocks, stream); });
}

}  // namespace bll::cuda
