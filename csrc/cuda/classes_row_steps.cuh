// What a block does with its rows: their scores, softmax and the gradient to their latents.
#pragma once

#include "cuda/access.h"
#include "cuda/block.h"
#include "cuda/classes.h"
#include "cuda/classes_softmax.cuh"
#include "cuda/classes_whole.cuh"

namespace bll::cuda {

// Floats of shared memory that the rows' latents are staged in.
inline constexpr int kStaged = 6144;

struct alignas(16) Quad {
  float x[4];
};

template <class Family, class Access, int R>
class ClassRows {
 public:
  static constexpr int count = Access::kCount, planes = Family::kPlanes;
  static constexpr int K = Family::classes(count);
  static constexpr int kTile = kStaged / (4 * planes) / (32 * 8) * (32 * 8);  // columns staged
  static constexpr int kWarps = kClassThreads / kWarp;

  __device__ __forceinline__ ClassRows(const Family& family, const ClassView& view, float* staged,
                                       float* scores)
      : family_(family),
        v_(view),
        staged_(staged),
        scores_(scores),
        first_(int64_t{blockIdx.x} * R) {}

  // scores[c * R + r]
  __device__ __forceinline__ void score() const {
    for (int64_t begin = 0; begin == 0 || begin < v_.width; begin += kTile) {
      const int64_t left = v_.width - begin;
      const int size = static_cast<int>(left < kTile ? left : kTile);
      if (begin > 0) __syncthreads();
      stage(begin, size);
      __syncthreads();
      for (int c = threadIdx.x / kWarp * K; c < v_.classes; c += kWarps * K) {
        score_classes(c, begin, size);
      }
    }
  }

  __device__ __forceinline__ float softmax(int r) const {
    const int64_t row = first_ + r;
    if constexpr (Family::kShortened) {
      return softmax_row<R>(v_, row, scores_ + r, [&](int c) {
        return whole_score(family_, v_, c, [&](int64_t j) { return latent_at(v_, row, j); });
      });
    } else {
      return softmax_row<R>(v_, row, scores_ + r);
    }
  }

  // The coefficients from a residual and the upstream gradient.
  __device__ __forceinline__ void read_residual() const {
    for (int at = threadIdx.x; at < v_.classes * R; at += kClassThreads) {
      const int64_t row = first_ + at % R;
      scores_[at] = row < v_.rows ? coefficient_at(v_, row, at / R) : 0.0f;
    }
  }

  // Threads along the columns have some of the classes each where the columns are few.
  __device__ __forceinline__ void store_gradient() const {
    int lanes = 1;
    while (lanes < kClassThreads && int64_t{lanes} * count < v_.width) lanes *= 2;
    const int lane = threadIdx.x % lanes, slot = threadIdx.x / lanes;
    const int slots = kClassThreads / lanes;
    for (int64_t begin = 0; begin < v_.width; begin += int64_t{lanes} * count) {
      const int64_t column = begin + lane * count;
      const bool inside = column < v_.width;
      float prior[R][count];
      if constexpr (Family::kNeedsPrior) load_rows(column, inside, prior);
      typename Family::template Gradient<R, count> gradient(family_, prior);
      if (inside) add_classes(gradient, column, slot, slots);
      for (int half = slots / 2; half >= 1; half /= 2) {
        __syncthreads();
        float* mine = staged_ + ((slot - (slot >= half ? half : 0)) * lanes + lane) * (R * count);
        if (slot >= half && slot < 2 * half) exchange(mine, gradient, true);
        __syncthreads();
        if (slot < half) exchange(mine, gradient, false);
      }
      if (slot != 0 || !inside) continue;
      uint32_t odd = 0;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (first_ + r >= v_.rows) continue;
        float out[count];
#pragma unroll
        for (int i = 0; i < count; ++i) {
          out[i] = gradient.result(family_, r, i);
          if constexpr (Family::kShortened)
            odd |= uint32_t{!Family::holds(out[i])} << (r * count + i);
        }
        Access::store(v_.grad_a, v_.a_dtype, (first_ + r) * v_.width + column, out);
      }
      if constexpr (Family::kShortened) {
        if (odd != 0) store_whole(column, odd);
      }
    }
  }

 private:
  static_assert(R * count <= 32);
  const Family& family_;
  const ClassView& v_;
  float* staged_;
  float* scores_;
  int64_t first_;

  __device__ __forceinline__ void load_rows(int64_t column, bool inside,
                                            float (&x)[R][count]) const {
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int i = 0; i < count; ++i) x[r][i] = 0;
      if (!inside || first_ + r >= v_.rows) continue;
      Access::unpack(Access::load(v_.a, v_.a_dtype, (first_ + r) * v_.a_row + column), v_.a_dtype,
                     x[r]);
    }
  }

  // staged[plane][r][column]
  __device__ __forceinline__ void stage(int64_t begin, int size) const {
    const int vectors = (size + count - 1) / count;
    for (int at = threadIdx.x; at < vectors * R; at += kClassThreads) {
      const int r = at / vectors, column = at % vectors * count;
      float x[count] = {};
      if (first_ + r < v_.rows) {
        const int64_t from = (first_ + r) * v_.a_row + begin + column;
        Access::unpack(Access::load(v_.a, v_.a_dtype, from), v_.a_dtype, x);
      }
#pragma unroll
      for (int i = 0; i < count; ++i) {
        float out[planes];
        family_.stage(x[i], out);
#pragma unroll
        for (int p = 0; p < planes; ++p) staged_[(p * R + r) * kTile + column + i] = out[p];
      }
    }
  }

  __device__ __forceinline__ void read_staged(int column, float (&a)[R][planes][count]) const {
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int p = 0; p < planes; ++p) {
        const float* from = staged_ + (p * R + r) * kTile + column;
        if constexpr (count == 1) {
          a[r][p][0] = Family::staged_number(from[0]);
        } else {
#pragma unroll
          for (int q = 0; q < count / 4; ++q) {
            const Quad quad = reinterpret_cast<const Quad*>(from)[q];
#pragma unroll
            for (int i = 0; i < 4; ++i) a[r][p][4 * q + i] = Family::staged_number(quad.x[i]);
          }
        }
      }
    }
  }

  // A warp's K classes: lanes along the latents, loads of all classes in flight.
  __device__ __forceinline__ void score_classes(int c, int64_t begin, int size) const {
    const int lane = threadIdx.x % kWarp;
    typename Family::template Scores<R, K, count> sums;
    for (int column = lane * count; column < size; column += kWarp * count) {
      typename Access::Raw raw[K];
#pragma unroll
      for (int k = 0; k < K; ++k) {
        const int64_t label = c + k < v_.classes ? c + k : v_.classes - 1;
        raw[k] = Access::load(v_.table, v_.table_dtype, label * v_.table_row + begin + column);
      }
      float a[R][planes][count];
      read_staged(column, a);
#pragma unroll
      for (int k = 0; k < K; ++k) {
        float b[count];
        Access::unpack(raw[k], v_.table_dtype, b);
        sums.add(family_, k, a, b, staged_ + column, kTile);
      }
    }
    float values[R * K];
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int k = 0; k < K; ++k) values[r * K + k] = sums.score(family_, r, k);
    }
    const float sum = scattered_sum(values);
    constexpr int share = kWarp / (R * K);
    const int number = lane / share, label = c + number % K;
    if (lane % share != 0 || label >= v_.classes) return;
    float& score = scores_[label * R + number / K];
    score = begin == 0 ? sum : score + sum;
  }

  // Gradients to `count` latents from `column` on, in place of those whose bits are set.
  __device__ __forceinline__ void store_whole(int64_t column, uint32_t odd) const {
#pragma unroll 1
    for (int at = 0; at < R * count; ++at) {
      if ((odd >> at & 1) == 0) continue;
      const int r = at / count;
      const int64_t row = first_ + r, j = column + at % count;
      const float out[1] = {whole_gradient<R>(family_, v_, latent_at(v_, row, j), j, scores_ + r)};
      Single::store(v_.grad_a, v_.a_dtype, row * v_.width + j, out);
    }
  }

  template <class Gradient>
  __device__ __forceinline__ void add_classes(Gradient& gradient, int64_t column, int slot,
                                              int slots) const {
    constexpr int batch = Family::kLoads;
    for (int c = slot; c < v_.classes; c += slots * batch) {
      typename Access::Raw raw[batch];
#pragma unroll
      for (int u = 0; u < batch; ++u) {
        const int64_t label = c + u * slots < v_.classes ? c + u * slots : c;
        raw[u] = Access::load(v_.table, v_.table_dtype, label * v_.table_row + column);
      }
#pragma unroll
      for (int u = 0; u < batch; ++u) {
        const int label = c + u * slots;
        float b[count];
        Access::unpack(raw[u], v_.table_dtype, b);
        if (label < v_.classes) gradient.add(family_, scores_ + label * R, b);
      }
    }
  }

  template <class Gradient>
  __device__ __forceinline__ static void exchange(float* memory, Gradient& gradient, bool give) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int i = 0; i < count; ++i) {
        float& at = memory[r * count + i];
        if (give) {
          at = gradient.sum[r][i];
        } else {
          gradient.sum[r][i] += at;
        }
      }
    }
  }
};

}  // namespace bll::cuda
