// Means of the rows of every class, in the order of the rows.
#include "cuda/access.h"
#include "cuda/batch.h"
#include "cuda/launch.h"

namespace bll::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kRun = 16;  // rows that are added up plainly before they join a compensated sum

// A block has a class and a run of columns; threads along a column take every so many rows and are
// added up in a fixed order.
template <class Access>
__global__ void __launch_bounds__(kThreads, 4) class_means_kernel(const MeansView v) {
  constexpr int count = Access::kCount;
  BLL_SHARED(float, shared, kThreads / 2 * count);
  const int lane = threadIdx.x % v.lanes, slot = threadIdx.x / v.lanes, slots = kThreads / v.lanes;
  const int64_t chunks = ceil_div(v.width, int64_t{v.lanes} * count);
  const int64_t label = blockIdx.x / (chunks > 0 ? chunks : 1);
  const int64_t chunk = chunks > 0 ? blockIdx.x % chunks : 0;
  const int64_t column = (chunk * v.lanes + lane) * count;
  const int32_t begin = v.start[label], end = v.start[label + 1];
  const bool lost = v.start[v.classes] < v.rows;
  if (chunk == 0 && threadIdx.x == 0) v.counts[label] = end - begin;
  float sum[count] = {}, error[count] = {};
  for (int64_t first = begin + slot; column < v.width && first < end; first += slots * kRun) {
    float part[count] = {};
    for (int k = 0; k < kRun; ++k) {
      const int64_t at = first + k * slots;
      if (at >= end) break;
      float x[count];
      const int64_t row = v.order[at];
      Access::unpack(Access::load(v.x, v.dtype, row * v.stride + column), v.dtype, x);
#pragma unroll
      for (int i = 0; i < count; ++i) part[i] += x[i];
    }
#pragma unroll
    for (int i = 0; i < count; ++i) {
      // Of two numbers the rounding error of their sum is a float (Knuth).
      const float total = sum[i] + part[i], back = total - sum[i];
      error[i] += (sum[i] - (total - back)) + (part[i] - back);
      sum[i] = total;
    }
  }
  // Sums that are not finite have no error.
#pragma unroll
  for (int i = 0; i < count; ++i) sum[i] += sum[i] - sum[i] == 0 ? error[i] : 0.0f;
  for (int half = slots / 2; half >= 1; half /= 2) {
    float* mine = shared + ((slot >= half ? slot - half : slot) * v.lanes + lane) * count;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (slot >= half && slot < 2 * half) mine[i] = sum[i];
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (slot < half) sum[i] += mine[i];
    }
  }
  if (slot != 0 || column >= v.width) return;
  const float rows = end > begin ? static_cast<float>(end - begin) : 1.0f;
#pragma unroll
  for (int i = 0; i < count; ++i) {
    v.means[label * v.width + column + i] = lost ? bits_float(0x7fc00000u) : sum[i] / rows;
    BLL_COUNT_STORED(4);
  }
}

__global__ void __launch_bounds__(kThreads) means_spread_kernel(const ClassMeansGradArgs args) {
  const int64_t row = blockIdx.x, label = args.labels[row];
  const bool known = label >= 0 && label < args.classes;
  const int64_t count = known ? args.counts[label] : 1;
  const float rows = static_cast<float>(count > 1 ? count : 1);
  const float* grad = static_cast<const float*>(args.grad) + (known ? label : 0) * args.width;
  float* to = static_cast<float*>(args.grad_x) + row * args.width;
  for (int64_t i = threadIdx.x; i < args.width; i += kThreads) {
    to[i] = known ? __ldg(grad + i) / rows : bits_float(0x7fc00000u);
  }
}

template <class Access>
void launch(const MeansView& view, cudaStream_t stream) {
  const int64_t chunks = ceil_div(view.width, int64_t{view.lanes} * Access::kCount);
  const unsigned blocks = static_cast<unsigned>(view.classes * (chunks > 0 ? chunks : 1));
  BLL_LAUNCH((class_means_kernel<Access>), blocks, kThreads, stream, view);
}

}  // namespace

void run_class_means(const MeansView& view, bool wide, cudaStream_t stream) {
  if (!wide) return launch<Single>(view, stream);
  switch (view.dtype) {
    case DType::kBFloat16:
      return launch<Wide<__nv_bfloat16>>(view, stream);
    case DType::kFloat16:
      return launch<Wide<__half>>(view, stream);
    default:
      return launch<Wide<float>>(view, stream);
  }
}

void run_means_spread(const ClassMeansGradArgs& args, cudaStream_t stream) {
  BLL_LAUNCH(means_spread_kernel, static_cast<unsigned>(args.rows), kThreads, stream, args);
}

}  // namespace bll::cuda
