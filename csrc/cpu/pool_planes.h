// Grid pooling of channels-first maps: one plane [height, width] at a time, vectorised along its
// rows. A band is the rows of one row of cells; it is read from memory once and again from cache.
#pragma once

#include <cmath>
#include <limits>

#include "cpu/api.h"
#include "cpu/pool_cells.h"
#include "cpu/runs.h"

namespace bll::cpu {

// Buffers of one thread, and what every plane has in common.
template <class T>
struct PlaneWork {
  const PoolArgs& args;
  const Cells rows, columns;
  std::vector<T> band;         // a band in the compute type, for half inputs
  std::vector<T> plane;        // a plane's gradient in the compute type, for half outputs
  std::vector<T> line;         // one value per column
  std::vector<T> shift, mean;  // per column: of the cell that owns it in this phase
  std::vector<T> templates;    // mean's gradient: one row per row of cells

  explicit PlaneWork(const PoolArgs& pool)
      : args(pool), rows(pool.height, pool.grid), columns(pool.width, pool.grid) {
    line.resize(args.width);
    mean.resize(args.width);
    shift.resize(args.width);
  }

  BLL_HD const T* load_band(const void* map, int64_t plane, int64_t row, int64_t count) {
    const int64_t start = (plane * args.height + row) * args.width;
    if (is_compute_type<T>(args.dtype)) return static_cast<const T*>(map) + start;
    band.resize(args.height * args.width);
    return load_run<T>(map, args.dtype, start, count * args.width, band.data());
  }
};

// line[w] = sum over the band's rows; four rows are added before they meet the accumulator.
template <class T>
BLL_HD void column_sums(const T* band, int64_t count, int64_t width, T* line) {
#pragma omp simd
  for (int64_t w = 0; w < width; ++w) line[w] = 0;
  int64_t h = 0;
  for (; h + 4 <= count; h += 4, band += 4 * width) {
#pragma omp simd
    for (int64_t w = 0; w < width; ++w) {
      line[w] += (band[w] + band[w + width]) + (band[w + 2 * width] + band[w + 3 * width]);
    }
  }
  for (; h < count; ++h, band += width) {
#pragma omp simd
    for (int64_t w = 0; w < width; ++w) line[w] += band[w];
  }
}

// The larger of two, the first of equals, NaN if either is NaN.
template <class T>
BLL_HD T first_max(T best, T x) {
  return (x <= best) | (best != best) ? best : x;
}

template <class T>
BLL_HD void column_maxima(const T* band, int64_t count, int64_t width, T* line) {
#pragma omp simd
  for (int64_t w = 0; w < width; ++w) line[w] = band[w];
  for (int64_t h = 1; h < count; ++h) {
    const T* row = band + h * width;
#pragma omp simd
    for (int64_t w = 0; w < width; ++w) line[w] = first_max(line[w], row[w]);
  }
}

// Moments of the disjoint cells of one phase: mean[w] for every column of such a cell, line[w] the
// column's sum of squared deviations. Deviations are taken from the cell's first element before
// they are averaged, so that a constant cell has exactly none.
template <class T>
BLL_HD void column_deviations(PlaneWork<T>& work, const T* band, int64_t count, int64_t phase) {
  const int64_t width = work.args.width;
  T *line = work.line.data(), *mean = work.mean.data(), *shift = work.shift.data();
#pragma omp simd
  for (int64_t w = 0; w < width; ++w) line[w] = mean[w] = shift[w] = 0;
  for (int64_t j = phase; j < work.args.grid; j += work.columns.phases) {
    const auto cell = work.columns.cell[j];
    for (int64_t w = cell.begin; w < cell.end; ++w) shift[w] = band[cell.begin];
  }
  for (int64_t h = 0; h < count; ++h) {
    const T* row = band + h * width;
#pragma omp simd
    for (int64_t w = 0; w < width; ++w) line[w] += row[w] - shift[w];
  }
  for (int64_t j = phase; j < work.args.grid; j += work.columns.phases) {
    const auto cell = work.columns.cell[j];
    T sum = 0;
    for (int64_t w = cell.begin; w < cell.end; ++w) sum += line[w];
    const T average = sum / static_cast<T>(count * cell.size());
    for (int64_t w = cell.begin; w < cell.end; ++w) mean[w] = average;
  }
#pragma omp simd
  for (int64_t w = 0; w < width; ++w) line[w] = 0;
  for (int64_t h = 0; h < count; ++h) {
    const T* row = band + h * width;
#pragma omp simd
    for (int64_t w = 0; w < width; ++w) {
      const T deviation = row[w] - shift[w] - mean[w];
      line[w] += deviation * deviation;
    }
  }
}

// Unbiased standard deviation of cell j from its columns; 0 of one element, NaN stays NaN.
template <class T>
BLL_HD T cell_deviation(const PlaneWork<T>& work, int64_t count, int64_t j) {
  const auto cell = work.columns.cell[j];
  T sum = 0;
  for (int64_t w = cell.begin; w < cell.end; ++w) sum += work.line[w];
  const int64_t elements = count * cell.size();
  return elements > 1 ? std::sqrt(sum / static_cast<T>(elements - 1)) : sum;
}

template <class T>
BLL_HD void pool_plane(PlaneWork<T>& work, int64_t plane) {
  const PoolArgs& args = work.args;
  const int64_t grid = args.grid;
  T* out = static_cast<T*>(args.pooled) + plane * grid * grid;
  T* line = work.line.data();
  for (int64_t i = 0; i < grid; ++i, out += grid) {
    const auto rows = work.rows.cell[i];
    const T* band = work.load_band(args.map, plane, rows.begin, rows.size());
    if (args.kind == Pool::kMean) {
      column_sums(band, rows.size(), args.width, line);
      for (int64_t j = 0; j < grid; ++j) {
        const auto cell = work.columns.cell[j];
        T sum = 0;
        for (int64_t w = cell.begin; w < cell.end; ++w) sum += line[w];
        out[j] = sum / static_cast<T>(rows.size() * cell.size());
      }
    } else if (args.kind == Pool::kMax) {
      column_maxima(band, rows.size(), args.width, line);
      for (int64_t j = 0; j < grid; ++j) {
        const auto cell = work.columns.cell[j];
        T best = line[cell.begin];
        for (int64_t w = cell.begin + 1; w < cell.end; ++w) best = first_max(best, line[w]);
        out[j] = best;
      }
    } else {
      for (int64_t phase = 0; phase < work.columns.phases; ++phase) {
        column_deviations(work, band, rows.size(), phase);
        for (int64_t j = phase; j < grid; j += work.columns.phases) {
          out[j] = cell_deviation(work, rows.size(), j);
        }
      }
    }
  }
}

// A row of the mean's gradient is the same for every row of the map that the same cells cover.
template <class T>
BLL_HD void mean_plane_gradient(PlaneWork<T>& work, const T* upstream, T* out) {
  const int64_t grid = work.args.grid, width = work.args.width;
  work.templates.assign(grid * width, 0);
  for (int64_t i = 0; i < grid; ++i) {
    T* line = work.templates.data() + i * width;
    for (int64_t j = 0; j < grid; ++j) {
      const auto cell = work.columns.cell[j];
      const T slope =
          upstream[i * grid + j] / static_cast<T>(work.rows.cell[i].size() * cell.size());
      for (int64_t w = cell.begin; w < cell.end; ++w) line[w] += slope;
    }
  }
  for (int64_t h = 0; h < work.args.height; ++h, out += width) {
    const auto cover = work.rows.cover[h];
    const T* line = work.templates.data() + cover.begin * width;
#pragma omp simd
    for (int64_t w = 0; w < width; ++w) out[w] = line[w];
    for (int64_t i = cover.begin + 1; i < cover.end; ++i) {
      line += width;
#pragma omp simd
      for (int64_t w = 0; w < width; ++w) out[w] += line[w];
    }
  }
}

// Adds each cell's gradient at its first maximum (its first NaN, if it has one).
template <class T>
BLL_HD void max_band_gradient(PlaneWork<T>& work, const T* band, int64_t count, const T* upstream,
                              T* out) {
  const int64_t width = work.args.width;
  T* line = work.line.data();
  column_maxima(band, count, width, line);
  for (int64_t j = 0; j < work.args.grid; ++j) {
    const auto cell = work.columns.cell[j];
    T best = line[cell.begin];
    for (int64_t w = cell.begin + 1; w < cell.end; ++w) best = first_max(best, line[w]);
    const bool nan = best != best;
    bool found = false;
    for (int64_t h = 0; h < count && !found; ++h) {
      const T* row = band + h * width;
      for (int64_t w = cell.begin; w < cell.end && !found; ++w) {
        found = nan ? row[w] != row[w] : row[w] == best;
        if (found) out[h * width + w] += upstream[j];
      }
    }
  }
}

template <class T>
BLL_HD void add_deviations(const T* band, int64_t count, int64_t width, Cells::Range columns,
                           const T* slope, const T* shift, const T* mean, T* out) {
  for (int64_t h = 0; h < count; ++h, band += width, out += width) {
#pragma omp simd
    for (int64_t w = columns.begin; w < columns.end; ++w) {
      out[w] += slope[w] * (band[w] - shift[w] - mean[w]);
    }
  }
}

// Adds upstream * (x - mean) / ((n - 1) * std), which is zero where the deviation is.
template <class T>
BLL_HD void std_band_gradient(PlaneWork<T>& work, const T* band, int64_t count, const T* upstream,
                              T* out) {
  const int64_t width = work.args.width;
  for (int64_t phase = 0; phase < work.columns.phases; ++phase) {
    column_deviations(work, band, count, phase);
    T* slope = work.line.data();
    const T *mean = work.mean.data(), *shift = work.shift.data();
    for (int64_t j = phase; j < work.args.grid; j += work.columns.phases) {
      const auto cell = work.columns.cell[j];
      const int64_t others = count * cell.size() - 1;
      const T factor = static_cast<T>(others) * cell_deviation(work, count, j);
      const T value = others == 0 || factor == 0 ? T(0) : upstream[j] / factor;
      for (int64_t w = cell.begin; w < cell.end; ++w) slope[w] = value;
    }
    if (work.columns.phases == 1) {
      add_deviations(band, count, width, {0, width}, slope, shift, mean, out);
      continue;
    }
    for (int64_t j = phase; j < work.args.grid; j += work.columns.phases) {
      add_deviations(band, count, width, work.columns.cell[j], slope, shift, mean, out);
    }
  }
}

template <class T>
BLL_HD void pool_plane_gradient(PlaneWork<T>& work, int64_t plane) {
  const PoolArgs& args = work.args;
  const int64_t grid = args.grid, pixels = args.height * args.width;
  const T* upstream = static_cast<const T*>(args.grad_pooled) + plane * grid * grid;
  const bool direct = is_compute_type<T>(args.dtype);
  if (!direct) work.plane.resize(pixels);
  T* out = direct ? static_cast<T*>(args.grad_map) + plane * pixels : work.plane.data();
  if (args.kind == Pool::kMean) {
    mean_plane_gradient(work, upstream, out);
  } else {
    std::fill(out, out + pixels, T(0));
    for (int64_t i = 0; i < grid; ++i, upstream += grid) {
      const auto rows = work.rows.cell[i];
      const T* band = work.load_band(args.map, plane, rows.begin, rows.size());
      T* target = out + rows.begin * args.width;
      if (args.kind == Pool::kMax) {
        max_band_gradient(work, band, rows.size(), upstream, target);
      } else {
        std_band_gradient(work, band, rows.size(), upstream, target);
      }
    }
  }
  if (!direct) store_run<T>(out, args.grad_map, args.dtype, plane * pixels, pixels);
}

}  // namespace bll::cpu
