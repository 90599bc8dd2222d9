#include "numpy/pair.h"

#include <pybind11/stl.h>

#include "numpy/options.h"

namespace bll::door {

namespace {

struct PairOptions {
  std::string family, loss;
  std::optional<py::array> labels, weight, grad;
  int64_t group;
  double tau, tilt;
  std::string reduction;
  bool need_a, need_b;
};

// Checked operands of a pair loss and its outputs. What the arguments point to lives as long as it.
struct PairCall {
  RowsOf a, b;
  std::optional<py::array> labels, weight, grad;
  py::array value, grad_a, grad_b;
  cpu::PairArgs args{};

  PairCall(const py::array& a_in, const py::array& b_in, const cpu::FamilyArgs& family,
           const PairOptions& options)
      : a(a_in, family_planes(family.id), "a"), b(b_in, family_planes(family.id), "b") {
    args.family = family;
    args.loss = look_up(cpu::kLossNames, options.loss, "loss");
    args.reduction = look_up(cpu::kReductionNames, options.reduction, "reduction");
    check_message_dtype(a, b, "b");
    if (a.width != b.width || (options.labels ? b.batch.size() != 1 : a.batch != b.batch)) {
      throw py::value_error(
          "b: expected the shape of a, or a table [classes, latents] with labels, "
          "got shape " +
          shape_string(shape_of(b.array)));
    }
    fit_group(args.family, a.width);
    const Shape value_shape = args.reduction == cpu::Reduction::kNone ? a.batch : Shape{};
    if (options.labels) labels = checked_labels(*options.labels, a.batch, b.batch[0]);
    if (options.weight) weight = checked_accumulate(*options.weight, a.dtype, a.batch, "weight");
    if (options.grad) grad = checked_accumulate(*options.grad, a.dtype, value_shape, "grad");
    value = py::array(accumulate_dtype(a.dtype), value_shape);
    grad_a = like(a.array, options.need_a);
    grad_b = like(b.array, options.need_b);
    args.width = a.width;
    args.a = a.view();
    args.b = b.view();
    args.labels = static_cast<const int64_t*>(data_or_null(labels));
    args.weight = data_or_null(weight);
    args.grad = data_or_null(grad);
    args.value = value.mutable_data();
    args.grad_a = options.need_a ? grad_a.mutable_data() : nullptr;
    args.grad_b = options.need_b ? grad_b.mutable_data() : nullptr;
  }

  void run(cpu::ParallelFor parallel_for) const {
    py::gil_scoped_release release;
    cpu::pair_loss(args, parallel_for);
  }
};

constexpr cpu::Named<cpu::DType> kNextDTypes[] = {{"float64", cpu::DType::kFloat64},
                                                  {"float32", cpu::DType::kFloat32},
                                                  {"bfloat16", cpu::DType::kBFloat16},
                                                  {"float16", cpu::DType::kFloat16},
                                                  {"float8_e4m3fn", cpu::DType::kFloat8}};

// NumPy's type of the same size where it has none of the name: bits of bfloat16 and float8.
py::dtype stored_as(cpu::DType dtype) {
  constexpr const char* names[] = {"float64", "float32", "uint16", "float16", "uint8"};
  return py::dtype(names[static_cast<int>(dtype)]);
}

py::array add_next(PairCall& call, double mix, const std::optional<std::string>& dtype) {
  if (!(mix >= 0 && mix <= 1)) {
    throw py::value_error("mix: expected a number in [0, 1], got " + std::to_string(mix));
  }
  call.args.next_dtype = dtype ? look_up(kNextDTypes, *dtype, "next_dtype") : call.a.dtype;
  if (call.args.next_dtype == cpu::DType::kFloat64 && call.a.dtype != cpu::DType::kFloat64) {
    throw py::value_error("next_dtype: expected float64 beside a float64 a only");
  }
  Shape shape = call.a.batch;
  shape.push_back(call.a.width);
  py::array next(stored_as(call.args.next_dtype), shape);
  call.args.next = next.mutable_data();
  call.args.next_mix = mix;
  return next;
}

}  // namespace

void bind_pair(py::module_& m, cpu::ParallelFor parallel_for) {
  using py::arg;
  const auto none = py::none();
  using Array = py::array;
  using Maybe = std::optional<py::array>;
  const auto prepare = [](const Array& a, const Array& b, const PairOptions& options) {
    const auto family = family_args(options.family, options.group, options.tau, options.tilt);
    return PairCall(a, b, family, options);
  };
  m.def(
      "pair_loss",
      [=](const Array& a, const Array& b, const std::string& family, const std::string& loss,
          const Maybe& labels, const Maybe& weight, const Maybe& grad, int64_t group, double tau,
          double tilt, const std::string& reduction, bool need_a, bool need_b) {
        const PairCall call = prepare(
            a, b,
            {family, loss, labels, weight, grad, group, tau, tilt, reduction, need_a, need_b});
        call.run(parallel_for);
        return py::make_tuple(call.value, call.grad_a, call.grad_b);
      },
      "(value, grad_a, grad_b) of a loss between rows of a and b.", arg("a"), arg("b"),
      arg("family"), arg("loss"), py::kw_only(), arg("labels") = none, arg("weight") = none,
      arg("grad") = none, arg("group") = 1, arg("tau") = 1.0, arg("tilt") = 1.0,
      arg("reduction") = "none", arg("need_a") = true, arg("need_b") = true);
  m.def(
      "pair_loss_next",
      [=](const Array& a, const Array& b, const std::string& family, const std::string& loss,
          double mix, const std::optional<std::string>& next_dtype, const Maybe& labels,
          const Maybe& weight, int64_t group, double tau, double tilt, const std::string& reduction,
          bool need_a, bool need_b) {
        PairCall call = prepare(a, b,
                                {family, loss, labels, weight, std::nullopt, group, tau, tilt,
                                 reduction, need_a, need_b});
        const py::array next = add_next(call, mix, next_dtype);
        call.run(parallel_for);
        return py::make_tuple(call.value, call.grad_a, call.grad_b, next);
      },
      "(value, grad_a, grad_b, next): also (1 - mix) mu(alpha) + mix mu(rho), the next block's "
      "input, as next_dtype (that of a if None; uint16 holds bfloat16, uint8 float8_e4m3fn).",
      arg("a"), arg("b"), arg("family"), arg("loss"), py::kw_only(), arg("mix"),
      arg("next_dtype") = none, arg("labels") = none, arg("weight") = none, arg("group") = 1,
      arg("tau") = 1.0, arg("tilt") = 1.0, arg("reduction") = "none", arg("need_a") = true,
      arg("need_b") = true);
}

}  // namespace bll::door
