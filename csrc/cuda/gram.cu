// The Gram loss's products of rows, tile by tile, and the gradient's sums over them. Neither the
// Gram matrix nor its target is ever in memory beyond a tile.
#include "core/defs.h"
#include "cuda/batch.h"
#include "cuda/block.h"

namespace bll::cuda {
namespace {

constexpr int kSide = 4;  // rows and columns of a tile that a thread has
constexpr int kLine = kGramTile / kSide;
constexpr int kPitch = kGramTile + 4;  // of a staged line of 64, kept on whole vectors

struct alignas(16) Vector {
  float x[4];
};

// What multiplies the loss of a row.
__device__ __forceinline__ float row_factor(const GramView& v, int64_t row) {
  float factor = v.scale;
  if (v.weight != nullptr) factor *= __ldg(v.weight + row);
  if (v.grad != nullptr) factor *= __ldg(v.grad + (v.per_row ? row : 0));
  return factor;
}

class GramTile {
 public:
  __device__ __forceinline__ GramTile(const GramView& view, int64_t row, float* left, float* right)
      : v_(view),
        row_(row),
        left_(left),
        right_(right),
        down_(static_cast<int>(threadIdx.x) / kLine * kSide),
        across_(static_cast<int>(threadIdx.x) % kLine * kSide) {}

  // gap += sign * the products of the tile's rows.
  __device__ __forceinline__ void multiply(const float* rows, int64_t padded, int64_t column,
                                           float sign, float (&gap)[kSide][kSide]) const {
    for (int64_t begin = 0; begin < padded; begin += kGramStep) {
      __syncthreads();
      stage(rows, padded, row_, begin, left_);
      stage(rows, padded, column, begin, right_);
      __syncthreads();
#pragma unroll 4
      for (int k = 0; k < kGramStep; ++k) {
        const Vector x = reinterpret_cast<const Vector*>(left_ + k * kPitch + down_)[0];
        const Vector y = reinterpret_cast<const Vector*>(right_ + k * kPitch + across_)[0];
#pragma unroll
        for (int i = 0; i < kSide; ++i) {
          const float factor = sign * x.x[i];
#pragma unroll
          for (int j = 0; j < kSide; ++j) gap[i][j] += factor * y.x[j];
        }
      }
    }
  }

  // Subtracts the target of labels; 0 outside the matrix.
  __device__ __forceinline__ void finish(int64_t column, float (&gap)[kSide][kSide]) const {
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      const int64_t r = row_ + down_ + i;
#pragma unroll
      for (int j = 0; j < kSide; ++j) {
        const int64_t c = column + across_ + j;
        const bool inside = r < v_.rows && c < v_.rows;
        if (inside && v_.labels != nullptr) {
          const bool equal = __ldg(v_.labels + r) == __ldg(v_.labels + c);
          gap[i][j] -= equal ? v_.same : v_.other;
        }
        if (!inside) gap[i][j] = 0;
      }
    }
  }

  // The tile's coefficients of the pull, transposed: [column][row].
  __device__ __forceinline__ void keep(int64_t column, const float (&gap)[kSide][kSide],
                                       float* coefficients) const {
    const float scale = 2.0f / static_cast<float>(v_.rows);
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
      const int64_t r = row_ + down_ + i;
      const float own = r < v_.rows ? row_factor(v_, r) : 0.0f;
#pragma unroll
      for (int j = 0; j < kSide; ++j) {
        const int64_t c = column + across_ + j;
        const float both = own + (c < v_.rows ? row_factor(v_, c) : 0.0f);
        coefficients[(across_ + j) * kPitch + down_ + i] = both * gap[i][j] * scale;
      }
    }
  }

  // out[row, latent] (+)= sum over the tile's columns of coefficient * unit.
  __device__ __forceinline__ void pull(int64_t column, const float* coefficients, bool first,
                                       float* out) const {
    for (int64_t begin = 0; begin < v_.padded; begin += kGramTile) {
      float sum[kSide][kSide] = {};
      for (int half = 0; half < kGramTile; half += kGramStep) {
        __syncthreads();
        stage_columns(column + half, begin, left_);
        __syncthreads();
#pragma unroll 4
        for (int k = 0; k < kGramStep; ++k) {
          const float* line = coefficients + (half + k) * kPitch + down_;
          const Vector x = reinterpret_cast<const Vector*>(line)[0];
          const Vector y = reinterpret_cast<const Vector*>(left_ + k * kPitch + across_)[0];
#pragma unroll
          for (int i = 0; i < kSide; ++i) {
#pragma unroll
            for (int j = 0; j < kSide; ++j) sum[i][j] += x.x[i] * y.x[j];
          }
        }
      }
      const int64_t latent = begin + across_;
#pragma unroll
      for (int i = 0; i < kSide; ++i) {
        const int64_t r = row_ + down_ + i;
        if (r >= v_.rows || latent >= v_.padded) continue;
        Vector* at = reinterpret_cast<Vector*>(out + r * v_.padded + latent);
        Vector total = first ? Vector{} : *at;
#pragma unroll
        for (int j = 0; j < kSide; ++j) total.x[j] += sum[i][j];
        *at = total;
        BLL_COUNT_STORED(16);
      }
    }
  }

  __device__ __forceinline__ int down() const { return down_; }

 private:
  const GramView& v_;
  int64_t row_;
  float *left_, *right_;
  int down_, across_;

  // to[latent][row] of 64 rows and kGramStep latents; zeros beyond either.
  __device__ __forceinline__ void stage(const float* rows, int64_t padded, int64_t first,
                                        int64_t begin, float* to) const {
    constexpr int vectors = kGramStep / 4;
#pragma unroll
    for (int at = threadIdx.x; at < kGramTile * vectors; at += kGramThreads) {
      const int r = at % kGramTile, k = at / kGramTile * 4;
      Vector x{};
      if (first + r < v_.rows && begin + k < padded) {
        const float* from = rows + (first + r) * padded + begin + k;
        const float4 quad = __ldg(reinterpret_cast<const float4*>(from));
        x = {quad.x, quad.y, quad.z, quad.w};
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) to[(k + i) * kPitch + r] = x.x[i];
    }
  }

  // to[column][latent] of kGramStep columns of the tile and 64 latents.
  __device__ __forceinline__ void stage_columns(int64_t first, int64_t begin, float* to) const {
    constexpr int vectors = kGramTile / 4;
#pragma unroll
    for (int at = threadIdx.x; at < kGramStep * vectors; at += kGramThreads) {
      const int c = at / vectors, k = at % vectors * 4;
      float4 quad = make_float4(0, 0, 0, 0);
      if (first + c < v_.rows && begin + k < v_.padded) {
        const float* from = v_.unit + (first + c) * v_.padded + begin + k;
        quad = __ldg(reinterpret_cast<const float4*>(from));
      }
      reinterpret_cast<Vector*>(to + c * kPitch + k)[0] = {quad.x, quad.y, quad.z, quad.w};
    }
  }
};

// A block has the rows of a tile and a run of tiles of columns.
template <bool gradient>
__global__ void __launch_bounds__(kGramThreads, 2) gram_tiles(const GramView v) {
  BLL_SHARED(Vector, left, kGramStep * kPitch / 4);
  BLL_SHARED(Vector, right, kGramStep * kPitch / 4);
  BLL_SHARED(Vector, coefficients, gradient ? kGramTile * kPitch / 4 : 1);
  const int64_t part = blockIdx.x % v.parts, row = blockIdx.x / v.parts * kGramTile;
  const GramTile tile(v, row, left->x, right->x);
  float squares[kSide] = {};
  const int64_t begin = part * v.part_tiles * kGramTile;
  const int64_t wanted = begin + v.part_tiles * kGramTile, end = wanted < v.rows ? wanted : v.rows;
  for (int64_t column = begin; column < end; column += kGramTile) {
    float gap[kSide][kSide] = {};
    tile.multiply(v.unit, v.padded, column, 1, gap);
    if (v.target != nullptr) tile.multiply(v.target, v.target_padded, column, -1, gap);
    tile.finish(column, gap);
#pragma unroll
    for (int i = 0; i < kSide; ++i) {
#pragma unroll
      for (int j = 0; j < kSide; ++j) squares[i] += gap[i][j] * gap[i][j];
    }
    if constexpr (gradient) {
      __syncthreads();
      tile.keep(column, gap, coefficients->x);
      tile.pull(column, coefficients->x, column == begin, v.pulls + part * v.rows * v.padded);
    }
  }
  if (v.values == nullptr) return;
#pragma unroll
  for (int i = 0; i < kSide; ++i) {
    const float sum = warp_sum(squares[i], kLine);
    const int64_t r = row + tile.down() + i;
    if (threadIdx.x % kLine == 0 && r < v.rows) v.values[part * v.rows + r] = sum;
  }
}

}  // namespace

void run_gram_tiles(const GramView& view, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>(ceil_div(view.rows, kGramTile) * view.parts);
  if (view.pulls != nullptr) {
    BLL_LAUNCH(gram_tiles<true>, blocks, kGramThreads, stream, view);
  } else {
    BLL_LAUNCH(gram_tiles<false>, blocks, kGramThreads, stream, view);
  }
}

}  // namespace bll::cuda
