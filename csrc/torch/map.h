// Maps [B, C, H, W] as the pooling kernels read them.
#pragma once

#include <string>

#include "torch/options.h"
#include "torch/rows.h"

namespace bll::binding {

// Dimensions of size one may carry any stride, so they say nothing about the layout.
inline bool has_layout(const Tensor& x, const int (&order)[4]) {
  int64_t expected = 1;
  for (const int dim : order) {
    if (x.size(dim) != 1 && x.stride(dim) != expected) return false;
    expected *= x.size(dim);
  }
  return true;
}

inline bool is_channels_first(const Tensor& x) { return has_layout(x, {3, 2, 1, 0}); }
inline bool is_channels_last(const Tensor& x) { return has_layout(x, {1, 3, 2, 0}); }

// The map in one of the two layouts the kernels read; other strides are copied.
struct Map {
  Tensor given, tensor;
  bool channels_last;

  explicit Map(const Tensor& x) : given(x), tensor(x), channels_last(false) {
    STD_TORCH_CHECK(x.dim() == 4, "x: expected [B, C, H, W], got shape ", shape_string(x));
    if (is_channels_first(x)) return;
    channels_last = is_channels_last(x);
    if (!channels_last) tensor = dense(x);
  }

  // A gradient in the layout that was read, in the layout of the given map.
  Tensor as_given(const Tensor& gradient) const {
    if (is_channels_first(given) || is_channels_last(given)) return gradient;
    const Tensor like = torch::stable::empty_like(given);
    for (int64_t dim = 0; dim < like.dim(); ++dim) {
      if (like.size(dim) != 1 && like.stride(dim) != gradient.stride(dim)) {
        Tensor copy = like;
        return torch::stable::copy_(copy, gradient);
      }
    }
    return gradient;
  }

  cpu::PoolArgs args(const std::string& kind, int64_t grid) const {
    cpu::PoolArgs args{};
    args.kind = pool_of(kind);
    args.batch = tensor.size(0);
    args.channels = tensor.size(1);
    args.height = tensor.size(2);
    args.width = tensor.size(3);
    args.grid = grid;
    args.channels_last = channels_last;
    args.dtype = dtype_of(tensor, "x");
    args.map = tensor.const_data_ptr();
    return args;
  }
};

inline void check_grid(const Tensor& x, int64_t grid) {
  STD_TORCH_CHECK(grid >= 1, "grid: expected at least 1, got ", grid);
  const bool no_cells = x.size(0) == 0 || x.size(1) == 0;
  STD_TORCH_CHECK(no_cells || x.numel() > 0, "x: expected a map with pixels, got shape ",
                  shape_string(x));
}

}  // namespace bll::binding
