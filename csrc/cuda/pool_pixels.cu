// Maps with channels last: a pixel's channels lie together.
#include "cuda/pool_cells.cuh"

namespace bll::cuda {
namespace {

// The channels and pixels of one thread.
struct Share {
  int64_t image, channel;
  int slot, slots;  // runs of lanes: which pixels of the map, or which cells and pixels of those
  bool inside;
};

// The dtype of a map, known to the compiler where vectors are.
template <class Access>
__device__ __forceinline__ DType dtype_of(const PoolView& v) {
  if constexpr (Access::kCount > 1) {
    return Access::dtype;
  } else {
    return v.dtype;
  }
}

// Calls function(at, pixels of the map) for every `slots`-th pixel of a cell from `slot` on,
// `batch` at a time, so that their loads can be in flight together; -1 is a pixel that the cell
// lacks. The first one is the cell's pixel `at`, row by row.
template <int batch, class Function>
__device__ __forceinline__ void walk_cell(Span down, Span across, int width, int slot, int slots,
                                          Function&& function) {
  const int wide = across.size(), pixels = down.size() * wide;
  const int step_down = slots / wide, step_across = slots % wide;
  int h = slot / wide, w = slot % wide;
  for (int at = slot; at < pixels; at += slots * batch) {
    int chosen[batch];
#pragma unroll
    for (int u = 0; u < batch; ++u) {
      const int pixel = (down.begin + h) * width + across.begin + w;
      chosen[u] = at + u * slots < pixels ? pixel : -1;
      h += step_down, w += step_across;
      if (w >= wide) w -= wide, ++h;
    }
    function(at, chosen);
  }
}

template <Pool kind, class Access>
__device__ __forceinline__ void gather_cell(const PoolView& v, const Share& share, int cell,
                                            Gathered<kind> (&own)[Access::kCount]) {
  constexpr int batch = 4;
  const DType dtype = dtype_of<Access>(v);
  const Span down = cell_span(cell / v.grid, v.height, v.grid);
  const Span across = cell_span(cell % v.grid, v.width, v.grid);
  const int64_t first = share.image * v.height * v.width;
  const auto add = [&](int at, const int (&pixels)[batch]) {
    typename Access::Raw raw[batch];
#pragma unroll
    for (int u = 0; u < batch; ++u) {
      if (pixels[u] < 0) continue;
      const int64_t offset = (first + pixels[u]) * v.channels + share.channel;
      raw[u] = Access::load(v.map, dtype, offset);
    }
#pragma unroll
    for (int u = 0; u < batch; ++u) {
      if (pixels[u] < 0) continue;
      float x[Access::kCount];
      Access::unpack(raw[u], dtype, x);
#pragma unroll
      for (int i = 0; i < Access::kCount; ++i) own[i].add(x[i], at + u * v.sharers);
    }
  };
  walk_cell<batch>(down, across, v.width, share.slot % v.sharers, v.sharers, add);
}

template <Pool kind>
__device__ __forceinline__ void store(const PoolView& v, int64_t image, int64_t channel, int cell,
                                      const Gathered<kind>& own) {
  const Span down = cell_span(cell / v.grid, v.height, v.grid);
  const Span across = cell_span(cell % v.grid, v.width, v.grid);
  const int64_t at = (image * v.channels + channel) * v.grid * v.grid + cell;
  store_cell(v, at, down.size() * across.size(), own);
}

// Warps that share cells, the first of which is `start`: each leaves what it has of the block's
// channels, and a thread per cell and channel merges it in the order of the warps.
template <Pool kind, class Access>
__device__ __forceinline__ void meet(const PoolView& v, const Share& share, int start,
                                     const Gathered<kind> (&own)[Access::kCount]) {
  constexpr int count = Access::kCount, warps = kPoolThreads / kWarp;
  BLL_SHARED(Gathered<kind>, shared, warps * kChannelLanes * count);
  const int thread = threadIdx.x, planes = v.lanes * count, parts = v.lanes * v.sharers / kWarp;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < count; ++i) {
    if (thread % kWarp >= v.lanes) continue;
    shared[thread / kWarp * planes + i * v.lanes + thread % kWarp] = own[i];
  }
  __syncthreads();
  const int team = thread / planes, plane = thread % planes, cell = start + team;
  const int64_t lowest = share.channel - thread % v.lanes * count;
  const int64_t channel = lowest + plane % v.lanes * count + plane / v.lanes;
  if (team >= warps / parts || cell >= v.grid * v.grid || channel >= v.channels) return;
  Gathered<kind> all = shared[team * parts * planes + plane];
  for (int p = 1; p < parts; ++p) all.merge(shared[(team * parts + p) * planes + plane]);
  store(v, share.image, channel, cell, all);
}

// The cells of a block's channels, as many at a time as the runs of lanes can have.
template <Pool kind, class Access>
__device__ __forceinline__ void gather_cells(const PoolView& v, const Share& share) {
  constexpr int count = Access::kCount;
  const int cells = v.grid * v.grid, together = share.slots / v.sharers;
  const int run = v.lanes * v.sharers;
  for (int start = 0; start < cells; start += together) {
    const int cell = start + share.slot / v.sharers;
    const bool exists = share.inside && cell < cells;
    Gathered<kind> own[count] = {};
    if (exists) gather_cell<kind, Access>(v, share, cell, own);
    for (int step = v.lanes; step < kWarp && step < run; step *= 2) {
#pragma unroll
      for (int i = 0; i < count; ++i) merge_lane(own[i], step);
    }
    if (run > kWarp) {
      meet<kind, Access>(v, share, start, own);
    } else if (exists && share.slot % v.sharers == 0) {
#pragma unroll
      for (int i = 0; i < count; ++i) store(v, share.image, share.channel + i, cell, own[i]);
    }
  }
}

template <Pool kind, class Access>
__device__ __forceinline__ void spread_pixels(const PoolView& v, const Share& share) {
  constexpr int count = Access::kCount;
  const DType dtype = dtype_of<Access>(v);
  if (!share.inside) return;
  const int pixels = v.height * v.width, cells = v.grid * v.grid;
  const int64_t plane = share.image * v.channels + share.channel;
  for (int pixel = share.slot; pixel < pixels; pixel += share.slots) {
    const int64_t at = (share.image * pixels + pixel) * v.channels + share.channel;
    float x[count], grad[count];
    if constexpr (kind == Pool::kStd) {
      Access::unpack(Access::load(v.map, dtype, at), dtype, x);
    }
#pragma unroll
    for (int i = 0; i < count; ++i) {
      grad[i] = pixel_gradient<kind>(v, (plane + i) * cells, pixel / v.width, pixel % v.width,
                                     kind == Pool::kStd ? x[i] : 0.0f);
    }
    Access::store(v.grad_map, dtype, at, grad);
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
      BLL_LAUNCH((pool_pixels<k, Typed<Wide<__nv_bfloat16>, DType::kBFloat16>>), grid, kPoolThreads,
                 stream, view);
    } else if (view.dtype == DType::kFloat16) {
      BLL_LAUNCH((pool_pixels<k, Typed<Wide<__half>, DType::kFloat16>>), grid, kPoolThreads, stream,
                 view);
    } else {
      BLL_LAUNCH((pool_pixels<k, Typed<Wide<float>, DType::kFloat32>>), grid, kPoolThreads, stream,
                 view);
    }
  });
}

}  // namespace bll::cuda
