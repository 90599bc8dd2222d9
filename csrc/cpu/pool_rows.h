// Means of channels-last maps, row by row: the rows of a band of cells are added up as one vector
// of pixels and channels, and cells meet only their sums; and the same way back.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/api.h"
#include "cpu/pool_cells.h"
#include "cpu/runs.h"

namespace bll::cpu {

constexpr int64_t kMostInRow = 8192;  // pixels times channels: what the first-level cache holds

inline bool takes_rows(const PoolArgs& args) {
  return args.channels_last && args.kind == Pool::kMean && args.width * args.channels <= kMostInRow;
}

// Buffers of one thread, and what every image has in common.
template <class T>
struct RowWork {
  const PoolArgs& args;
  const Cells rows, columns;
  const int64_t length;       // of a row: pixels times channels
  int64_t covers = 1;         // most rows of cells that hold one row of pixels
  std::vector<T> line, wide;  // [width, channels]: sums of a band; a row of a map of a half type
  std::vector<T> cells;       // [grid, channels]: one row of cells
  std::vector<T> lines;       // gradient: what the last `covers` rows of cells give a row of pixels

  explicit RowWork(const PoolArgs& pool)
      : args(pool),
        rows(pool.height, pool.grid),
        columns(pool.width, pool.grid),
        length(pool.width * pool.channels),
        line(length),
        wide(length),
        cells(pool.grid * pool.channels) {
    for (const auto& cover : rows.cover) covers = std::max(covers, cover.size());
    lines.resize(covers * length);
  }

  BLL_HD int64_t offset(int64_t image, int64_t h) const {
    return (image * args.height + h) * length;
  }
  // Of the first channel's cells in row i of them; channels follow each other grid * grid apart.
  BLL_HD int64_t pooled_offset(int64_t image, int64_t i) const {
    return (image * args.channels * args.grid + i) * args.grid;
  }
  BLL_HD T* line_of(int64_t i) { return lines.data() + i % covers * length; }
};

template <class T>
BLL_HD void add_run(const T* x, int64_t count, bool first, T* sum) {
  if (first) {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) sum[k] = x[k];
  } else {
#pragma omp simd
    for (int64_t k = 0; k < count; ++k) sum[k] += x[k];
  }
}

// Row i of the cells from the sums of its band.
template <class T>
BLL_HD void cells_of_line(RowWork<T>& work, int64_t image, int64_t i) {
  const int64_t channels = work.args.channels, grid = work.args.grid, plane = grid * grid;
  const T* line = work.line.data();
  T* cells = work.cells.data();
  T* out = static_cast<T*>(work.args.pooled) + work.pooled_offset(image, i);
  for (int64_t j = 0; j < grid; ++j) {
    const auto columns = work.columns.cell[j];
    T* own = cells + j * channels;
    for (int64_t w = columns.begin; w < columns.end; ++w) {
      add_run(line + w * channels, channels, w == columns.begin, own);
    }
    const T pixels = static_cast<T>(work.rows.cell[i].size() * columns.size());
#pragma omp simd
    for (int64_t c = 0; c < channels; ++c) own[c] /= pixels;
  }
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t j = 0; j < grid; ++j) out[c * plane + j] = cells[j * channels + c];
  }
}

// What the pixels of a row have of row i of the cells.
template <class T>
BLL_HD void line_of_cells(RowWork<T>& work, int64_t image, int64_t i, T* line) {
  const int64_t channels = work.args.channels, grid = work.args.grid, plane = grid * grid;
  const T* upstream = static_cast<const T*>(work.args.grad_pooled) + work.pooled_offset(image, i);
  T* cells = work.cells.data();
  for (int64_t j = 0; j < grid; ++j) {
    T* own = cells + j * channels;
    const T pixels = static_cast<T>(work.rows.cell[i].size() * work.columns.cell[j].size());
    for (int64_t c = 0; c < channels; ++c) own[c] = upstream[c * plane + j] / pixels;
  }
  for (int64_t w = 0; w < work.args.width; ++w) {
    const auto cover = work.columns.cover[w];
    for (int64_t j = cover.begin; j < cover.end; ++j) {
      add_run(cells + j * channels, channels, j == cover.begin, line + w * channels);
    }
  }
}

template <class T>
BLL_HD void pool_image(RowWork<T>& work, int64_t image) {
  const PoolArgs& args = work.args;
  for (int64_t i = 0; i < args.grid; ++i) {
    const auto band = work.rows.cell[i];
    for (int64_t h = band.begin; h < band.end; ++h) {
      const int64_t at = work.offset(image, h);
      const T* x = load_run<T>(args.map, args.dtype, at, work.length, work.wide.data());
      add_run(x, work.length, h == band.begin, work.line.data());
    }
    cells_of_line(work, image, i);
  }
}

template <class T>
BLL_HD void spread_image(RowWork<T>& work, int64_t image) {
  const PoolArgs& args = work.args;
  const bool direct = is_compute_type<T>(args.dtype);
  int64_t made = 0;
  for (int64_t h = 0; h < args.height; ++h) {
    const auto cover = work.rows.cover[h];
    for (; made < cover.end; ++made) line_of_cells(work, image, made, work.line_of(made));
    const int64_t at = work.offset(image, h);
    T* out = direct ? static_cast<T*>(args.grad_map) + at : work.line.data();
    for (int64_t i = cover.begin; i < cover.end; ++i) {
      add_run(work.line_of(i), work.length, i == cover.begin, out);
    }
    if (!direct) store_run<T>(out, args.grad_map, args.dtype, at, work.length);
  }
}

}  // namespace bll::cpu
