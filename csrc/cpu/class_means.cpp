// Means of the rows of every class: rows are sorted by class, stably, and each class's columns are
// added up by one thread in the order of the rows.
#include <algorithm>
#include <vector>

#include "cpu/class_problem.h"

namespace bll::cpu {

namespace {

// Rows by class: those of class c are order[start[c]] to order[start[c + 1] - 1].
struct Sorted {
  std::vector<int64_t> start, order;

  Sorted(const int64_t* labels, int64_t rows, int64_t classes) : start(classes + 1), order(rows) {
    for (int64_t i = 0; i < rows; ++i) ++start[labels[i] + 1];
    for (int64_t c = 0; c < classes; ++c) start[c + 1] += start[c];
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t i = 0; i < rows; ++i) order[next[labels[i]]++] = i;
  }
};

// Rows that are added up in Real before their sum goes on in double.
inline constexpr int64_t kMeanRows = 16;

// part = sum of the rows order[first] to order[last - 1], at least one.
template <class Real>
void add_rows(const ClassMeansArgs& args, const Sorted& sorted, int64_t first, int64_t last,
              int64_t begin, int64_t size, Real* part) {
  const TileKernels<Real>& kernels = tile_kernels<Real>();
  Real buffer[kTileSize];
  for (int64_t k = first; k < last; ++k) {
    const int64_t at = row_start(args.x, sorted.order[k]) + begin;
    const void* from = advance(args.x.data, args.x.dtype, at);
    const Real* row = load_tile(kernels, from, args.x.dtype, size, k == first ? part : buffer);
    if (k > first) {
      kernels.add(row, part, size);
    } else if (row != part) {
      std::copy(row, row + size, part);
    }
  }
}

template <class Real>
void class_block(const ClassMeansArgs& args, const Sorted& sorted, int64_t label, int64_t begin,
                 int64_t size) {
  const int64_t first = sorted.start[label], last = sorted.start[label + 1];
  Real* means = static_cast<Real*>(args.means) + label * args.width + begin;
  if (first == last) {
    std::fill(means, means + size, Real(0));
    return;
  }
  const int64_t middle = std::min(first + kMeanRows, last);
  add_rows(args, sorted, first, middle, begin, size, means);
  if (last - first == 1) return;
  if (middle == last) {
    const Real count = static_cast<Real>(last - first);
    for (int64_t j = 0; j < size; ++j) means[j] /= count;
    return;
  }
  Real part[kTileSize];
  double sum[kTileSize];
  for (int64_t j = 0; j < size; ++j) sum[j] = static_cast<double>(means[j]);
  for (int64_t i = middle; i < last; i += kMeanRows) {
    add_rows(args, sorted, i, std::min(i + kMeanRows, last), begin, size, part);
    for (int64_t j = 0; j < size; ++j) sum[j] += static_cast<double>(part[j]);
  }
  const double count = static_cast<double>(last - first);
  for (int64_t j = 0; j < size; ++j) means[j] = static_cast<Real>(sum[j] / count);
}

template <class Real>
void run(const ClassMeansArgs& args, ParallelFor parallel_for) {
  const Sorted sorted(args.labels, args.x.count, args.classes);
  for (int64_t c = 0; c < args.classes; ++c) args.counts[c] = sorted.start[c + 1] - sorted.start[c];
  const int64_t blocks = (args.width + kTileSize - 1) / kTileSize;
  const int64_t rows = std::max<int64_t>(args.x.count / args.classes, 1);
  const int64_t grain = std::max<int64_t>(32768 / (rows * kTileSize), 1);
  parallel(parallel_for, args.classes * blocks, grain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t column = item % blocks * kTileSize;
      class_block<Real>(args, sorted, item / blocks, column,
                        std::min(kTileSize, args.width - column));
    }
  });
}

template <class Real>
void run_backward(const ClassMeansGradArgs& args, ParallelFor parallel_for) {
  const int64_t grain = std::max<int64_t>(32768 / std::max<int64_t>(args.width, 1), 1);
  parallel(parallel_for, args.rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t label = args.labels[i];
      const Real count = static_cast<Real>(std::max<int64_t>(args.counts[label], 1));
      const Real* from = static_cast<const Real*>(args.grad) + label * args.width;
      Real* to = static_cast<Real*>(args.grad_x) + i * args.width;
      for (int64_t j = 0; j < args.width; ++j) to[j] = from[j] / count;
    }
  });
}

}  // namespace

void class_means(const ClassMeansArgs& args, ParallelFor parallel_for) {
  if (args.x.dtype == DType::kFloat64) {
    run<double>(args, parallel_for);
  } else {
    run<float>(args, parallel_for);
  }
}

void class_means_backward(const ClassMeansGradArgs& args, ParallelFor parallel_for) {
  if (args.dtype == DType::kFloat64) {
    run_backward<double>(args, parallel_for);
  } else {
    run_backward<float>(args, parallel_for);
  }
}

}  // namespace bll::cpu
