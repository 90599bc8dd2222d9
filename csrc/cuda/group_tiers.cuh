// From the launch table of categorical groups to template arguments.
#pragma once

#include <type_traits>

#include "cuda/access.h"
#include "cuda/groups.h"

namespace bll::cuda {

// Calls function(access policy, tier as a constant).
template <class Access, class Function>
void with_tier_of(int tier, Function&& function) {
  switch (tier) {
    case 0:
      return function(Access(), std::integral_constant<int, 0>());
    case 1:
      return function(Access(), std::integral_constant<int, 1>());
    case 2:
      return function(Access(), std::integral_constant<int, 2>());
    case 3:
      return function(Access(), std::integral_constant<int, 3>());
    default:
      return function(Access(), std::integral_constant<int, 4>());
  }
}

template <class Function>
void with_tier(int tier, bool wide, DType dtype, Function&& function) {
  if (!wide) return with_tier_of<Single>(tier, function);
  switch (dtype) {
    case DType::kBFloat16:
      return with_tier_of<Wide<__nv_bfloat16>>(tier, function);
    case DType::kFloat16:
      return with_tier_of<Wide<__half>>(tier, function);
    default:
      return with_tier_of<Wide<float>>(tier, function);
  }
}

}  // namespace bll::cuda
