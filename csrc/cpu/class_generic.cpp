// The class loss of any family, by the evidence kernels of one row of latents against another.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/class_problem.h"
#include "cpu/tile.h"

namespace bll::cpu {

namespace {

template <class Real>
TileKernel<Real> evidence_kernel(const TileKernels<Real>& kernels, const FamilyArgs& family,
                                 Want want) {
  return kernels
      .pair[static_cast<int>(family.id)][static_cast<int>(Loss::kEvidence)][static_cast<int>(want)];
}

// One row of latents in the compute type, both planes, `size` apart.
template <class Real>
struct RowTile {
  const TileKernels<Real>& kernels;
  std::vector<Real> buffer;

  RowTile(const TileKernels<Real>& tile_kernels, int64_t size, int64_t planes)
      : kernels(tile_kernels), buffer(size * planes) {}

  // Returns the row's latents and sets `plane` to the distance of the second parameter.
  const Real* load(const Rows& rows, int64_t row, int64_t begin, int64_t size, int64_t planes,
                   int64_t* plane) {
    const void* from = advance(rows.data, rows.dtype, row_start(rows, row) + begin);
    *plane = rows.plane_stride;
    if (element_size(rows.dtype) != 2) return static_cast<const Real*>(from);
    *plane = size;
    for (int64_t p = 0; p < planes; ++p) {
      load_tile(kernels, advance(from, rows.dtype, p * rows.plane_stride), rows.dtype, size,
                buffer.data() + p * size);
    }
    return buffer.data();
  }
};

template <class Real>
struct Evidence {
  const ClassProblem<Real>& problem;
  const TileKernels<Real>& kernels = tile_kernels<Real>();
  FamilyObject family;
  std::vector<Real> scratch;
  Tile<Real> tile{};

  Evidence(const ClassProblem<Real>& class_problem, const FamilyArgs& args)
      : problem(class_problem), family(make_family<Real>(args)) {
    tile.family = family.bytes;
    tile.group = problem.args.family.group;
    if (problem.args.family.id == FamilyId::kCategorical) scratch.resize(tile.group);
    tile.scratch = scratch.data();
    tile.scale = 1;
    tile.b_plane = problem.table_plane;
  }
};

}  // namespace

template <class Real>
void generic_logits(const ClassProblem<Real>& problem, int64_t row_begin, int64_t row_end,
                    double* logits) {
  const int64_t classes = problem.classes, tile_size = generic_tile(problem);
  Evidence<Real> evidence(problem, problem.args.family);
  RowTile<Real> row(evidence.kernels, tile_size, problem.planes);
  const auto value = evidence_kernel(evidence.kernels, problem.args.family, Want::kValue);
  std::memset(logits, 0, (row_end - row_begin) * classes * sizeof *logits);
  for (int64_t i = row_begin; i < row_end; ++i, logits += classes) {
    for (int64_t begin = 0; begin < problem.width; begin += tile_size) {
      Tile<Real>& tile = evidence.tile;
      tile.size = std::min(tile_size, problem.width - begin);
      tile.a = row.load(problem.args.a, i, begin, tile.size, problem.planes, &tile.a_plane);
      for (int64_t c = 0; c < classes; ++c) {
        tile.b = problem.table + c * problem.table_stride + begin;
        logits[c] -= static_cast<double>(value(tile));
      }
    }
  }
}

namespace {

// Gradients of one block: row i against class c into buffers of the block's latents.
template <class Real>
struct GenericBlock {
  const ClassProblem<Real>& problem;
  const LatentBlock& block;
  int64_t planes, size;
  Evidence<Real> evidence;
  std::vector<Real> sum, grad_a, grad_b, unused;
  // Of normalised messages A(a + b) - A(b) is the evidence of a under b: the roles change, and the
  // difference mu(a + b) - mu(b) is as accurate as that to a. Holds the (tilted) messages.
  Evidence<Real> swapped;
  std::vector<Real> messages, means;
  bool swaps, plain = false;

  GenericBlock(const ClassProblem<Real>& class_problem, const LatentBlock& latents)
      : problem(class_problem),
        block(latents),
        planes(class_problem.planes),
        size(latents.size),
        evidence(class_problem, class_problem.args.family),
        sum(size * planes),
        grad_a(size * planes),
        grad_b(size * planes),
        swapped(class_problem, untilted(class_problem.args.family)),
        swaps(class_problem.args.normalize_message && is_natural(class_problem.args.family.id)) {
    evidence.tile.size = swapped.tile.size = size;
    evidence.tile.grad_a = grad_a.data();
    evidence.tile.grad_b = swapped.tile.grad_a = grad_b.data();
    unused.resize(size * planes);
    swapped.tile.grad_b = unused.data();
    evidence.tile.grad_a_plane = evidence.tile.grad_b_plane = size;
    if (!swaps) return;
    messages.resize(problem.classes * size);
    const Real tilt = static_cast<Real>(problem.args.family.tilt);
    for (int64_t c = 0; c < problem.classes; ++c) {
      const Real* b = problem.table + c * problem.table_stride + block.begin;
      for (int64_t j = 0; j < size; ++j) messages[c * size + j] = tilt * b[j];
    }
  }

  static FamilyArgs untilted(FamilyArgs family) {
    family.tilt = 1;
    return family;
  }

  // mu(b) of every (tilted) message times the tilt: the gradient of its log-norm.
  void fill_means() {
    const std::vector<Real> zeros(size);
    const Real* row = evidence.tile.a;
    means.resize(problem.classes * size);
    evidence.tile.a = zeros.data();
    evidence.tile.scale = -1;
    for (int64_t c = 0; c < problem.classes; ++c) {
      evidence.tile.b = problem.table + c * problem.table_stride + block.begin;
      evidence_kernel(evidence.kernels, problem.args.family, Want::kGradAB)(evidence.tile);
      std::copy(grad_b.begin(), grad_b.end(), means.begin() + c * size);
    }
    evidence.tile.a = row;
  }

  // A latent of `a` at infinity cannot be a message: such a row takes the plain difference.
  void start_row() {
    if (!swaps) return;
    const Real* a = evidence.tile.a;
    plain = std::any_of(a, a + size, [](Real x) { return !std::isfinite(x); });
    if (plain && means.empty()) fill_means();
  }

  // Leaves the gradients of coefficient * s_c in grad_a and grad_b.
  void differentiate(int64_t c, Real coefficient) {
    const FamilyArgs& family = problem.args.family;
    Tile<Real>& tile = evidence.tile;
    tile.b = problem.table + c * problem.table_stride + block.begin;
    tile.scale = plain ? Real(-1) : -coefficient;
    const Want want = swaps && !plain ? Want::kGradA : Want::kGradAB;
    evidence_kernel(evidence.kernels, family, want)(tile);
    if (!swaps) return;
    if (plain) {
      for (int64_t j = 0; j < size; ++j) {
        grad_a[j] *= coefficient;
        grad_b[j] = coefficient * (grad_b[j] - means[c * size + j]);
      }
      return;
    }
    swapped.tile.a = messages.data() + c * size;
    swapped.tile.b = tile.a;
    swapped.tile.scale = tile.scale * static_cast<Real>(family.tilt);
    evidence_kernel(evidence.kernels, family, Want::kGradA)(swapped.tile);
  }

  void add_to_table(int64_t c, Real* table_sums) const {
    for (int64_t p = 0; p < planes; ++p) {
      Real* to = table_sums + (c * planes + p) * problem.width + block.begin;
      evidence.kernels.add(grad_b.data() + p * size, to, size);
    }
  }

  void store_grad_a(int64_t row) const {
    const ClassArgs& args = problem.args;
    for (int64_t p = 0; p < planes; ++p) {
      const int64_t start = (row * planes + p) * problem.width + block.begin;
      void* to = advance(args.grad_a, args.a.dtype, start);
      const Real* from = sum.data() + p * size;
      if (element_size(args.a.dtype) == 2) {
        store_tile(evidence.kernels, from, to, args.a.dtype, size);
      } else {
        std::memcpy(to, from, size * sizeof(Real));
      }
    }
  }
};

}  // namespace

template <class Real>
void generic_gradients(const ClassProblem<Real>& problem, const LatentBlock& block,
                       const Real* coefficients, Real* table_sums) {
  GenericBlock<Real> work(problem, block);
  for (int64_t row = 0; table_sums && row < problem.classes * problem.planes; ++row) {
    std::memset(table_sums + row * problem.width + block.begin, 0, block.size * sizeof(Real));
  }
  RowTile<Real> row(work.evidence.kernels, block.size, problem.planes);
  for (int64_t i = block.row_begin; i < block.row_end; ++i, coefficients += problem.classes) {
    Tile<Real>& tile = work.evidence.tile;
    tile.a = row.load(problem.args.a, i, block.begin, block.size, problem.planes, &tile.a_plane);
    std::fill(work.sum.begin(), work.sum.end(), Real(0));
    work.start_row();
    for (int64_t c = 0; c < problem.classes; ++c) {
      work.differentiate(c, coefficients[c]);
      work.evidence.kernels.add(work.grad_a.data(), work.sum.data(), work.sum.size());
      if (table_sums) work.add_to_table(c, table_sums);
    }
    if (problem.args.grad_a) work.store_grad_a(i);
  }
}

template <class Real>
double message_log_norm(const ClassProblem<Real>& problem, int64_t row) {
  const int64_t tile_size = generic_tile(problem);
  Evidence<Real> evidence(problem, problem.args.family);
  const std::vector<Real> zeros(tile_size);
  Tile<Real>& tile = evidence.tile;
  tile.a = zeros.data();
  const auto value = evidence_kernel(evidence.kernels, problem.args.family, Want::kValue);
  double log_norm = 0;
  for (int64_t begin = 0; begin < problem.width; begin += tile_size) {
    tile.size = std::min(tile_size, problem.width - begin);
    tile.b = problem.table + row * problem.table_stride + begin;
    log_norm -= static_cast<double>(value(tile));
  }
  return log_norm;
}

#define BLL_INSTANTIATE(Real)                                                                 \
  template void generic_logits(const ClassProblem<Real>&, int64_t, int64_t, double*);         \
  template void generic_gradients(const ClassProblem<Real>&, const LatentBlock&, const Real*, \
                                  Real*);                                                     \
  template double message_log_norm(const ClassProblem<Real>&, int64_t);
BLL_INSTANTIATE(float)
BLL_INSTANTIATE(double)
#undef BLL_INSTANTIATE

}  // namespace bll::cpu
