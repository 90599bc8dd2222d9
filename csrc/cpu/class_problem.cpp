// What both passes of the class loss prepare: the table in the compute type, the constants of the
// Gaussian families, the exponentials of Bernoulli messages.
#include "cpu/class_problem.h"

#include <cmath>
#include <limits>

#include "cpu/class.h"

namespace bll::cpu {

#define BLL_DECLARE(isa)                              \
  namespace isa {                                     \
  const ClassKernels<float>& float_class_kernels();   \
  const ClassKernels<double>& double_class_kernels(); \
  }
BLL_DECLARE(portable)
#if BLL_X86_TARGETS
BLL_DECLARE(avx2)
BLL_DECLARE(avx512)
#endif
#undef BLL_DECLARE

template <>
const ClassKernels<float>& class_kernels<float>() {
#if BLL_X86_TARGETS
  if (current_isa() == Isa::kAvx512) return avx512::float_class_kernels();
  if (current_isa() == Isa::kAvx2) return avx2::float_class_kernels();
#endif
  return portable::float_class_kernels();
}

template <>
const ClassKernels<double>& class_kernels<double>() {
#if BLL_X86_TARGETS
  if (current_isa() == Isa::kAvx512) return avx512::double_class_kernels();
  if (current_isa() == Isa::kAvx2) return avx2::double_class_kernels();
#endif
  return portable::double_class_kernels();
}

namespace {

// Logarithm of the largest product of likelihood ratios: well inside the range of Real.
template <class Real>
constexpr double kLogRange = sizeof(Real) == 4 ? 80.0 : 650.0;

template <class Real>
void convert_table(ClassProblem<Real>& problem) {
  const Rows& table = problem.args.table;
  const int64_t width = problem.width, planes = problem.planes;
  if (element_size(table.dtype) != 2 && !table.offsets) {
    problem.table = static_cast<const Real*>(table.data);
    problem.table_stride = table.stride;
    problem.table_plane = table.plane_stride;
    return;
  }
  const TileKernels<Real>& kernels = tile_kernels<Real>();
  problem.converted = Buffer<Real>(problem.classes * planes * width);
  problem.table = problem.converted.get();
  problem.table_stride = planes * width;
  problem.table_plane = width;
  for (int64_t c = 0; c < problem.classes; ++c) {
    for (int64_t p = 0; p < planes; ++p) {
      Real* to = problem.converted.get() + (c * planes + p) * width;
      const int64_t start = row_start(table, c) + p * table.plane_stride;
      const Real* from =
          load_tile(kernels, advance(table.data, table.dtype, start), table.dtype, width, to);
      if (from != to) std::copy(from, from + width, to);
    }
  }
}

// The largest |b|; NaN if any is.
template <class Real>
double largest_message(const ClassProblem<Real>& problem) {
  Real largest = 0;
  bool nan = false;
  for (int64_t c = 0; c < problem.classes; ++c) {
    const Real* b = problem.table + c * problem.table_stride;
#pragma omp simd reduction(max : largest) reduction(| : nan)
    for (int64_t j = 0; j < problem.width; ++j) {
      const Real size = b[j] < 0 ? -b[j] : b[j];
      largest = size > largest ? size : largest;
      nan |= b[j] != b[j];
    }
  }
  return nan ? std::numeric_limits<double>::quiet_NaN() : static_cast<double>(largest);
}

template <class Real>
ClassPath prepare_bernoulli(ClassProblem<Real>& problem, ParallelFor parallel_for) {
  const double largest = largest_message(problem) * std::fabs(problem.args.family.tilt);
  if (!(largest <= kLogRange<Real>)) return ClassPath::kGeneric;
  const double factors = largest > 0 ? kLogRange<Real> / largest : kMaximumFactors;
  problem.factors = static_cast<int64_t>(std::fmin(factors, kMaximumFactors));
  problem.small_messages = largest <= 1;
  problem.expm1_table = Buffer<Real>(problem.classes * problem.width);
  problem.exp_table = Buffer<Real>(problem.classes * problem.width);
  const ClassKernels<Real>& kernels = class_kernels<Real>();
  parallel(parallel_for, problem.classes, 16384 / std::max(problem.width, int64_t{1}) + 1,
           [&](int64_t begin, int64_t end) {
             for (int64_t c = begin; c < end; ++c) kernels.bernoulli_row(problem, c);
           });
  return ClassPath::kBernoulli;
}

}  // namespace

template <class Real>
ClassPath prepare(ClassProblem<Real>& problem, ParallelFor parallel_for) {
  convert_table(problem);
  const FamilyArgs& family = problem.args.family;
  if (family.id == FamilyId::kGaussian) {
    problem.scale = family.tilt;
    problem.square = problem.args.normalize_message ? 0 : family.tilt * family.tilt / 2;
    return ClassPath::kLinear;
  }
  if (family.id == FamilyId::kGaussianPrecision) {
    const double precision = family.tau * family.tilt;
    problem.scale = precision / (1 + precision);
    problem.square = -problem.scale / 2;
    return ClassPath::kLinear;
  }
  if (family.id == FamilyId::kBernoulli) return prepare_bernoulli(problem, parallel_for);
  return ClassPath::kGeneric;
}

template ClassPath prepare(ClassProblem<float>& problem, ParallelFor parallel_for);
template ClassPath prepare(ClassProblem<double>& problem, ParallelFor parallel_for);

}  // namespace bll::cpu
