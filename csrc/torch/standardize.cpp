#include <torch/csrc/stable/library.h>

#include <tuple>

#include "torch/device.h"
#include "torch/rows.h"

namespace bll::binding {

namespace {

// Of rows [rows, channels * cells].
cpu::StandardizeArgs args_of(const Tensor& x, int64_t channels, const char* name) {
  STD_TORCH_CHECK(x.dim() == 2, name, ": expected 2 dimensions, got shape ", shape_string(x));
  STD_TORCH_CHECK(channels >= 0 && (channels == 0 ? x.size(1) == 0 : x.size(1) % channels == 0),
                  name, ": expected rows of whole channels, ", channels, " of them, got shape ",
                  shape_string(x));
  STD_TORCH_CHECK(x.scalar_type() == accumulate_type(x), name,
                  ": expected float64 or float32, got ",
                  torch::headeronly::toString(x.scalar_type()));
  cpu::StandardizeArgs args{};
  args.dtype = dtype_of(x, name);
  args.rows = x.size(0);
  args.channels = channels;
  args.cells = channels == 0 ? 0 : x.size(1) / channels;
  return args;
}

std::tuple<Tensor, Tensor> standardize_channels(Tensor x, int64_t channels, double eps) {
  cpu::StandardizeArgs args = args_of(x, channels, "x");
  const Tensor rows = dense(x);
  Tensor out = new_empty(x, {x.size(0), x.size(1)}, x.scalar_type());
  Tensor scale = new_empty(x, {channels}, x.scalar_type());
  args.eps = eps;
  args.x = rows.const_data_ptr();
  args.out = out.mutable_data_ptr();
  args.scale = scale.mutable_data_ptr();
  if (x.numel() == 0) torch::stable::fill_(scale, 0);
  if (x.numel() > 0) device::standardize_forward(args, x);
  return {out, scale};
}

Tensor standardize_channels_backward(Tensor grad, Tensor standardized, Tensor scale) {
  STD_TORCH_CHECK(scale.dim() == 1, "scale: expected 1 dimension, got shape ", shape_string(scale));
  cpu::StandardizeArgs args = args_of(standardized, scale.size(0), "standardized");
  const std::vector<int64_t> shape = leading_sizes(standardized, 2);
  check_device(grad, standardized, "grad");
  check_device(scale, standardized, "scale");
  const Tensor upstream = checked_accumulate(grad, standardized, shape, "grad");
  const Tensor factor = checked_accumulate(scale, standardized, {scale.size(0)}, "scale");
  const Tensor rows = dense(standardized);
  Tensor out = new_empty(standardized, shape, standardized.scalar_type());
  args.grad = upstream.const_data_ptr();
  args.standard = rows.const_data_ptr();
  args.known_scale = factor.const_data_ptr();
  args.out = out.mutable_data_ptr();
  if (standardized.numel() > 0) device::standardize_backward(args, standardized);
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(BLL_OPS, BLL_DISPATCH_KEY, m) {
  m.impl("standardize_channels", TORCH_BOX(&standardize_channels));
  m.impl("standardize_channels_backward", TORCH_BOX(&standardize_channels_backward));
}

}  // namespace bll::binding
