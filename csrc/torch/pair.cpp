#include <torch/csrc/stable/library.h>

#include <tuple>

#include "torch/device.h"
#include "torch/options.h"
#include "torch/rows.h"

namespace bll::binding {

namespace {

struct Pair {
  Tensor value, grad_a, grad_b;
  std::optional<Tensor> next;
};

struct NextWant {
  double mix;
  ScalarType dtype;
};

struct PairInputs {
  const Tensor& a;
  const Tensor& b;
  const std::optional<Tensor>& labels;
  const std::optional<Tensor>& weight;
  cpu::FamilyArgs family;
  cpu::Loss loss;
  cpu::Reduction reduction;
};

struct PairWants {
  bool value, grad_a, grad_b;
  std::optional<NextWant> next = std::nullopt;
};

cpu::DType next_dtype(const NextWant& want, const Tensor& a) {
  switch (want.dtype) {
    case ScalarType::Double:
      STD_TORCH_CHECK(a.scalar_type() == ScalarType::Double,
                      "next_dtype: expected float64 beside a float64 a only");
      return cpu::DType::kFloat64;
    case ScalarType::Float:
      return cpu::DType::kFloat32;
    case ScalarType::BFloat16:
      return cpu::DType::kBFloat16;
    case ScalarType::Half:
      return cpu::DType::kFloat16;
    case ScalarType::Float8_e4m3fn:
      return cpu::DType::kFloat8;
    default:
      STD_TORCH_CHECK(false,
                      "next_dtype: expected float64, float32, bfloat16, float16 or float8_e4m3fn, "
                      "got ",
                      torch::headeronly::toString(want.dtype));
  }
}

// The mean of every latent: a tensor of alpha's shape without planes.
Tensor add_next(cpu::PairArgs& args, const NextWant& want, const Tensor& a,
                const std::vector<int64_t>& batch) {
  STD_TORCH_CHECK(want.mix >= 0 && want.mix <= 1, "mix: expected a number in [0, 1], got ",
                  want.mix);
  std::vector<int64_t> shape = batch;
  shape.push_back(args.width);
  const Tensor next = new_empty(a, shape, want.dtype);
  args.next = next.mutable_data_ptr();
  args.next_dtype = next_dtype(want, a);
  args.next_mix = want.mix;
  return next;
}

void check_devices(const PairInputs& in, const std::optional<Tensor>& grad) {
  check_device(in.b, in.a, "b");
  if (in.labels) check_device(*in.labels, in.a, "labels");
  if (in.weight) check_device(*in.weight, in.a, "weight");
  if (grad) check_device(*grad, in.a, "grad");
}

Tensor gradient_like(const Tensor& tensor, bool wanted) {
  if (!wanted) return not_wanted(tensor);
  return new_empty(tensor, leading_sizes(tensor, tensor.dim()), tensor.scalar_type());
}

Pair run_pair(const PairInputs& in, const std::optional<Tensor>& grad, const PairWants& wants) {
  const int planes = planes_of(in.family);
  check_devices(in, grad);
  check_message_dtype(in.a, in.b, "b");
  const RowsOf a(in.a, planes, "a"), b(in.b, planes, "b");
  STD_TORCH_CHECK(a.width() == b.width(), "b: expected ", a.width(), " latents, got shape ",
                  shape_string(in.b));
  cpu::FamilyArgs family = in.family;
  fit_group(family, a.width());
  std::optional<Tensor> labels, weight, upstream;
  if (in.labels) {
    STD_TORCH_CHECK(b.batch().size() == 1, "b: expected a class table, got shape ",
                    shape_string(in.b));
    labels = checked_labels(*in.labels, a.batch(), b.count());
  } else {
    STD_TORCH_CHECK(same_shape(in.a, in.b), "b: expected shape ", shape_string(in.a), ", got ",
                    shape_string(in.b));
  }
  if (in.weight) weight = checked_accumulate(*in.weight, in.a, a.batch(), "weight");
  const bool per_row = in.reduction == cpu::Reduction::kNone;
  const std::vector<int64_t> value_shape = per_row ? a.batch() : std::vector<int64_t>{};
  if (grad) upstream = checked_accumulate(*grad, in.a, value_shape, "grad");

  const ScalarType accumulate = accumulate_type(in.a);
  Pair out{wants.value ? new_empty(in.a, value_shape, accumulate) : not_wanted(in.a),
           gradient_like(in.a, wants.grad_a), gradient_like(in.b, wants.grad_b), std::nullopt};
  cpu::PairArgs args{};
  args.family = family;
  args.loss = in.loss;
  args.reduction = in.reduction;
  args.width = a.width();
  args.a = a.view();
  args.b = b.view();
  args.labels = static_cast<const int64_t*>(data_or_null(labels));
  args.weight = data_or_null(weight);
  args.grad = data_or_null(upstream);
  args.value = wants.value ? out.value.mutable_data_ptr() : nullptr;
  args.grad_a = wants.grad_a ? out.grad_a.mutable_data_ptr() : nullptr;
  args.grad_b = wants.grad_b ? out.grad_b.mutable_data_ptr() : nullptr;
  if (wants.next) out.next = add_next(args, *wants.next, in.a, a.batch());
  device::pair_loss(args, in.a);
  return out;
}

Tensor pair_loss(Tensor a, Tensor b, std::optional<Tensor> labels, std::optional<Tensor> weight,
                 std::string family, int64_t group, double tau, std::string loss, double tilt,
                 std::string reduction) {
  const PairInputs in{a,
                      b,
                      labels,
                      weight,
                      family_args(family, group, tau, tilt),
                      loss_of(loss),
                      reduction_of(reduction)};
  return run_pair(in, std::nullopt, {true, false, false}).value;
}

std::tuple<Tensor, Tensor> pair_loss_backward(Tensor grad, Tensor a, Tensor b,
                                              std::optional<Tensor> labels,
                                              std::optional<Tensor> weight, std::string family,
                                              int64_t group, double tau, std::string loss,
                                              double tilt, std::string reduction, bool need_a,
                                              bool need_b) {
  const PairInputs in{a,
                      b,
                      labels,
                      weight,
                      family_args(family, group, tau, tilt),
                      loss_of(loss),
                      reduction_of(reduction)};
  const Pair out = run_pair(in, grad, {false, need_a, need_b});
  return {out.grad_a, out.grad_b};
}

std::tuple<Tensor, Tensor, Tensor> pair_loss_value_and_grad(
    Tensor a, Tensor b, std::optional<Tensor> labels, std::optional<Tensor> weight,
    std::string family, int64_t group, double tau, std::string loss, double tilt,
    std::string reduction, bool need_a, bool need_b) {
  const PairInputs in{a,
                      b,
                      labels,
                      weight,
                      family_args(family, group, tau, tilt),
                      loss_of(loss),
                      reduction_of(reduction)};
  const Pair out = run_pair(in, std::nullopt, {true, need_a, need_b});
  return {out.value, out.grad_a, out.grad_b};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> pair_loss_next(
    Tensor a, Tensor b, std::optional<Tensor> labels, std::optional<Tensor> weight,
    std::string family, int64_t group, double tau, std::string loss, double tilt,
    std::string reduction, bool need_a, bool need_b, double mix, ScalarType next_dtype) {
  const PairInputs in{a,
                      b,
                      labels,
                      weight,
                      family_args(family, group, tau, tilt),
                      loss_of(loss),
                      reduction_of(reduction)};
  const Pair out = run_pair(in, std::nullopt, {true, need_a, need_b, NextWant{mix, next_dtype}});
  return {out.value, out.grad_a, out.grad_b, *out.next};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(BLL_OPS, BLL_DISPATCH_KEY, m) {
  m.impl("pair_loss", TORCH_BOX(&pair_loss));
  m.impl("pair_loss_backward", TORCH_BOX(&pair_loss_backward));
  m.impl("pair_loss_value_and_grad", TORCH_BOX(&pair_loss_value_and_grad));
  m.impl("pair_loss_next", TORCH_BOX(&pair_loss_next));
}

}  // namespace bll::binding
