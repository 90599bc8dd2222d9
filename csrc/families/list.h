// The exponential families, named once: enumerator, public name, header's class, parameters
// (planes) per latent.
#pragma once

#include <cstdint>

#define BLL_FAMILIES(X)                                             \
  X(kBernoulli, "bernoulli", Bernoulli, 1)                          \
  X(kGaussian, "gaussian", Gaussian, 1)                             \
  X(kGaussianPrecision, "gaussian-precision", GaussianPrecision, 1) \
  X(kGaussianDiagonal, "gaussian-diagonal", GaussianDiagonal, 2)    \
  X(kCategorical, "categorical", Categorical, 1)

namespace bll {

#define BLL_ENUMERATOR(id, name, type, planes) id,
enum class FamilyId : int { BLL_FAMILIES(BLL_ENUMERATOR) };
#undef BLL_ENUMERATOR

struct FamilyInfo {
  FamilyId id;
  const char* name;
  int planes;
};

#define BLL_ROW(id, name, type, planes) {FamilyId::id, name, planes},
inline constexpr FamilyInfo kFamilies[] = {BLL_FAMILIES(BLL_ROW)};
#undef BLL_ROW

inline constexpr int kFamilyCount = static_cast<int>(sizeof kFamilies / sizeof kFamilies[0]);

inline constexpr int family_planes(FamilyId id) { return kFamilies[static_cast<int>(id)].planes; }

}  // namespace bll
