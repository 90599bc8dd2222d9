// Contiguous runs of any dtype as runs of the compute type, converted where they differ. Inlined
// into the loops of one instruction set.
#pragma once

#include "core/defs.h"
#include "cpu/api.h"
#include "cpu/half_tile.h"

namespace bll::cpu {

template <class T>
BLL_HD constexpr bool is_compute_type(DType dtype) {
  return dtype == (sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32);
}

// `count` numbers from element `offset` on: in place if they are of type T, else in `buffer`.
template <class T>
BLL_HD const T* load_run(const void* from, DType dtype, int64_t offset, int64_t count, T* buffer) {
  // Nothing converts to double: half types accumulate in float.
  if (sizeof(T) == 8 || is_compute_type<T>(dtype)) return static_cast<const T*>(from) + offset;
  if constexpr (sizeof(T) == 4) {
    const uint16_t* half = static_cast<const uint16_t*>(from) + offset;
    if (dtype == DType::kBFloat16) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) buffer[i] = from_bfloat16(half[i]);
    } else {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) buffer[i] = from_float16(half[i]);
    }
  }
  return buffer;
}

template <class T>
BLL_HD void store_run(const T* from, void* to, DType dtype, int64_t offset, int64_t count) {
  if (sizeof(T) == 8 || is_compute_type<T>(dtype)) {
    T* out = static_cast<T*>(to) + offset;
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) out[i] = from[i];
    return;
  }
  if constexpr (sizeof(T) == 4) {
    uint16_t* half = static_cast<uint16_t*>(to) + offset;
    if (dtype == DType::kBFloat16) {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) half[i] = to_bfloat16(from[i]);
    } else {
#pragma omp simd
      for (int64_t i = 0; i < count; ++i) half[i] = to_float16(from[i]);
    }
  }
}

}  // namespace bll::cpu
