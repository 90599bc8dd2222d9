// Adam, AdamW and SGD with momentum over many tensors, each element read and written once. The
// formulas and the order of their rounding are those of the fused optimisers of PyTorch.
#include "cuda/access.h"
#include "cuda/launch.h"
#include "cuda/optim.h"

namespace bll::cuda {
namespace {

// What a step needs beside an element.
struct Numbers {
  OptimKind kind;
  float lr, eps, weight_decay, beta1, beta2, unscale;
  float first_share, second_share;  // 1 - beta, rounded once
  float step_size, root;            // lr / (1 - beta1^t), sqrt(1 - beta2^t)
};

// 1 - beta^t.
__device__ __forceinline__ double correction(double beta, uint32_t t) {
  double power = 1, square = beta;
  for (; t != 0; t >>= 1) {
    if (t & 1) power *= square;
    square *= square;
  }
  return 1 - power;
}

__device__ __forceinline__ void numbers_of(const OptimView& v, int tensor, Numbers& n) {
  n.kind = v.kind;
  n.lr = v.rate != nullptr ? *v.rate : v.lr;
  n.eps = v.eps;
  n.weight_decay = v.weight_decay;
  n.beta1 = static_cast<float>(v.beta1);
  n.beta2 = static_cast<float>(v.beta2);
  n.unscale = v.inverse_scale != nullptr ? *v.inverse_scale : 1.0f;
  n.first_share = static_cast<float>(1 - v.beta1);
  n.second_share = static_cast<float>(1 - v.beta2);
  n.step_size = n.lr, n.root = 1;
  if (v.steps == nullptr) return;
  const uint32_t t = static_cast<uint32_t>(v.steps[tensor]) + 1;
  n.step_size = static_cast<float>(n.lr / correction(v.beta1, t));
  n.root = static_cast<float>(sqrt(correction(v.beta2, t)));
}

template <bool adam>
__device__ __forceinline__ void update(const Numbers& n, float& p, float g, float& first,
                                       float& second, bool momentum) {
  g *= n.unscale;
  if constexpr (adam) {
    if (n.kind == OptimKind::kAdamW) {
      p -= n.lr * n.weight_decay * p;
    } else {
      g += n.weight_decay * p;
    }
    first += n.first_share * (g - first);
    second = n.beta2 * second + n.second_share * g * g;
    p -= n.step_size * first / (sqrtf(second) / n.root + n.eps);
  } else {
    g += n.weight_decay * p;
    if (momentum) {
      first = n.beta1 * first + g;
      g = n.kind == OptimKind::kNesterov ? g + n.beta1 * first : first;
    }
    p -= n.lr * g;
  }
}

// The elements from `at` on, `count` at a time.
template <bool adam, class Access>
__device__ __forceinline__ void update_run(const OptimTensor& t, const Numbers& n, int64_t begin,
                                           int64_t end) {
  constexpr int count = Access::kCount;
  const bool momentum = t.first != nullptr;
  for (int64_t at = begin + threadIdx.x * count; at < end; at += kOptimThreads * count) {
    float p[count], g[count], first[count] = {}, second[count] = {};
    const auto raw_p = Access::load_own(t.parameter, Access::dtype, at);
    const auto raw_g = Access::load(t.gradient, Access::dtype, at);
    if (momentum) {
      const auto raw = Access::load_own(t.first, Access::dtype, at);
      Access::unpack(raw, Access::dtype, first);
    }
    if constexpr (adam) {
      const auto raw = Access::load_own(t.second, Access::dtype, at);
      Access::unpack(raw, Access::dtype, second);
    }
    Access::unpack(raw_p, Access::dtype, p);
    Access::unpack(raw_g, Access::dtype, g);
#pragma unroll
    for (int i = 0; i < count; ++i) update<adam>(n, p[i], g[i], first[i], second[i], momentum);
    Access::store(t.parameter, Access::dtype, at, p);
    if (momentum) Access::store(t.first, Access::dtype, at, first);
    if constexpr (adam) Access::store(t.second, Access::dtype, at, second);
  }
}

// The tensor that a block works on.
__device__ __forceinline__ int tensor_of(const OptimView& v) {
  int low = 0, high = v.count - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (v.starts[middle] <= blockIdx.x) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

// Calls function(typed access policy, first element, last) for a block's chunk: vectors, then
// what is left of them.
template <class Function>
__device__ __forceinline__ void over_chunk(const OptimView& v, int tensor, Function&& function) {
  const OptimTensor& t = v.tensors[tensor];
  const int64_t begin = int64_t{blockIdx.x - v.starts[tensor]} * kOptimChunk;
  const int64_t end = begin + kOptimChunk < t.size ? begin + kOptimChunk : t.size;
  if (begin >= end) return;
  const bool wide = (v.wide >> tensor & 1) != 0;
  const int64_t middle = wide ? end / 8 * 8 : begin;
  if (middle > begin) with_access(t.dtype, true, [&](auto a) { function(a, begin, middle); });
  if (end > middle) with_access(t.dtype, false, [&](auto a) { function(a, middle, end); });
}

template <bool adam>
__global__ void __launch_bounds__(kOptimThreads, 4) optim_update_kernel(const OptimView v) {
  BLL_SHARED(Numbers, numbers, 1);
  const int tensor = tensor_of(v);
  if (threadIdx.x == 0) numbers_of(v, tensor, numbers[0]);
  __syncthreads();
  const bool skipped = v.found != nullptr && *v.found != 0;
  if (!skipped) {
    const Numbers n = numbers[0];
    over_chunk(v, tensor, [&](auto access, int64_t begin, int64_t end) {
      update_run<adam, decltype(access)>(v.tensors[tensor], n, begin, end);
    });
  }
  // The last block to come has every other block's reading of the steps behind it.
  if (threadIdx.x != 0 || v.steps == nullptr) return;
  __threadfence();
  if (atomicAdd(v.ticket, 1u) != gridDim.x - 1) return;
  *v.ticket = 0;
  for (int i = 0; !skipped && i < v.count; ++i) v.steps[i] += 1;
}

__global__ void __launch_bounds__(kOptimThreads, 4) optim_check_kernel(const OptimView v) {
  const int tensor = tensor_of(v);
  bool finite = true;
  over_chunk(v, tensor, [&](auto access, int64_t begin, int64_t end) {
    using Access = decltype(access);
    constexpr int count = Access::kCount;
    for (int64_t at = begin + threadIdx.x * count; at < end; at += kOptimThreads * count) {
      float g[count];
      Access::unpack(Access::load(v.tensors[tensor].gradient, Access::dtype, at), Access::dtype, g);
#pragma unroll
      for (int i = 0; i < count; ++i) finite = finite && g[i] - g[i] == 0;
    }
  });
  if (!finite) *v.found = 1;  // every thread that writes writes the same
}

}  // namespace

void run_optim_check(const OptimView& view, cudaStream_t stream) {
  const unsigned blocks = view.starts[view.count];
  BLL_LAUNCH(optim_check_kernel, blocks, kOptimThreads, stream, view);
}

void run_optim_update(const OptimView& view, cudaStream_t stream) {
  const unsigned blocks = view.starts[view.count] > 0 ? view.starts[view.count] : 1;
  if (view.kind == OptimKind::kAdam || view.kind == OptimKind::kAdamW) {
    BLL_LAUNCH(optim_update_kernel<true>, blocks, kOptimThreads, stream, view);
  } else {
    BLL_LAUNCH(optim_update_kernel<false>, blocks, kOptimThreads, stream, view);
  }
}

}  // namespace bll::cuda
