// Means of the rows of every class, in the order of the rows.
#include "cuda/access.h"
#include "cuda/batch.h"
#include "cuda/launch.h"

namespace bll::cuda {
namespace {

constexpr int kThreads = kMeansThreads;

// A sum and the rounding error that it lacks.
struct Compensated {
  float sum, error;

  __device__ __forceinline__ void add(float x) {
    // Of two numbers the rounding error of their sum is a float (Knuth).
    const float total = sum + x, back = total - sum;
    error += (sum - (total - back)) + (x - back);
    sum = total;
  }
  // Sums that are not finite have no error.
  __device__ __forceinline__ float result() const { return sum + (sum - sum == 0 ? error : 0.0f); }
};

// Every `slots`-th place of the order from `first` on, kMeansRows at a time: their loads are in
// flight together, and they are added up plainly before they join a compensated sum.
template <class Access>
__device__ __forceinline__ void add_rows(const MeansView& v, int64_t first, int64_t end, int slots,
                                         int64_t column, Compensated (&sums)[Access::kCount]) {
  constexpr int count = Access::kCount, batch = kMeansRows;
  for (int64_t place = first; place < end; place += int64_t{slots} * batch) {
    int32_t rows[batch];
    typename Access::Raw raw[batch];
    float part[count] = {};
#pragma unroll
    for (int u = 0; u < batch; ++u) {
      const int64_t at = place + int64_t{u} * slots;
      rows[u] = at < end ? BLL_LOAD(v.order + at) : -1;
    }
#pragma unroll
    for (int u = 0; u < batch; ++u) {
      if (rows[u] < 0) continue;
      raw[u] = Access::load(v.x, Access::dtype, rows[u] * v.stride + column);
    }
#pragma unroll
    for (int u = 0; u < batch; ++u) {
      if (rows[u] < 0) continue;
      float x[count];
      Access::unpack(raw[u], Access::dtype, x);
#pragma unroll
      for (int i = 0; i < count; ++i) part[i] += x[i];
    }
#pragma unroll
    for (int i = 0; i < count; ++i) sums[i].add(part[i]);
  }
}

// What the sum of a class's rows makes; NaN where a row has no class.
__device__ __forceinline__ void store_mean(const MeansView& v, int64_t label, int64_t column,
                                           float sum) {
  const int32_t rows = v.start[label + 1] - v.start[label];
  const bool lost = v.start[v.classes] < v.rows;
  const float mean = sum / static_cast<float>(rows > 0 ? rows : 1);
  v.means[label * v.width + column] = lost ? bits_float(0x7fc00000u) : mean;
  BLL_COUNT_STORED(4);
}

// A block has a section of a class's rows and a run of columns; threads along a column take every
// so many rows and are added up in a fixed order.
template <class Access>
__global__ void __launch_bounds__(kThreads, 2) class_means_kernel(const MeansView v) {
  constexpr int count = Access::kCount;
  BLL_SHARED(float, shared, kThreads / 2 * count);
  const int lane = threadIdx.x % v.lanes, slot = threadIdx.x / v.lanes, slots = kThreads / v.lanes;
  const int64_t chunk = blockIdx.x % v.chunks, owner = blockIdx.x / v.chunks;
  const int64_t label = owner % v.classes, section = owner / v.classes;
  const int64_t column = (chunk * v.lanes + lane) * count;
  const int32_t first = v.start[label], last = v.start[label + 1];
  const int64_t share = ceil_div(last - first, v.sections), begin = first + section * share;
  const int64_t end = begin + share < last ? begin + share : last;
  if (chunk == 0 && section == 0 && threadIdx.x == 0) v.counts[label] = last - first;
  Compensated sums[count] = {};
  if (column < v.width) add_rows<Access>(v, begin + slot, end, slots, column, sums);
  float sum[count];
#pragma unroll
  for (int i = 0; i < count; ++i) sum[i] = sums[i].result();
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
#pragma unroll
  for (int i = 0; i < count; ++i) {
    if (v.sums == nullptr) {
      store_mean(v, label, column + i, sum[i]);
    } else {
      v.sums[owner * v.width + column + i] = sum[i];
      BLL_COUNT_STORED(4);
    }
  }
}

// A thread per mean adds up its sections in their order.
__global__ void __launch_bounds__(kThreads) means_sections_kernel(const MeansView v) {
  const int64_t size = v.classes * v.width, at = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (at >= size) return;
  Compensated sum = {};
#pragma unroll 4
  for (int64_t s = 0; s < v.sections; ++s) sum.add(BLL_LOAD(v.sums + s * size + at));
  store_mean(v, at / v.width, at % v.width, sum.result());
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

template <class T, DType dtype>
void launch(const MeansView& view, bool wide, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(view.sections * view.classes * view.chunks);
  if (wide) {
    BLL_LAUNCH((class_means_kernel<Typed<Wide<T>, dtype>>), blocks, kThreads, stream, view);
  } else {
    BLL_LAUNCH((class_means_kernel<Typed<Single, dtype>>), blocks, kThreads, stream, view);
  }
}

}  // namespace

void run_class_means(const MeansView& view, bool wide, cudaStream_t stream) {
  if (view.dtype == DType::kBFloat16) {
    launch<__nv_bfloat16, DType::kBFloat16>(view, wide, stream);
  } else if (view.dtype == DType::kFloat16) {
    launch<__half, DType::kFloat16>(view, wide, stream);
  } else {
    launch<float, DType::kFloat32>(view, wide, stream);
  }
  if (view.sums == nullptr) return;
  const int64_t blocks = ceil_div(view.classes * view.width, kThreads);
  BLL_LAUNCH(means_sections_kernel, static_cast<unsigned>(blocks), kThreads, stream, view);
}

void run_means_spread(const ClassMeansGradArgs& args, cudaStream_t stream) {
  BLL_LAUNCH(means_spread_kernel, static_cast<unsigned>(args.rows), kThreads, stream, args);
}

}  // namespace bll::cuda
