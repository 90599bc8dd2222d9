// What lets one .cu serve nvcc and the host emulator of tests/cuda: shared memory, launches and
// what blocks of a cluster share go through macros; everything else is plain CUDA C++.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#if defined(BLL_HOST_EMULATOR)
#include "emulator.h"
#else
// An array of `count` in shared memory; alone on its line.
#define BLL_SHARED(type, name, count) __shared__ type name[count]
// What a launch gives beyond that, as bytes; 16 bytes aligned.
#define BLL_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
// A kernel template goes in parentheses: BLL_LAUNCH((kernel<float>), grid, block, stream, args...).
#define BLL_LAUNCH(kernel, grid, block, stream, ...) \
  kernel<<<(grid), (block), 0, (stream)>>>(__VA_ARGS__)
// A load of what the same kernel may write later, which __ldg must not read.
#define BLL_LOAD(pointer) (*(pointer))
// Vector accesses are checked where the host runs them.
#define BLL_CHECK_ALIGNED(pointer) static_cast<void>(0)
#endif

namespace bll::cuda {

inline constexpr int kWarp = 32;
inline constexpr unsigned kAllLanes = 0xffffffffu;

inline __host__ __device__ constexpr int64_t ceil_div(int64_t x, int64_t y) {
  return (x + y - 1) / y;
}

}  // namespace bll::cuda
