#include "numpy/gram.h"

#include <pybind11/stl.h>

#include "cpu/names.h"

namespace bll::door {

namespace {

RowsOf matrix(const py::array& x, const char* name) {
  RowsOf rows(x, 1, name);
  if (rows.batch.size() != 1) {
    throw py::value_error(std::string(name) + ": expected 2 dimensions, got shape " +
                          shape_string(shape_of(x)));
  }
  return rows;
}

// Any labels will do: only whether two are equal matters.
py::array checked_ids(const py::array& labels, int64_t count) {
  const py::array dense_labels = py::array_t<int64_t, py::array::c_style>::ensure(labels);
  if (!dense_labels || shape_of(dense_labels) != Shape{count}) {
    PyErr_Clear();
    throw py::value_error("labels: expected one integer per row, got shape " +
                          shape_string(shape_of(labels)));
  }
  return dense_labels;
}

py::tuple gram_loss(cpu::ParallelFor parallel_for, const py::array& x_in,
                    const std::optional<py::array>& labels_in,
                    const std::optional<py::array>& vectors_in,
                    const std::optional<py::array>& weight_in,
                    const std::optional<py::array>& grad_in, double same, double other, bool center,
                    const std::string& reduction, bool need_grad) {
  const RowsOf x = matrix(x_in, "x");
  cpu::GramArgs args{};
  const cpu::Reduction* found = cpu::find_named(cpu::kReductionNames, reduction);
  if (!found) {
    throw py::value_error("reduction: expected one of " + cpu::names_of(cpu::kReductionNames) +
                          ", got '" + reduction + "'");
  }
  args.reduction = *found;
  const Shape value_shape = args.reduction == cpu::Reduction::kNone ? x.batch : Shape{};
  std::optional<py::array> labels, weight, grad;
  std::optional<RowsOf> vectors;
  if (labels_in) labels = checked_ids(*labels_in, x.batch[0]);
  if (vectors_in) {
    vectors.emplace(matrix(*vectors_in, "vectors"));
    check_message_dtype(x, *vectors, "vectors");
    if (vectors->batch != x.batch) {
      throw py::value_error("vectors: expected one per row of x, got shape " +
                            shape_string(shape_of(*vectors_in)));
    }
    args.vectors = vectors->view();
    args.vectors_width = vectors->width;
  }
  if (weight_in) weight = checked_accumulate(*weight_in, x.dtype, x.batch, "weight");
  if (grad_in) grad = checked_accumulate(*grad_in, x.dtype, value_shape, "grad");
  py::array value(accumulate_dtype(x.dtype), value_shape);
  py::array grad_x(x.array.dtype(), need_grad ? shape_of(x.array) : Shape{0});
  args.center = center;
  args.same = same;
  args.other = other;
  args.width = x.width;
  args.x = x.view();
  args.labels = static_cast<const int64_t*>(data_or_null(labels));
  args.weight = data_or_null(weight);
  args.grad = data_or_null(grad);
  args.value = value.mutable_data();
  args.grad_x = need_grad ? grad_x.mutable_data() : nullptr;
  {
    py::gil_scoped_release release;
    cpu::gram_loss(args, parallel_for);
  }
  return py::make_tuple(value, grad_x);
}

py::tuple class_means(cpu::ParallelFor parallel_for, const py::array& x_in,
                      const py::array& labels_in, int64_t classes) {
  const RowsOf x = matrix(x_in, "x");
  if (classes < 1) throw py::value_error("classes: expected at least 1");
  const py::array labels = checked_labels(labels_in, x.batch, classes);
  py::array means(accumulate_dtype(x.dtype), Shape{classes, x.width});
  py::array_t<int64_t> counts(classes);
  cpu::ClassMeansArgs args{};
  args.classes = classes;
  args.width = x.width;
  args.x = x.view();
  args.labels = static_cast<const int64_t*>(labels.data());
  args.means = means.mutable_data();
  args.counts = counts.mutable_data();
  {
    py::gil_scoped_release release;
    cpu::class_means(args, parallel_for);
  }
  return py::make_tuple(means, counts);
}

}  // namespace

void bind_gram(py::module_& m, cpu::ParallelFor parallel_for) {
  using py::arg;
  const auto none = py::none();
  m.def(
      "gram_loss",
      [parallel_for](const py::array& x, const std::optional<py::array>& labels,
                     const std::optional<py::array>& vectors,
                     const std::optional<py::array>& weight, const std::optional<py::array>& grad,
                     double same, double other, bool center, const std::string& reduction,
                     bool need_grad) {
        return gram_loss(parallel_for, x, labels, vectors, weight, grad, same, other, center,
                         reduction, need_grad);
      },
      "(value, grad_x) of the mean squared gap between the rows' cosine Gram matrix and a target.",
      arg("x"), py::kw_only(), arg("labels") = none, arg("vectors") = none, arg("weight") = none,
      arg("grad") = none, arg("same") = 1.0, arg("other") = 0.0, arg("center") = true,
      arg("reduction") = "none", arg("need_grad") = true);
  m.def(
      "class_means",
      [parallel_for](const py::array& x, const py::array& labels, int64_t classes) {
        return class_means(parallel_for, x, labels, classes);
      },
      "(means, counts) of the rows of every class.", arg("x"), arg("labels"), arg("classes"));
}

}  // namespace bll::door
