#include <torch/csrc/stable/library.h>

#include <tuple>

#include "torch/device.h"
#include "torch/options.h"
#include "torch/rows.h"

namespace bll::binding {

namespace {

void check_matrix(const Tensor& x, const char* name) {
  STD_TORCH_CHECK(x.dim() == 2, name, ": expected 2 dimensions, got shape ", shape_string(x));
}

// int64 of shape [count], contiguous; values are not looked at.
Tensor checked_integers(const Tensor& x, int64_t count, const char* name) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Long, name, ": expected int64, got ",
                  torch::headeronly::toString(x.scalar_type()));
  STD_TORCH_CHECK(x.dim() == 1 && x.size(0) == count, name, ": expected shape [", count, "], got ",
                  shape_string(x));
  return dense(x);
}

struct GramInputs {
  const Tensor& x;
  const std::optional<Tensor>& labels;
  const std::optional<Tensor>& vectors;
  const std::optional<Tensor>& weight;
  double same, other;
  bool center;
  const std::string& reduction;
};

struct GramOutputs {
  std::optional<Tensor> value, grad_x;
};

GramOutputs run(const GramInputs& in, const std::optional<Tensor>& grad, bool need_value,
                bool need_grad) {
  check_matrix(in.x, "x");
  const RowsOf x(in.x, 1, "x");
  cpu::GramArgs args{};
  args.reduction = reduction_of(in.reduction);
  const bool per_row = args.reduction == cpu::Reduction::kNone;
  const std::vector<int64_t> value_shape = per_row ? x.batch() : std::vector<int64_t>{};
  std::optional<Tensor> labels, weight, upstream;
  std::optional<RowsOf> vectors;
  if (in.labels) check_device(*in.labels, in.x, "labels");
  if (in.vectors) check_device(*in.vectors, in.x, "vectors");
  if (in.weight) check_device(*in.weight, in.x, "weight");
  if (grad) check_device(*grad, in.x, "grad");
  if (in.labels) labels = checked_integers(*in.labels, x.count(), "labels");
  if (in.vectors) {
    check_matrix(*in.vectors, "vectors");
    check_message_dtype(in.x, *in.vectors, "vectors");
    vectors.emplace(*in.vectors, 1, "vectors");
    STD_TORCH_CHECK(vectors->count() == x.count(), "vectors: expected ", x.count(),
                    " rows, got shape ", shape_string(*in.vectors));
    args.vectors = vectors->view();
    args.vectors_width = vectors->width();
    // Rows without latents have no address; they are still given.
    if (!args.vectors.data) args.vectors.data = data_or_null(in.vectors);
  }
  if (in.weight) weight = checked_accumulate(*in.weight, in.x, x.batch(), "weight");
  if (grad) upstream = checked_accumulate(*grad, in.x, value_shape, "grad");
  args.center = in.center;
  args.same = in.same;
  args.other = in.other;
  args.width = x.width();
  args.x = x.view();
  args.labels = labels ? static_cast<const int64_t*>(data_or_null(labels)) : nullptr;
  args.weight = data_or_null(weight);
  args.grad = data_or_null(upstream);
  GramOutputs out;
  if (need_value) {
    out.value = new_empty(in.x, value_shape, accumulate_type(in.x));
    args.value = out.value->mutable_data_ptr();
  }
  if (need_grad) {
    out.grad_x = new_empty(in.x, {x.count(), x.width()}, in.x.scalar_type());
    args.grad_x = out.grad_x->mutable_data_ptr();
  }
  device::gram_loss(args, in.x);
  return out;
}

Tensor gram_loss(Tensor x, std::optional<Tensor> labels, std::optional<Tensor> vectors,
                 std::optional<Tensor> weight, double same, double other, bool center,
                 std::string reduction) {
  return *run({x, labels, vectors, weight, same, other, center, reduction}, std::nullopt, true,
              false)
              .value;
}

Tensor gram_loss_backward(Tensor grad, Tensor x, std::optional<Tensor> labels,
                          std::optional<Tensor> vectors, std::optional<Tensor> weight, double same,
                          double other, bool center, std::string reduction) {
  return *run({x, labels, vectors, weight, same, other, center, reduction}, grad, false, true)
              .grad_x;
}

std::tuple<Tensor, Tensor> gram_loss_value_and_grad(Tensor x, std::optional<Tensor> labels,
                                                    std::optional<Tensor> vectors,
                                                    std::optional<Tensor> weight, double same,
                                                    double other, bool center,
                                                    std::string reduction) {
  const GramOutputs out =
      run({x, labels, vectors, weight, same, other, center, reduction}, std::nullopt, true, true);
  return {*out.value, *out.grad_x};
}

std::tuple<Tensor, Tensor> class_means(Tensor x, Tensor labels, int64_t classes) {
  check_matrix(x, "x");
  check_device(labels, x, "labels");
  STD_TORCH_CHECK(classes > 0, "classes: expected at least one, got ", classes);
  const RowsOf rows(x, 1, "x");
  const Tensor dense = checked_labels(labels, rows.batch(), classes);
  Tensor means = new_empty(x, {classes, rows.width()}, accumulate_type(x));
  Tensor counts = new_empty(x, {classes}, ScalarType::Long);
  cpu::ClassMeansArgs args{};
  args.classes = classes;
  args.width = rows.width();
  args.x = rows.view();
  args.labels = static_cast<const int64_t*>(dense.const_data_ptr());
  args.means = means.mutable_data_ptr();
  args.counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  device::class_means(args, x);
  return {means, counts};
}

Tensor class_means_backward(Tensor grad, Tensor labels, Tensor counts) {
  check_matrix(grad, "grad");
  STD_TORCH_CHECK(grad.scalar_type() == accumulate_type(grad),
                  "grad: expected float64 or float32, got ",
                  torch::headeronly::toString(grad.scalar_type()));
  check_device(labels, grad, "labels");
  check_device(counts, grad, "counts");
  const int64_t classes = grad.size(0), width = grad.size(1);
  const Tensor dense_grad = dense(grad);
  const Tensor dense_counts = checked_integers(counts, classes, "counts");
  const Tensor dense = checked_labels(labels, leading_sizes(labels, labels.dim()), classes);
  Tensor grad_x = new_empty(grad, {dense.numel(), width}, grad.scalar_type());
  cpu::ClassMeansGradArgs args{};
  args.classes = classes;
  args.width = width;
  args.rows = dense.numel();
  args.dtype = dtype_of(grad, "grad");
  args.grad = dense_grad.const_data_ptr();
  args.labels = static_cast<const int64_t*>(dense.const_data_ptr());
  args.counts = static_cast<const int64_t*>(dense_counts.const_data_ptr());
  args.grad_x = grad_x.mutable_data_ptr();
  device::class_means_backward(args, grad);
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(BLL_OPS, BLL_DISPATCH_KEY, m) {
  m.impl("gram_loss", TORCH_BOX(&gram_loss));
  m.impl("gram_loss_backward", TORCH_BOX(&gram_loss_backward));
  m.impl("gram_loss_value_and_grad", TORCH_BOX(&gram_loss_value_and_grad));
  m.impl("class_means", TORCH_BOX(&class_means));
  m.impl("class_means_backward", TORCH_BOX(&class_means_backward));
}

}  // namespace bll::binding
