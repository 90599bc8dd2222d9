// Class losses where something is infinite or NaN: sums of the definition's whole terms, in place
// of those whose terms were made apart and may have met as inf - inf. Slow, and never taken
// otherwise.
#pragma once

#include "cuda/access.h"
#include "cuda/block.h"
#include "cuda/classes.h"

namespace bll::cuda {

__device__ __forceinline__ float latent_at(const ClassView& v, int64_t row, int64_t column) {
  return Single::value(v.a, v.a_dtype, row * v.a_row + column);
}
__device__ __forceinline__ float message_at(const ClassView& v, int64_t label, int64_t column) {
  return Single::value(v.table, v.table_dtype, label * v.table_row + column);
}

// The derivative to a score of a row, from the residual and the upstream gradient.
__device__ __forceinline__ float coefficient_at(const ClassView& v, int64_t row, int label) {
  const float residual = __ldg(v.residual + row * v.classes + label);
  return v.grad == nullptr ? residual : residual * __ldg(v.grad + row * v.grad_stride);
}

// A score, by all lanes of a warp, which all get it; latent(j) gives the row's latents.
template <class Family, class Latent>
__device__ __forceinline__ float whole_score(const Family& family, const ClassView& v, int label,
                                             Latent&& latent) {
  float sum = 0;
  for (int64_t j = threadIdx.x % kWarp; j < v.width; j += kWarp) {
    sum += family.whole_score(latent(j), message_at(v, label, j));
  }
  return warp_sum(sum);
}

// The gradient to a latent; the row's coefficients are R apart.
template <int R, class Family>
__device__ __forceinline__ float whole_gradient(const Family& family, const ClassView& v, float a,
                                                int64_t column, const float* coefficients) {
  float sum = 0;
  for (int c = 0; c < v.classes && sum == sum; ++c) {
    sum += coefficients[c * R] * family.whole_slope(a, message_at(v, c, column));
  }
  return sum;
}

// The part of rows from `begin` to `end` in the gradient to a message's latent.
template <class Family>
__device__ __forceinline__ float whole_table_gradient(const Family& family, const ClassView& v,
                                                      int label, int64_t column, int64_t begin,
                                                      int64_t end) {
  const float b = message_at(v, label, column);
  float sum = 0;
  for (int64_t row = begin; row < end && sum == sum; ++row) {
    const float slope = family.whole_message_slope(latent_at(v, row, column), b);
    sum += coefficient_at(v, row, label) * slope;
  }
  return sum;
}

}  // namespace bll::cuda
