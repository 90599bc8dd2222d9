// The CPU kernels' door: raw pointers, sizes and strides in, nothing of torch. csrc/torch and
// csrc/numpy call only what is declared here.
#pragma once

#include <cstdint>

#include "families/list.h"
#include "losses/loss.h"

namespace bll::cpu {

// kFloat8 (e4m3fn) is a type of PairArgs::next alone.
enum class DType : int { kFloat64, kFloat32, kBFloat16, kFloat16, kFloat8 };
using bll::Loss;
enum class Reduction : int { kNone, kSum, kBatchMean };
enum class Pool : int { kMean, kMax, kStd };

struct FamilyArgs {
  FamilyId id;
  int64_t group;  // categorical: latents per group, > 0; ignored by the others
  double tau;     // gaussian-precision: precision of the message; ignored by the others
  double tilt;    // power beta is raised to
};

// `count` rows of latents with unit inner stride, counted in elements. Row i starts at
// offsets[i] if offsets is given, else at i * stride. Families with two parameters per latent
// keep the second plane `plane_stride` elements behind the first.
struct Rows {
  const void* data;
  DType dtype;
  int64_t count;
  int64_t stride;
  int64_t plane_stride;
  const int64_t* offsets;
};

// Runs body(begin, end, context) over [0, size) in pieces of at least `grain`.
using ParallelFor = void (*)(int64_t size, int64_t grain,
                             void (*body)(int64_t begin, int64_t end, void* context),
                             void* context);

// Losses between one row of `a` and one row of `b` (docs/method.md). Accumulate type: double for
// kFloat64 inputs, else float; `weight`, `grad` and `value` have that type.
struct PairArgs {
  FamilyArgs family;
  Loss loss;
  Reduction reduction;
  int64_t width;  // latents per row
  Rows a;
  Rows b;                 // dense: b.count == a.count and labels == nullptr; else a class table
  const int64_t* labels;  // row of the table for each row of a, already range-checked
  const void* weight;     // [a.count] or nullptr
  const void* grad;       // upstream gradient: [a.count] for kNone, [1] else; nullptr means 1
  void* value;            // [a.count] for kNone, [1] else; nullptr: not wanted
  void* grad_a;           // contiguous, dtype of a, shape of a; nullptr: not wanted
  void* grad_b;           // contiguous, dtype of b, shape of b; nullptr: not wanted
  // The next block's input, (1 - next_mix) mu(alpha) + next_mix mu(rho): contiguous
  // [a.count, width]; nullptr: not wanted. kFloat64 beside kFloat64 inputs only.
  void* next;
  DType next_dtype;
  double next_mix;  // in [0, 1]
};
void pair_loss(const PairArgs& args, ParallelFor parallel_for);

// -log softmax_c(s_c)_y with s_c = log E_alpha[beta_c] (docs/method.md).
struct ClassArgs {
  FamilyArgs family;
  Reduction reduction;
  bool normalize_message;
  int64_t width;
  Rows a;
  Rows table;             // count = classes
  const int64_t* labels;  // forward only
  const void* bias;       // [classes] or nullptr, forward only
  const void* weight;     // [a.count] or nullptr, forward only
  void* value;            // forward: [a.count] for kNone, [1] else
  void* residual;         // [a.count, classes]; forward writes, backward reads
  const void* grad;       // backward: [a.count] for kNone, [1] else; nullptr means 1
  void* grad_a;           // backward outputs, nullptr: not wanted
  void* grad_table;
  void* grad_bias;  // accumulate type, [classes]
};
void class_loss_forward(const ClassArgs& args, ParallelFor parallel_for);
void class_loss_backward(const ClassArgs& args, ParallelFor parallel_for);

// A g x g grid of pooled cells per channel, cells as in adaptive average pooling.
struct PoolArgs {
  Pool kind;
  int64_t batch, channels, height, width, grid;
  bool channels_last;
  DType dtype;  // of the map and its gradient
  const void* map;
  void* pooled;             // forward: accumulate type, [batch, channels, grid, grid]
  const void* grad_pooled;  // backward: accumulate type
  void* grad_map;           // backward: dtype and layout of the map
};
void grid_pool_forward(const PoolArgs& args, ParallelFor parallel_for);
void grid_pool_backward(const PoolArgs& args, ParallelFor parallel_for);

// Rows [rows, channels, cells] with every channel at mean 0 and variance 1 over rows and cells, as
// batch normalisation does (docs/method.md section 3), and the gradient to what they were made of.
// At least one value to each channel.
struct StandardizeArgs {
  DType dtype;  // kFloat64 or kFloat32, of everything
  int64_t rows, channels, cells;
  double eps;               // forward: added to the variance
  const void* x;            // forward
  const void* grad;         // backward: gradient of what the forward pass wrote,
  const void* standard;     // that itself,
  const void* known_scale;  // and its scale
  void* out;                // forward: the standardised rows; backward: the gradient of x
  void* scale;              // forward: [channels], what x - mean was multiplied by
};
void standardize_forward(const StandardizeArgs& args, ParallelFor parallel_for);
void standardize_backward(const StandardizeArgs& args, ParallelFor parallel_for);

// Mean over j of (S_ij - T_ij)^2 for every row i, S the cosine Gram matrix of the rows of x
// (docs/method.md). T is `same` for equal labels and `other` for different ones where labels are
// given, and the Gram matrix of `vectors` where those are.
struct GramArgs {
  Reduction reduction;
  bool center;
  double same, other;
  int64_t width;          // of x
  int64_t vectors_width;  // of vectors
  Rows x;
  Rows vectors;           // data == nullptr: none
  const int64_t* labels;  // [x.count] or nullptr
  const void* weight;     // [x.count] or nullptr
  const void* grad;       // upstream gradient: [x.count] for kNone, [1] else; nullptr means 1
  void* value;            // [x.count] for kNone, [1] else; nullptr: not wanted
  void* grad_x;           // contiguous, dtype of x; nullptr: not wanted
};
void gram_loss(const GramArgs& args, ParallelFor parallel_for);

// Means of the rows of every class, zeros for a class without rows.
struct ClassMeansArgs {
  int64_t classes, width;
  Rows x;
  const int64_t* labels;  // [x.count], already range-checked
  void* means;            // accumulate type, [classes, width]
  int64_t* counts;        // [classes]
};
void class_means(const ClassMeansArgs& args, ParallelFor parallel_for);

// The gradient to the rows, in the accumulate type: that of the row's class divided by its count.
struct ClassMeansGradArgs {
  int64_t classes, width, rows;
  DType dtype;  // kFloat64 or kFloat32, of grad and grad_x
  const void* grad;
  const int64_t* labels;
  const int64_t* counts;
  void* grad_x;
};
void class_means_backward(const ClassMeansGradArgs& args, ParallelFor parallel_for);

// Instruction sets of this build that the processor can run, best last ("portable", "avx2",
// "avx512"); the kernels use the best unless select_isa names another (tests do).
int isa_count();
const char* isa_name(int index);
bool select_isa(const char* name);  // false: unknown or unsupported here
const char* selected_isa();

}  // namespace bll::cpu
