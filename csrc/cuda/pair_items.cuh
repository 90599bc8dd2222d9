// What the kernels of independent latents share: where a thread stands, what it loads, the terms of
// its latents.
#pragma once

#include "cuda/access.h"
#include "cuda/next.cuh"
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
__device__ __forceinline__ int64_t row_of_label(const PairView& v, int64_t label) {
  return label >= 0 && label < v.classes ? label : -1;
}

__device__ __forceinline__ int64_t message_row(const PairView& v, int64_t row) {
  return v.labels != nullptr ? row_of_label(v, __ldg(v.labels + row)) : row;
}

__device__ __forceinline__ float row_weight(const PairView& v, int64_t row) {
  return v.weight != nullptr ? __ldg(v.weight + row) : 1.0f;
}

// Before the scale.
__device__ __forceinline__ float raw_grad(const PairView& v, int64_t row) {
  return v.grad != nullptr ? __ldg(v.grad + row * v.grad_stride) : 1.0f;
}

__device__ __forceinline__ float row_grad(const PairView& v, int64_t row) {
  return v.scale * raw_grad(v, row);
}

// The rows of b that all items meet: their labels arrive together, ahead of all latents.
template <int items>
__device__ __forceinline__ void message_rows(const PairView& v, const Place (&places)[items],
                                             int64_t (&rows)[items]) {
#pragma unroll
  for (int u = 0; u < items; ++u) rows[u] = places[u].row;
  if (v.labels == nullptr) return;
#pragma unroll
  for (int u = 0; u < items; ++u) {
    if (places[u].inside) rows[u] = __ldg(v.labels + rows[u]);
  }
#pragma unroll
  for (int u = 0; u < items; ++u) rows[u] = row_of_label(v, rows[u]);
}

// Raw latents of one place and what multiplies them, as loaded: no item waits for its own before
// the others' have set out.
template <class Access, int planes>
struct Item {
  typename Access::Raw a[planes], b[planes];
  float weight, grad;

  __device__ __forceinline__ void load(const PairView& v, const Place& place, int64_t b_row) {
    weight = row_weight(v, place.row);
    grad = raw_grad(v, place.row);
#pragma unroll
    for (int p = 0; p < planes; ++p) {
      a[p] = Access::load(v.a, v.a_dtype, place.row * v.a_row + p * v.a_plane + place.column);
      b[p] = b_row < 0
                 ? Access::nan()
                 : Access::load(v.b, v.b_dtype, b_row * v.b_row + p * v.b_plane + place.column);
    }
  }

  __device__ __forceinline__ float factor(const PairView& v) const {
    return weight * (v.scale * grad);
  }
};

template <class Family, int planes, int count>
__device__ __forceinline__ void store_next(const Family& family, const PairView& v, int64_t at,
                                           const float (&a)[planes][count],
                                           const float (&b)[planes][count]) {
  float means[count];
#pragma unroll
  for (int i = 0; i < count; ++i) {
    float one_a[planes], one_b[planes];
#pragma unroll
    for (int p = 0; p < planes; ++p) one_a[p] = a[p][i], one_b[p] = b[p][i];
    means[i] = next_mean(family, v.mix, one_a, one_b);
  }
  store_means(v.next, v.next_dtype, at, means);
}

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
  // Ahead of the gradients, which take the place of the latents.
  if (v.next != nullptr) store_next(family, v, place.row * v.width + place.column, a, b);
  const float factor = item.factor(v);
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
      a[p][i] = factor * terms.a[p];
      b[p][i] = factor * terms.b[p];
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

}  // namespace bll::cuda
