#include "numpy/standardize.h"

namespace bll::door {

namespace {

// Of an array [rows, channels, cells].
cpu::StandardizeArgs args_of(const py::array& x, const char* name) {
  const Shape shape = shape_of(x);
  if (shape.size() != 3) {
    throw py::value_error(std::string(name) + ": expected [rows, channels, cells], got shape " +
                          shape_string(shape));
  }
  cpu::StandardizeArgs args{};
  args.dtype = dtype_of(x, name);
  if (args.dtype != cpu::DType::kFloat64 && args.dtype != cpu::DType::kFloat32) {
    throw py::type_error(std::string(name) + ": expected float64 or float32");
  }
  if (product(shape) == 0) {
    throw py::value_error(std::string(name) + ": expected at least one number, got shape " +
                          shape_string(shape));
  }
  args.rows = shape[0];
  args.channels = shape[1];
  args.cells = shape[2];
  return args;
}

py::tuple standardize(cpu::ParallelFor parallel_for, const py::array& x_in, double eps) {
  const py::array x = dense(x_in);
  cpu::StandardizeArgs args = args_of(x, "x");
  py::array out(x.dtype(), shape_of(x)), scale(x.dtype(), Shape{args.channels});
  args.eps = eps;
  args.x = x.data();
  args.out = out.mutable_data();
  args.scale = scale.mutable_data();
  {
    py::gil_scoped_release release;
    cpu::standardize_forward(args, parallel_for);
  }
  return py::make_tuple(out, scale);
}

py::array standardize_backward(cpu::ParallelFor parallel_for, const py::array& grad_in,
                               const py::array& standard_in, const py::array& scale_in) {
  const py::array standard = dense(standard_in);
  cpu::StandardizeArgs args = args_of(standard, "standardized");
  const py::array grad = checked_accumulate(grad_in, args.dtype, shape_of(standard), "grad");
  const py::array scale = checked_accumulate(scale_in, args.dtype, Shape{args.channels}, "scale");
  py::array out(standard.dtype(), shape_of(standard));
  args.grad = grad.data();
  args.standard = standard.data();
  args.known_scale = scale.data();
  args.out = out.mutable_data();
  {
    py::gil_scoped_release release;
    cpu::standardize_backward(args, parallel_for);
  }
  return out;
}

}  // namespace

void bind_standardize(py::module_& m, cpu::ParallelFor parallel_for) {
  using py::arg;
  m.def(
      "standardize_channels",
      [parallel_for](const py::array& x, double eps) { return standardize(parallel_for, x, eps); },
      "(standardized, scale) of [rows, channels, cells], every channel over rows and cells.",
      arg("x"), arg("eps") = 1e-5);
  m.def(
      "standardize_channels_backward",
      [parallel_for](const py::array& grad, const py::array& standardized, const py::array& scale) {
        return standardize_backward(parallel_for, grad, standardized, scale);
      },
      "Gradient of what was standardised.", arg("grad"), arg("standardized"), arg("scale"));
}

}  // namespace bll::door
