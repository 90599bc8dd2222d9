// The class loss of any family, by the evidence kernels of one row of latents against another.
#include <algorithm>
#include <cstring>
#include <vector>

#include "cpu/class.h"
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
  FamilyObject family = make_family<Real>(problem.args.family);
  std::vector<Real> scratch;
  Tile<Real> tile{};

  explicit Evidence(const ClassProblem<Real>& class_problem) : problem(class_problem) {
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
  Evidence<Real> evidence(problem);
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

template <class Real>
void generic_gradients(const ClassProblem<Real>& problem, const LatentBlock& block,
                       const Real* coefficients, Real* table_sums) {
  const ClassArgs& args = problem.args;
  const int64_t classes = problem.classes, planes = problem.planes, size = block.size;
  Evidence<Real> evidence(problem);
  RowTile<Real> row(evidence.kernels, size, planes);
  const auto gradients = evidence_kernel(evidence.kernels, args.family, Want::kGradAB);
  std::vector<Real> sum(size * planes), grad_a(size * planes), grad_b(size * planes);
  Tile<Real>& tile = evidence.tile;
  tile.size = size;
  tile.grad_a = grad_a.data();
  tile.grad_b = grad_b.data();
  tile.grad_a_plane = tile.grad_b_plane = size;
  for (int64_t i = block.row_begin; i < block.row_end; ++i, coefficients += classes) {
    tile.a = row.load(args.a, i, block.begin, size, planes, &tile.a_plane);
    std::fill(sum.begin(), sum.end(), Real(0));
    for (int64_t c = 0; c < classes; ++c) {
      tile.b = problem.table + c * problem.table_stride + block.begin;
      tile.scale = -coefficients[c];
      gradients(tile);
      evidence.kernels.add(grad_a.data(), sum.data(), size * planes);
      if (!table_sums) continue;
      for (int64_t p = 0; p < planes; ++p) {
        Real* to = table_sums + (c * planes + p) * problem.width + block.begin;
        evidence.kernels.add(grad_b.data() + p * size, to, size);
      }
    }
    if (!args.grad_a) continue;
    for (int64_t p = 0; p < planes; ++p) {
      void* to = advance(args.grad_a, args.a.dtype, (i * planes + p) * problem.width + block.begin);
      const Real* from = sum.data() + p * size;
      if (element_size(args.a.dtype) == 2) {
        store_tile(evidence.kernels, from, to, args.a.dtype, size);
      } else {
        std::memcpy(to, from, size * sizeof(Real));
      }
    }
  }
}

template <class Real>
void message_terms(const ClassProblem<Real>& problem, int64_t row, double* log_norm, Real* mean) {
  const int64_t tile_size = generic_tile(problem);
  Evidence<Real> evidence(problem);
  const std::vector<Real> zeros(tile_size);
  std::vector<Real> grad_a(tile_size), grad_b(tile_size);
  Tile<Real>& tile = evidence.tile;
  tile.a = zeros.data();
  tile.grad_a = grad_a.data();
  tile.grad_b = grad_b.data();
  tile.scale = -1;
  const Want want = mean ? Want::kGradABValue : Want::kValue;
  const auto kernel = evidence_kernel(evidence.kernels, problem.args.family, want);
  *log_norm = 0;
  for (int64_t begin = 0; begin < problem.width; begin += tile_size) {
    tile.size = std::min(tile_size, problem.width - begin);
    tile.b = problem.table + row * problem.table_stride + begin;
    *log_norm -= static_cast<double>(kernel(tile));
    if (mean) std::memcpy(mean + begin, grad_b.data(), tile.size * sizeof(Real));
  }
}

#define BLL_INSTANTIATE(Real)                                                                 \
  template void generic_logits(const ClassProblem<Real>&, int64_t, int64_t, double*);         \
  template void generic_gradients(const ClassProblem<Real>&, const LatentBlock&, const Real*, \
                                  Real*);                                                     \
  template void message_terms(const ClassProblem<Real>&, int64_t, double*, Real*);
BLL_INSTANTIATE(float)
BLL_INSTANTIATE(double)
#undef BLL_INSTANTIATE

}  // namespace bll::cpu
