// Second stages: fixed-order sums of what the blocks of a first stage left.
#pragma once

#include <cstdint>

#include "cuda/api.h"

namespace bll::cuda {

// out[0] = scale * sum of `count` partials.
void sum_all(const float* partials, int64_t count, float scale, float* out, cudaStream_t stream);

// out[row] = sum of partials[row, 0..count).
void sum_rows(const float* partials, int64_t rows, int64_t count, float* out, cudaStream_t stream);

// out[i] = sum over s of partials[s, i], i < size; `out` has any dtype but float64.
void sum_sections(const float* partials, int64_t sections, int64_t size, void* out, DType dtype,
                  cudaStream_t stream);

}  // namespace bll::cuda
