#include "cpu/gram.h"

#include <algorithm>

#include "cpu/class_problem.h"

namespace bll::cpu {

namespace {

template <class Real>
const GramKernels<Real>& gram_kernels();

template <>
const GramKernels<float>& gram_kernels<float>() {
#if BLL_X86_TARGETS
  if (current_isa() == Isa::kAvx512) return avx512::float_gram_kernels();
  if (current_isa() == Isa::kAvx2) return avx2::float_gram_kernels();
#endif
  return portable::float_gram_kernels();
}

template <>
const GramKernels<double>& gram_kernels<double>() {
#if BLL_X86_TARGETS
  if (current_isa() == Isa::kAvx512) return avx512::double_gram_kernels();
  if (current_isa() == Isa::kAvx2) return avx2::double_gram_kernels();
#endif
  return portable::double_gram_kernels();
}

template <class Real>
void fill_unit(const Rows& rows, bool center, UnitRows<Real>& unit, ParallelFor parallel_for) {
  const int64_t grain = std::max<int64_t>(16384 / std::max<int64_t>(unit.width, 1), 1);
  const GramKernels<Real>& kernels = gram_kernels<Real>();
  parallel(parallel_for, rows.count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) kernels.unit_row(rows, i, center, unit);
  });
}

template <class Real>
void reduce(const GramProblem<Real>& problem) {
  const GramArgs& args = problem.args;
  const int64_t rows = args.x.count;
  const Real* weight = static_cast<const Real*>(args.weight);
  Real* value = static_cast<Real*>(args.value);
  double sum = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const double weighted =
        weight ? static_cast<double>(weight[i]) * problem.values[i] : problem.values[i];
    if (args.reduction == Reduction::kNone) value[i] = static_cast<Real>(weighted);
    sum += weighted;
  }
  if (args.reduction == Reduction::kNone) return;
  const bool mean = args.reduction == Reduction::kBatchMean && rows > 0;
  value[0] = static_cast<Real>(mean ? sum / static_cast<double>(rows) : sum);
}

template <class Real>
void fill_factors(const GramProblem<Real>& problem) {
  const GramArgs& args = problem.args;
  const int64_t rows = args.x.count;
  const bool mean = args.reduction == Reduction::kBatchMean;
  const Real* weight = static_cast<const Real*>(args.weight);
  // Half panels add up the value by these factors, which no upstream gradient multiplies.
  const Real* grad = args.grad_x ? static_cast<const Real*>(args.grad) : nullptr;
  for (int64_t i = 0; i < rows; ++i) {
    double factor = mean ? 1.0 / static_cast<double>(rows) : 1.0;
    if (weight) factor *= static_cast<double>(weight[i]);
    if (grad) factor *= static_cast<double>(grad[args.reduction == Reduction::kNone ? i : 0]);
    problem.factor[i] = factor;
  }
}

template <class Real>
void run(const GramArgs& args, ParallelFor parallel_for) {
  GramProblem<Real> problem(args);
  const int64_t rows = args.x.count;
  problem.unit = UnitRows<Real>(rows, args.width);
  problem.factor = Buffer<double>(rows);
  problem.values = Buffer<double>(rows);
  fill_unit(args.x, args.center, problem.unit, parallel_for);
  if (args.vectors.data) {
    problem.target = UnitRows<Real>(rows, args.vectors_width);
    fill_unit(args.vectors, args.center, problem.target, parallel_for);
  }
  fill_factors(problem);
  const GramKernels<Real>& kernels = gram_kernels<Real>();
  const bool half = !args.grad_x && args.reduction != Reduction::kNone;
  const int64_t panels = (rows + kGramRows - 1) / kGramRows;
  parallel(parallel_for, panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      // From both ends, so that every thread gets long and short half panels.
      const int64_t panel = n % 2 == 0 ? n / 2 : panels - 1 - n / 2;
      const int64_t first = panel * kGramRows, last = std::min(first + kGramRows, rows);
      if (half) {
        problem.values[panel] = kernels.half_panel(problem, first, last);
      } else {
        kernels.panel(problem, first, last);
      }
    }
  });
  if (half) {
    double sum = 0;
    for (int64_t panel = 0; panel < panels; ++panel) sum += problem.values[panel];
    static_cast<Real*>(args.value)[0] = static_cast<Real>(sum);
  } else if (args.value) {
    reduce(problem);
  }
}

}  // namespace

void gram_loss(const GramArgs& args, ParallelFor parallel_for) {
  if (!args.value && !args.grad_x) return;  // an empty gradient has no address
  if (args.x.dtype == DType::kFloat64) {
    run<double>(args, parallel_for);
  } else {
    run<float>(args, parallel_for);
  }
}

}  // namespace bll::cpu
