// bll_kernels._core: the torch-free kernels on NumPy arrays, for tests and for use without torch.
#include <pybind11/stl.h>

#include <algorithm>

#include "numpy/gram.h"
#include "numpy/options.h"
#include "numpy/pair.h"
#include "numpy/standardize.h"

namespace bll::door {

namespace {

int64_t pieces = 1;

// Runs in the calling thread, in as many pieces as set_pieces asked for.
void parallel_for(int64_t size, int64_t grain, void (*body)(int64_t, int64_t, void*),
                  void* context) {
  const int64_t step = std::max({(size + pieces - 1) / pieces, grain, int64_t{1}});
  for (int64_t begin = 0; begin < size; begin += step) {
    body(begin, std::min(begin + step, size), context);
  }
}

// The arguments both passes of the class loss share.
struct ClassCall {
  RowsOf a, table;
  Shape residual_shape;
  cpu::ClassArgs args{};

  ClassCall(const py::array& a_in, const py::array& table_in, const cpu::FamilyArgs& family,
            bool normalize_message)
      : a(a_in, family_planes(family.id), "a"),
        table(table_in, family_planes(family.id), "table"),
        residual_shape(a.batch) {
    check_message_dtype(a, table, "table");
    if (table.batch.size() != 1 || table.batch[0] < 1 || table.width != a.width) {
      throw py::value_error("table: expected one row of " + std::to_string(a.width) +
                            " latents per class, got shape " + shape_string(shape_of(table.array)));
    }
    residual_shape.push_back(table.batch[0]);
    args.family = family;
    fit_group(args.family, a.width);
    args.normalize_message = normalize_message;
    args.width = a.width;
    args.a = a.view();
    args.table = table.view();
  }
};

py::tuple class_loss(const py::array& a, const py::array& table, const py::array& labels_in,
                     const std::string& family, const std::optional<py::array>& bias_in,
                     const std::optional<py::array>& weight_in, int64_t group, double tau,
                     bool normalize_message, double tilt, const std::string& reduction) {
  ClassCall call(a, table, family_args(family, group, tau, tilt), normalize_message);
  call.args.reduction = look_up(cpu::kReductionNames, reduction, "reduction");
  const py::array labels = checked_labels(labels_in, call.a.batch, call.table.batch[0]);
  std::optional<py::array> bias, weight;
  if (bias_in) bias = checked_accumulate(*bias_in, call.a.dtype, call.table.batch, "bias");
  if (weight_in) weight = checked_accumulate(*weight_in, call.a.dtype, call.a.batch, "weight");
  const bool per_row = call.args.reduction == cpu::Reduction::kNone;
  const py::dtype accumulate = accumulate_dtype(call.a.dtype);
  py::array value(accumulate, per_row ? call.a.batch : Shape{});
  py::array residual(accumulate, call.residual_shape);
  call.args.labels = static_cast<const int64_t*>(labels.data());
  call.args.bias = data_or_null(bias);
  call.args.weight = data_or_null(weight);
  call.args.value = value.mutable_data();
  call.args.residual = residual.mutable_data();
  {
    py::gil_scoped_release release;
    cpu::class_loss_forward(call.args, parallel_for);
  }
  return py::make_tuple(value, residual);
}

py::tuple class_loss_backward(const py::array& residual_in, const py::array& a,
                              const py::array& table, const std::string& family,
                              const std::optional<py::array>& grad_in, int64_t group, double tau,
                              bool normalize_message, double tilt, bool need_a, bool need_table,
                              bool need_bias) {
  ClassCall call(a, table, family_args(family, group, tau, tilt), normalize_message);
  py::array residual =
      checked_accumulate(residual_in, call.a.dtype, call.residual_shape, "residual");
  std::optional<py::array> grad;
  if (grad_in) {
    const bool per_row = grad_in->ndim() > 0;
    grad = checked_accumulate(*grad_in, call.a.dtype, per_row ? call.a.batch : Shape{}, "grad");
    call.args.reduction = per_row ? cpu::Reduction::kNone : cpu::Reduction::kSum;
  }
  py::array grad_a = like(call.a.array, need_a), grad_table = like(call.table.array, need_table);
  py::array grad_bias(accumulate_dtype(call.a.dtype), need_bias ? call.table.batch : Shape{0});
  call.args.residual = const_cast<void*>(residual.data());  // read only in this direction
  call.args.grad = data_or_null(grad);
  call.args.grad_a = need_a ? grad_a.mutable_data() : nullptr;
  call.args.grad_table = need_table ? grad_table.mutable_data() : nullptr;
  call.args.grad_bias = need_bias ? grad_bias.mutable_data() : nullptr;
  {
    py::gil_scoped_release release;
    cpu::class_loss_backward(call.args, parallel_for);
  }
  return py::make_tuple(grad_a, grad_table, grad_bias);
}

cpu::PoolArgs pool_args(const py::array& map, const std::string& kind, int64_t grid,
                        bool channels_last) {
  const Shape shape = shape_of(map);
  if (shape.size() != 4) {
    throw py::value_error("x: expected four dimensions, got shape " + shape_string(shape));
  }
  if (grid < 1) throw py::value_error("grid: expected at least 1, got " + std::to_string(grid));
  cpu::PoolArgs args{};
  args.kind = look_up(cpu::kPoolNames, kind, "kind");
  args.batch = shape[0];
  args.channels = shape[channels_last ? 3 : 1];
  args.height = shape[channels_last ? 1 : 2];
  args.width = shape[channels_last ? 2 : 3];
  if (args.batch * args.channels > 0 && args.height * args.width == 0) {
    throw py::value_error("x: expected a map with pixels, got shape " + shape_string(shape));
  }
  args.grid = grid;
  args.channels_last = channels_last;
  args.dtype = dtype_of(map, "x");
  args.map = map.data();
  return args;
}

py::array grid_pool(const py::array& x, const std::string& kind, int64_t grid, bool channels_last) {
  const py::array map = dense(x);
  cpu::PoolArgs args = pool_args(map, kind, grid, channels_last);
  py::array pooled(accumulate_dtype(args.dtype), Shape{args.batch, args.channels * grid * grid});
  args.pooled = pooled.mutable_data();
  {
    py::gil_scoped_release release;
    cpu::grid_pool_forward(args, parallel_for);
  }
  return pooled;
}

py::array grid_pool_backward(const py::array& grad, const py::array& x, const std::string& kind,
                             int64_t grid, bool channels_last) {
  const py::array map = dense(x);
  cpu::PoolArgs args = pool_args(map, kind, grid, channels_last);
  const Shape pooled{args.batch, args.channels * grid * grid};
  const py::array upstream = checked_accumulate(grad, args.dtype, pooled, "grad");
  py::array grad_map(map.dtype(), shape_of(map));
  args.grad_pooled = upstream.data();
  args.grad_map = grad_map.mutable_data();
  {
    py::gil_scoped_release release;
    cpu::grid_pool_backward(args, parallel_for);
  }
  return grad_map;
}

template <class Value, size_t count>
std::vector<std::string> names(const cpu::Named<Value> (&table)[count]) {
  std::vector<std::string> list;
  for (const auto& entry : table) list.emplace_back(entry.name);
  return list;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  using py::arg;
  m.doc() = "The CPU kernels of bll_kernels on NumPy arrays, without torch.";
  const auto none = py::none();
  bind_pair(m, parallel_for);
  m.def("class_loss", &class_loss, "(value, residual) of -log softmax_c(log E_alpha[beta_c])_y.",
        arg("a"), arg("table"), arg("labels"), arg("family"), py::kw_only(), arg("bias") = none,
        arg("weight") = none, arg("group") = 1, arg("tau") = 1.0, arg("normalize_message") = false,
        arg("tilt") = 1.0, arg("reduction") = "none");
  m.def("class_loss_backward", &class_loss_backward,
        "(grad_a, grad_table, grad_bias) from the residual of class_loss.", arg("residual"),
        arg("a"), arg("table"), arg("family"), py::kw_only(), arg("grad") = none, arg("group") = 1,
        arg("tau") = 1.0, arg("normalize_message") = false, arg("tilt") = 1.0, arg("need_a") = true,
        arg("need_table") = true, arg("need_bias") = true);
  m.def("grid_pool", &grid_pool, "Pooled cells [B, C * grid * grid] of a map.", arg("x"),
        arg("kind"), arg("grid"), py::kw_only(), arg("channels_last") = false);
  m.def("grid_pool_backward", &grid_pool_backward, "Gradient of the map from that of its cells.",
        arg("grad"), arg("x"), arg("kind"), arg("grid"), py::kw_only(),
        arg("channels_last") = false);
  bind_gram(m, parallel_for);
  bind_standardize(m, parallel_for);
  m.def("families", [] { return names(cpu::kFamilyNames); }, "Names of the families.");
  m.def("losses", [] { return names(cpu::kLossNames); }, "Names of the pair losses.");
  m.def(
      "isas",
      [] {
        std::vector<std::string> list;
        for (int i = 0; i < cpu::isa_count(); ++i) list.emplace_back(cpu::isa_name(i));
        return list;
      },
      "Instruction sets this processor can run, best last.");
  m.def("selected_isa", [] { return std::string(cpu::selected_isa()); });
  m.def(
      "select_isa",
      [](const std::string& name) {
        if (!cpu::select_isa(name.c_str())) {
          throw py::value_error("name: expected one of isas(), got '" + name + "'");
        }
      },
      "Use this instruction set from now on.", arg("name"));
  m.def(
      "set_pieces",
      [](int64_t count) {
        if (count < 1) throw py::value_error("count: expected at least 1");
        pieces = count;
      },
      "Split every parallel loop into `count` pieces, run in turn; results must not change.",
      arg("count"));
  m.def(
      "built_with", [] { return std::string("g++ " __VERSION__); }, "The compiler of this build.");
}

}  // namespace bll::door
