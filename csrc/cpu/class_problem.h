// The choice among the class loss's loops, and its parallel loops.
#pragma once

#include "cpu/class.h"

namespace bll::cpu {

enum class ClassPath : int { kGeneric, kLinear, kBernoulli };

// More factors than this save no time.
inline constexpr double kMaximumFactors = 64;

// Fills what the problem's family needs and says which loops serve it.
template <class Real>
ClassPath prepare(ClassProblem<Real>& problem, ParallelFor parallel_for);

template <class Body>
void parallel(ParallelFor parallel_for, int64_t size, int64_t grain, const Body& body) {
  parallel_for(
      size, grain,
      [](int64_t begin, int64_t end, void* context) {
        (*static_cast<const Body*>(context))(begin, end);
      },
      const_cast<void*>(static_cast<const void*>(&body)));
}

// Families whose message is a natural parameter, so that normalising it means something.
constexpr bool is_natural(FamilyId id) {
  return id != FamilyId::kGaussianPrecision && id != FamilyId::kGaussianDiagonal;
}

// Normalised natural-parameter messages carry a -A(b) that the Gaussian loops have in `square`.
template <class Real>
bool needs_message_terms(const ClassProblem<Real>& problem) {
  const FamilyId id = problem.args.family.id;
  return problem.args.normalize_message && is_natural(id) && id != FamilyId::kGaussian;
}

}  // namespace bll::cpu
