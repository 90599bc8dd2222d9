// Channels of mean 0 and variance 1, and the gradient through both: what a channel is shifted and
// scaled by is gathered in a fixed order, then applied by the same block while its rows are in
// cache. A warp's lanes lie along a row, so that each has one channel; rows go to the warps in
// turn.
#include "core/defs.h"
#include "cuda/launch.h"
#include "cuda/standardize.h"

namespace bll::cuda {
namespace {

constexpr int kThreads = kStandardizeThreads;
constexpr int kSlots = kThreads / kWarp;
constexpr int kChunk = 4;  // rows whose loads are in flight together

// Mean and sum of squared deviations of some numbers; all zero of none.
struct Moments {
  float count, mean, squares;

  __device__ __forceinline__ void merge(const Moments& other) {
    if (other.count == 0) return;
    const float total = count + other.count, share = other.count / total;
    const float gap = other.mean - mean;
    mean += gap * share;
    squares += other.squares + gap * gap * (count * share);
    count = total;
  }
  __device__ __forceinline__ void add(const float (&x)[kChunk], const float (&)[kChunk], int some) {
    Moments own{static_cast<float>(some), 0, 0};
#pragma unroll
    for (int k = 0; k < kChunk; ++k) own.mean += x[k];
    own.mean /= own.count;
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      const float gap = k < some ? x[k] - own.mean : 0.0f;
      own.squares += gap * gap;
    }
    merge(own);
  }
};

// Sums of a gradient and of its product with what it is the gradient of.
struct Pulls {
  float count, plain, along;

  __device__ __forceinline__ void merge(const Pulls& other) {
    count += other.count;
    plain += other.plain;
    along += other.along;
  }
  __device__ __forceinline__ void add(const float (&x)[kChunk], const float (&y)[kChunk],
                                      int some) {
    count += static_cast<float>(some);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      plain += x[k];
      along += x[k] * y[k];
    }
  }
};

// Where a thread stands: its column of the block's channels, its warp among the rows.
struct Place {
  int64_t first, channels;      // of the block
  int64_t section, begin, end;  // rows
  int64_t columns;              // numbers of the block in a row
  int lane, slot;

  __device__ __forceinline__ explicit Place(const StandardizeView& v) {
    section = blockIdx.x % v.sections;
    first = blockIdx.x / v.sections * v.group;
    const int64_t left = v.channels - first;
    channels = left < v.group ? left : v.group;
    columns = channels * v.cells;
    begin = section * v.section_rows;
    end = begin + v.section_rows < v.rows ? begin + v.section_rows : v.rows;
    lane = threadIdx.x % kWarp;
    slot = threadIdx.x / kWarp;
  }

  // Calls function(offset of a number, how many rows follow each other from there on).
  template <class Function>
  __device__ __forceinline__ void each(const StandardizeView& v, Function&& function) const {
    const int64_t width = v.channels * v.cells;
    for (int64_t row = begin + slot; row < end; row += kSlots * kChunk) {
      const int64_t left = (end - row + kSlots - 1) / kSlots;
      const int some = left < kChunk ? static_cast<int>(left) : kChunk;
      for (int64_t column = lane; column < columns; column += kWarp) {
        function(row * width + first * v.cells + column, some);
      }
    }
  }
};

// Numbers of `some` rows, and zeros.
__device__ __forceinline__ void load_rows(const StandardizeView& v, const float* from, int64_t at,
                                          int some, float (&x)[kChunk]) {
  const int64_t step = kSlots * v.channels * v.cells;
#pragma unroll
  for (int k = 0; k < kChunk; ++k) x[k] = k < some ? __ldg(from + at + k * step) : 0.0f;
}

// What the block's rows say of its channels; thread c gets it of channel c.
template <class State>
__device__ __forceinline__ State gather(const StandardizeView& v, const Place& place,
                                        State* shared) {
  State own{};
  place.each(v, [&](int64_t at, int some) {
    float x[kChunk], y[kChunk] = {};
    load_rows(v, v.x, at, some, x);
    if (v.standard != nullptr) load_rows(v, v.standard, at, some, y);
    own.add(x, y, some);
  });
  shared[threadIdx.x] = own;
  const unsigned least = v.group == 1 ? 1 : kWarp;
  for (unsigned half = kThreads / 2; half >= least; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) {
      own.merge(shared[threadIdx.x + half]);
      shared[threadIdx.x] = own;
    }
  }
  __syncthreads();
  if (v.group > 1 && threadIdx.x < place.channels) {
    own = shared[threadIdx.x * v.cells];
    for (int64_t i = 1; i < v.cells; ++i) own.merge(shared[threadIdx.x * v.cells + i]);
  }
  return own;
}

// (x - shift - along * standard) * factor is written.
struct Coefficients {
  float shift, along, factor;
};

__device__ __forceinline__ Coefficients coefficients(const StandardizeView& v, const Moments& of,
                                                     int64_t) {
  return {of.mean, 0, 1 / sqrtf(of.squares / of.count + v.eps)};
}

__device__ __forceinline__ Coefficients coefficients(const StandardizeView& v, const Pulls& of,
                                                     int64_t channel) {
  return {of.plain / of.count, of.along / of.count, __ldg(v.known_scale + channel)};
}

__device__ __forceinline__ void apply(const StandardizeView& v, const Place& place,
                                      const Coefficients& own) {
  const int64_t step = kSlots * v.channels * v.cells;
  place.each(v, [&](int64_t at, int some) {
    float x[kChunk], y[kChunk] = {};
    load_rows(v, v.x, at, some, x);
    if (v.standard != nullptr) load_rows(v, v.standard, at, some, y);
#pragma unroll
    for (int k = 0; k < kChunk; ++k) {
      if (k >= some) break;
      v.out[at + k * step] = (x[k] - own.shift - own.along * y[k]) * own.factor;
      BLL_COUNT_STORED(4);
    }
  });
}

template <class State>
__global__ void __launch_bounds__(kThreads, 2) standardize_kernel(const StandardizeView v) {
  BLL_SHARED(State, shared, kThreads);
  BLL_SHARED(Coefficients, of, kWarp);
  const Place place(v);
  const int64_t channel = place.first + threadIdx.x;
  static_assert(sizeof(State) == kStandardizeState);
  State* partial = static_cast<State*>(v.partial);
  const bool only_gathers = partial != nullptr && !v.applies;
  State found{};
  if (!v.applies) found = gather(v, place, shared);
  if (threadIdx.x < place.channels) {
    for (int s = 0; v.applies && s < v.sections; ++s) {
      found.merge(partial[s * v.channels + channel]);
    }
    if (only_gathers) {
      partial[place.section * v.channels + channel] = found;
    } else {
      of[threadIdx.x] = coefficients(v, found, channel);
      if (v.scale != nullptr && place.section == 0) v.scale[channel] = of[threadIdx.x].factor;
    }
  }
  if (only_gathers) return;
  __syncthreads();
  const int64_t mine = v.group == 1 ? 0 : place.lane / v.cells;
  if (mine < place.channels) apply(v, place, of[mine]);
}

}  // namespace

void run_standardize(const StandardizeView& view, int64_t blocks, cudaStream_t stream) {
  const unsigned grid = static_cast<unsigned>(blocks);
  if (view.standard == nullptr) {
    BLL_LAUNCH((standardize_kernel<Moments>), grid, kThreads, stream, view);
  } else {
    BLL_LAUNCH((standardize_kernel<Pulls>), grid, kThreads, stream, view);
  }
}

}  // namespace bll::cuda
