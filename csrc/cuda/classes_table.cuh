// The gradients of a class loss that are sums over rows: of the table and of the bias.
#pragma once

#include "cuda/access.h"
#include "cuda/block.h"
#include "cuda/classes.h"
#include "cuda/classes_whole.cuh"

namespace bll::cuda {

inline constexpr int kTableRows = 64;  // whose coefficients are staged together

// A block owns a tile of C classes, a run of columns and a section of the rows; its threads along a
// column take every so many rows, and are added up in a fixed order.
template <class Family, class Access>
class ClassTable {
 public:
  static constexpr int count = Access::kCount;
  static constexpr int C = Family::kTableLatents / (count == 1 ? 4 : count);
  static constexpr int kShared = kClassThreads / 2 * C * count;

  __device__ __forceinline__ ClassTable(const Family& family, const ClassTableView& t,
                                        float* coefficients, float* totals, float* shared)
      : family_(family), t_(t), coefficients_(coefficients), totals_(totals), shared_(shared) {
    const uint32_t chunk = blockIdx.x % t.chunks, owner = blockIdx.x / t.chunks;
    tile_ = static_cast<int>(owner % t.tiles) * C;
    section_ = owner / t.tiles;
    lane_ = threadIdx.x % t.lanes, slot_ = threadIdx.x / t.lanes;
    slots_ = kClassThreads / t.lanes;
    chunk_ = chunk;
    column_ = (int64_t{chunk} * t.lanes + lane_) * count;
    inside_ = column_ < t.rows.width;
  }

  __device__ __forceinline__ void run() {
    float b[C][count];
    load_messages(b);
    typename Family::template TableGradient<C, count> gradient(family_, b);
    const int64_t begin = section_ * t_.section_rows, left = t_.rows.rows - begin;
    const int64_t end = begin + (left < t_.section_rows ? left : t_.section_rows);
    float total = 0;
    for (int64_t first = begin; first < end; first += kTableRows) {
      const int rows = static_cast<int>(end - first < kTableRows ? end - first : kTableRows);
      __syncthreads();
      read_coefficients(first, rows);
      __syncthreads();
      if (threadIdx.x < C) {
        for (int r = 0; r < rows; ++r) total += coefficients_[r * C + threadIdx.x];
      }
      if (inside_ && t_.table != nullptr) add_rows(gradient, first, rows);
    }
    if (threadIdx.x < C) {
      totals_[threadIdx.x] = total;
      const int label = tile_ + threadIdx.x;
      if (t_.bias != nullptr && chunk_ == 0 && label < t_.rows.classes) {
        t_.bias[section_ * t_.rows.classes + label] = total;
      }
    }
    if (t_.table == nullptr) return;
    merge(gradient);
    if (slot_ == 0 && inside_) store(gradient);
  }

 private:
  const Family& family_;
  const ClassTableView& t_;
  float *coefficients_, *totals_, *shared_;
  int tile_, lane_, slot_, slots_;
  uint32_t chunk_;
  int64_t section_, column_;
  bool inside_;

  __device__ __forceinline__ void load_messages(float (&b)[C][count]) const {
    const ClassView& v = t_.rows;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const int64_t label = tile_ + c < v.classes ? tile_ + c : v.classes - 1;
#pragma unroll
      for (int i = 0; i < count; ++i) b[c][i] = 0;
      if (!inside_) continue;
      const int64_t from = label * v.table_row + column_;
      Access::unpack(Access::load(v.table, v.table_dtype, from), v.table_dtype, b[c]);
    }
  }

  __device__ __forceinline__ void read_coefficients(int64_t first, int rows) const {
    const ClassView& v = t_.rows;
    for (int at = threadIdx.x; at < rows * C; at += kClassThreads) {
      const int64_t row = first + at / C;
      const int label = tile_ + at % C;
      coefficients_[at] = label < v.classes ? coefficient_at(v, row, label) : 0.0f;
    }
  }

  template <class Gradient>
  __device__ __forceinline__ void add_rows(Gradient& gradient, int64_t first, int rows) const {
    const ClassView& v = t_.rows;
    constexpr int batch = 4;
    for (int r = slot_; r < rows; r += slots_ * batch) {
      typename Access::Raw raw[batch];
#pragma unroll
      for (int u = 0; u < batch; ++u) {
        const int row = r + u * slots_ < rows ? r + u * slots_ : r;
        raw[u] = Access::load(v.a, v.a_dtype, (first + row) * v.a_row + column_);
      }
#pragma unroll
      for (int u = 0; u < batch; ++u) {
        float a[count];
        Access::unpack(raw[u], v.a_dtype, a);
        const int row = r + u * slots_;
        if (row < rows) gradient.add(family_, v.normalize, coefficients_ + row * C, a);
      }
    }
  }

  template <class Gradient>
  __device__ __forceinline__ void merge(Gradient& gradient) const {
    for (int half = slots_ / 2; half >= 1; half /= 2) {
      const int place = (slot_ >= half ? slot_ - half : slot_) * t_.lanes + lane_;
      __syncthreads();
#pragma unroll
      for (int k = 0; k < C * count; ++k) {
        if (slot_ >= half && slot_ < 2 * half) {
          shared_[k * (kClassThreads / 2) + place] = gradient.sum[k / count][k % count];
        }
      }
      __syncthreads();
#pragma unroll
      for (int k = 0; k < C * count; ++k) {
        if (slot_ < half) {
          gradient.sum[k / count][k % count] += shared_[k * (kClassThreads / 2) + place];
        }
      }
    }
    __syncthreads();
  }

  template <class Gradient>
  __device__ __forceinline__ void store(const Gradient& gradient) const {
    // Read again, rather than kept through the loop over rows.
    float b[C][count];
    load_messages(b);
    const ClassView& v = t_.rows;
    uint32_t odd = 0;
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const int label = tile_ + c;
      if (label >= v.classes) continue;
      float out[count];
#pragma unroll
      for (int i = 0; i < count; ++i) {
        out[i] = gradient.result(family_, v.normalize, c, i, b[c][i], totals_[c]);
        if constexpr (Family::kShortened)
          odd |= uint32_t{!Family::holds(out[i])} << (c * count + i);
      }
      Access::store(t_.table, t_.dtype, (section_ * v.classes + label) * v.width + column_, out);
    }
    if constexpr (Family::kShortened) {
      if (odd != 0) store_whole(odd);
    }
  }

  // In place of the elements whose bits are set.
  __device__ __forceinline__ void store_whole(uint32_t odd) const {
    static_assert(C * count <= 32);
    const ClassView& v = t_.rows;
    const int64_t begin = section_ * t_.section_rows, left = v.rows - begin;
    const int64_t end = begin + (left < t_.section_rows ? left : t_.section_rows);
#pragma unroll 1
    for (int at = 0; at < C * count; ++at) {
      if ((odd >> at & 1) == 0) continue;
      const int label = tile_ + at / count;
      const int64_t j = column_ + at % count;
      const float out[1] = {whole_table_gradient(family_, v, label, j, begin, end)};
      Single::store(t_.table, t_.dtype, (section_ * v.classes + label) * v.width + j, out);
    }
  }
};

template <class Family, class Access>
__global__ void __launch_bounds__(kClassThreads, kClassBlocks)
    class_table(const Family family, const ClassTableView t) {
  using Table = ClassTable<Family, Access>;
  BLL_SHARED(float, coefficients, kTableRows* Table::C);
  BLL_SHARED(float, totals, Table::C);
  BLL_SHARED(float, shared, Table::kShared);
  Table(family, t, coefficients, totals, shared).run();
}

template <class Family, class Access>
void launch_class_table(const FamilyArgs& args, const ClassTableView& view, cudaStream_t stream) {
  const Family family(args, view.rows.normalize);
  const unsigned blocks = static_cast<unsigned>(view.chunks * view.tiles * view.sections);
  BLL_LAUNCH((class_table<Family, Access>), blocks, kClassThreads, stream, family, view);
}

template <class Family>
void run_class_table(const FamilyArgs& family, const ClassPlan& plan, const ClassTableView& view,
                     cudaStream_t stream) {
  if (!plan.wide) return launch_class_table<Family, Single>(family, view, stream);
  // Float32 latents of a pooled map may stand beside a half table.
  const bool floats = view.rows.a_dtype == DType::kFloat32;
  switch (floats ? view.rows.table_dtype : view.rows.a_dtype) {
    case DType::kBFloat16:
      return launch_class_table<Family, Wide<__nv_bfloat16>>(family, view, stream);
    case DType::kFloat16:
      return launch_class_table<Family, Wide<__half>>(family, view, stream);
    default:
      return launch_class_table<Family, Wide<float>>(family, view, stream);
  }
}

}  // namespace bll::cuda
