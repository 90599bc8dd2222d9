// Losses normalised over classes: what their kernels are given, their launch table and their door.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/api.h"

namespace bll::cuda {

using cpu::ClassArgs;

// As the CPU door, with pointers to device memory and nothing in float64; see cuda/api.h. A label
// outside the table makes its row's value and residual NaN. Served: gaussian, gaussian-precision
// and bernoulli, up to kMostClasses.
bool serves_classes(const ClassArgs& args);

// What is asked of a call: the value, which writes the residual, or gradients from a residual, or
// both in one go, which leaves `residual` alone.
enum class ClassPass : int { kValue, kGradients, kBoth };

size_t class_workspace(const ClassArgs& args, ClassPass pass, const Device& device);
cudaError_t class_loss(const ClassArgs& args, ClassPass pass, const Device& device, void* workspace,
                       cudaStream_t stream);

inline constexpr int kMostClasses = 1024;
inline constexpr int kClassThreads = 256;
inline constexpr int kClassBlocks = 2;  // that fit a multiprocessor at once

struct ClassPlan {
  bool wide;
  bool many_rows;  // several rows per block
  int64_t row_blocks;
  int table_lanes;  // threads along the columns of a table tile
  int64_t table_chunks, table_tiles, sections, section_rows;
  bool value_stage, table_stage;  // whether sums of blocks follow
};

// Kernel argument of the rows: scores, their softmax, the gradient to a.
struct ClassView {
  const void* a;
  const void* table;
  const int64_t* labels;
  const float* bias;
  const float* weight;
  const float* grad;  // `grad_stride` apart, or nullptr
  float* residual;    // read where `labels` is nullptr; else written, if given
  float* value;       // one per row, or one partial per block
  void* grad_a;
  DType a_dtype, table_dtype;
  int64_t rows, width, a_row, table_row, grad_stride;
  int classes;
  float scale;        // of the residual
  float value_scale;  // of a block's value, where no second stage follows
  bool per_row;
  bool normalize;
};

// Kernel argument of the gradients that are sums over rows.
struct ClassTableView {
  ClassView rows;  // `residual` is read
  void* table;     // [sections, classes, width], or nullptr
  float* bias;     // [sections, classes], or nullptr
  DType dtype;     // of `table`
  int64_t sections, section_rows;
  int lanes;
  uint32_t chunks, tiles;
};

// Kernel argument of the second stage: sums of what blocks and sections left, each if given.
struct ClassSums {
  const float *values, *tables, *biases;
  float* value;
  void* table;
  float* bias;
  DType dtype;
  int64_t blocks, sections, size;
  int classes;
  float scale;
};

// The launchers of a kind of score.
struct ClassLaunchers {
  int most_rows[2];   // rows of a block that has several: of vectors of 4, of 8
  int table_latents;  // accumulators of a thread in the table kernel
  void (*rows)(const FamilyArgs& family, const ClassPlan& plan, const ClassView& view,
               cudaStream_t stream);
  void (*table)(const FamilyArgs& family, const ClassPlan& plan, const ClassTableView& view,
                cudaStream_t stream);
};
extern const ClassLaunchers kLinearClasses;
extern const ClassLaunchers kBernoulliClasses;

void sum_classes(const ClassSums& sums, cudaStream_t stream);

ClassPlan plan_classes(const ClassArgs& args, const Device& device);

}  // namespace bll::cuda
