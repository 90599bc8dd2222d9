// Grid pooling of channels-last maps: a tile of channels of one image at a time, vectorised along
// the channels.
#pragma once

#include <cmath>
#include <type_traits>

#include "cpu/api.h"
#include "cpu/pool_cells.h"
#include "cpu/runs.h"

namespace bll::cpu {

constexpr int64_t kChannelTile = 256;

// Buffers of one thread, and what every tile has in common. Per-cell values are stored cell by
// cell, kChannelTile apart.
template <class T>
struct PixelWork {
  // Position of a maximum in the map; as wide as T, so that comparisons vectorise alike.
  using Index = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;

  const PoolArgs& args;
  const Cells rows, columns;
  int64_t image = 0, channel = 0, count = 0;  // the tile: channels [channel, channel + count)
  std::vector<T> slope, first, centre;        // gradient: factor, first pixel, mean less it
  std::vector<Index> index;                   // gradient: where each cell has its maximum
  T pixel[kChannelTile], result[kChannelTile], line[kChannelTile], shift[kChannelTile];

  explicit PixelWork(const PoolArgs& pool)
      : args(pool), rows(pool.height, pool.grid), columns(pool.width, pool.grid) {}

  void start(int64_t item) {
    const int64_t tiles = (args.channels + kChannelTile - 1) / kChannelTile;
    image = item / tiles;
    channel = item % tiles * kChannelTile;
    count = std::min(kChannelTile, args.channels - channel);
  }

  BLL_HD int64_t offset(int64_t h, int64_t w) const {
    return ((image * args.height + h) * args.width + w) * args.channels + channel;
  }
  BLL_HD const T* load(int64_t h, int64_t w) {
    return load_run<T>(args.map, args.dtype, offset(h, w), count, pixel);
  }
  // Pooled values lie (channel, row of cells, column of cells).
  BLL_HD int64_t pooled_offset(int64_t c, int64_t i, int64_t j) const {
    return ((image * args.channels + channel + c) * args.grid + i) * args.grid + j;
  }
};

// result = sum over the cell of x - shift, row by row of the cell.
template <class T>
BLL_HD void cell_sum(PixelWork<T>& work, Cells::Range rows, Cells::Range columns) {
  const int64_t count = work.count;
  T *result = work.result, *line = work.line;
  const T* shift = work.shift;
  for (int64_t c = 0; c < count; ++c) result[c] = 0;
  for (int64_t h = rows.begin; h < rows.end; ++h) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) line[c] = 0;
    for (int64_t w = columns.begin; w < columns.end; ++w) {
      const T* x = work.load(h, w);
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) line[c] += x[c] - shift[c];
    }
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) result[c] += line[c];
  }
}

// result = sum over the cell of (x - shift - mean)^2
template <class T>
BLL_HD void cell_squares(PixelWork<T>& work, Cells::Range rows, Cells::Range columns,
                         const T* mean) {
  const int64_t count = work.count;
  T *result = work.result, *line = work.line;
  const T* shift = work.shift;
  for (int64_t c = 0; c < count; ++c) result[c] = 0;
  for (int64_t h = rows.begin; h < rows.end; ++h) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) line[c] = 0;
    for (int64_t w = columns.begin; w < columns.end; ++w) {
      const T* x = work.load(h, w);
#pragma omp simd
      for (int64_t c = 0; c < count; ++c) {
        const T deviation = x[c] - shift[c] - mean[c];
        line[c] += deviation * deviation;
      }
    }
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) result[c] += line[c];
  }
}

template <class T>
BLL_HD void cell_mean(PixelWork<T>& work, Cells::Range rows, Cells::Range columns) {
  for (int64_t c = 0; c < kChannelTile; ++c) work.shift[c] = 0;
  cell_sum(work, rows, columns);
  const T elements = static_cast<T>(rows.size() * columns.size());
  for (int64_t c = 0; c < work.count; ++c) work.result[c] /= elements;
}

// result = unbiased standard deviation, mean = mean minus shift, shift = the cell's first pixel:
// deviations from it are exactly zero in a constant cell.
template <class T>
BLL_HD void cell_std(PixelWork<T>& work, Cells::Range rows, Cells::Range columns, T* mean) {
  const T* first = work.load(rows.begin, columns.begin);
  for (int64_t c = 0; c < work.count; ++c) work.shift[c] = first[c];
  cell_sum(work, rows, columns);
  const int64_t elements = rows.size() * columns.size();
  for (int64_t c = 0; c < work.count; ++c) mean[c] = work.result[c] / static_cast<T>(elements);
  cell_squares(work, rows, columns, mean);
  const T others = static_cast<T>(std::max<int64_t>(elements - 1, 1));
  for (int64_t c = 0; c < work.count; ++c) work.result[c] = std::sqrt(work.result[c] / others);
}

// Channels whose running maxima stay in registers.
constexpr int64_t kMaxChannels = 16;

// The maximum of `count` channels from `at` on, and where it is first met (the first NaN, if there
// is one). `Whole`: count is kMaxChannels.
template <bool Whole, class T>
BLL_HD void channels_max(PixelWork<T>& work, Cells::Range rows, Cells::Range columns, int64_t at,
                         int64_t count, typename PixelWork<T>::Index* index) {
  using Index = typename PixelWork<T>::Index;
  const PoolArgs& args = work.args;
  const int64_t size = Whole ? kMaxChannels : count;
  T best[kMaxChannels];
  Index place[kMaxChannels];
  const auto load = [&](int64_t h, int64_t w) {
    return load_run<T>(args.map, args.dtype, work.offset(h, w) + at, size, work.pixel);
  };
  const T* first = load(rows.begin, columns.begin);
  for (int64_t c = 0; c < size; ++c) best[c] = first[c];
  const Index start = static_cast<Index>(rows.begin * args.width + columns.begin);
  for (int64_t c = 0; c < size; ++c) place[c] = start;
  for (int64_t h = rows.begin; h < rows.end; ++h) {
    for (int64_t w = columns.begin; w < columns.end; ++w) {
      const T* x = load(h, w);
      const Index here = static_cast<Index>(h * args.width + w);
#pragma omp simd
      for (int64_t c = 0; c < size; ++c) {
        const bool keep = (x[c] <= best[c]) | (best[c] != best[c]);
        best[c] = keep ? best[c] : x[c];
        place[c] = keep ? place[c] : here;
      }
    }
  }
  for (int64_t c = 0; c < size; ++c) work.result[at + c] = best[c];
  for (int64_t c = 0; c < size; ++c) index[at + c] = place[c];
}

// result = the maxima of the tile's channels, index = where they are.
template <class T>
BLL_HD void cell_max(PixelWork<T>& work, Cells::Range rows, Cells::Range columns,
                     typename PixelWork<T>::Index* index) {
  int64_t c = 0;
  for (; c + kMaxChannels <= work.count; c += kMaxChannels) {
    channels_max<true>(work, rows, columns, c, kMaxChannels, index);
  }
  if (c < work.count) channels_max<false>(work, rows, columns, c, work.count - c, index);
}

template <class T>
BLL_HD void pool_pixels(PixelWork<T>& work, int64_t item) {
  const PoolArgs& args = work.args;
  T* out = static_cast<T*>(args.pooled);
  T mean[kChannelTile];
  typename PixelWork<T>::Index index[kChannelTile];
  work.start(item);
  for (int64_t i = 0; i < args.grid; ++i) {
    for (int64_t j = 0; j < args.grid; ++j) {
      const auto rows = work.rows.cell[i], columns = work.columns.cell[j];
      if (args.kind == Pool::kMean) {
        cell_mean(work, rows, columns);
      } else if (args.kind == Pool::kMax) {
        cell_max(work, rows, columns, index);
      } else {
        cell_std(work, rows, columns, mean);
      }
      for (int64_t c = 0; c < work.count; ++c) out[work.pooled_offset(c, i, j)] = work.result[c];
    }
  }
}

// What each cell contributes to its pixels: slope, and the mean or the place of the maximum.
template <class T>
BLL_HD void cell_slopes(PixelWork<T>& work) {
  const PoolArgs& args = work.args;
  const T* upstream = static_cast<const T*>(args.grad_pooled);
  for (int64_t i = 0; i < args.grid; ++i) {
    for (int64_t j = 0; j < args.grid; ++j) {
      const auto rows = work.rows.cell[i], columns = work.columns.cell[j];
      const int64_t cell = (i * args.grid + j) * kChannelTile;
      const int64_t elements = rows.size() * columns.size();
      T* slope = work.slope.data() + cell;
      for (int64_t c = 0; c < work.count; ++c) slope[c] = upstream[work.pooled_offset(c, i, j)];
      if (args.kind == Pool::kMean) {
        for (int64_t c = 0; c < work.count; ++c) slope[c] /= static_cast<T>(elements);
      } else if (args.kind == Pool::kMax) {
        cell_max(work, rows, columns, work.index.data() + cell);
      } else {
        T *first = work.first.data() + cell, *centre = work.centre.data() + cell;
        cell_std(work, rows, columns, centre);
        const T others = static_cast<T>(elements - 1);
        for (int64_t c = 0; c < work.count; ++c) {
          const T factor = others * work.result[c];
          slope[c] = elements == 1 || factor == 0 ? T(0) : slope[c] / factor;
          first[c] = work.shift[c];
        }
      }
    }
  }
}

// One cell's contribution to the gradient of the pixel at `here`, set or added.
template <bool Add, class T>
BLL_HD void spread_cell(const PixelWork<T>& work, int64_t cell, const T* x,
                        typename PixelWork<T>::Index here, T* out) {
  const int64_t count = work.count;
  const T* slope = work.slope.data() + cell;
  if (work.args.kind == Pool::kMean) {
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) out[c] = slope[c] + (Add ? out[c] : T(0));
  } else if (work.args.kind == Pool::kMax) {
    const auto* index = work.index.data() + cell;
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
      out[c] = (index[c] == here ? slope[c] : T(0)) + (Add ? out[c] : T(0));
    }
  } else {
    const T *first = work.first.data() + cell, *centre = work.centre.data() + cell;
#pragma omp simd
    for (int64_t c = 0; c < count; ++c) {
      out[c] = slope[c] * (x[c] - first[c] - centre[c]) + (Add ? out[c] : T(0));
    }
  }
}

template <class T>
BLL_HD void pixel_gradient(PixelWork<T>& work, int64_t h, int64_t w) {
  const PoolArgs& args = work.args;
  const auto rows = work.rows.cover[h], columns = work.columns.cover[w];
  const auto cell = [&](int64_t i, int64_t j) { return (i * args.grid + j) * kChannelTile; };
  const typename PixelWork<T>::Index here = h * args.width + w;
  const T* x = args.kind == Pool::kStd ? work.load(h, w) : nullptr;
  const bool direct = is_compute_type<T>(args.dtype);
  T* out = direct ? static_cast<T*>(args.grad_map) + work.offset(h, w) : work.result;
  spread_cell<false, T>(work, cell(rows.begin, columns.begin), x, here, out);
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    for (int64_t j = columns.begin; j < columns.end; ++j) {
      if (i == rows.begin && j == columns.begin) continue;
      spread_cell<true, T>(work, cell(i, j), x, here, out);
    }
  }
  if (!direct) store_run<T>(out, args.grad_map, args.dtype, work.offset(h, w), work.count);
}

// The gradient of maxima of cells that do not overlap: zeros, but for one pixel per cell.
template <class T>
BLL_HD void scatter_maxima(const PixelWork<T>& work) {
  const PoolArgs& args = work.args;
  const int64_t start = work.offset(0, 0), pixels = args.height * args.width;
  const T zeros[kChannelTile] = {};
  for (int64_t p = 0; p < pixels; ++p) {
    store_run<T>(zeros, args.grad_map, args.dtype, start + p * args.channels, work.count);
  }
  for (int64_t cell = 0; cell < args.grid * args.grid; ++cell) {
    const T* slope = work.slope.data() + cell * kChannelTile;
    const auto* index = work.index.data() + cell * kChannelTile;
    for (int64_t c = 0; c < work.count; ++c) {
      const int64_t at = start + index[c] * args.channels + c;
      store_run<T>(slope + c, args.grad_map, args.dtype, at, 1);
    }
  }
}

template <class T>
BLL_HD void pool_pixels_gradient(PixelWork<T>& work, int64_t item) {
  const PoolArgs& args = work.args;
  const int64_t values = args.grid * args.grid * kChannelTile;
  work.slope.resize(values);
  if (args.kind == Pool::kMax) work.index.resize(values);
  if (args.kind == Pool::kStd) {
    work.first.resize(values);
    work.centre.resize(values);
  }
  work.start(item);
  cell_slopes(work);
  if (args.kind == Pool::kMax && work.rows.phases == 1 && work.columns.phases == 1) {
    return scatter_maxima(work);
  }
  for (int64_t h = 0; h < args.height; ++h) {
    for (int64_t w = 0; w < args.width; ++w) pixel_gradient(work, h, w);
  }
}

}  // namespace bll::cpu
