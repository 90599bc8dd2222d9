// Maps with channels first: a plane's pixels lie together.
#include "cuda/pool_cells.cuh"

namespace bll::cuda {
namespace {

// What the pixels of a cell tell one of the `lanes` threads that share it.
template <Pool kind>
__device__ __forceinline__ Gathered<kind> gather(const PoolView& v, int64_t plane, Span down,
                                                 Span across, int lane, int lanes) {
  Gathered<kind> own{};
  const int wide = across.size(), pixels = down.size() * wide;
  const int step_down = lanes / wide, step_across = lanes % wide;
  int h = lane / wide, w = lane % wide;
  for (int at = lane; at < pixels; at += lanes) {
    const int64_t pixel = int64_t{down.begin + h} * v.width + across.begin + w;
    own.add(Single::value(v.map, v.dtype, plane * v.height * v.width + pixel), at);
    h += step_down, w += step_across;
    if (w >= wide) w -= wide, ++h;
  }
  return own;
}

// Everything of a cell that the whole block shares; thread 0 gets it.
template <Pool kind>
__device__ __forceinline__ void merge_block(Gathered<kind>& own, Gathered<kind>* warps) {
  merge_lanes(own, kWarp);
  __syncthreads();
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = own;
  __syncthreads();
  for (int i = 1; threadIdx.x == 0 && i < kPoolThreads / kWarp; ++i) own.merge(warps[i]);
}

template <Pool kind>
__device__ __forceinline__ void gather_cells(const PoolView& v, int64_t first, int64_t planes) {
  BLL_SHARED(Gathered<kind>, warps, kPoolThreads / kWarp);
  const int64_t cells = int64_t{v.grid} * v.grid;
  const int teams = kPoolThreads / v.lanes, lane = threadIdx.x % v.lanes;
  for (int64_t start = 0; start < planes * cells; start += teams) {
    const int64_t unit = start + threadIdx.x / v.lanes;
    const bool inside = unit < planes * cells;
    const int64_t plane = first + (inside ? unit / cells : 0);
    const int cell = static_cast<int>(inside ? unit % cells : 0);
    const Span down = cell_span(cell / v.grid, v.height, v.grid);
    const Span across = cell_span(cell % v.grid, v.width, v.grid);
    Gathered<kind> own{};
    if (inside) own = gather<kind>(v, plane, down, across, lane, v.lanes);
    if (v.lanes > kWarp) {
      merge_block(own, warps);
    } else {
      merge_lanes(own, v.lanes);
    }
    if (inside && lane == 0) {
      store_cell(v, plane * cells + cell, down.size() * across.size(), own);
    }
  }
}

// Every pixel of the block's planes gets what its cells hold for it.
template <Pool kind, class Access>
__device__ __forceinline__ void spread_planes(const PoolView& v, int64_t first, int64_t planes) {
  constexpr int count = Access::kCount;
  const int64_t pixels = int64_t{v.height} * v.width, cells = int64_t{v.grid} * v.grid;
  const int64_t end = planes * pixels;
  for (int64_t at = threadIdx.x * count; at < end; at += kPoolThreads * count) {
    int64_t plane = first + at / pixels;
    const int pixel = static_cast<int>(at % pixels);
    int h = pixel / v.width, w = pixel % v.width;
    float x[count], grad[count];
    if constexpr (kind == Pool::kStd) {
      Access::unpack(Access::load(v.map, v.dtype, first * pixels + at), v.dtype, x);
    }
#pragma unroll
    for (int i = 0; i < count; ++i) {
      grad[i] = pixel_gradient<kind>(v, plane * cells, h, w, kind == Pool::kStd ? x[i] : 0.0f);
      if (++w == v.width) w = 0, ++h;
      if (h == v.height) h = 0, ++plane;
    }
    Access::store(v.grad_map, v.dtype, first * pixels + at, grad);
  }
}

template <Pool kind, class Access>
__global__ void __launch_bounds__(kPoolThreads, 4) pool_planes(const PoolView v) {
  const int64_t first = int64_t{blockIdx.x} * v.block_planes;
  const int64_t left = v.planes - first, planes = left < v.block_planes ? left : v.block_planes;
  if (v.pooled != nullptr || kind != Pool::kMean) gather_cells<kind>(v, first, planes);
  if (v.grad_map == nullptr) return;
  __syncthreads();
  spread_planes<kind, Access>(v, first, planes);
}

}  // namespace

void run_pool_planes(Pool kind, bool wide, const PoolView& view, int64_t blocks,
                     cudaStream_t stream) {
  with_kind(kind, [&](auto of) {
    constexpr Pool k = decltype(of)::value;
    const unsigned grid = static_cast<unsigned>(blocks);
    if (!wide) {
      BLL_LAUNCH((pool_planes<k, Single>), grid, kPoolThreads, stream, view);
    } else if (view.dtype == DType::kBFloat16) {
      BLL_LAUNCH((pool_planes<k, Wide<__nv_bfloat16>>), grid, kPoolThreads, stream, view);
    } else if (view.dtype == DType::kFloat16) {
      BLL_LAUNCH((pool_planes<k, Wide<__half>>), grid, kPoolThreads, stream, view);
    } else {
      BLL_LAUNCH((pool_planes<k, Wide<float>>), grid, kPoolThreads, stream, view);
    }
  });
}

}  // namespace bll::cuda
