// An image with channels last: a warp takes a run of channels of some of a cell's pixels.
#pragma once

#include "cuda/pool_cells.cuh"
#include "cuda/pooled.h"

namespace bll::cuda {

struct PixelCells {
  static constexpr int kWarps = kPooledThreads / kWarp;

  // Where the gradient of latent `column` is kept: a cell's channels together.
  __device__ __forceinline__ static int place(const PooledView& v, int column) {
    const int cells = v.grid * v.grid;
    return column % cells * v.channels + column / cells;
  }

  __device__ __forceinline__ static float pixel(const PooledView& v, const float* cells, int at) {
    const int channel = at % v.channels, pixel = at / v.channels;
    const Span down = cells_at(pixel / v.width, v.height, v.grid);
    const Span across = cells_at(pixel % v.width, v.width, v.grid);
    float sum = 0;
    for (int i = down.begin; i < down.end; ++i) {
      for (int j = across.begin; j < across.end; ++j) {
        sum += cells[(i * v.grid + j) * v.channels + channel];
      }
    }
    return sum;
  }

  __device__ __forceinline__ static void gather(const PooledView& v, int64_t image, float* cells,
                                                float* partials) {
    with_access(v.rows.a_dtype, v.plan.access == 16,
                [&](auto access) { Share<decltype(access)>(v, image).gather(cells, partials); });
  }

  // Every pixel of disjoint cells.
  __device__ __forceinline__ static void spread(const PooledView& v, int64_t image,
                                                const float* cells) {
    with_access(v.rows.a_dtype, v.plan.access == 16,
                [&](auto access) { Share<decltype(access)>(v, image).spread(cells); });
  }

 private:
  // A unit is a cell and the channels of `lanes` threads; `parts` warps share its pixels.
  template <class Access>
  struct Share {
    static constexpr int count = Access::kCount;
    const PooledView& v;
    int64_t first;  // element of the map where the image begins
    int lanes, lane, slot, slots, parts, part, chunks, units;

    __device__ __forceinline__ Share(const PooledView& view, int64_t image)
        : v(view), first(image * view.channels * view.height * view.width) {
      lanes = v.plan.lanes, parts = v.plan.parts;
      lane = threadIdx.x % lanes;
      part = threadIdx.x / kWarp % parts;
      const int rows = kWarp / lanes;
      slot = part * rows + threadIdx.x % kWarp / lanes, slots = parts * rows;
      chunks = (v.channels + lanes * count - 1) / (lanes * count);
      units = chunks * v.grid * v.grid;
    }

    // Calls function(offset in the image) for this thread's pixels of a cell, `batch` at a time
    // and -1 for those that it lacks.
    template <int batch, class Function>
    __device__ __forceinline__ void walk(int cell, int channel, Function&& function) const {
      const Span down = cell_span(cell / v.grid, v.height, v.grid);
      const Span across = cell_span(cell % v.grid, v.width, v.grid);
      const int wide = across.size(), pixels = channel < v.channels ? down.size() * wide : 0;
      const int step_down = slots / wide, step_across = slots % wide;
      int h = slot / wide, w = slot % wide;
      for (int at = slot; at < pixels; at += slots * batch) {
        int offsets[batch];
#pragma unroll
        for (int u = 0; u < batch; ++u) {
          const int pixel = (down.begin + h) * v.width + across.begin + w;
          offsets[u] = at + u * slots < pixels ? pixel * v.channels + channel : -1;
          h += step_down, w += step_across;
          if (w >= wide) w -= wide, ++h;
        }
        function(offsets);
      }
    }

    __device__ __forceinline__ void gather(float* cells, float* partials) const {
      const int together = kWarps / parts;
      for (int start = 0; start < units; start += together) {
        const int unit = start + static_cast<int>(threadIdx.x) / (kWarp * parts);
        const int cell = unit / chunks, channel = (unit % chunks * lanes + lane) * count;
        const bool inside = unit < units && channel < v.channels;
        float own[count] = {};
        if (unit < units) add_pixels(cell, channel, own);
#pragma unroll
        for (int i = 0; i < count; ++i) {
          for (int step = lanes; step < kWarp; step *= 2) {
            own[i] += __shfl_xor_sync(kAllLanes, own[i], step);
          }
        }
        if (parts > 1) merge_parts(partials, own);
        if (part != 0 || threadIdx.x % kWarp >= static_cast<unsigned>(lanes) || !inside) continue;
        const Span down = cell_span(cell / v.grid, v.height, v.grid);
        const Span across = cell_span(cell % v.grid, v.width, v.grid);
#pragma unroll
        for (int i = 0; i < count; ++i) {
          cells[(channel + i) * v.grid * v.grid + cell] =
              own[i] / static_cast<float>(down.size() * across.size());
        }
      }
    }

    __device__ __forceinline__ void spread(const float* cells) const {
      const int together = kWarps / parts;
      for (int start = 0; start < units; start += together) {
        const int unit = start + static_cast<int>(threadIdx.x) / (kWarp * parts);
        if (unit >= units) continue;
        const int cell = unit / chunks, channel = (unit % chunks * lanes + lane) * count;
        float grad[count] = {};
#pragma unroll
        for (int i = 0; i < count; ++i) {
          if (channel < v.channels) grad[i] = cells[cell * v.channels + channel + i];
        }
        walk<1>(cell, channel, [&](const int (&offsets)[1]) {
          Access::store(v.rows.grad_a, Access::dtype, first + offsets[0], grad);
        });
      }
    }

   private:
    __device__ __forceinline__ void add_pixels(int cell, int channel, float (&own)[count]) const {
      constexpr int batch = 4;
      walk<batch>(cell, channel, [&](const int (&offsets)[batch]) {
        typename Access::Raw raw[batch];
#pragma unroll
        for (int u = 0; u < batch; ++u) {
          if (offsets[u] >= 0) raw[u] = Access::load(v.rows.a, Access::dtype, first + offsets[u]);
        }
#pragma unroll
        for (int u = 0; u < batch; ++u) {
          float x[count];
          if (offsets[u] < 0) continue;
          Access::unpack(raw[u], Access::dtype, x);
#pragma unroll
          for (int i = 0; i < count; ++i) own[i] += x[i];
        }
      });
    }

    // The first warp of a unit gets what its warps have.
    __device__ __forceinline__ void merge_parts(float* partials, float (&own)[count]) const {
      const int thread = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, row = lanes * count;
      __syncthreads();
#pragma unroll
      for (int i = 0; i < count; ++i) {
        if (thread < lanes) partials[warp * row + thread * count + i] = own[i];
      }
      __syncthreads();
      if (part != 0 || thread >= lanes) return;
      for (int p = 1; p < parts; ++p) {
#pragma unroll
        for (int i = 0; i < count; ++i) own[i] += partials[(warp + p) * row + thread * count + i];
      }
    }
  };
};

}  // namespace bll::cuda
