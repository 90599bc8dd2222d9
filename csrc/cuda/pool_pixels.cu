// Maps with channels last: a pixel's channels lie together.
#include "cuda/pool_cells.cuh"

namespace bll::cuda {
namespace {

// The channels and pixels of one thread.
struct Share {
  int64_t image, channel;
  int slot, slots;  // which pixels of a cell
  bool inside;
};

template <Pool kind, class Access>
__device__ __forceinline__ void gather_cell(const PoolView& v, const Share& share, Span down,
                                            Span across, Gathered<kind> (&own)[Access::kCount]) {
  const int wide = across.size(), pixels = down.size() * wide;
  const int step_down = share.slots / wide, step_across = share.slots % wide;
  int h = share.slot / wide, w = share.slot % wide;
  const int64_t corner = (share.image * v.height + down.begin) * v.width + across.begin;
  for (int at = share.slot; at < pixels; at += share.slots) {
    const int64_t pixel = corner + int64_t{h} * v.width + w;
    float x[Access::kCount];
    Access::unpack(Access::load(v.map, v.dtype, pixel * v.channels + share.channel), v.dtype, x);
#pragma unroll
    for (int i = 0; i < Access::kCount; ++i) own[i].add(x[i], at);
    h += step_down, w += step_across;
    if (w >= wide) w -= wide, ++h;
  }
}

// The cells of a block's channels. Slots beyond a cell's pixels have nothing to add.
template <Pool kind, class Access>
__device__ __forceinline__ void gather_cells(const PoolView& v, const Share& share) {
  constexpr int count = Access::kCount;
  BLL_SHARED(Gathered<kind>, shared, kPoolThreads);
  const int cells = v.grid * v.grid;
  for (int cell = 0; cell < cells; ++cell) {
    const Span down = cell_span(cell / v.grid, v.height, v.grid);
    const Span across = cell_span(cell % v.grid, v.width, v.grid);
    Gathered<kind> own[count] = {};
    if (share.inside) gather_cell<kind, Access>(v, share, down, across, own);
#pragma unroll
    for (int i = 0; i < count; ++i) {
      __syncthreads();
      shared[threadIdx.x] = own[i];
      __syncthreads();
      if (share.slot != 0 || !share.inside) continue;
      for (int s = 1; s < share.slots; ++s) own[i].merge(shared[s * v.lanes + threadIdx.x]);
      const int64_t plane = share.image * v.channels + share.channel + i;
      store_cell(v, plane * cells + cell, down.size() * across.size(), own[i]);
    }
  }
}

template <Pool kind, class Access>
__device__ __forceinline__ void spread_pixels(const PoolView& v, const Share& share) {
  constexpr int count = Access::kCount;
  if (!share.inside) return;
  const int pixels = v.height * v.width, cells = v.grid * v.grid;
  const int64_t plane = share.image * v.channels + share.channel;
  for (int pixel = share.slot; pixel < pixels; pixel += share.slots) {
    const int64_t at = (share.image * pixels + pixel) * v.channels + share.channel;
    float x[count], grad[count];
    if constexpr (kind == Pool::kStd) {
      Access::unpack(Access::load(v.map, v.dtype, at), v.dtype, x);
    }
#pragma unroll
    for (int i = 0; i < count; ++i) {
      grad[i] = pixel_gradient<kind>(v, (plane + i) * cells, pixel / v.width, pixel % v.width,
                                     kind == Pool::kStd ? x[i] : 0.0f);
    }
    Access::store(v.grad_map, v.dtype, at, grad);
  }
}

template <Pool kind, class Access>
__global__ void __launch_bounds__(kPoolThreads, 2) pool_pixels(const PoolView v) {
  const int64_t chunks = ceil_div(v.channels, v.block_planes);
  Share share;
  share.image = blockIdx.x / chunks;
  share.channel = blockIdx.x % chunks * v.block_planes + threadIdx.x % v.lanes * Access::kCount;
  share.slot = threadIdx.x / v.lanes;
  share.slots = kPoolThreads / v.lanes;
  share.inside = share.channel < v.channels;
  if (v.pooled != nullptr || kind != Pool::kMean) gather_cells<kind, Access>(v, share);
  if (v.grad_map == nullptr) return;
  __syncthreads();
  spread_pixels<kind, Access>(v, share);
}

}  // namespace

void run_pool_pixels(Pool kind, bool wide, const PoolView& view, int64_t blocks,
                     cudaStream_t stream) {
  with_kind(kind, [&](auto of) {
    constexpr Pool k = decltype(of)::value;
    const unsigned grid = static_cast<unsigned>(blocks);
    if (!wide) {
      BLL_LAUNCH((pool_pixels<k, Single>), grid, kPoolThreads, stream, view);
    } else if (view.dtype == DType::kBFloat16) {
      BLL_LAUNCH((pool_pixels<k, Wide<__nv_bfloat16>>), grid, kPoolThreads, stream, view);
    } else if (view.dtype == DType::kFloat16) {
      BLL_LAUNCH((pool_pixels<k, Wide<__half>>), grid, kPoolThreads, stream, view);
    } else {
      BLL_LAUNCH((pool_pixels<k, Wide<float>>), grid, kPoolThreads, stream, view);
    }
  });
}

}  // namespace bll::cuda
