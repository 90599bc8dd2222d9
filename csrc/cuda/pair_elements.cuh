// The kernels of families whose latents are independent: value and gradients in one pass.
#pragma once

#include "cuda/access.h"
#include "cuda/block.h"
#include "cuda/pair.h"
#include "losses/pair.h"

namespace bll::cuda {

// The part of one unit that one thread has.
struct Place {
  int64_t row, column;
  bool inside;
};

__device__ __forceinline__ Place place_of(const PairView& v, uint32_t unit, int count) {
  uint32_t block = unit, chunk = 0;
  if (v.rows == 1) {
    block = 0, chunk = unit;
  } else if (v.chunks > 1) {
    block = unit / v.chunks, chunk = unit - block * v.chunks;
  }
  const int lane = threadIdx.x & (v.lanes - 1);
  Place place;
  place.row = int64_t{block} * v.unit_rows + threadIdx.x / v.lanes;
  place.column = int64_t{chunk} * v.unit_columns + lane * count;
  place.inside = unit < v.units && place.row < v.rows && place.column < v.width;
  return place;
}

// The row of b, or -1 where the label names none.
__device__ __forceinline__ int64_t message_row(const PairView& v, int64_t row) {
  if (v.labels == nullptr) return row;
  const int64_t label = __ldg(v.labels + row);
  return label >= 0 && label < v.classes ? label : -1;
}

__device__ __forceinline__ float row_weight(const PairView& v, int64_t row) {
  return v.weight != nullptr ? __ldg(v.weight + row) : 1.0f;
}

__device__ __forceinline__ float row_grad(const PairView& v, int64_t row) {
  return v.grad != nullptr ? v.scale * __ldg(v.grad + row * v.grad_stride) : v.scale;
}

// Raw latents of one place and what multiplies them.
template <class Access, int planes>
struct Item {
  typename Access::Raw a[planes], b[planes];
  float weight, factor;

  __device__ __forceinline__ void load(const PairView& v, const Place& place) {
    const int64_t b_row = message_row(v, place.row);
#pragma unroll
    for (int p = 0; p < planes; ++p) {
      a[p] = Access::load(v.a, v.a_dtype, place.row * v.a_row + p * v.a_plane + place.column);
      b[p] = b_row < 0
                 ? Access::nan()
                 : Access::load(v.b, v.b_dtype, b_row * v.b_row + p * v.b_plane + place.column);
    }
    weight = row_weight(v, place.row);
    factor = weight * row_grad(v, place.row);
  }
};

// The sum of the latents' losses; stores the gradients that are wanted.
template <class Family, Loss L, class Access>
__device__ __forceinline__ float finish(const Family& family, const PairView& v, const Place& place,
                                        const Item<Access, Family::kPlanes>& item) {
  constexpr int planes = Family::kPlanes, count = Access::kCount;
  float a[planes][count], b[planes][count];
#pragma unroll
  for (int p = 0; p < planes; ++p) {
    Access::unpack(item.a[p], v.a_dtype, a[p]);
    Access::unpack(item.b[p], v.b_dtype, b[p]);
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    float one_a[planes], one_b[planes];
#pragma unroll
    for (int p = 0; p < planes; ++p) one_a[p] = a[p][i], one_b[p] = b[p][i];
    const PairTerms<float, planes> terms = pair_terms<L>(family, one_a, one_b);
    sum += terms.value;
#pragma unroll
    for (int p = 0; p < planes; ++p) {
      a[p][i] = item.factor * terms.a[p];
      b[p][i] = item.factor * terms.b[p];
    }
  }
  const int64_t at = place.row * planes * v.width + place.column;
#pragma unroll
  for (int p = 0; p < planes; ++p) {
    if (v.grad_a != nullptr) Access::store(v.grad_a, v.a_dtype, at + p * v.width, a[p]);
    if (kReachesMessage<L> && v.grad_b != nullptr) {
      Access::store(v.grad_b, v.b_dtype, at + p * v.width, b[p]);
    }
  }
  return sum;
}

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
      item.load(v, place);
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
#pragma unroll
    for (int u = 0; u < items; ++u) {
      places[u] = place_of(v, first + u, count);
      if (places[u].inside) loaded[u].load(v, places[u]);
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

// Gradient of a class table. A block owns a class, a run of columns and a section of the class's
// rows; its threads along a column take every so many rows, and are added up in order.
template <class Family, Loss L, class Access>
__global__ void __launch_bounds__(kThreads) pair_table(const Family family, const TableView t) {
  constexpr int planes = Family::kPlanes, count = Access::kCount;
  constexpr int batch = kItems<count, planes>;
  BLL_SHARED(float, shared, kThreads * planes * count);
  const PairView& v = t.pair;
  const uint32_t chunk = blockIdx.x % t.chunks, owner = blockIdx.x / t.chunks;
  const int64_t label = owner % v.classes, section = owner / v.classes;
  const int lane = threadIdx.x & (t.lanes - 1), slot = threadIdx.x / t.lanes;
  const int slots = kThreads / t.lanes;
  const int64_t column = int64_t{chunk} * t.unit_columns + lane * count;
  const int64_t first = t.start[label], last = t.start[label + 1];
  const int64_t share = ceil_div(last - first, t.sections);
  const int64_t begin = first + section * share;
  const int64_t end = begin + share < last ? begin + share : last;

  float sums[planes][count];
#pragma unroll
  for (int p = 0; p < planes; ++p) {
#pragma unroll
    for (int i = 0; i < count; ++i) sums[p][i] = 0;
  }
  if (column < v.width) {
    float b[planes][count];
#pragma unroll
    for (int p = 0; p < planes; ++p) {
      const int64_t at = label * v.b_row + p * v.b_plane + column;
      Access::unpack(Access::load(v.b, v.b_dtype, at), v.b_dtype, b[p]);
    }
    for (int64_t start = begin + slot; start < end; start += int64_t{slots} * batch) {
      int64_t rows[batch];
      typename Access::Raw raw[batch][planes];
#pragma unroll
      for (int u = 0; u < batch; ++u) {
        const int64_t at = start + int64_t{u} * slots;
        rows[u] = at < end ? t.order[at] : -1;
      }
#pragma unroll
      for (int u = 0; u < batch; ++u) {
#pragma unroll
        for (int p = 0; p < planes; ++p) {
          if (rows[u] >= 0) {
            const int64_t at = rows[u] * v.a_row + p * v.a_plane + column;
            raw[u][p] = Access::load(v.a, v.a_dtype, at);
          }
        }
      }
#pragma unroll
      for (int u = 0; u < batch; ++u) {
        if (rows[u] < 0) continue;
        const float factor = row_weight(v, rows[u]) * row_grad(v, rows[u]);
        float a[planes][count];
#pragma unroll
        for (int p = 0; p < planes; ++p) Access::unpack(raw[u][p], v.a_dtype, a[p]);
#pragma unroll
        for (int i = 0; i < count; ++i) {
          float one_a[planes], one_b[planes];
#pragma unroll
          for (int p = 0; p < planes; ++p) one_a[p] = a[p][i], one_b[p] = b[p][i];
          const PairTerms<float, planes> terms = pair_terms<L>(family, one_a, one_b);
#pragma unroll
          for (int p = 0; p < planes; ++p) sums[p][i] += factor * terms.b[p];
        }
      }
    }
  }
#pragma unroll
  for (int p = 0; p < planes; ++p) {
#pragma unroll
    for (int i = 0; i < count; ++i) shared[(p * count + i) * kThreads + threadIdx.x] = sums[p][i];
  }
  __syncthreads();
  if (slot > 0 || column >= v.width) return;
#pragma unroll
  for (int p = 0; p < planes; ++p) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      for (int s = 1; s < slots; ++s) {
        sums[p][i] += shared[(p * count + i) * kThreads + s * t.lanes + lane];
      }
    }
    const int64_t at = ((section * v.classes + label) * planes + p) * v.width + column;
    Access::store(t.out, t.out_dtype, at, sums[p]);
  }
}

template <template <class> class Family, Loss L, class Access>
void launch_elements(const FamilyArgs& args, const PairView& view, int blocks,
                     cudaStream_t stream) {
  const Family<float> family(args.tau, args.tilt);
  BLL_LAUNCH((pair_elements<Family<float>, L, Access>), blocks, kThreads, stream, family, view);
}

template <template <class> class Family, Loss L, class Access>
void launch_table(const FamilyArgs& args, const TableView& view, int64_t blocks,
                  cudaStream_t stream) {
  if constexpr (reaches_message(L)) {
    const Family<float> family(args.tau, args.tilt);
    BLL_LAUNCH((pair_table<Family<float>, L, Access>), static_cast<unsigned>(blocks), kThreads,
               stream, family, view);
  }
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
