#include "core/defs.h"
#include "cuda/labels.h"
#include "cuda/launch.h"

namespace bll::cuda {
namespace {

__device__ __forceinline__ void put(int32_t* at, int32_t x) {
  *at = x;
  BLL_COUNT_STORED(4);
}

// The class of a row; `classes` where its label names none.
__device__ __forceinline__ int64_t class_of(const LabelSort& s, int64_t row) {
  const int64_t label = __ldg(s.labels + row);
  return label >= 0 && label < s.classes ? label : s.classes;
}

// A block per chunk: every row's rank among the chunk's rows of its label, and their number.
__global__ void __launch_bounds__(kSortBlock) rank_kernel(const LabelSort s) {
  BLL_SHARED(int64_t, block_labels, kSortBlock);
  const int64_t chunk = blockIdx.x, first = chunk * s.chunk_rows;
  const int64_t last = first + s.chunk_rows < s.rows ? first + s.chunk_rows : s.rows;
  for (int64_t c = threadIdx.x; c <= s.classes; c += kSortBlock)
    put(s.counts + c * s.chunks + chunk, 0);
  __syncthreads();
  for (int64_t start = first; start < last; start += kSortBlock) {
    const int64_t row = start + threadIdx.x;
    const bool inside = row < last;
    const int64_t label = inside ? class_of(s, row) : s.classes;
    block_labels[threadIdx.x] = inside ? label : -1;
    __syncthreads();
    int32_t before = 0, after = 0;
    for (int i = 0; i < kSortBlock; ++i) {
      const bool same = block_labels[i] == label;
      before += same && i < static_cast<int>(threadIdx.x);
      after += same && i > static_cast<int>(threadIdx.x);
    }
    int32_t* count = s.counts + label * s.chunks + chunk;
    const int32_t rank = inside ? before + BLL_LOAD(count) : 0;
    if (inside) put(s.rank + row, rank);
    __syncthreads();
    if (inside && after == 0) put(count, rank + 1);
    __syncthreads();
  }
}

// Inclusive sum over the lanes of a warp.
__device__ __forceinline__ int32_t scan_lanes(int32_t x) {
  const int lane = threadIdx.x % kWarp;
  for (int step = 1; step < kWarp; step *= 2) {
    const int32_t other = __shfl_sync(kAllLanes, x, lane >= step ? lane - step : lane);
    if (lane >= step) x += other;
  }
  return x;
}

// Numbers of a lane that a warp scans at once: their loads are in flight together.
constexpr int kRun = 4, kWarpRun = kRun * kWarp;

// A lane's of the first `count` numbers, at most a run, as sums of those before them; returns the
// total.
__device__ __forceinline__ int32_t scan_run(const int32_t* numbers, int count,
                                            int32_t (&before)[kRun]) {
#pragma unroll
  for (int u = 0; u < kRun; ++u) {
    const int i = u * kWarp + threadIdx.x % kWarp;
    before[u] = i < count ? BLL_LOAD(numbers + i) : 0;
  }
  int32_t total = 0;
#pragma unroll
  for (int u = 0; u < kRun; ++u) {
    const int32_t sum = scan_lanes(before[u]);
    before[u] = total + sum - before[u];
    total += __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
  return total;
}

__device__ __forceinline__ void put_run(int32_t* numbers, int count, int32_t base,
                                        const int32_t (&before)[kRun]) {
#pragma unroll
  for (int u = 0; u < kRun; ++u) {
    const int i = u * kWarp + threadIdx.x % kWarp;
    if (i < count) put(numbers + i, base + before[u]);
  }
}

// Numbers of the run that begins at `start`, of `count` in all; none or fewer beyond them.
__device__ __forceinline__ int of_run(int64_t start, int64_t count) {
  return static_cast<int>(count - start < kWarpRun ? count - start : kWarpRun);
}

// A warp per class: where every chunk's rows of the class begin among all of the class.
__global__ void __launch_bounds__(kSortBlock) chunk_starts_kernel(const LabelSort s) {
  const int64_t c = int64_t{blockIdx.x} * (kSortBlock / kWarp) + threadIdx.x / kWarp;
  if (c > s.classes) return;
  int32_t* counts = s.counts + c * s.chunks;
  int32_t total = 0;
  for (int64_t start = 0; start < s.chunks; start += kWarpRun) {
    int32_t before[kRun];
    const int count = of_run(start, s.chunks);
    const int32_t sum = scan_run(counts + start, count, before);
    put_run(counts + start, count, total, before);
    total += sum;
  }
  if (threadIdx.x % kWarp == 0) put(s.total + c, total);
}

// One block, of as many warps as there are runs: where every class begins.
__global__ void __launch_bounds__(kScanBlock) class_starts_kernel(const LabelSort s) {
  BLL_SHARED(int32_t, sums, kScanBlock / kWarp);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp, warps = blockDim.x / kWarp;
  int32_t total = 0;
  for (int64_t first = 0; first <= s.classes; first += int64_t{warps} * kWarpRun) {
    const int64_t start = first + warp * kWarpRun;
    int32_t before[kRun];
    const int count = of_run(start, s.classes + 1);
    const int32_t of_warp = scan_run(s.total + start, count, before);
    __syncthreads();
    if (lane == 0) sums[warp] = of_warp;
    __syncthreads();
    const int32_t own = lane < warps ? sums[lane] : 0, sum = scan_lanes(own);
    put_run(s.start + start, count, total + __shfl_sync(kAllLanes, sum - own, warp), before);
    total += __shfl_sync(kAllLanes, sum, kWarp - 1);
  }
  if (threadIdx.x == 0) put(s.start + s.classes + 1, total);
}

__global__ void __launch_bounds__(kSortBlock) order_kernel(const LabelSort s) {
  const int64_t row = int64_t{blockIdx.x} * kSortBlock + threadIdx.x;
  if (row >= s.rows) return;
  const int64_t label = class_of(s, row), chunk = row / s.chunk_rows;
  const int32_t of_class = BLL_LOAD(s.start + label);
  const int32_t of_chunk = BLL_LOAD(s.counts + label * s.chunks + chunk);
  put(s.order + of_class + of_chunk + BLL_LOAD(s.rank + row), static_cast<int32_t>(row));
}

unsigned blocks_for(int64_t size, int64_t per_block) {
  return static_cast<unsigned>(ceil_div(size, per_block));
}

}  // namespace

void sort_labels(const LabelSort& sort, cudaStream_t stream) {
  BLL_LAUNCH(rank_kernel, static_cast<unsigned>(sort.chunks), kSortBlock, stream, sort);
  BLL_LAUNCH(chunk_starts_kernel, blocks_for(sort.classes + 1, kSortBlock / kWarp), kSortBlock,
             stream, sort);
  const int64_t runs = ceil_div(sort.classes + 1, kWarpRun);
  const unsigned scanners =
      static_cast<unsigned>(runs < kScanBlock / kWarp ? runs * kWarp : kScanBlock);
  BLL_LAUNCH(class_starts_kernel, 1, scanners, stream, sort);
  BLL_LAUNCH(order_kernel, blocks_for(sort.rows, kSortBlock), kSortBlock, stream, sort);
}

}  // namespace bll::cuda
