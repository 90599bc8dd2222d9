#include "cuda/access.h"
#include "cuda/block.h"
#include "cuda/reduce.h"

namespace bll::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    sum_all_kernel(const float* partials, int64_t count, float scale, float* out) {
  BLL_SHARED(float, warps, kThreads / kWarp);
  float sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partials[i];
  sum = block_sum(sum, warps);
  if (threadIdx.x == 0) out[0] = scale * sum;
}

// A warp per row.
__global__ void __launch_bounds__(kThreads)
    sum_rows_kernel(const float* partials, int64_t rows, int64_t count, float* out) {
  const int64_t row = int64_t{blockIdx.x} * (kThreads / kWarp) + threadIdx.x / kWarp;
  if (row >= rows) return;
  float sum = 0;
  for (int64_t i = threadIdx.x % kWarp; i < count; i += kWarp) sum += partials[row * count + i];
  sum = warp_sum(sum);
  if (threadIdx.x % kWarp == 0) out[row] = sum;
}

__global__ void __launch_bounds__(kThreads)
    sum_sections_kernel(const float* partials, int64_t sections, int64_t size, void* out,
                        DType dtype) {
  const int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= size) return;
  float sum[1] = {0};
  for (int64_t s = 0; s < sections; ++s) sum[0] += partials[s * size + i];
  Single::store(out, dtype, i, sum);
}

unsigned blocks_for(int64_t size, int64_t per_block) {
  return static_cast<unsigned>(ceil_div(size, per_block));
}

}  // namespace

void sum_all(const float* partials, int64_t count, float scale, float* out, cudaStream_t stream) {
  BLL_LAUNCH(sum_all_kernel, 1, kThreads, stream, partials, count, scale, out);
}

void sum_rows(const float* partials, int64_t rows, int64_t count, float* out, cudaStream_t stream) {
  BLL_LAUNCH(sum_rows_kernel, blocks_for(rows, kThreads / kWarp), kThreads, stream, partials, rows,
             count, out);
}

void sum_sections(const float* partials, int64_t sections, int64_t size, void* out, DType dtype,
                  cudaStream_t stream) {
  BLL_LAUNCH(sum_sections_kernel, blocks_for(size, kThreads), kThreads, stream, partials, sections,
             size, out, dtype);
}

}  // namespace bll::cuda
