#include <torch/csrc/stable/library.h>

#include <tuple>

#include "torch/device.h"
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
    check_device(in.table, in.a, "table");
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

// Outputs of the passes. What the arguments point to lives as long as this.
class ClassCall {
 public:
  explicit ClassCall(const ClassInputs& in) : in_(in), rows_(in), args_(rows_.args(in)) {}

  void set_labels(const Tensor& labels, const std::optional<Tensor>& bias,
                  const std::optional<Tensor>& weight, cpu::Reduction reduction) {
    check_device(labels, in_.a, "labels");
    if (bias) check_device(*bias, in_.a, "bias");
    if (weight) check_device(*weight, in_.a, "weight");
    labels_ = checked_labels(labels, rows_.a.batch(), rows_.table.count());
    if (bias) {
      const bool converts = bias->scalar_type() == in_.a.scalar_type();
      const Tensor given = converts ? torch::stable::to(*bias, accumulate_type(in_.a)) : *bias;
      bias_ = checked_accumulate(given, in_.a, rows_.table.batch(), "bias");
    }
    if (weight) weight_ = checked_accumulate(*weight, in_.a, rows_.a.batch(), "weight");
    const bool per_row = reduction == cpu::Reduction::kNone;
    value = new_empty(in_.a, per_row ? rows_.a.batch() : std::vector<int64_t>{},
                      accumulate_type(in_.a));
    args_.reduction = reduction;
    args_.labels = static_cast<const int64_t*>(data_or_null(labels_));
    args_.bias = data_or_null(bias_);
    args_.weight = data_or_null(weight_);
    args_.value = value->mutable_data_ptr();
  }

  void new_residual() {
    residual = new_empty(in_.a, rows_.residual_shape(), accumulate_type(in_.a));
    args_.residual = residual->mutable_data_ptr();
  }

  void set_residual(const Tensor& given, const Tensor& grad) {
    check_device(given, in_.a, "residual");
    check_device(grad, in_.a, "grad");
    residual = checked_accumulate(given, in_.a, rows_.residual_shape(), "residual");
    // grad is 0-dim for a reduced value and per row for an unreduced one. A 1-D `a` has batch
    // shape (), where both say the same.
    const bool per_row = grad.dim() > 0;
    grad_ =
        checked_accumulate(grad, in_.a, per_row ? rows_.a.batch() : std::vector<int64_t>{}, "grad");
    args_.reduction = per_row ? cpu::Reduction::kNone : cpu::Reduction::kSum;
    args_.residual = const_cast<void*>(residual->const_data_ptr());  // read only in this direction
    args_.grad = data_or_null(grad_);
  }

  void want(const ClassWants& wants) {
    const auto gradient = [](const Tensor& like, bool wanted) {
      if (!wanted) return not_wanted(like);
      return new_empty(like, leading_sizes(like, like.dim()), like.scalar_type());
    };
    grad_a = gradient(in_.a, wants.grad_a);
    grad_table = gradient(in_.table, wants.grad_table);
    grad_bias = new_empty(in_.a, wants.grad_bias ? rows_.table.batch() : std::vector<int64_t>{0},
                          accumulate_type(in_.a));
    args_.grad_a = wants.grad_a ? grad_a->mutable_data_ptr() : nullptr;
    args_.grad_table = wants.grad_table ? grad_table->mutable_data_ptr() : nullptr;
    args_.grad_bias = wants.grad_bias ? grad_bias->mutable_data_ptr() : nullptr;
  }

  const cpu::ClassArgs& args() const { return args_; }

  std::optional<Tensor> value, residual, grad_a, grad_table, grad_bias;

 private:
  const ClassInputs& in_;
  ClassRows rows_;
  cpu::ClassArgs args_;
  std::optional<Tensor> labels_, bias_, weight_, grad_;
};

std::tuple<Tensor, Tensor> class_loss(Tensor a, Tensor table, Tensor labels,
                                      std::optional<Tensor> bias, std::optional<Tensor> weight,
                                      std::string family, int64_t group, double tau,
                                      bool normalize_message, double tilt, std::string reduction) {
  const ClassInputs in{a, table, family_args(family, group, tau, tilt), normalize_message};
  ClassCall call(in);
  call.set_labels(labels, bias, weight, reduction_of(reduction));
  call.new_residual();
  device::class_loss_forward(call.args(), a);
  return {*call.value, *call.residual};
}

std::tuple<Tensor, Tensor, Tensor> class_loss_backward(
    Tensor grad, Tensor residual, Tensor a, Tensor table, std::string family, int64_t group,
    double tau, bool normalize_message, double tilt, bool need_a, bool need_table, bool need_bias) {
  const ClassInputs in{a, table, family_args(family, group, tau, tilt), normalize_message};
  ClassCall call(in);
  call.set_residual(residual, grad);
  call.want({need_a, need_table, need_bias});
  device::class_loss_backward(call.args(), a);
  return {*call.grad_a, *call.grad_table, *call.grad_bias};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> class_loss_value_and_grad(
    Tensor a, Tensor table, Tensor labels, std::optional<Tensor> bias, std::optional<Tensor> weight,
    std::string family, int64_t group, double tau, bool normalize_message, double tilt,
    std::string reduction, bool need_a, bool need_table, bool need_bias) {
  const ClassInputs in{a, table, family_args(family, group, tau, tilt), normalize_message};
  ClassCall call(in);
  call.set_labels(labels, bias, weight, reduction_of(reduction));
  if (device::kResidual) call.new_residual();
  call.want({need_a, need_table, need_bias});
  device::class_loss_both(call.args(), a);
  return {*call.value, *call.grad_a, *call.grad_table, *call.grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(BLL_OPS, BLL_DISPATCH_KEY, m) {
  m.impl("class_loss", TORCH_BOX(&class_loss));
  m.impl("class_loss_backward", TORCH_BOX(&class_loss_backward));
  m.impl("class_loss_value_and_grad", TORCH_BOX(&class_loss_value_and_grad));
}

}  // namespace bll::binding
