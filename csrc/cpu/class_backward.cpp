// Gradients of the class loss from its residual. Work items are blocks of rows times latents; a
// block owns its part of grad_a, and blocks of other rows add to the table in a second stage.
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/class_problem.h"

namespace bll::cpu {

namespace {

// Rows of one block: enough blocks for many rows, a bounded number of partial tables.
constexpr int64_t kBlockRows = 1024;
constexpr int64_t kMaximumBlocks = 16;

template <class Real>
struct Backward {
  const ClassArgs& args;
  ClassProblem<Real> problem;
  ParallelFor parallel_for;
  ClassPath path;
  int64_t rows, classes, width, planes;
  int64_t block_rows, row_blocks, latents;  // latents of one block
  const Real* coefficients;                 // residual * grad
  Buffer<Real> scaled;
  Buffer<Real> partial;        // [row_blocks, classes, planes, width]
  std::vector<double> totals;  // sum of each class's coefficients

  Backward(const ClassArgs& class_args, ParallelFor loop)
      : args(class_args), problem(class_args), parallel_for(loop) {
    path = prepare(problem, parallel_for);
    rows = args.a.count;
    classes = problem.classes;
    width = problem.width;
    planes = problem.planes;
    block_rows = std::max(kBlockRows, (rows + kMaximumBlocks - 1) / kMaximumBlocks);
    row_blocks = (rows + block_rows - 1) / block_rows;
  }

  int64_t block_latents() const {
    return path == ClassPath::kGeneric ? generic_tile(problem) : kPanelStep;
  }

  void weigh_residual() {
    const Real* residual = static_cast<const Real*>(args.residual);
    const Real* grad = static_cast<const Real*>(args.grad);
    coefficients = residual;
    if (!grad) return;
    scaled = Buffer<Real>(rows * classes);
    coefficients = scaled.get();
    const bool per_row = args.reduction == Reduction::kNone;
    for (int64_t i = 0; i < rows; ++i) {
      const Real factor = grad[per_row ? i : 0];
      for (int64_t c = 0; c < classes; ++c) {
        scaled[i * classes + c] = factor * residual[i * classes + c];
      }
    }
  }

  // The fast loops rely on finite terms that add up, and cancel, in any order; the generic loops
  // add every term of the definition, NaN and infinity included.
  void choose_path() {
    const bool reads_squares = path == ClassPath::kLinear && problem.square != 0;
    if (!all_finite(coefficients, rows * classes)) path = ClassPath::kGeneric;
    for (int64_t c = 0; reads_squares && c < classes; ++c) {
      const Real* b = problem.table + c * problem.table_stride;
      if (!std::isfinite(class_kernels<Real>().dot(b, b, width))) path = ClassPath::kGeneric;
    }
    latents = block_latents();
  }

  static bool all_finite(const Real* x, int64_t size) {
    bool finite = true;
#pragma omp simd reduction(& : finite)
    for (int64_t i = 0; i < size; ++i) finite &= x[i] - x[i] == 0;
    return finite;
  }

  void sum_classes() {
    totals.assign(classes, 0.0);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t c = 0; c < classes; ++c) {
        totals[c] += static_cast<double>(coefficients[i * classes + c]);
      }
    }
  }

  void run_blocks() {
    const ClassKernels<Real>& kernels = class_kernels<Real>();
    const auto gradients = path == ClassPath::kLinear      ? kernels.linear_gradients
                           : path == ClassPath::kBernoulli ? kernels.bernoulli_gradients
                                                           : generic_gradients<Real>;
    const int64_t size = classes * planes * width;
    if (args.grad_table && !adds_in_place()) partial = Buffer<Real>(row_blocks * size);
    const int64_t steps = (width + latents - 1) / latents;
    // Products with the table walk from panel to panel on their own.
    const int64_t run = path == ClassPath::kLinear ? steps : 1;
    parallel(parallel_for, row_blocks * steps, 1, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin, next; item < end; item = next) {
        const int64_t block = item / steps, from = item % steps * latents;
        next = std::min({item + run, (block + 1) * steps, end});
        LatentBlock here{block * block_rows, std::min((block + 1) * block_rows, rows), from,
                         std::min((next - item) * latents, width - from)};
        Real* sums = adds_in_place()   ? static_cast<Real*>(args.grad_table)
                     : args.grad_table ? partial.get() + block * size
                                       : nullptr;
        gradients(problem, here, coefficients + here.row_begin * classes, sums);
      }
    });
  }

  void finish_table() {
    // d offset_c / d b_c = 2 square b_c, which the generic loops have added already.
    const Real slope = static_cast<Real>(path == ClassPath::kGeneric ? 0 : 2 * problem.square);
    const double tilt = args.family.tilt;
    const Real scale = static_cast<Real>(path == ClassPath::kBernoulli ? tilt : 1.0);
    if (adds_in_place() && slope == 0 && scale == 1) return;
    parallel(parallel_for, classes, 1, [&](int64_t begin, int64_t end) {
      std::vector<Real> buffer(converts(args.table.dtype) ? planes * width : 0);
      for (int64_t c = begin; c < end; ++c) {
        void* to = advance(args.grad_table, args.table.dtype, c * planes * width);
        Real* sum = buffer.empty() ? static_cast<Real*>(to) : buffer.data();
        sum_blocks(c, sum);
        const Real* b = problem.table + c * problem.table_stride;
        if (slope != 0) {
          const Real total = slope * static_cast<Real>(totals[c]);
          for (int64_t j = 0; j < width; ++j) sum[j] = scale * sum[j] + total * b[j];
        } else {
          for (int64_t j = 0; j < planes * width; ++j) sum[j] *= scale;
        }
        store_tile(tile_kernels<Real>(), sum, to, args.table.dtype, planes * width);
      }
    });
  }

  static bool converts(DType dtype) { return element_size(dtype) == 2; }

  // One block of rows leaves its sums where the gradient belongs.
  bool adds_in_place() const {
    return args.grad_table && row_blocks == 1 && !converts(args.table.dtype);
  }

  // The blocks' sums of one class, added in their order.
  void sum_blocks(int64_t c, Real* sum) const {
    if (adds_in_place()) return;
    const int64_t size = planes * width;
    if (row_blocks == 0) std::fill(sum, sum + size, Real(0));
    for (int64_t block = 0; block < row_blocks; ++block) {
      const Real* from = partial.get() + (block * classes + c) * size;
      if (block == 0) {
        std::memcpy(sum, from, size * sizeof(Real));
      } else {
        tile_kernels<Real>().add(from, sum, size);
      }
    }
  }

  void run() {
    weigh_residual();
    choose_path();
    if (args.grad_bias || (args.grad_table && problem.square != 0)) sum_classes();
    if (args.grad_a || args.grad_table) run_blocks();
    if (args.grad_table) finish_table();
    if (!args.grad_bias) return;
    Real* bias = static_cast<Real*>(args.grad_bias);
    for (int64_t c = 0; c < classes; ++c) bias[c] = static_cast<Real>(totals[c]);
  }
};

}  // namespace

void class_loss_backward(const ClassArgs& args, ParallelFor parallel_for) {
  if (args.a.dtype == DType::kFloat64) {
    Backward<double>(args, parallel_for).run();
  } else {
    Backward<float>(args, parallel_for).run();
  }
}

}  // namespace bll::cpu
