// An image with channels first: a cell's pixels lie in runs of one row of a plane.
#pragma once

#include "cuda/pool_cells.cuh"
#include "cuda/pooled.h"

namespace bll::cuda {

// `bytes` of neighbouring pixels of one cell.
template <int bytes>
struct Run;
template <>
struct Run<16> {
  using Raw = uint4;
};
template <>
struct Run<8> {
  using Raw = uint2;
};
template <>
struct Run<4> {
  using Raw = uint32_t;
};
template <>
struct Run<2> {
  using Raw = unsigned short;
};

__device__ __forceinline__ float half_number(unsigned short bits, DType dtype) {
  return dtype == DType::kBFloat16 ? to_float(__ushort_as_bfloat16(bits))
                                   : to_float(__ushort_as_half(bits));
}
__device__ __forceinline__ float run_sum(unsigned short raw, DType dtype) {
  return half_number(raw, dtype);
}
__device__ __forceinline__ float run_sum(uint32_t raw, DType dtype) {
  if (dtype == DType::kFloat32) return bits_float(raw);
  return half_number(static_cast<unsigned short>(raw & 0xffffu), dtype) +
         half_number(static_cast<unsigned short>(raw >> 16), dtype);
}
__device__ __forceinline__ float run_sum(uint2 raw, DType dtype) {
  return run_sum(raw.x, dtype) + run_sum(raw.y, dtype);
}
__device__ __forceinline__ float run_sum(uint4 raw, DType dtype) {
  return (run_sum(raw.x, dtype) + run_sum(raw.y, dtype)) +
         (run_sum(raw.z, dtype) + run_sum(raw.w, dtype));
}

// Pixels that all hold x.
__device__ __forceinline__ unsigned short half_bits(float x, DType dtype) {
  return dtype == DType::kBFloat16 ? __bfloat16_as_ushort(from_float<__nv_bfloat16>(x))
                                   : __half_as_ushort(from_float<__half>(x));
}
__device__ __forceinline__ void fill(unsigned short& raw, float x, DType dtype) {
  raw = half_bits(x, dtype);
}
__device__ __forceinline__ void fill(uint32_t& raw, float x, DType dtype) {
  raw = dtype == DType::kFloat32 ? float_bits(x) : half_bits(x, dtype) * 0x10001u;
}
__device__ __forceinline__ void fill(uint2& raw, float x, DType dtype) {
  fill(raw.x, x, dtype);
  raw.y = raw.x;
}
__device__ __forceinline__ void fill(uint4& raw, float x, DType dtype) {
  fill(raw.x, x, dtype);
  raw.y = raw.z = raw.w = raw.x;
}

struct PlaneCells {
  // Where the gradient of latent `column` is kept.
  __device__ __forceinline__ static int place(const PooledView&, int column) { return column; }

  __device__ __forceinline__ static float pixel(const PooledView& v, const float* cells, int at) {
    const int pixels = v.height * v.width, plane = at / pixels, pixel = at % pixels;
    const Span down = cells_at(pixel / v.width, v.height, v.grid);
    const Span across = cells_at(pixel % v.width, v.width, v.grid);
    float sum = 0;
    for (int i = down.begin; i < down.end; ++i) {
      for (int j = across.begin; j < across.end; ++j) {
        sum += cells[(plane * v.grid + i) * v.grid + j];
      }
    }
    return sum;
  }

  __device__ __forceinline__ static void gather(const PooledView& v, int64_t image, float* cells,
                                                float*) {
    switch (v.plan.access) {
      case 16:
        return gather_runs<16>(v, image, cells);
      case 8:
        return gather_runs<8>(v, image, cells);
      case 4:
        return gather_runs<4>(v, image, cells);
      default:
        return gather_runs<2>(v, image, cells);
    }
  }

  // Every pixel of disjoint cells.
  __device__ __forceinline__ static void spread(const PooledView& v, int64_t image,
                                                const float* cells) {
    switch (v.plan.access) {
      case 16:
        return spread_runs<16>(v, image, cells);
      case 8:
        return spread_runs<8>(v, image, cells);
      case 4:
        return spread_runs<4>(v, image, cells);
      default:
        return spread_runs<2>(v, image, cells);
    }
  }

 private:
  // Pixel of an image where a cell begins, and how far the cell reaches.
  struct Corner {
    int at, down, across;
  };

  __device__ __forceinline__ static Corner corner(const PooledView& v, int unit, bool inside) {
    if (!inside) return {0, 0, 0};
    const int cells = v.grid * v.grid, cell = unit % cells;
    const Span down = cell_span(cell / v.grid, v.height, v.grid);
    const Span across = cell_span(cell % v.grid, v.width, v.grid);
    return {(unit / cells * v.height + down.begin) * v.width + across.begin, down.size(),
            across.size()};
  }

  // Steps of a thread through the runs of a cell.
  struct Walk {
    int h, x, step_down, step_across, wide;

    __device__ __forceinline__ Walk(int lane, int lanes, int runs)
        : h(lane / runs),
          x(lane % runs),
          step_down(lanes / runs),
          step_across(lanes % runs),
          wide(runs) {}
    __device__ __forceinline__ void advance() {
      h += step_down, x += step_across;
      if (x >= wide) x -= wide, ++h;
    }
  };

  // Several cells at a time, so that several loads are in flight however small cells are.
  template <int bytes>
  __device__ __forceinline__ static void gather_runs(const PooledView& v, int64_t image,
                                                     float* cells) {
    using Raw = typename Run<bytes>::Raw;
    constexpr int batch = bytes == 16 ? 2 : 4;
    const DType dtype = v.rows.a_dtype;
    const int item = dtype == DType::kFloat32 ? 4 : 2, count = bytes / item;
    const int size = v.channels * v.grid * v.grid;
    const char* map =
        static_cast<const char*>(v.rows.a) + image * v.channels * v.height * v.width * item;
    const int lanes = v.plan.lanes, lane = threadIdx.x % lanes, teams = kPooledThreads / lanes;
    for (int start = 0; start < size; start += batch * teams) {
      Corner corners[batch];
      float sum[batch];
#pragma unroll
      for (int u = 0; u < batch; ++u) {
        const int unit = start + u * teams + static_cast<int>(threadIdx.x) / lanes;
        corners[u] = corner(v, unit, unit < size);
        sum[u] = 0;
      }
      Walk walk(lane, lanes, (v.plan.cell_width + count - 1) / count);
      for (; walk.h < v.plan.cell_height; walk.advance()) {
        Raw raw[batch];
#pragma unroll
        for (int u = 0; u < batch; ++u) {
          const bool has = walk.h < corners[u].down && walk.x * count < corners[u].across;
          const int pixel = corners[u].at + walk.h * v.width + walk.x * count;
          raw[u] = Raw{};
          if (has) raw[u] = __ldg(reinterpret_cast<const Raw*>(map + int64_t{pixel} * item));
        }
#pragma unroll
        for (int u = 0; u < batch; ++u) sum[u] += run_sum(raw[u], dtype);
      }
#pragma unroll
      for (int u = 0; u < batch; ++u) {
        const float total = warp_sum(sum[u], lanes);
        const int unit = start + u * teams + static_cast<int>(threadIdx.x) / lanes;
        if (lane != 0 || unit >= size) continue;
        cells[unit] = total / static_cast<float>(corners[u].down * corners[u].across);
      }
    }
  }

  template <int bytes>
  __device__ __forceinline__ static void spread_runs(const PooledView& v, int64_t image,
                                                     const float* cells) {
    using Raw = typename Run<bytes>::Raw;
    const DType dtype = v.rows.a_dtype;
    const int item = dtype == DType::kFloat32 ? 4 : 2, count = bytes / item;
    const int size = v.channels * v.grid * v.grid;
    char* map = static_cast<char*>(v.rows.grad_a) + image * v.channels * v.height * v.width * item;
    const int lanes = v.plan.lanes, lane = threadIdx.x % lanes, teams = kPooledThreads / lanes;
    for (int unit = threadIdx.x / lanes; unit < size; unit += teams) {
      const Corner from = corner(v, unit, true);
      Raw raw;
      fill(raw, cells[unit], dtype);
      Walk walk(lane, lanes, from.across / count);
      for (; walk.h < from.down; walk.advance()) {
        const int pixel = from.at + walk.h * v.width + walk.x * count;
        *reinterpret_cast<Raw*>(map + int64_t{pixel} * item) = raw;
        BLL_COUNT_STORED(bytes);
      }
    }
  }
};

}  // namespace bll::cuda
