// Rows sorted by label, in their order within a label, without atomics and without the host: what
// a reduction per class walks over.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cuda/api.h"
#include "cuda/workspace.h"

namespace bll::cuda {

// Rows are cut into `chunks` of `chunk_rows`, a multiple of kSortBlock. All arrays are int32.
// Labels outside [0, classes) count as one more class, the last.
struct LabelSort {
  int64_t rows, classes, chunks, chunk_rows;
  const int64_t* labels;
  int32_t* rank;    // [rows] scratch
  int32_t* counts;  // [classes + 1, chunks] scratch
  int32_t* total;   // [classes + 1] scratch
  int32_t* start;   // [classes + 2]: where each label begins in `order`
  int32_t* order;   // [rows]

  void take(Workspace& workspace) {
    rank = workspace.take<int32_t>(rows);
    counts = workspace.take<int32_t>((classes + 1) * chunks);
    total = workspace.take<int32_t>(classes + 1);
    start = workspace.take<int32_t>(classes + 2);
    order = workspace.take<int32_t>(rows);
  }
};

inline constexpr int kSortBlock = 256;
inline constexpr int kScanBlock = 1024;  // most threads that scan the classes
// Entries of the table of counts that more chunks would exceed.
inline constexpr int64_t kMostCounts = 1 << 22;

// The least rows of a chunk; more where there are many classes, so that chunks are fewer.
inline int64_t sort_chunk_rows(int64_t rows, int64_t classes) {
  const int64_t blocks = std::max<int64_t>((rows + kSortBlock - 1) / kSortBlock, 1);
  const int64_t chunks = std::clamp<int64_t>(kMostCounts / (classes + 1), 1, blocks);
  return (blocks + chunks - 1) / chunks * kSortBlock;
}

void sort_labels(const LabelSort& sort, cudaStream_t stream);

}  // namespace bll::cuda
