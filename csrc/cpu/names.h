// The words the ops and the NumPy module use for the kernels' enums, and the checks on options
// that both share.
#pragma once

#include <cmath>
#include <cstddef>
#include <string>

#include "cpu/api.h"

namespace bll::cpu {

template <class Value>
struct Named {
  const char* name;
  Value value;
};

inline constexpr Named<Loss> kLossNames[] = {{"kl", Loss::kKl},
                                             {"kl_full", Loss::kKlFull},
                                             {"reverse_kl", Loss::kReverseKl},
                                             {"reverse_kl_full", Loss::kReverseKlFull},
                                             {"evidence", Loss::kEvidence}};

inline constexpr Named<Reduction> kReductionNames[] = {
    {"none", Reduction::kNone}, {"sum", Reduction::kSum}, {"batchmean", Reduction::kBatchMean}};

inline constexpr Named<Pool> kPoolNames[] = {
    {"mean", Pool::kMean}, {"max", Pool::kMax}, {"std", Pool::kStd}};

#define BLL_NAMED(id, name, type, planes) {name, FamilyId::id},
inline constexpr Named<FamilyId> kFamilyNames[] = {BLL_FAMILIES(BLL_NAMED)};
#undef BLL_NAMED

template <class Value, size_t count>
const Value* find_named(const Named<Value> (&table)[count], const std::string& name) {
  for (const auto& entry : table) {
    if (name == entry.name) return &entry.value;
  }
  return nullptr;
}

template <class Value, size_t count>
std::string names_of(const Named<Value> (&table)[count]) {
  std::string names;
  for (const auto& entry : table)
    names += (names.empty() ? "'" : ", '") + std::string(entry.name) + "'";
  return names;
}

// What is wrong with a family's options, or nullptr.
inline const char* problem_with(const FamilyArgs& family) {
  if (!std::isfinite(family.tilt)) return "tilt: expected a finite number";
  if (family.id == FamilyId::kGaussianPrecision) {
    if (!(family.tau > 0 && std::isfinite(family.tau))) return "tau: expected a positive number";
    if (!(family.tau * family.tilt > -1)) return "tilt: the posterior needs tau * tilt > -1";
  }
  if (family.id == FamilyId::kGaussianDiagonal && !(family.tilt > 0)) {
    return "tilt: gaussian-diagonal expects a positive power";
  }
  return nullptr;
}

// Whether the latents are a whole number of groups; none are, in groups of any size.
inline bool fit_groups(FamilyArgs& family, int64_t width) {
  if (family.id != FamilyId::kCategorical) return true;
  if (width == 0) family.group = 1;
  return family.group > 0 && width % family.group == 0;
}

}  // namespace bll::cpu
