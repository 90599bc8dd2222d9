// What the two passes of the class loss share: the problem in the compute type, and the loops every
// instruction set provides for it.
//
// A pass over latents works on a block: rows [row_begin, row_end) times latents
// [begin, begin + size). Its coefficients d loss / d s_ic lie row by row, classes apart.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/api.h"
#include "cpu/buffer.h"
#include "cpu/isa.h"
#include "cpu/tile.h"

namespace bll::cpu {

template <class Real>
struct ClassProblem {
  const ClassArgs& args;
  int64_t classes, width, planes;
  const Real* table;  // rows of `table_stride`, planes `table_plane` apart
  int64_t table_stride, table_plane;
  Buffer<Real> converted;  // the table, where it is of a half type

  // Gaussian families: s_ic = scale * a_i.b_c + offset_c, offset_c = square * |b_c|^2 + bias_c.
  double scale = 0, square = 0;

  // Bernoulli: expm1 and exp of the (tilted) messages, rows of `width`, and how many factors of a
  // likelihood ratio can be multiplied before their product could leave the range of Real.
  Buffer<Real> expm1_table, exp_table;
  int64_t factors = 0;
  bool small_messages = false;  // |b| <= 1: ratios minus one are multiplied instead

  explicit ClassProblem(const ClassArgs& class_args)
      : args(class_args),
        classes(class_args.table.count),
        width(class_args.width),
        planes(family_planes(class_args.family.id)) {}
};

struct LatentBlock {
  int64_t row_begin, row_end;
  int64_t begin, size;
};

inline int64_t row_start(const Rows& rows, int64_t row) {
  return rows.offsets ? rows.offsets[row] : row * rows.stride;
}

// Latents of a tile of logits; rows and classes are added up in it in Real, between tiles in
// double.
inline constexpr int64_t kLogitTile = 512;
// Rows whose logits are computed together, and at most by products with the table: the more, the
// less often the table is read.
inline constexpr int64_t kLogitRows = 16;
inline int64_t linear_rows(int64_t classes) {
  return std::clamp(32768 / classes / 32 * 32, 2 * kLogitRows, 8 * kLogitRows);
}
// Latents of a gradient's panel.
inline constexpr int64_t kPanelStep = 64;

template <class Real>
struct ClassKernels {
  // logits [row_end - row_begin, classes] = scale * a.b, without the offsets.
  void (*linear_logits)(const ClassProblem<Real>& problem, int64_t row_begin, int64_t row_end,
                        double* logits);
  // Each writes the block's part of grad_a and, unless null, of table_sums [classes, width]: the
  // sums over the block's rows of coefficient * a, or of coefficient * d s / d b.
  void (*linear_gradients)(const ClassProblem<Real>& problem, const LatentBlock& block,
                           const Real* coefficients, Real* table_sums);
  // Fills row `row` of the tables of exponentials.
  void (*bernoulli_row)(ClassProblem<Real>& problem, int64_t row);
  void (*bernoulli_logits)(const ClassProblem<Real>& problem, int64_t row_begin, int64_t row_end,
                           double* logits);
  void (*bernoulli_gradients)(const ClassProblem<Real>& problem, const LatentBlock& block,
                              const Real* coefficients, Real* table_sums);
  // sum of x * y
  double (*dot)(const Real* x, const Real* y, int64_t size);
  // x = e^(logit - shift), returned with their sum over the classes other than `label`.
  double (*exponentials)(const double* logits, double shift, int64_t label, Real* x,
                         int64_t classes);
};

template <class Real>
const ClassKernels<Real>& class_kernels();

// Any family, one pair of rows at a time.
// Latents these take at once: whole groups.
template <class Real>
int64_t generic_tile(const ClassProblem<Real>& problem) {
  if (problem.args.family.id != FamilyId::kCategorical) return kTileSize;
  const int64_t group = problem.args.family.group;
  return std::max(kTileSize / group, int64_t{1}) * group;
}

template <class Real>
void generic_logits(const ClassProblem<Real>& problem, int64_t row_begin, int64_t row_end,
                    double* logits);
template <class Real>
void generic_gradients(const ClassProblem<Real>& problem, const LatentBlock& block,
                       const Real* coefficients, Real* table_sums);
// A(b) - A(0) of a class's (tilted) message.
template <class Real>
double message_log_norm(const ClassProblem<Real>& problem, int64_t row);

}  // namespace bll::cpu
