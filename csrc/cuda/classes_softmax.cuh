// What the lanes of a warp do together for a row: sums of many scores at once, and their softmax.
#pragma once

#include "core/special.h"
#include "cuda/block.h"
#include "cuda/classes.h"

namespace bll::cuda {

// Halves the sums a lane has and doubles the lanes they are of, down to one sum.
template <int half, int N>
__device__ __forceinline__ void fold_lanes(float (&x)[N]) {
  constexpr int step = half * kWarp / N;
  const bool upper = (threadIdx.x & step) != 0;
#pragma unroll
  for (int i = 0; i < half; ++i) {
    const float kept = upper ? x[i + half] : x[i], sent = upper ? x[i] : x[i + half];
    x[i] = kept + __shfl_xor_sync(kAllLanes, sent, step);
  }
  if constexpr (half > 1) fold_lanes<half / 2>(x);
}

// x[i] over all lanes, for N sums at once: the lane gets the sum number lane / (32 / N).
template <int N>
__device__ __forceinline__ float scattered_sum(float (&x)[N]) {
  if constexpr (N > 1) fold_lanes<N / 2>(x);
#pragma unroll
  for (int step = kWarp / N / 2; step >= 1; step /= 2) {
    x[0] += __shfl_xor_sync(kAllLanes, x[0], step);
  }
  return x[0];
}

// Adds the bias to a row's scores, R apart. Returns the largest, NaN if any is; `odd` says whether
// one of this lane's was not finite before. All lanes of one warp take part, here and below.
template <int R>
__device__ __forceinline__ float top_score(const ClassView& v, float* scores, bool& odd) {
  float top = -HUGE_VALF;
  for (int c = threadIdx.x % kWarp; c < v.classes; c += kWarp) {
    float& score = scores[c * R];
    odd |= score - score != 0;
    if (v.bias != nullptr) score += __ldg(v.bias + c);
    top = score > top || score != score ? score : top;
  }
  for (int step = 1; step < kWarp; step *= 2) {
    const float other = __shfl_xor_sync(kAllLanes, top, step);
    top = other > top || other != other ? other : top;
  }
  __syncwarp();
  return top;
}

// Turns scores with their bias into coefficients, which go to the residual too. Returns
// weight * loss.
template <int R>
__device__ __forceinline__ float softmax_below(const ClassView& v, int64_t row, float* scores,
                                               float top) {
  const int lane = threadIdx.x % kWarp, classes = v.classes;
  const int64_t label = __ldg(v.labels + row);
  const bool exists = label >= 0 && label < classes;
  const float own = exists ? scores[label * R] : bits_float(0x7fc00000u);
  __syncwarp();
  float others = 0;
  for (int c = lane; c < classes; c += kWarp) {
    float& score = scores[c * R];
    score = exp_any(score - top);
    if (c != label) others += score;
  }
  others = warp_sum(others);
  const float all = others + exp_any(own - top);
  const float weight = v.weight != nullptr ? __ldg(v.weight + row) : 1.0f;
  const float factor = v.scale * weight / all;
  for (int c = lane; c < classes; c += kWarp) {
    float& score = scores[c * R];
    score = factor * (c == label ? -others : score);
    if (v.residual == nullptr) continue;
    v.residual[row * classes + c] = score;
    BLL_COUNT_STORED(4);
  }
  float loss = own == top ? log1p_nonnegative(others) : (top - own) + log1p_nonnegative(all - 1);
  // No exponential says how far below an infinite score the label's is.
  if (top - top != 0) loss = top - own;
  return weight * loss;
}

// Both of them, of scores without their bias.
template <int R>
__device__ __forceinline__ float softmax_row(const ClassView& v, int64_t row, float* scores) {
  bool odd = false;
  const float top = top_score<R>(v, scores, odd);
  return softmax_below<R>(v, row, scores, top);
}

// The same, where score(c) makes a score again, in all lanes, if one of the row's is not finite.
template <int R, class Score>
__device__ __forceinline__ float softmax_row(const ClassView& v, int64_t row, float* scores,
                                             Score&& score) {
  bool odd = false;
  float top = top_score<R>(v, scores, odd);
  if (__any_sync(kAllLanes, odd)) {
    for (int c = 0; c < v.classes; ++c) {
      const float whole = score(c);
      if (threadIdx.x % kWarp == 0) scores[c * R] = whole;
    }
    __syncwarp();
    top = top_score<R>(v, scores, odd);
  }
  return softmax_below<R>(v, row, scores, top);
}

}  // namespace bll::cuda
