// The second stage of a class loss: everything that is still in parts, in one launch.
#include "cuda/access.h"
#include "cuda/block.h"
#include "cuda/classes.h"

namespace bll::cuda {
namespace {

// Block 0 has the value and the bias, the others the table.
__global__ void __launch_bounds__(kClassThreads) class_sums_kernel(const ClassSums s) {
  BLL_SHARED(float, warps, kClassThreads / kWarp);
  if (blockIdx.x > 0) {
    const int64_t i = int64_t{blockIdx.x - 1} * kClassThreads + threadIdx.x;
    if (i >= s.size) return;
    float sum[1] = {0};
    for (int64_t k = 0; k < s.sections; ++k) sum[0] += s.tables[k * s.size + i];
    Single::store(s.table, s.dtype, i, sum);
    return;
  }
  if (s.values != nullptr) {
    float sum = 0;
    for (int64_t i = threadIdx.x; i < s.blocks; i += kClassThreads) sum += s.values[i];
    sum = block_sum(sum, warps);
    if (threadIdx.x == 0) s.value[0] = s.scale * sum;
  }
  if (s.biases == nullptr) return;
  for (int c = threadIdx.x; c < s.classes; c += kClassThreads) {
    float sum = 0;
    for (int64_t k = 0; k < s.sections; ++k) sum += s.biases[k * s.classes + c];
    s.bias[c] = sum;
  }
}

}  // namespace

void sum_classes(const ClassSums& sums, cudaStream_t stream) {
  const int64_t tables = sums.tables == nullptr ? 0 : ceil_div(sums.size, kClassThreads);
  BLL_LAUNCH(class_sums_kernel, static_cast<unsigned>(1 + tables), kClassThreads, stream, sums);
}

}  // namespace bll::cuda
