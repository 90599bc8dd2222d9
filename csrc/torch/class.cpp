#include <torch/csrc/stable/library.h>

#include <tuple>

#include "torch/options.h"
#include "torch/rows.h"

namespace bll::binding {

namespace {

struct ClassInputs {
  const Tensor& a;
  const Tensor& table;
  cpu::FamilyArgs family;
  bool normalize_message;
};

// The views both passes need, checked against each other.
struct ClassRows {
  RowsOf a, table;
  cpu::FamilyArgs family;

  explicit ClassRows(const ClassInputs& in)
      : a(in.a, planes_of(in.family), "a"),
        table(in.table, planes_of(in.family), "table"),
        family(in.family) {
    check_message_dtype(in.a, in.table, "table");
    STD_TORCH_CHECK(table.batch().size() == 1, "table: expected one row per class, got shape ",
                    shape_string(in.table));
    STD_TORCH_CHECK(table.count() > 0, "table: expected at least one class, got shape ",
                    shape_string(in.table));
    STD_TORCH_CHECK(a.width() == table.width(), "table: expected ", a.width(),
                    " latents, got shape ", shape_string(in.table));
    fit_group(family, a.width());
  }

  std::vector<int64_t> residual_shape() const {
    std::vector<int64_t> shape = a.batch();
    shape.push_back(table.count());
    return shape;
  }

  cpu::ClassArgs args(const ClassInputs& in) const {
    cpu::ClassArgs args{};
    args.family = family;
    args.normalize_message = in.normalize_message;
    args.width = a.width();
    args.a = a.view();
    args.table = table.view();
    return args;
  }
};

struct ClassWants {
  bool grad_a, grad_table, grad_bias;
};

struct ClassForward {
  Tensor value, residual;
};

struct ClassBackward {
  Tensor grad_a, grad_table, grad_bias;
};

ClassForward run_forward(const ClassInputs& in, const ClassRows& rows, const Tensor& labels,
                         const std::optional<Tensor>& bias, const std::optional<Tensor>& weight,
                         cpu::Reduction reduction) {
  const Tensor classes = checked_labels(labels, rows.a.batch(), rows.table.count());
  std::optional<Tensor> bias_dense, weight_dense;
  if (bias) {
    const bool converts = bias->scalar_type() == in.a.scalar_type();
    const Tensor accumulated = converts ? torch::stable::to(*bias, accumulate_type(in.a)) : *bias;
    bias_dense = checked_accumulate(accumulated, in.a, rows.table.batch(), "bias");
  }
  if (weight) weight_dense = checked_accumulate(*weight, in.a, rows.a.batch(), "weight");
  const bool per_row = reduction == cpu::Reduction::kNone;
  const ScalarType accumulate = accumulate_type(in.a);
  ClassForward out{new_empty(in.a, per_row ? rows.a.batch() : std::vector<int64_t>{}, accumulate),
                   new_empty(in.a, rows.residual_shape(), accumulate)};
  cpu::ClassArgs args = rows.args(in);
  args.reduction = reduction;
  args.labels = static_cast<const int64_t*>(classes.const_data_ptr());
  args.bias = data_or_null(bias_dense);
  args.weight = data_or_null(weight_dense);
  args.value = out.value.mutable_data_ptr();
  args.residual = out.residual.mutable_data_ptr();
  cpu::class_loss_forward(args, parallel_for);
  return out;
}

ClassBackward run_backward(const ClassInputs& in, const ClassRows& rows, const Tensor& residual,
                           const std::optional<Tensor>& grad, const ClassWants& wants) {
  const Tensor dense = checked_accumulate(residual, in.a, rows.residual_shape(), "residual");
  cpu::ClassArgs args = rows.args(in);
  std::optional<Tensor> upstream;
  if (grad) {
    // grad is 0-dim for a reduced value and per row for an unreduced one. A 1-D `a` has batch
    // shape (), where both say the same.
    const bool per_row = grad->dim() > 0;
    upstream =
        checked_accumulate(*grad, in.a, per_row ? rows.a.batch() : std::vector<int64_t>{}, "grad");
    args.reduction = per_row ? cpu::Reduction::kNone : cpu::Reduction::kSum;
  }
  const auto gradient = [](const Tensor& like, bool wanted) {
    if (!wanted) return not_wanted(like);
    return new_empty(like, leading_sizes(like, like.dim()), like.scalar_type());
  };
  ClassBackward out{gradient(in.a, wants.grad_a), gradient(in.table, wants.grad_table),
                    new_empty(in.a, wants.grad_bias ? rows.table.batch() : std::vector<int64_t>{0},
                              accumulate_type(in.a))};
  args.residual = const_cast<void*>(dense.const_data_ptr());  // read only in this direction
  args.grad = data_or_null(upstream);
  args.grad_a = wants.grad_a ? out.grad_a.mutable_data_ptr() : nullptr;
  args.grad_table = wants.grad_table ? out.grad_table.mutable_data_ptr() : nullptr;
  args.grad_bias = wants.grad_bias ? out.grad_bias.mutable_data_ptr() : nullptr;
  cpu::class_loss_backward(args, parallel_for);
  return out;
}

std::tuple<Tensor, Tensor> class_loss(Tensor a, Tensor table, Tensor labels,
                                      std::optional<Tensor> bias, std::optional<Tensor> weight,
                                      std::string family, int64_t group, double tau,
                                      bool normalize_message, double tilt, std::string reduction) {
  const ClassInputs in{a, table, family_args(family, group, tau, tilt), normalize_message};
  const ClassForward out =
      run_forward(in, ClassRows(in), labels, bias, weight, reduction_of(reduction));
  return {out.value, out.residual};
}

std::tuple<Tensor, Tensor, Tensor> class_loss_backward(
    Tensor grad, Tensor residual, Tensor a, Tensor table, std::string family, int64_t group,
    double tau, bool normalize_message, double tilt, bool need_a, bool need_table, bool need_bias) {
  const ClassInputs in{a, table, family_args(family, group, tau, tilt), normalize_message};
  const ClassBackward out =
      run_backward(in, ClassRows(in), residual, grad, {need_a, need_table, need_bias});
  return {out.grad_a, out.grad_table, out.grad_bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> class_loss_value_and_grad(
    Tensor a, Tensor table, Tensor labels, std::optional<Tensor> bias, std::optional<Tensor> weight,
    std::string family, int64_t group, double tau, bool normalize_message, double tilt,
    std::string reduction, bool need_a, bool need_table, bool need_bias) {
  const ClassInputs in{a, table, family_args(family, group, tau, tilt), normalize_message};
  const ClassRows rows(in);
  const ClassForward forward = run_forward(in, rows, labels, bias, weight, reduction_of(reduction));
  const ClassBackward backward =
      run_backward(in, rows, forward.residual, std::nullopt, {need_a, need_table, need_bias});
  return {forward.value, backward.grad_a, backward.grad_table, backward.grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(bll_native, CPU, m) {
  m.impl("class_loss", TORCH_BOX(&class_loss));
  m.impl("class_loss_backward", TORCH_BOX(&class_loss_backward));
  m.impl("class_loss_value_and_grad", TORCH_BOX(&class_loss_value_and_grad));
}

}  // namespace bll::binding
