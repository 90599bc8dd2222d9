// -log softmax_c(s_c)_y of every row, and its derivative to s.
#include <cmath>
#include <vector>

#include "cpu/class_problem.h"

namespace bll::cpu {

namespace {

template <class Real>
std::vector<double> offsets(const ClassProblem<Real>& problem, ParallelFor parallel_for) {
  std::vector<double> out(problem.classes);
  const ClassKernels<Real>& kernels = class_kernels<Real>();
  const Real* bias = static_cast<const Real*>(problem.args.bias);
  const bool terms = needs_message_terms(problem);
  parallel(parallel_for, problem.classes, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double offset = 0;
      if (problem.square != 0) {
        const Real* b = problem.table + c * problem.table_stride;
        offset = problem.square * kernels.dot(b, b, problem.width);
      }
      if (terms) offset -= message_log_norm(problem, c);
      out[c] = offset + (bias ? static_cast<double>(bias[c]) : 0.0);
    }
  });
  return out;
}

// logsumexp - score where a score is infinite, which a softmax shifted by its maximum cannot say.
double infinite_loss(const double* scores, int64_t classes, int64_t label) {
  for (int64_t c = 0; c < classes; ++c) {
    if (std::isnan(scores[c])) return scores[c];
  }
  return HUGE_VAL - scores[label];
}

// Turns one row's scores into its loss and, in `residual`, factor * (p - onehot(label)), where
// p_label - 1 is minus the sum of the others.
template <class Real>
double finish_row(const ClassKernels<Real>& kernels, const double* scores, int64_t classes,
                  int64_t label, double factor, Real* residual) {
  double top = scores[0];
  for (int64_t c = 1; c < classes; ++c) top = scores[c] > top ? scores[c] : top;
  const double others = kernels.exponentials(scores, top, label, residual, classes);
  const double own = static_cast<double>(residual[label]);
  const double total = others + own;
  const Real scale = static_cast<Real>(factor / total);
  for (int64_t c = 0; c < classes; ++c) residual[c] *= scale;
  residual[label] = static_cast<Real>(-others * (factor / total));
  if (top == HUGE_VAL) return infinite_loss(scores, classes, label);
  return scores[label] == top ? std::log1p(others / own) : (top - scores[label]) + std::log(total);
}

// Scores of one row by the generic loops: products with infinite parameters are NaN where the
// log-partitions are not.
template <class Real>
void rescue_row(const ClassProblem<Real>& problem, int64_t row, double* scores) {
  const Real* bias = static_cast<const Real*>(problem.args.bias);
  const bool normalized = problem.args.normalize_message && is_natural(problem.args.family.id);
  generic_logits(problem, row, row + 1, scores);
  for (int64_t c = 0; c < problem.classes; ++c) {
    if (normalized) scores[c] -= message_log_norm(problem, c);
    if (bias) scores[c] += static_cast<double>(bias[c]);
  }
}

bool all_finite(const double* scores, int64_t classes) {
  for (int64_t c = 0; c < classes; ++c) {
    if (!std::isfinite(scores[c])) return false;
  }
  return true;
}

template <class Real>
void forward(const ClassArgs& args, ParallelFor parallel_for) {
  ClassProblem<Real> problem(args);
  const ClassPath path = prepare(problem, parallel_for);
  const ClassKernels<Real>& kernels = class_kernels<Real>();
  const auto logits = path == ClassPath::kLinear      ? kernels.linear_logits
                      : path == ClassPath::kBernoulli ? kernels.bernoulli_logits
                                                      : generic_logits<Real>;
  const std::vector<double> offset = offsets(problem, parallel_for);
  const int64_t rows = args.a.count, classes = problem.classes;
  const bool per_row = args.reduction == Reduction::kNone;
  const double mean = args.reduction == Reduction::kBatchMean && rows > 0 ? 1.0 / rows : 1.0;
  const Real* weight = static_cast<const Real*>(args.weight);
  std::vector<double> losses(rows);
  const int64_t blocks = (rows + kLogitRows - 1) / kLogitRows;
  const int64_t step = path == ClassPath::kLinear ? linear_rows(classes) : kLogitRows;
  parallel(parallel_for, blocks, 1, [&](int64_t begin, int64_t end) {
    const int64_t stop = std::min(end * kLogitRows, rows);
    std::vector<double> scores(std::min(step, stop - begin * kLogitRows) * classes);
    for (int64_t first = begin * kLogitRows; first < stop; first += step) {
      const int64_t last = std::min(first + step, stop);
      logits(problem, first, last, scores.data());
      for (int64_t i = first; i < last; ++i) {
        double* row = scores.data() + (i - first) * classes;
        for (int64_t c = 0; c < classes; ++c) row[c] += offset[c];
        if (path != ClassPath::kGeneric && !all_finite(row, classes)) rescue_row(problem, i, row);
        const double factor = weight ? static_cast<double>(weight[i]) : 1.0;
        Real* residual = static_cast<Real*>(args.residual) + i * classes;
        losses[i] =
            factor * finish_row(kernels, row, classes, args.labels[i], factor * mean, residual);
      }
    }
  });
  Real* value = static_cast<Real*>(args.value);
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) {
    if (per_row) value[i] = static_cast<Real>(losses[i]);
    sum += losses[i];
  }
  if (!per_row) value[0] = static_cast<Real>(sum * mean);
}

}  // namespace

void class_loss_forward(const ClassArgs& args, ParallelFor parallel_for) {
  if (args.a.dtype == DType::kFloat64) {
    forward<double>(args, parallel_for);
  } else {
    forward<float>(args, parallel_for);
  }
}

}  // namespace bll::cpu
