// What pooled class losses of both layouts share.
#pragma once

#include "cuda/access.h"
#include "cuda/block.h"
#include "cuda/pool_cells.cuh"
#include "cuda/pooled.h"

namespace bll::cuda {

// An access policy and the one dtype that it then meets.
template <class Access, DType dtype_>
struct Typed : Access {
  static constexpr DType dtype = dtype_;
};

// Calls function(typed access policy) for a dtype, 16 bytes at a time or one by one.
template <class Function>
__device__ __forceinline__ void with_access(DType dtype, bool wide, Function&& function) {
  if (dtype == DType::kFloat32) {
    if (wide) return function(Typed<Wide<float>, DType::kFloat32>());
    function(Typed<Single, DType::kFloat32>());
  } else if (dtype == DType::kBFloat16) {
    if (wide) return function(Typed<Wide<__nv_bfloat16>, DType::kBFloat16>());
    function(Typed<Single, DType::kBFloat16>());
  } else {
    if (wide) return function(Typed<Wide<__half>, DType::kFloat16>());
    function(Typed<Single, DType::kFloat16>());
  }
}

}  // namespace bll::cuda
