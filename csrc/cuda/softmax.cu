// A block per row: one read for the largest score and the sum, one more, from the cache, for the
// slopes. Every thread comes back to the elements that it read itself.
#include "core/special.h"
#include "cuda/access.h"
#include "cuda/block.h"
#include "cuda/softmax.h"

namespace bll::cuda {
namespace {

constexpr int kThreads = 512;

// The largest score seen, and the sum over the classes but the label of e^(score - largest).
struct Running {
  float top, others;

  __device__ __forceinline__ void raise(float x) {
    if (!(x > top) && x == x) return;
    // From no score at all, there is nothing to scale.
    others = others == 0 ? 0.0f : others * exp_any(top - x);
    top = x;
  }
  __device__ __forceinline__ void merge(float other_top, float other_sum) {
    raise(other_top);
    if (other_sum != 0) others += other_sum * exp_any(other_top - top);
  }
};

__device__ __forceinline__ float score_at(const SoftmaxRows& s, int64_t first, int64_t c) {
  const float x = BLL_LOAD(s.scores + first + c);
  return s.offset == nullptr ? x : x + __ldg(s.offset + c);
}

template <int count>
__device__ __forceinline__ void read(const SoftmaxRows& s, int64_t first, int64_t c,
                                     float (&x)[count]) {
  if constexpr (count == 1) {
    x[0] = score_at(s, first, c);
  } else {
    const float4 quad = BLL_LOAD(reinterpret_cast<const float4*>(s.scores + first + c));
    x[0] = quad.x, x[1] = quad.y, x[2] = quad.z, x[3] = quad.w;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      if (s.offset != nullptr) x[i] += __ldg(s.offset + c + i);
    }
  }
}

// Slopes in any dtype, 16 bytes at once in float32.
template <int count>
__device__ __forceinline__ void write(const SoftmaxRows& s, int64_t at, const float (&x)[count]) {
  if constexpr (count == 4) {
    if (s.slopes_dtype == DType::kFloat32) {
      const float4 quad = make_float4(x[0], x[1], x[2], x[3]);
      *reinterpret_cast<float4*>(static_cast<float*>(s.slopes) + at) = quad;
      BLL_COUNT_STORED(16);
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < count; ++i) {
    const float one[1] = {x[i]};
    Single::store(s.slopes, s.slopes_dtype, at + i, one);
  }
}

// Everything of the block; all threads get it.
__device__ __forceinline__ void merge_block(Running& own, float* tops, float* sums) {
  for (int step = 1; step < kWarp; step *= 2) {
    const float top = __shfl_xor_sync(kAllLanes, own.top, step);
    const float sum = __shfl_xor_sync(kAllLanes, own.others, step);
    // The lower lane's comes first in every step, so that all lanes round alike.
    if (threadIdx.x & step) {
      Running lower{top, sum};
      lower.merge(own.top, own.others);
      own = lower;
    } else {
      own.merge(top, sum);
    }
  }
  if (threadIdx.x % kWarp == 0) {
    tops[threadIdx.x / kWarp] = own.top;
    sums[threadIdx.x / kWarp] = own.others;
  }
  __syncthreads();
  own = {tops[0], sums[0]};
  for (int i = 1; i < kThreads / kWarp; ++i) own.merge(tops[i], sums[i]);
}

template <int count>
__global__ void __launch_bounds__(kThreads, 2) softmax_rows_kernel(const SoftmaxRows s) {
  BLL_SHARED(float, tops, kThreads / kWarp);
  BLL_SHARED(float, sums, kThreads / kWarp);
  const int64_t row = blockIdx.x, first = row * s.classes, label = __ldg(s.labels + row);
  const bool exists = label >= 0 && label < s.classes;
  // Before slopes are written over the scores.
  const float own = exists ? score_at(s, first, label) : bits_float(0x7fc00000u);
  Running running{-HUGE_VALF, 0};
  for (int64_t c = threadIdx.x * count; c < s.classes; c += kThreads * count) {
    float x[count];
    read(s, first, c, x);
#pragma unroll
    for (int i = 0; i < count; ++i) {
      running.raise(x[i]);
      if (c + i != label && x[i] > -HUGE_VALF) running.others += exp_any(x[i] - running.top);
      if (x[i] != x[i]) running.others = x[i];
    }
  }
  merge_block(running, tops, sums);
  const float top = running.top, others = running.others;
  const float all = others + exp_any(own - top);
  const float weight = s.weight != nullptr ? __ldg(s.weight + row) : 1.0f;
  if (threadIdx.x == 0) {
    float loss = own == top ? log1p_nonnegative(others) : (top - own) + log1p_nonnegative(all - 1);
    // No exponential says how far below an infinite score the label's is.
    if (top - top != 0) loss = top - own;
    s.losses[row] = weight * loss;
  }
  const float factor = weight / all;
  for (int64_t c = threadIdx.x * count; c < s.classes; c += kThreads * count) {
    float x[count];
    read(s, first, c, x);
#pragma unroll
    for (int i = 0; i < count; ++i) {
      const float part = c + i == label ? -others : exp_any(x[i] - top);
      // A row of weight 0 counts for nothing, whatever it holds.
      x[i] = weight == 0 ? 0.0f : factor * part;
    }
    write(s, first + c, x);
  }
}

}  // namespace

cudaError_t softmax_rows(const SoftmaxRows& args, cudaStream_t stream) {
  if (args.rows == 0 || args.classes == 0) return cudaSuccess;
  if (args.rows > INT32_MAX) return cudaErrorInvalidValue;
  const unsigned rows = static_cast<unsigned>(args.rows);
  const auto at =
      reinterpret_cast<uintptr_t>(args.scores) | reinterpret_cast<uintptr_t>(args.slopes);
  if (args.classes % 4 == 0 && at % 16 == 0) {
    BLL_LAUNCH(softmax_rows_kernel<4>, rows, kThreads, stream, args);
  } else {
    BLL_LAUNCH(softmax_rows_kernel<1>, rows, kThreads, stream, args);
  }
  return cudaGetLastError();
}

}  // namespace bll::cuda
