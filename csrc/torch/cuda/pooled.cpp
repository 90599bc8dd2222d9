#include <torch/csrc/stable/library.h>

#include <tuple>

#include "torch/device.h"
#include "torch/map.h"
#include "torch/options.h"
#include "torch/rows.h"

namespace bll::binding {

namespace {

struct Tensors {
  const Tensor& x;
  const Tensor& table;
  const Tensor& labels;
  const std::optional<Tensor>& bias;
  const std::optional<Tensor>& weight;
};

// The arguments of the kernels, and what they point to.
class PooledCall {
 public:
  PooledCall(const Tensors& in, int64_t grid) : in_(in), map_(in.x), table_(in.table, 1, "table") {
    check_grid(in.x, grid);
    check_device(in.table, in.x, "table");
    check_device(in.labels, in.x, "labels");
    check_message_dtype(in.x, in.table, "table");
    pool_ = map_.args("mean", grid);
    const int64_t width = pool_.channels * grid * grid;
    STD_TORCH_CHECK(in.table.dim() == 2 && table_.count() > 0 && table_.width() == width,
                    "table: expected shape [classes, ", width, "] with at least one class, got ",
                    shape_string(in.table));
    args_.width = width;
    args_.a = {nullptr, cpu::DType::kFloat32, pool_.batch, width, 0, nullptr};
    args_.table = table_.view();
    labels_ = checked_labels(in.labels, {pool_.batch}, table_.count());
    args_.labels = static_cast<const int64_t*>(data_or_null(labels_));
    bias_ = factor(in.bias, {table_.count()}, "bias");
    weight_ = factor(in.weight, {pool_.batch}, "weight");
    args_.bias = data_or_null(bias_);
    args_.weight = data_or_null(weight_);
  }

  void set_options(const cpu::FamilyArgs& family, bool normalize, cpu::Reduction reduction) {
    args_.family = family;
    args_.normalize_message = normalize;
    args_.reduction = reduction;
    const bool per_row = reduction == cpu::Reduction::kNone;
    value = new_empty(in_.x, per_row ? std::vector<int64_t>{pool_.batch} : std::vector<int64_t>{},
                      ScalarType::Float);
    args_.value = value->mutable_data_ptr();
  }

  void want(bool need_x, bool compact, bool need_table, bool need_bias) {
    grad_x = not_wanted(in_.x);
    if (need_x && compact) {
      grad_x = new_empty(in_.x, {pool_.batch, args_.width}, ScalarType::Float);
      grad_cells_ = static_cast<float*>(grad_x->mutable_data_ptr());
    } else if (need_x) {
      grad_x = torch::stable::empty_like(map_.tensor);
      pool_.grad_map = grad_x->mutable_data_ptr();
    }
    grad_table = not_wanted(in_.table);
    if (need_table) {
      grad_table = new_empty(in_.table, {table_.count(), args_.width}, in_.table.scalar_type());
      args_.grad_table = grad_table->mutable_data_ptr();
    }
    grad_bias = new_empty(in_.x, {need_bias ? table_.count() : 0}, ScalarType::Float);
    args_.grad_bias = need_bias ? grad_bias->mutable_data_ptr() : nullptr;
  }

  void run() {
    device::pooled_class_loss(args_, pool_, grad_cells_, in_.x);
    if (pool_.grad_map != nullptr) grad_x = map_.as_given(*grad_x);
  }

  std::optional<Tensor> value, grad_x, grad_table, grad_bias;

 private:
  const Tensors& in_;
  Map map_;
  RowsOf table_;
  cpu::ClassArgs args_{};
  cpu::PoolArgs pool_{};
  float* grad_cells_ = nullptr;
  std::optional<Tensor> labels_, bias_, weight_;

  std::optional<Tensor> factor(const std::optional<Tensor>& given,
                               const std::vector<int64_t>& shape, const char* name) const {
    if (!given) return std::nullopt;
    check_device(*given, in_.x, name);
    const Tensor floats = given->scalar_type() == in_.x.scalar_type()
                              ? torch::stable::to(*given, ScalarType::Float)
                              : *given;
    return checked_accumulate(floats, in_.x, shape, name);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> pooled_class_loss_value_and_grad(
    Tensor x, Tensor table, Tensor labels, std::optional<Tensor> bias, std::optional<Tensor> weight,
    std::string family, double tau, bool normalize_message, double tilt, std::string reduction,
    int64_t grid, bool need_x, bool compact, bool need_table, bool need_bias) {
  const Tensors in{x, table, labels, bias, weight};
  PooledCall call(in, grid);
  call.set_options(family_args(family, 1, tau, tilt), normalize_message, reduction_of(reduction));
  call.want(need_x, compact, need_table, need_bias);
  call.run();
  return {*call.value, *call.grad_x, *call.grad_table, *call.grad_bias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(BLL_OPS, BLL_DISPATCH_KEY, m) {
  m.impl("pooled_class_loss_value_and_grad", TORCH_BOX(&pooled_class_loss_value_and_grad));
}

}  // namespace bll::binding
