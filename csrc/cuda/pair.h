// What the element kernels of the pair losses are given, and the launchers that every family's
// .cu provides from pair_elements.cuh.
#pragma once

#include <cstdint>

#include "cuda/api.h"
#include "cuda/pair_plan.h"
#include "losses/next.h"

namespace bll::cuda {

// Independent loads of every operand that a thread has in flight: units it takes at a time.
constexpr int items_per_thread(int count, int planes) { return (count == 8 ? 2 : 4) / planes; }
// The same as constants, which device code may read without further compiler flags.
template <int count, int planes>
inline constexpr int kItems = items_per_thread(count, planes);
template <Loss L>
inline constexpr bool kReachesMessage = reaches_message(L);

// Kernel argument: everything but the family.
struct PairView {
  const void* a;
  const void* b;
  const int64_t* labels;  // row of b for each row of a, or nullptr
  const float* weight;    // one per row, or nullptr
  const float* grad;      // `grad_stride` apart, or nullptr
  float* value;           // one partial per block, or [rows, chunks]
  void* grad_a;           // contiguous
  void* grad_b;           // contiguous; dense messages only
  DType a_dtype, b_dtype;
  int64_t rows, width, classes, tail;
  int64_t a_row, a_plane, b_row, b_plane;
  int64_t grad_stride;  // 0: one for all rows
  float scale;          // of the gradients
  float value_scale;    // of the value, where no second stage follows
  bool per_row;
  uint32_t units, chunks;
  int lanes, unit_rows, unit_columns;
  void* next;  // the next block's input, contiguous [rows, width], or nullptr
  DType next_dtype;
  NextMix<float> mix;
};

// How the gradient of a class table is shared out: a block owns a class, a run of columns and a
// section of the class's rows.
struct TableShare {
  const int32_t* order;  // rows sorted by label
  const int32_t* start;  // [classes + 2]: of the classes, of the rows that have none
  void* out;             // [sections, classes, planes, width]
  DType out_dtype;
  int64_t sections;
  uint32_t chunks;  // runs of columns
};

// Kernel argument of the table gradient: rows of one class after the other.
struct TableView {
  PairView pair;  // b is the table
  TableShare share;
  int lanes, unit_columns;
};

// The launchers of one family. `wide`: 16-byte accesses.
struct PairLaunchers {
  void (*elements)(const FamilyArgs& family, Loss loss, bool wide, const PairView& view, int blocks,
                   cudaStream_t stream);
  void (*table)(const FamilyArgs& family, Loss loss, bool wide, const TableView& view,
                int64_t blocks, cudaStream_t stream);
};

extern const PairLaunchers kBernoulliLaunchers;
extern const PairLaunchers kGaussianLaunchers;
extern const PairLaunchers kGaussianPrecisionLaunchers;
extern const PairLaunchers kGaussianDiagonalLaunchers;

}  // namespace bll::cuda
