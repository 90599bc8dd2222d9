#include <torch/csrc/stable/library.h>

#include "torch/device.h"
#include "torch/map.h"
#include "torch/options.h"
#include "torch/rows.h"

namespace bll::binding {

namespace {

std::vector<int64_t> pooled_shape(const Tensor& x, int64_t grid) {
  return {x.size(0), x.size(1) * grid * grid};
}

Tensor grid_pool(Tensor x, std::string kind, int64_t grid) {
  const Map map(x);
  check_grid(x, grid);
  cpu::PoolArgs args = map.args(kind, grid);
  Tensor pooled = new_empty(x, pooled_shape(x, grid), accumulate_type(x));
  args.pooled = pooled.mutable_data_ptr();
  device::grid_pool_forward(args, x);
  return pooled;
}

Tensor grid_pool_backward(Tensor grad, Tensor x, std::string kind, int64_t grid) {
  const Map map(x);
  check_grid(x, grid);
  check_device(grad, x, "grad");
  cpu::PoolArgs args = map.args(kind, grid);
  const Tensor upstream = checked_accumulate(grad, x, pooled_shape(x, grid), "grad");
  Tensor grad_map = torch::stable::empty_like(map.tensor);
  args.grad_pooled = upstream.const_data_ptr();
  args.grad_map = grad_map.mutable_data_ptr();
  device::grid_pool_backward(args, x);
  return map.as_given(grad_map);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(BLL_OPS, BLL_DISPATCH_KEY, m) {
  m.impl("grid_pool", TORCH_BOX(&grid_pool));
  m.impl("grid_pool_backward", TORCH_BOX(&grid_pool_backward));
}

}  // namespace bll::binding
