// The cells of a pooled map: where they lie, what is gathered of one, and what a pixel gets back.
#pragma once

#include "cuda/access.h"
#include "cuda/block.h"
#include "cuda/pool.h"

namespace bll::cuda {

// Positions along one axis; cells overlap where the grid does not divide the size.
struct Span {
  int begin, end;

  __device__ __forceinline__ int size() const { return end - begin; }
};

__device__ __forceinline__ Span cell_span(int cell, int size, int grid) {
  return {cell * size / grid, ((cell + 1) * size + grid - 1) / grid};
}

// The cells that hold a position.
__device__ __forceinline__ Span cells_at(int position, int size, int grid) {
  return {position * grid / size, ((position + 1) * grid + size - 1) / size};
}

// What is known of a cell from some of its pixels; all zero of none. Without constructors, so that
// shared memory can hold it. `at` counts the cell's pixels row by row.
template <Pool kind>
struct Gathered;

template <>
struct Gathered<Pool::kMean> {
  float sum;

  __device__ __forceinline__ void add(float x, int) { sum += x; }
  __device__ __forceinline__ void merge(const Gathered& other) { sum += other.sum; }
  __device__ __forceinline__ Gathered from_lane(int step) const {
    return {__shfl_xor_sync(kAllLanes, sum, step)};
  }
  __device__ __forceinline__ float result(int pixels) const {
    return sum / static_cast<float>(pixels);
  }
};

// The first of equal maxima; the first NaN, if there is one.
template <>
struct Gathered<Pool::kMax> {
  float best;
  int place;  // from 1 on

  __device__ __forceinline__ void add(float x, int at) { merge({x, at + 1}); }
  __device__ __forceinline__ void merge(const Gathered& other) {
    const bool nan = best != best, other_nan = other.best != other.best;
    const bool level = nan ? other_nan : best == other.best;
    const bool above = level ? other.place < place : !nan && !(other.best < best);
    if (other.place > 0 && (place == 0 || above)) *this = other;
  }
  __device__ __forceinline__ Gathered from_lane(int step) const {
    const float x = __shfl_xor_sync(kAllLanes, best, step);
    return {x, __shfl_xor_sync(kAllLanes, place, step)};
  }
  __device__ __forceinline__ float result(int) const { return best; }
};

// Running moments of x - shift, where `shift` is the first pixel seen: one read, no difference of
// large sums, and none at all of equal pixels.
template <>
struct Gathered<Pool::kStd> {
  float count, shift, mean, squares;

  __device__ __forceinline__ void add(float x, int) {
    if (count == 0) shift = x;
    count += 1;
    const float gap = x - shift - mean;
    mean += gap / count;
    squares += gap * (x - shift - mean);
  }
  __device__ __forceinline__ void merge(const Gathered& other) {
    if (other.count == 0) return;
    if (count == 0) {
      *this = other;
      return;
    }
    const float total = count + other.count, share = other.count / total;
    const float gap = (other.shift - shift) + (other.mean - mean);
    mean += gap * share;
    squares += other.squares + gap * gap * (count * share);
    count = total;
  }
  __device__ __forceinline__ Gathered from_lane(int step) const {
    Gathered other;
    other.count = __shfl_xor_sync(kAllLanes, count, step);
    other.shift = __shfl_xor_sync(kAllLanes, shift, step);
    other.mean = __shfl_xor_sync(kAllLanes, mean, step);
    other.squares = __shfl_xor_sync(kAllLanes, squares, step);
    return other;
  }
  __device__ __forceinline__ float result(int pixels) const {
    return pixels > 1 ? sqrtf(squares / static_cast<float>(pixels - 1)) : squares;
  }
};

// What a lane has and what the one `step` away has; the lower lane's pixels come first, so that
// both round alike.
template <Pool kind>
__device__ __forceinline__ void merge_lane(Gathered<kind>& own, int step) {
  Gathered<kind> other = own.from_lane(step);
  if (threadIdx.x & step) {
    other.merge(own);
    own = other;
  } else {
    own.merge(other);
  }
}

// Every lane of a run of `lanes` gets what the run has.
template <Pool kind>
__device__ __forceinline__ void merge_lanes(Gathered<kind>& own, int lanes) {
  for (int step = 1; step < lanes; step *= 2) merge_lane(own, step);
}

// Stores a cell's result, or what its gradient needs.
template <Pool kind>
__device__ __forceinline__ void store_cell(const PoolView& v, int64_t at, int pixels,
                                           const Gathered<kind>& own) {
  const float result = own.result(pixels);
  if (v.pooled != nullptr) {
    v.pooled[at] = result;
    BLL_COUNT_STORED(4);
  } else if constexpr (kind == Pool::kMax) {
    v.place[at] = own.place - 1;
  } else if constexpr (kind == Pool::kStd) {
    const float others = static_cast<float>(pixels - 1) * result;
    v.shift[at] = own.shift;
    v.centre[at] = own.mean;
    v.slope[at] = pixels == 1 || others == 0 ? 0.0f : v.grad[at] / others;
  }
}

// The gradient of one pixel `x` of a plane whose first cell is `first`.
template <Pool kind>
__device__ __forceinline__ float pixel_gradient(const PoolView& v, int64_t first, int h, int w,
                                                float x) {
  const Span rows = cells_at(h, v.height, v.grid), columns = cells_at(w, v.width, v.grid);
  float sum = 0;
  for (int i = rows.begin; i < rows.end; ++i) {
    const Span down = cell_span(i, v.height, v.grid);
    for (int j = columns.begin; j < columns.end; ++j) {
      const Span across = cell_span(j, v.width, v.grid);
      const int64_t at = first + i * v.grid + j;
      if constexpr (kind == Pool::kMean) {
        sum += v.grad[at] / static_cast<float>(down.size() * across.size());
      } else if constexpr (kind == Pool::kMax) {
        const int place = (h - down.begin) * across.size() + w - across.begin;
        sum += v.place[at] == place ? v.grad[at] : 0.0f;
      } else {
        sum += v.slope[at] != 0 ? v.slope[at] * (x - v.shift[at] - v.centre[at]) : 0.0f;
      }
    }
  }
  return sum;
}

// Calls function(kernel for the kind).
template <class Function>
void with_kind(Pool kind, Function&& function) {
  switch (kind) {
    case Pool::kMean:
      return function(std::integral_constant<Pool, Pool::kMean>());
    case Pool::kMax:
      return function(std::integral_constant<Pool, Pool::kMax>());
    case Pool::kStd:
      return function(std::integral_constant<Pool, Pool::kStd>());
  }
}

}  // namespace bll::cuda
