// The CPU side of device.h.
#include <torch/csrc/stable/ops.h>

#include "torch/device.h"
#include "torch/rows.h"

namespace bll::binding {

void parallel_for(int64_t size, int64_t grain, void (*body)(int64_t, int64_t, void*),
                  void* context) {
  torch::stable::parallel_for(
      0, size, grain, [body, context](int64_t begin, int64_t end) { body(begin, end, context); });
}

namespace device {

void pair_loss(const cpu::PairArgs& args, const Tensor&) { cpu::pair_loss(args, parallel_for); }

void class_loss_forward(const cpu::ClassArgs& args, const Tensor&) {
  cpu::class_loss_forward(args, parallel_for);
}

void class_loss_backward(const cpu::ClassArgs& args, const Tensor&) {
  cpu::class_loss_backward(args, parallel_for);
}

void class_loss_both(const cpu::ClassArgs& args, const Tensor&) {
  cpu::class_loss_forward(args, parallel_for);
  cpu::class_loss_backward(args, parallel_for);
}

void grid_pool_forward(const cpu::PoolArgs& args, const Tensor&) {
  cpu::grid_pool_forward(args, parallel_for);
}

void grid_pool_backward(const cpu::PoolArgs& args, const Tensor&) {
  cpu::grid_pool_backward(args, parallel_for);
}

void standardize_forward(const cpu::StandardizeArgs& args, const Tensor&) {
  cpu::standardize_forward(args, parallel_for);
}

void standardize_backward(const cpu::StandardizeArgs& args, const Tensor&) {
  cpu::standardize_backward(args, parallel_for);
}

void gram_loss(const cpu::GramArgs& args, const Tensor&) { cpu::gram_loss(args, parallel_for); }

void class_means(const cpu::ClassMeansArgs& args, const Tensor&) {
  cpu::class_means(args, parallel_for);
}

void class_means_backward(const cpu::ClassMeansGradArgs& args, const Tensor&) {
  cpu::class_means_backward(args, parallel_for);
}

}  // namespace device

}  // namespace bll::binding
