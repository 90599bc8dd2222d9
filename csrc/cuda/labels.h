// Rows sorted by label, in their order within a label, without atomics and without the host: what
// a reduction per class walks over.
#pragma once

#include <cstdint>

#include "cuda/api.h"

namespace bll::cuda {

// Rows are cut into `chunks` of `chunk_rows`, a multiple of kSortBlock. All arrays are int32.
struct LabelSort {
  int64_t rows, classes, chunks, chunk_rows;
  const int64_t* labels;  // those outside [0, classes) are left out
  int32_t* rank;          // [rows] scratch
  int32_t* counts;        // [classes, chunks] scratch
  int32_t* total;         // [classes] scratch
  int32_t* start;         // [classes + 1]: where each label begins in `order`
  int32_t* order;         // [rows]
};

inline constexpr int kSortBlock = 256;

void sort_labels(const LabelSort& sort, cudaStream_t stream);

}  // namespace bll::cuda
