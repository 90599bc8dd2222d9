#include "cuda/optim.h"

#include <torch/csrc/stable/library.h>

#include <vector>

#include "torch/device.h"
#include "torch/rows.h"

namespace bll::binding {

namespace {

using Tensors = std::vector<Tensor>;

bool same_layout(const Tensor& a, const Tensor& b) {
  if (a.scalar_type() != b.scalar_type() || !same_shape(a, b)) return false;
  for (int64_t dim = 0; dim < a.dim(); ++dim) {
    if (a.size(dim) > 1 && a.stride(dim) != b.stride(dim)) return false;
  }
  return true;
}

struct StepTensors {
  const Tensors& parameters;
  const Tensors& gradients;
  const Tensors& first;
  const Tensors& second;
};

// The caller gives tensors without gaps, where the order of elements in memory is all that counts.
std::vector<cuda::OptimTensor> tensors_of(const StepTensors& in) {
  std::vector<cuda::OptimTensor> found;
  const auto state = [&](const Tensors& states, size_t i, const char* name) -> void* {
    if (states.empty()) return nullptr;
    check_device(states[i], in.parameters[0], name);
    STD_TORCH_CHECK(same_layout(in.parameters[i], states[i]), name,
                    ": expected the dtype, shape and strides of the parameter");
    return states[i].mutable_data_ptr();
  };
  const size_t count = in.parameters.size();
  STD_TORCH_CHECK(in.gradients.size() == count, "gradients: expected one per parameter");
  STD_TORCH_CHECK(in.first.empty() || in.first.size() == count, "first: expected all or none");
  STD_TORCH_CHECK(in.second.empty() || in.second.size() == count, "second: expected all or none");
  for (size_t i = 0; i < count; ++i) {
    const Tensor &parameter = in.parameters[i], &gradient = in.gradients[i];
    check_device(parameter, in.parameters[0], "parameter");
    check_device(gradient, in.parameters[0], "gradient");
    STD_TORCH_CHECK(same_layout(parameter, gradient),
                    "gradient: expected the dtype, shape and strides of the parameter");
    found.push_back({parameter.mutable_data_ptr(), gradient.const_data_ptr(),
                     state(in.first, i, "first"), state(in.second, i, "second"), parameter.numel(),
                     dtype_of(parameter, "parameter")});
  }
  return found;
}

float* number(const std::optional<Tensor>& tensor, const Tensor& like, const char* name) {
  if (!tensor) return nullptr;
  check_device(*tensor, like, name);
  STD_TORCH_CHECK(tensor->scalar_type() == ScalarType::Float && tensor->numel() == 1, name,
                  ": expected one float32 number");
  return static_cast<float*>(tensor->mutable_data_ptr());
}

void run(const StepTensors& in, cuda::OptimArgs& args, const std::optional<Tensor>& rate,
         const std::optional<Tensor>& inverse_scale, const std::optional<Tensor>& found) {
  if (in.parameters.empty()) return;
  const Tensor& like = in.parameters[0];
  STD_TORCH_CHECK(inverse_scale.has_value() == found.has_value(),
                  "inverse_scale, found_inf: expected both or neither");
  const std::vector<cuda::OptimTensor> tensors = tensors_of(in);
  args.rate = number(rate, like, "lr");
  args.inverse_scale = number(inverse_scale, like, "inverse_scale");
  args.found = number(found, like, "found_inf");
  device::optim_step(tensors.data(), static_cast<int>(tensors.size()), args, like);
}

void block_adam(Tensors parameters, Tensors gradients, Tensors first, Tensors second, Tensor steps,
                Tensor ticket, std::optional<Tensor> rate, std::optional<Tensor> inverse_scale,
                std::optional<Tensor> found_inf, double lr, double beta1, double beta2, double eps,
                double weight_decay, bool decoupled) {
  const auto count = static_cast<int64_t>(parameters.size());
  STD_TORCH_CHECK(
      steps.scalar_type() == ScalarType::Float && steps.is_contiguous() && steps.numel() == count,
      "steps: expected ", count, " float32 counters");
  STD_TORCH_CHECK(ticket.scalar_type() == ScalarType::Int && ticket.numel() == 1,
                  "ticket: expected one int32 number");
  if (count > 0) {
    check_device(steps, parameters[0], "steps");
    check_device(ticket, parameters[0], "ticket");
  }
  cuda::OptimArgs args{};
  args.kind = decoupled ? cuda::OptimKind::kAdamW : cuda::OptimKind::kAdam;
  args.lr = lr, args.beta1 = beta1, args.beta2 = beta2, args.eps = eps;
  args.weight_decay = weight_decay;
  args.steps = static_cast<float*>(steps.mutable_data_ptr());
  args.ticket = static_cast<uint32_t*>(ticket.mutable_data_ptr());
  run({parameters, gradients, first, second}, args, rate, inverse_scale, found_inf);
}

void block_sgd(Tensors parameters, Tensors gradients, Tensors momenta, std::optional<Tensor> rate,
               std::optional<Tensor> inverse_scale, std::optional<Tensor> found_inf, double lr,
               double momentum, double weight_decay, bool nesterov) {
  cuda::OptimArgs args{};
  args.kind = nesterov ? cuda::OptimKind::kNesterov : cuda::OptimKind::kSgd;
  args.lr = lr, args.beta1 = momentum, args.weight_decay = weight_decay;
  run({parameters, gradients, momenta, {}}, args, rate, inverse_scale, found_inf);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(BLL_OPS, BLL_DISPATCH_KEY, m) {
  m.impl("block_adam_", TORCH_BOX(&block_adam));
  m.impl("block_sgd_", TORCH_BOX(&block_sgd));
}

}  // namespace bll::binding
