// The gradient of a class table, rows of one class after the other, with what else is wanted of
// those rows: every latent is read once.
#pragma once

#include "cuda/block.h"
#include "cuda/pair_items.cuh"
#include "cuda/table_share.cuh"

namespace bll::cuda {

// The threads of a block along a column take every so many rows, and are added up in order.
template <class Family, Loss L, class Access>
class PairTable {
 public:
  static constexpr int planes = Family::kPlanes, count = Access::kCount;
  static constexpr int batch = kItems<count, planes>;

  __device__ __forceinline__ PairTable(const Family& family, const TableView& t)
      : family_(family), t_(t), v_(t.pair), part_(part_of(t.share, t.pair.classes, blockIdx.x)) {
    lane_ = threadIdx.x & (t.lanes - 1), slot_ = threadIdx.x / t.lanes;
    slots_ = kThreads / t.lanes;
    column_ = int64_t{part_.chunk} * t.unit_columns + lane_ * count;
    inside_ = column_ < v_.width;
  }

  // The sum of the latents' losses, weighted.
  __device__ __forceinline__ float run() {
    load_message();
    float value = 0;
    // The same number of turns for all threads: they meet where a row's value is added up.
    for (int64_t start = part_.begin; start < part_.end; start += int64_t{slots_} * batch) {
      value += add_rows(start + slot_);
    }
    return value;
  }

  // The sums of the block's rows, in their order.
  __device__ __forceinline__ void store(float* shared) {
#pragma unroll
    for (int p = 0; p < planes; ++p) {
#pragma unroll
      for (int i = 0; i < count; ++i)
        shared[(p * count + i) * kThreads + threadIdx.x] = sums_[p][i];
    }
    __syncthreads();
    if (slot_ > 0 || !inside_ || !part_.exists) return;
    const int64_t row = part_.section * v_.classes + part_.label;
#pragma unroll
    for (int p = 0; p < planes; ++p) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        for (int s = 1; s < slots_; ++s) {
          sums_[p][i] += shared[(p * count + i) * kThreads + s * t_.lanes + lane_];
        }
      }
      const int64_t at = (row * planes + p) * v_.width + column_;
      Access::store(t_.share.out, t_.share.out_dtype, at, sums_[p]);
    }
  }

 private:
  const Family& family_;
  const TableView& t_;
  const PairView& v_;
  TablePart part_;
  int64_t column_;
  int lane_, slot_, slots_;
  bool inside_;
  float b_[planes][count], sums_[planes][count] = {};

  __device__ __forceinline__ void load_message() {
    if (!inside_) return;
#pragma unroll
    for (int p = 0; p < planes; ++p) {
      const int64_t at = part_.label * v_.b_row + p * v_.b_plane + column_;
      Access::unpack(part_.exists ? Access::load(v_.b, v_.b_dtype, at) : Access::nan(), v_.b_dtype,
                     b_[p]);
    }
  }

  __device__ __forceinline__ float add_rows(int64_t start) {
    int64_t rows[batch];
    float weights[batch], grads[batch];
    typename Access::Raw raw[batch][planes];
#pragma unroll
    for (int u = 0; u < batch; ++u) {
      const int64_t at = start + int64_t{u} * slots_;
      rows[u] = inside_ && at < part_.end ? BLL_LOAD(t_.share.order + at) : -1;
    }
#pragma unroll
    for (int u = 0; u < batch; ++u) {
      if (rows[u] < 0) continue;
      weights[u] = row_weight(v_, rows[u]);
      grads[u] = raw_grad(v_, rows[u]);
#pragma unroll
      for (int p = 0; p < planes; ++p) {
        raw[u][p] = Access::load(v_.a, v_.a_dtype, rows[u] * v_.a_row + p * v_.a_plane + column_);
      }
    }
    float values[batch], value = 0;
#pragma unroll
    for (int u = 0; u < batch; ++u) {
      values[u] = 0;
      if (rows[u] < 0) continue;
      float a[planes][count];
#pragma unroll
      for (int p = 0; p < planes; ++p) Access::unpack(raw[u][p], v_.a_dtype, a[p]);
      values[u] = weights[u] * add_row(rows[u], weights[u] * (v_.scale * grads[u]), a);
      value += values[u];
    }
#pragma unroll
    for (int u = 0; u < batch; ++u) {
      if (v_.value == nullptr || !v_.per_row) break;
      const float sum = warp_sum(values[u], t_.lanes);
      if (lane_ == 0 && rows[u] >= 0) {
        v_.value[rows[u] * t_.share.chunks + part_.chunk] = sum;
      }
    }
    return value;
  }

  __device__ __forceinline__ float add_row(int64_t row, float factor, float (&a)[planes][count]) {
    if (v_.next != nullptr) store_next(family_, v_, row * v_.width + column_, a, b_);
    float value = 0;
#pragma unroll
    for (int i = 0; i < count; ++i) {
      float one_a[planes], one_b[planes];
#pragma unroll
      for (int p = 0; p < planes; ++p) one_a[p] = a[p][i], one_b[p] = b_[p][i];
      const PairTerms<float, planes> terms = pair_terms<L>(family_, one_a, one_b);
      value += terms.value;
#pragma unroll
      for (int p = 0; p < planes; ++p) {
        sums_[p][i] += factor * terms.b[p];
        a[p][i] = factor * terms.a[p];
      }
    }
#pragma unroll
    for (int p = 0; p < planes; ++p) {
      if (v_.grad_a == nullptr) break;
      Access::store(v_.grad_a, v_.a_dtype, (row * planes + p) * v_.width + column_, a[p]);
    }
    return value;
  }
};

template <class Family, Loss L, class Access>
__global__ void __launch_bounds__(kThreads, kBlocksPerProcessor)
    pair_table(const Family family, const TableView t) {
  using Table = PairTable<Family, L, Access>;
  BLL_SHARED(float, shared, kThreads* Table::planes* Table::count);
  BLL_SHARED(float, warps, kThreads / kWarp);
  Table table(family, t);
  float value = table.run();
  table.store(shared);
  if (t.pair.value == nullptr || t.pair.per_row) return;
  value = block_sum(value, warps);
  if (threadIdx.x == 0) t.pair.value[blockIdx.x] = t.pair.value_scale * value;
}

template <template <class> class Family, Loss L, class Access>
void launch_table(const FamilyArgs& args, const TableView& view, int64_t blocks,
                  cudaStream_t stream) {
  if constexpr (reaches_message(L)) {
    const Family<float> family(args.tau, args.tilt);
    BLL_LAUNCH((pair_table<Family<float>, L, Access>), static_cast<unsigned>(blocks), kThreads,
               stream, family, view);
  }
}

}  // namespace bll::cuda
