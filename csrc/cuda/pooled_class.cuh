// One block per image: means of its cells, scores, their softmax, and the gradient on the map.
// The map is read once and its gradient written once; a mean's gradient needs no pixel.
#pragma once

#include "cuda/classes_linear.h"
#include "cuda/classes_softmax.cuh"
#include "cuda/classes_whole.cuh"
#include "cuda/pool_cells.cuh"
#include "cuda/pooled.h"

namespace bll::cuda {

struct alignas(16) CellQuad {
  float x[4];
};

template <class Layout>
class PooledClass {
 public:
  __device__ __forceinline__ PooledClass(const LinearScore& family, const PooledView& view,
                                         float* cells, float* scores)
      : family_(family),
        v_(view),
        cells_(cells),
        scores_(scores),
        image_(blockIdx.x),
        size_(view.channels * view.grid * view.grid) {}

  __device__ __forceinline__ void pool() const {
    Layout::gather(v_, image_, cells_, scores_);
    __syncthreads();
    if (v_.latents == nullptr) return;
    for (int i = threadIdx.x; i < size_; i += kPooledThreads) {
      v_.latents[image_ * size_ + i] = cells_[i];
      BLL_COUNT_STORED(4);
    }
  }

  // The scores of all classes.
  __device__ __forceinline__ void score() const {
    with_access(v_.rows.table_dtype, v_.plan.wide_table, [&](auto access) {
      constexpr int warps = kPooledThreads / kWarp;
      for (int c = threadIdx.x / kWarp * K; c < v_.rows.classes; c += warps * K) {
        score_classes<decltype(access)>(c);
      }
    });
  }

  // By the first warp.
  __device__ __forceinline__ float softmax() const {
    return softmax_row<1>(v_.rows, image_, scores_, [&](int c) {
      return whole_score(family_, v_.rows, c, [&](int64_t j) { return cells_[j]; });
    });
  }

  // The gradient of the cells: stored, or kept in their place for the pixels.
  __device__ __forceinline__ void cell_gradients() const {
    if (weighs_infinitely()) return whole_gradients();
    with_access(v_.rows.table_dtype, v_.plan.wide_table,
                [&](auto access) { run_gradients<decltype(access)>(); });
  }

  __device__ __forceinline__ void spread() const {
    if (v_.plan.divides) return Layout::spread(v_, image_, cells_);
    const int64_t pixels = int64_t{v_.channels} * v_.height * v_.width;
    for (int at = threadIdx.x; at < pixels; at += kPooledThreads) {
      const float grad[1] = {Layout::pixel(v_, cells_, at)};
      Single::store(v_.rows.grad_a, v_.rows.a_dtype, image_ * pixels + at, grad);
    }
  }

 private:
  static constexpr int K = 4;  // classes that a warp takes at once
  const LinearScore& family_;
  const PooledView& v_;
  float *cells_, *scores_;
  int64_t image_;
  int size_;

  template <int count>
  __device__ __forceinline__ void read_cells(int column, float (&a)[1][1][count]) const {
    if constexpr (count == 1) {
      a[0][0][0] = cells_[column];
    } else {
#pragma unroll
      for (int q = 0; q < count / 4; ++q) {
        const CellQuad quad = reinterpret_cast<const CellQuad*>(cells_ + column)[q];
#pragma unroll
        for (int i = 0; i < 4; ++i) a[0][0][4 * q + i] = quad.x[i];
      }
    }
  }

  // Lanes along the latents, loads of all K classes in flight.
  template <class Access>
  __device__ __forceinline__ void score_classes(int c) const {
    constexpr int count = Access::kCount;
    const ClassView& v = v_.rows;
    const int lane = threadIdx.x % kWarp;
    LinearScore::Scores<1, K, count> sums;
    for (int column = lane * count; column < size_; column += kWarp * count) {
      typename Access::Raw raw[K];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int64_t label = c + k < v.classes ? c + k : v.classes - 1;
        raw[k] = Access::load(v.table, Access::dtype, label * v.table_row + column);
      }
      float a[1][1][count];
      read_cells(column, a);
#pragma unroll
      for (int k = 0; k < K; ++k) {
        float b[count];
        Access::unpack(raw[k], Access::dtype, b);
        sums.add(family_, k, a, b, nullptr, 0);
      }
    }
    float values[K];
#pragma unroll
    for (int k = 0; k < K; ++k) values[k] = sums.score(family_, 0, k);
    const float sum = scattered_sum(values);
    const int label = c + lane / (kWarp / K);
    if (lane % (kWarp / K) == 0 && label < v.classes) scores_[label] = sum;
  }

  // Threads along the latents have some of the classes each where the latents are few.
  template <class Access>
  __device__ __forceinline__ void run_gradients() const {
    constexpr int count = Access::kCount;
    int lanes = 1;
    while (lanes < kPooledThreads && lanes * count < size_) lanes *= 2;
    const int lane = threadIdx.x % lanes, slot = threadIdx.x / lanes;
    const int slots = kPooledThreads / lanes;
    for (int begin = 0; begin < size_; begin += lanes * count) {
      const int column = begin + lane * count;
      const bool inside = column < size_;
      float sum[count] = {};
      if (inside) add_classes<Access>(column, slot, slots, sum);
      // The cells are of no use any more.
      for (int half = slots / 2; half >= 1; half /= 2) {
        float* mine = cells_ + ((slot - (slot >= half ? half : 0)) * lanes + lane) * count;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < count; ++i) {
          if (slot >= half && slot < 2 * half) mine[i] = sum[i];
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < count; ++i) {
          if (slot < half) sum[i] += mine[i];
        }
      }
      if (slots > 1) __syncthreads();
      if (slot != 0 || !inside) continue;
#pragma unroll
      for (int i = 0; i < count; ++i) keep(column + i, family_.slope * sum[i]);
    }
  }

  __device__ __forceinline__ void keep(int column, float grad) const {
    if (v_.grad_cells != nullptr) {
      v_.grad_cells[image_ * size_ + column] = grad;
      BLL_COUNT_STORED(4);
      return;
    }
    cells_[Layout::place(v_, column)] = of_pixel(column, grad);
  }

  __device__ __forceinline__ float of_pixel(int column, float grad) const {
    const int cell = column % (v_.grid * v_.grid);
    const Span down = cell_span(cell / v_.grid, v_.height, v_.grid);
    const Span across = cell_span(cell % v_.grid, v_.width, v_.grid);
    return grad / static_cast<float>(down.size() * across.size());
  }

  // Whether coefficients of differences b - a may be infinite. Where only operands are, what is
  // left of the sums is right: of an infinite cell all coefficients are NaN.
  __device__ __forceinline__ bool weighs_infinitely() const {
    const float* weight = v_.rows.weight;
    return weight != nullptr && family_.density() && !LinearScore::holds(__ldg(weight + image_));
  }

  // Cells are read until their gradients are there, so these come to their places in a second turn.
  __device__ __forceinline__ void whole_gradients() const {
    constexpr int each = kPooledLatents / kPooledThreads;
#pragma unroll 1
    for (int column = threadIdx.x; column < size_; column += kPooledThreads) {
      const float grad = whole_gradient<1>(family_, v_.rows, cells_[column], column, scores_);
      if (v_.grad_cells != nullptr) {
        keep(column, grad);
      } else {
        cells_[column] = of_pixel(column, grad);
      }
    }
    float grads[each];
#pragma unroll
    for (int k = 0; k < each; ++k) {
      const int column = static_cast<int>(threadIdx.x) + k * kPooledThreads;
      grads[k] = column < size_ ? cells_[column] : 0.0f;
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < each; ++k) {
      const int column = static_cast<int>(threadIdx.x) + k * kPooledThreads;
      if (column < size_) cells_[Layout::place(v_, column)] = grads[k];
    }
  }

  template <class Access>
  __device__ __forceinline__ void add_classes(int column, int slot, int slots,
                                              float (&sum)[Access::kCount]) const {
    constexpr int batch = LinearScore::kLoads;
    const ClassView& v = v_.rows;
    for (int c = slot; c < v.classes; c += slots * batch) {
      typename Access::Raw raw[batch];
#pragma unroll
      for (int u = 0; u < batch; ++u) {
        const int64_t label = c + u * slots;
        raw[u] = typename Access::Raw{};
        if (label < v.classes) {
          raw[u] = Access::load(v.table, Access::dtype, label * v.table_row + column);
        }
      }
#pragma unroll
      for (int u = 0; u < batch; ++u) {
        const int label = c + u * slots;
        if (label >= v.classes) continue;
        float b[Access::kCount];
        Access::unpack(raw[u], Access::dtype, b);
        const float coefficient = scores_[label];
#pragma unroll
        for (int i = 0; i < Access::kCount; ++i) sum[i] += coefficient * b[i];
      }
    }
  }
};

template <class Layout>
__global__ void __launch_bounds__(kPooledThreads, 2)
    pooled_class(const LinearScore family, const PooledView v) {
  BLL_SHARED(CellQuad, cells, kPooledLatents / 4);
  BLL_SHARED(float, scores, kMostClasses);
  const PooledClass<Layout> image(family, v, cells->x, scores);
  image.pool();
  image.score();
  __syncthreads();
  if (threadIdx.x < kWarp) {
    const float loss = image.softmax();
    if (threadIdx.x == 0) v.rows.value[blockIdx.x] = v.rows.value_scale * loss;
  }
  __syncthreads();
  if (v.grad_cells == nullptr && v.rows.grad_a == nullptr) return;
  image.cell_gradients();
  if (v.grad_cells != nullptr) return;
  __syncthreads();
  image.spread();
}

}  // namespace bll::cuda
