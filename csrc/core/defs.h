// What lets one header serve g++ and nvcc: qualifiers and bit casts.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define BLL_HD __host__ __device__ __forceinline__
#else
// Forced, because a function that is not inlined would run without its caller's instruction set.
#define BLL_HD inline __attribute__((always_inline))
#endif

#if defined(BLL_HOST_EMULATOR)
// What tests/cuda counts: evaluations of special functions, and bytes stored.
namespace bll_emulator {
inline int64_t special_functions = 0, stored = 0;
}
#define BLL_COUNT_SPECIAL() static_cast<void>(++bll_emulator::special_functions)
#define BLL_COUNT_STORED(bytes) static_cast<void>(bll_emulator::stored += (bytes))
#else
#define BLL_COUNT_SPECIAL() static_cast<void>(0)
#define BLL_COUNT_STORED(bytes) static_cast<void>(0)
#endif

namespace bll {

BLL_HD uint32_t float_bits(float x) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(x);
#else
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
#endif
}

BLL_HD float bits_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
#endif
}

BLL_HD uint64_t double_bits(double x) {
#if defined(__CUDA_ARCH__)
  return static_cast<uint64_t>(__double_as_longlong(x));
#else
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
#endif
}

BLL_HD double bits_double(uint64_t bits) {
#if defined(__CUDA_ARCH__)
  return __longlong_as_double(static_cast<long long>(bits));
#else
  double x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
#endif
}

}  // namespace bll
