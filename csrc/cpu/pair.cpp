// Pair losses over rows: cuts the rows into tiles, runs the tile kernels, adds up in a fixed order.
#include <cstring>
#include <vector>

#include "cpu/api.h"
#include "cpu/buffer.h"
#include "cpu/next.h"
#include "cpu/pair_plan.h"
#include "cpu/tile.h"

namespace bll::cpu {
namespace {

int64_t row_offset(const Rows& rows, int64_t row) {
  return rows.offsets != nullptr ? rows.offsets[row] : row * rows.stride;
}

Want choose_want(bool value, bool grad_a, bool grad_b) {
  if (grad_b) return value ? Want::kGradABValue : Want::kGradAB;
  if (grad_a) return value ? Want::kGradAValue : Want::kGradA;
  return Want::kValue;
}

// As many units as fit into a tile; of small groups, a multiple of what the kernels take at once.
int64_t tile_size(int64_t unit) {
  const int64_t step = unit > 1 && unit <= kMaxLaneGroup ? unit * kLanes : unit;
  return step > kTileSize ? step : kTileSize / step * step;
}

// Converted tiles and outputs that are not wanted in memory, one set per thread.
template <class Real>
struct Buffers {
  int64_t plane;
  Buffer<Real> a, b, grad_a, grad_b, scratch;
  NextOutput<Real> next;

  Buffers(const PairArgs& args, int64_t tile, int planes, int64_t group)
      : plane((tile + kLanes - 1) / kLanes * kLanes),
        a(plane * planes),
        b(plane * planes),
        grad_a(plane * planes),
        grad_b(plane * planes),
        scratch(group),
        next(args, tile) {}
};

template <class Real>
class PairRun {
 public:
  explicit PairRun(const PairArgs& args)
      : args_(args),
        plan_(plan_pair(args)),
        kernels_(tile_kernels<Real>()),
        family_(make_family<Real>(args.family)),
        planes_(family_planes(args.family.id)),
        unit_(args.family.id == FamilyId::kCategorical ? args.family.group : 1),
        tile_(tile_size(unit_)),
        per_table_(!plan_.first_of_label.empty()) {
    const bool grad_b = args.grad_b != nullptr && reaches_message(args.loss);
    kernel_ =
        kernels_
            .pair[static_cast<int>(args.family.id)][static_cast<int>(args.loss)][static_cast<int>(
                choose_want(args.value != nullptr, args.grad_a != nullptr, grad_b))];
    write_grad_b_ = grad_b && !per_table_;
    const bool per_row = args.reduction == Reduction::kNone;
    if (args.value != nullptr) partial_.resize(per_row ? plan_.rows * plan_.segments : pieces());
    if (per_table_) table_sums_.resize(plan_.blocks.size() * planes_ * plan_.width);
  }

  void run(ParallelFor parallel_for) {
    if (args_.grad_b != nullptr && !reaches_message(args_.loss)) {
      std::memset(args_.grad_b, 0,
                  args_.b.count * planes_ * args_.width * element_size(args_.b.dtype));
    }
    if (plan_.width > 0) {
      if (anything_wanted()) parallel_for(pieces(), 1, run_pieces, this);
      if (per_table_) parallel_for(args_.b.count * plan_.segments, 1, reduce_tables, this);
    }
    if (args_.value != nullptr) reduce_value();
  }

 private:
  int64_t pieces() const { return plan_.pieces(); }

  bool anything_wanted() const {
    return args_.value != nullptr || args_.grad_a != nullptr || write_grad_b_ || per_table_ ||
           args_.next != nullptr;
  }

  static void run_pieces(int64_t begin, int64_t end, void* context) {
    auto* self = static_cast<PairRun*>(context);
    Buffers<Real> buffers(self->args_, self->tile_, self->planes_, self->unit_);
    for (int64_t piece = begin; piece < end; ++piece) self->run_piece(piece, buffers);
  }

  double factor(int64_t row) const {
    double factor = args_.reduction == Reduction::kBatchMean ? 1.0 / args_.a.count : 1.0;
    if (args_.weight != nullptr) factor *= static_cast<const Real*>(args_.weight)[row];
    return factor;
  }

  double upstream(int64_t row) const {
    if (args_.grad == nullptr) return 1;
    return static_cast<const Real*>(args_.grad)[args_.reduction == Reduction::kNone ? row : 0];
  }

  void run_piece(int64_t piece, Buffers<Real>& buffers) {
    const RowBlock& block = plan_.blocks[piece / plan_.segments];
    const int64_t segment = piece % plan_.segments;
    double sum = 0;
    for (int64_t i = block.begin; i < block.end; ++i) {
      const int64_t row = plan_.order.empty() ? i : plan_.order[i];
      const double scale = factor(row);
      const double value =
          scale * run_row(row, segment, piece / plan_.segments, scale * upstream(row), buffers);
      if (args_.value == nullptr) continue;
      if (args_.reduction == Reduction::kNone) {
        partial_[row * plan_.segments + segment] = value;
      } else {
        sum += value;
      }
    }
    if (args_.value != nullptr && args_.reduction != Reduction::kNone) partial_[piece] = sum;
  }

  double run_row(int64_t row, int64_t segment, int64_t block, double scale,
                 Buffers<Real>& buffers) {
    const int64_t begin = segment * plan_.segment;
    const int64_t end = begin + plan_.segment < plan_.width ? begin + plan_.segment : plan_.width;
    const int64_t b_row = args_.labels != nullptr ? args_.labels[row] : row;
    double sum = 0;
    for (int64_t start = begin; start < end; start += tile_) {
      const int64_t size = end - start < tile_ ? end - start : tile_;
      sum += static_cast<double>(run_tile(row, b_row, block, start, size, scale, buffers));
    }
    return sum;
  }

  Real run_tile(int64_t row, int64_t b_row, int64_t block, int64_t start, int64_t size,
                double scale, Buffers<Real>& buffers) {
    Tile<Real> tile;
    tile.family = family_.bytes;
    tile.group = unit_;
    tile.size = size;
    tile.scale = static_cast<Real>(scale);
    tile.scratch = buffers.scratch.get();
    load(args_.a, row_offset(args_.a, row) + start, size, buffers.a, buffers.plane, tile.a,
         tile.a_plane);
    load(args_.b, row_offset(args_.b, b_row) + start, size, buffers.b, buffers.plane, tile.b,
         tile.b_plane);
    const int64_t dense = row * planes_ * plan_.width + start;
    place(args_.grad_a, args_.a.dtype, dense, size, buffers.grad_a, buffers.plane, tile.grad_a,
          tile.grad_a_plane);
    place(write_grad_b_ ? args_.grad_b : nullptr, args_.b.dtype, dense, size, buffers.grad_b,
          buffers.plane, tile.grad_b, tile.grad_b_plane);
    const Real value = kernel_(tile);
    if (args_.next != nullptr) buffers.next.write(tile, row * plan_.width + start);
    for (int p = 0; p < planes_; ++p) {
      if (args_.grad_a != nullptr) {
        store(tile.grad_a + p * tile.grad_a_plane, args_.grad_a, args_.a.dtype,
              dense + p * plan_.width, size);
      }
      if (write_grad_b_) {
        store(tile.grad_b + p * tile.grad_b_plane, args_.grad_b, args_.b.dtype,
              dense + p * plan_.width, size);
      }
      if (per_table_) {
        Real* sums = &table_sums_[(block * planes_ + p) * plan_.width + start];
        kernels_.add(tile.grad_b + p * tile.grad_b_plane, sums, size);
      }
    }
    return value;
  }

  void load(const Rows& rows, int64_t offset, int64_t size, const Buffer<Real>& buffer,
            int64_t buffer_plane, const Real*& tile, int64_t& plane) const {
    for (int p = 0; p < planes_; ++p) {
      const void* from = advance(rows.data, rows.dtype, offset + p * rows.plane_stride);
      const Real* loaded =
          load_tile(kernels_, from, rows.dtype, size, buffer.get() + p * buffer_plane);
      if (loaded != from) prefetch<kRead>(advance(from, rows.dtype, size), size);
      if (p == 0) tile = loaded;
    }
    plane = tile == buffer.get() ? buffer_plane : rows.plane_stride;
  }

  // Half types are fetched while the kernel computes: their conversions have nothing to do but
  // wait for memory.
  enum Access { kRead, kWrite };
  template <Access access>
  static void prefetch(const void* half, int64_t size) {
    constexpr int64_t kLine = 64;
    const char* bytes = static_cast<const char*>(half);
    for (int64_t i = 0; i < 2 * size; i += kLine) __builtin_prefetch(bytes + i, access);
  }

  void place(void* output, DType dtype, int64_t offset, int64_t size, const Buffer<Real>& buffer,
             int64_t buffer_plane, Real*& tile, int64_t& plane) const {
    const bool direct = output != nullptr && element_size(dtype) == sizeof(Real);
    for (int p = 0; p < planes_ && output != nullptr && !direct; ++p) {
      prefetch<kWrite>(advance(output, dtype, offset + p * plan_.width), size);
    }
    tile = direct ? static_cast<Real*>(output) + offset : buffer.get();
    plane = direct ? plan_.width : buffer_plane;
  }

  void store(const Real* from, void* output, DType dtype, int64_t offset, int64_t size) const {
    store_tile(kernels_, from, advance(output, dtype, offset), dtype, size);
  }

  // Gradient of table row m: the sums of its blocks of rows, in order.
  static void reduce_tables(int64_t begin, int64_t end, void* context) {
    auto* self = static_cast<PairRun*>(context);
    std::vector<Real> sums(kTileSize);
    for (int64_t i = begin; i < end; ++i) {
      self->reduce_table(i / self->plan_.segments, i % self->plan_.segments, sums.data());
    }
  }

  void reduce_table(int64_t label, int64_t segment, Real* sums) const {
    const int64_t begin = segment * plan_.segment;
    const int64_t end = begin + plan_.segment < plan_.width ? begin + plan_.segment : plan_.width;
    for (int p = 0; p < planes_; ++p) {
      for (int64_t start = begin; start < end; start += kTileSize) {
        const int64_t size = end - start < kTileSize ? end - start : kTileSize;
        const int64_t to = (label * planes_ + p) * plan_.width + start;
        const bool direct = element_size(args_.b.dtype) == sizeof(Real);
        Real* out = direct ? static_cast<Real*>(args_.grad_b) + to : sums;
        std::memset(out, 0, size * sizeof(Real));
        for (int64_t k = plan_.first_of_label[label]; k < plan_.first_of_label[label + 1]; ++k) {
          kernels_.add(&table_sums_[(k * planes_ + p) * plan_.width + start], out, size);
        }
        store(out, args_.grad_b, args_.b.dtype, to, size);
      }
    }
  }

  void reduce_value() {
    Real* value = static_cast<Real*>(args_.value);
    if (args_.reduction != Reduction::kNone) {
      double sum = 0;
      for (const double partial : partial_) sum += partial;
      *value = static_cast<Real>(sum);
      return;
    }
    for (int64_t row = 0; row < plan_.rows; ++row) {
      double sum = 0;
      for (int64_t s = 0; s < plan_.segments; ++s) sum += partial_[row * plan_.segments + s];
      value[row] = static_cast<Real>(sum);
    }
  }

  const PairArgs& args_;
  const PairPlan plan_;
  const TileKernels<Real>& kernels_;
  const FamilyObject family_;
  const int planes_;
  const int64_t unit_;  // latents that must stay together
  const int64_t tile_;
  const bool per_table_;
  bool write_grad_b_;
  TileKernel<Real> kernel_;
  std::vector<double> partial_;   // values per piece, or per row and segment
  std::vector<Real> table_sums_;  // [blocks, planes, width]
};

}  // namespace

void pair_loss(const PairArgs& args, ParallelFor parallel_for) {
  if (args.a.dtype == DType::kFloat64) {
    PairRun<double>(args).run(parallel_for);
  } else {
    PairRun<float>(args).run(parallel_for);
  }
}

}  // namespace bll::cpu
