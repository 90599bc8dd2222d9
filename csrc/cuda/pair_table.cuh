// The gradient of a class table, rows of one class after the other.
#pragma once

#include "cuda/pair_items.cuh"

namespace bll::cuda {

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
void launch_table(const FamilyArgs& args, const TableView& view, int64_t blocks,
                  cudaStream_t stream) {
  if constexpr (reaches_message(L)) {
    const Family<float> family(args.tau, args.tilt);
    BLL_LAUNCH((pair_table<Family<float>, L, Access>), static_cast<unsigned>(blocks), kThreads,
               stream, family, view);
  }
}

}  // namespace bll::cuda
