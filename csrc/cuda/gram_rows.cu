// What the Gram loss does row by row: rows of length one, the gradient's last step, the value.
#include "cuda/access.h"
#include "cuda/batch.h"
#include "cuda/block.h"

namespace bll::cuda {
namespace {

// A row seen from its first element, minus its mean.
struct CentredRow {
  const UnitRows& u;
  int64_t begin;
  float first, mean;

  __device__ __forceinline__ float at(int64_t column) const {
    const float x = Single::value(u.rows, u.dtype, begin + column);
    return u.center ? (x - first) - mean : x;
  }
};

__device__ __forceinline__ float shared_sum(float x, float* warps, float* result) {
  x = block_sum(x, warps);
  if (threadIdx.x == 0) *result = x;
  __syncthreads();
  return *result;
}

// A block per row.
__global__ void __launch_bounds__(kGramThreads, 4) unit_rows_kernel(const UnitRows u) {
  BLL_SHARED(float, warps, kGramThreads / kWarp);
  BLL_SHARED(float, results, 3);
  const int64_t row = blockIdx.x;
  CentredRow x{u, row * u.stride, 0, 0};
  if (u.width > 0) x.first = Single::value(u.rows, u.dtype, x.begin);
  if (u.center) {
    float sum = 0;
    for (int64_t i = threadIdx.x; i < u.width; i += kGramThreads) sum += x.at(i);
    sum = shared_sum(sum, warps, results);
    x.mean = sum / static_cast<float>(u.width);
  }
  // Divided by their largest element, squares neither overflow nor vanish. NaN is not larger.
  float peak = 0;
  for (int64_t i = threadIdx.x; i < u.width; i += kGramThreads) {
    const float size = fabsf(x.at(i));
    peak = size > peak ? size : peak;
  }
  for (int step = 1; step < kWarp; step *= 2) {
    const float other = __shfl_xor_sync(kAllLanes, peak, step);
    peak = other > peak ? other : peak;
  }
  __syncthreads();
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = peak;
  __syncthreads();
  for (int i = 0; i < kGramThreads / kWarp; ++i) peak = warps[i] > peak ? warps[i] : peak;
  peak = peak == 0 ? 1 : peak;
  __syncthreads();
  float squares = 0;
  for (int64_t i = threadIdx.x; i < u.width; i += kGramThreads) {
    const float part = x.at(i) / peak;
    squares += part * part;
  }
  const float norm = sqrtf(shared_sum(squares, warps, results + 1));
  const float safe = norm == 0 ? 1 : norm;
  for (int64_t i = threadIdx.x; i < u.padded; i += kGramThreads) {
    u.unit[row * u.padded + i] = i < u.width ? x.at(i) / peak / safe : 0.0f;
  }
  if (threadIdx.x == 0) u.inverse[row] = norm == 0 ? 0.0f : 1 / safe / peak;
}

// A block per row: grad = (pull - (pull . unit) unit) / norm; 0 for rows without direction.
__global__ void __launch_bounds__(kGramThreads) gram_project_kernel(const GramView v) {
  BLL_SHARED(float, warps, kGramThreads / kWarp);
  BLL_SHARED(float, result, 1);
  const int64_t row = blockIdx.x, size = v.rows * v.padded, begin = row * v.padded;
  float along = 0;
  for (int64_t i = threadIdx.x; i < v.width; i += kGramThreads) {
    float sum = 0;
    for (int64_t p = 0; p < v.parts; ++p) sum += v.pulls[p * size + begin + i];
    along += sum * v.unit[begin + i];
  }
  along = shared_sum(along, warps, result);
  const float inverse = v.inverse[row];
  for (int64_t i = threadIdx.x; i < v.width; i += kGramThreads) {
    float sum = 0;
    for (int64_t p = 0; p < v.parts; ++p) sum += v.pulls[p * size + begin + i];
    const float grad[1] = {inverse == 0 ? 0.0f : (sum - along * v.unit[begin + i]) * inverse};
    Single::store(v.grad_x, v.dtype, row * v.width + i, grad);
  }
}

// A row's value, weighted, from its parts.
__device__ __forceinline__ float row_value(const GramView& v, int64_t row) {
  float sum = 0;
  for (int64_t p = 0; p < v.parts; ++p) sum += v.values[p * v.rows + row];
  const float value = sum / static_cast<float>(v.rows);
  return v.weight != nullptr ? __ldg(v.weight + row) * value : value;
}

__global__ void __launch_bounds__(kGramThreads) gram_value_kernel(const GramView v) {
  BLL_SHARED(float, warps, kGramThreads / kWarp);
  if (v.per_row) {
    const int64_t row = int64_t{blockIdx.x} * kGramThreads + threadIdx.x;
    if (row < v.rows) v.value[row] = row_value(v, row);
    return;
  }
  float sum = 0;
  for (int64_t row = threadIdx.x; row < v.rows; row += kGramThreads) sum += row_value(v, row);
  sum = block_sum(sum, warps);
  if (threadIdx.x == 0) v.value[0] = v.scale * sum;
}

}  // namespace

void run_unit_rows(const UnitRows& rows, cudaStream_t stream) {
  BLL_LAUNCH(unit_rows_kernel, static_cast<unsigned>(rows.count), kGramThreads, stream, rows);
}

void run_gram_project(const GramView& view, cudaStream_t stream) {
  BLL_LAUNCH(gram_project_kernel, static_cast<unsigned>(view.rows), kGramThreads, stream, view);
}

void run_gram_value(const GramView& view, cudaStream_t stream) {
  const int64_t blocks = view.per_row ? ceil_div(view.rows, kGramThreads) : 1;
  BLL_LAUNCH(gram_value_kernel, static_cast<unsigned>(blocks), kGramThreads, stream, view);
}

}  // namespace bll::cuda
