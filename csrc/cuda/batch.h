// Losses and sums over the rows of a batch: the Gram loss and class means. What their kernels are
// given, and their doors.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/api.h"
#include "cuda/labels.h"

namespace bll::cuda {

using cpu::ClassMeansArgs;
using cpu::ClassMeansGradArgs;
using cpu::GramArgs;

// As the CPU doors, with pointers to device memory and nothing in float64; see cuda/api.h.
size_t gram_workspace(const GramArgs& args, const Device& device);
cudaError_t gram_loss(const GramArgs& args, const Device& device, void* workspace,
                      cudaStream_t stream);

// Labels outside the classes make every mean NaN, and their own row's gradient.
size_t means_workspace(const ClassMeansArgs& args, const Device& device);
cudaError_t class_means(const ClassMeansArgs& args, const Device& device, void* workspace,
                        cudaStream_t stream);
cudaError_t class_means_backward(const ClassMeansGradArgs& args, cudaStream_t stream);

inline constexpr int kGramThreads = 256;
inline constexpr int kGramTile = 64;  // rows of a tile, and columns
inline constexpr int kGramStep = 32;  // latents staged at once

// Rows divided by their norms, padded with zeros to whole vectors of four; inverse norms.
struct UnitRows {
  const void* rows;
  float *unit, *inverse;
  DType dtype;
  int64_t count, width, stride, padded;
  bool center;
};

// Kernel argument. Tiles of S - T are summed over the columns of `parts` runs of tiles.
struct GramView {
  const float *unit, *inverse, *target;  // target: nullptr, or unit rows of the vectors
  const int64_t* labels;                 // or nullptr
  const float *weight, *grad;            // or nullptr
  float* values;                         // [parts, rows]: sums of squared gaps
  float* pulls;                          // [parts, rows, padded], or nullptr
  float* value;
  void* grad_x;
  DType dtype;  // of grad_x
  int64_t rows, width, padded, target_padded, parts, part_tiles;
  float same, other, scale;  // scale: 1 / rows for the mean over rows, else 1
  bool per_row;
};

int64_t gram_parts(int64_t rows, const Device& device);
void run_unit_rows(const UnitRows& rows, cudaStream_t stream);
void run_gram_tiles(const GramView& view, cudaStream_t stream);
void run_gram_project(const GramView& view, cudaStream_t stream);
void run_gram_value(const GramView& view, cudaStream_t stream);

inline constexpr int kMeansThreads = 256;
inline constexpr int kMeansRows = 8;  // that a thread has in flight

// How the means of the classes are shared out: a block has a section of the rows of a class, and
// one of `chunks` runs of columns.
struct MeansPlan {
  bool wide;
  int lanes;  // threads along the columns
  int64_t chunks, sections;
};

MeansPlan plan_means(const ClassMeansArgs& args, const Device& device);

// Kernel argument of the class means.
struct MeansView {
  const void* x;
  const int32_t *order, *start;  // rows sorted by label, see cuda/labels.h
  float* means;
  float* sums;  // [sections, classes, width]; nullptr: one section, whose sums are all
  int64_t* counts;
  DType dtype;
  int64_t rows, width, stride, classes, chunks, sections;
  int lanes;
};
void run_class_means(const MeansView& view, bool wide, cudaStream_t stream);
void run_means_spread(const ClassMeansGradArgs& args, cudaStream_t stream);

}  // namespace bll::cuda
