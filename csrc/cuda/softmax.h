// Softmax cross-entropy of rows of scores, whatever their number of classes.
#pragma once

#include <cstdint>

#include "cuda/api.h"

namespace bll::cuda {

// Kernel argument. `slopes` may be `scores`.
struct SoftmaxRows {
  const float* scores;    // [rows, classes]
  const int64_t* labels;  // one outside the classes makes its row NaN
  const float* offset;    // [classes], added to the scores, or nullptr
  const float* weight;    // [rows] or nullptr
  float* losses;          // [rows]: weight * loss
  void* slopes;           // [rows, classes]: d losses / d scores
  DType slopes_dtype;
  int64_t rows, classes;
};

cudaError_t softmax_rows(const SoftmaxRows& args, cudaStream_t stream);

}  // namespace bll::cuda
