// The next block's input: from registers to the dtype it is stored in.
#pragma once

#include "core/float8.h"
#include "cuda/access.h"

namespace bll::cuda {

template <>
__device__ __forceinline__ uint8_t from_float(float x) {
  return to_float8(x);
}

// 16 bytes at a time, or all there are.
template <class T, int count>
__device__ __forceinline__ void store_means_as(void* base, int64_t offset,
                                               const float (&x)[count]) {
  constexpr int step = count * sizeof(T) > 16 ? 16 / sizeof(T) : count;
  struct alignas(step * sizeof(T)) Pack {
    T x[step];
  };
  T* at = static_cast<T*>(base) + offset;
#pragma unroll
  for (int i = 0; i < count; i += step) {
    Pack pack;
#pragma unroll
    for (int k = 0; k < step; ++k) pack.x[k] = from_float<T>(x[i + k]);
    if (step * sizeof(T) == 16) BLL_CHECK_ALIGNED(at + i);
    *reinterpret_cast<Pack*>(at + i) = pack;
  }
}

// `offset` is a multiple of count from a base aligned to 16 bytes.
template <int count>
__device__ __forceinline__ void store_means(void* base, DType dtype, int64_t offset,
                                            const float (&x)[count]) {
  if (dtype == DType::kFloat32) {
    store_means_as<float>(base, offset, x);
  } else if (dtype == DType::kBFloat16) {
    store_means_as<__nv_bfloat16>(base, offset, x);
  } else if (dtype == DType::kFloat16) {
    store_means_as<__half>(base, offset, x);
  } else {
    store_means_as<uint8_t>(base, offset, x);
  }
}

}  // namespace bll::cuda
