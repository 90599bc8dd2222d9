#include "numpy/arrays.h"

namespace bll::door {

cpu::DType dtype_of(const py::array& array, const char* name) {
  const py::dtype dtype = array.dtype();
  if (dtype.equal(py::dtype::of<double>())) return cpu::DType::kFloat64;
  if (dtype.equal(py::dtype::of<float>())) return cpu::DType::kFloat32;
  if (dtype.equal(py::dtype("float16"))) return cpu::DType::kFloat16;
  if (dtype.equal(py::dtype::of<uint16_t>())) return cpu::DType::kBFloat16;
  throw py::type_error(std::string(name) +
                       ": expected float64, float32, float16 or uint16 (bfloat16 bits), got " +
                       py::str(dtype).cast<std::string>());
}

std::string shape_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

Shape shape_of(const py::array& array) { return {array.shape(), array.shape() + array.ndim()}; }

int64_t product(const Shape& shape) {
  int64_t count = 1;
  for (const auto size : shape) count *= size;
  return count;
}

py::dtype accumulate_dtype(cpu::DType dtype) {
  return dtype == cpu::DType::kFloat64 ? py::dtype::of<double>() : py::dtype::of<float>();
}

py::array dense(const py::array& array) { return py::array::ensure(array, py::array::c_style); }

RowsOf::RowsOf(const py::array& source, int planes, const char* name)
    : array(dense(source)), dtype(dtype_of(source, name)) {
  const int inner = planes > 1 ? 2 : 1;
  const Shape shape = shape_of(array);
  const auto rank = static_cast<int>(shape.size()) - inner;
  if (rank < 0 || (planes > 1 && shape[rank] != planes)) {
    throw py::value_error(std::string(name) + ": expected [..., " +
                          (planes > 1 ? std::to_string(planes) + ", " : "") +
                          "latents], got shape " + shape_string(shape));
  }
  batch.assign(shape.begin(), shape.begin() + rank);
  width = shape.back();
}

cpu::Rows RowsOf::view() const {
  const int64_t planes = static_cast<int>(array.ndim()) - static_cast<int>(batch.size());
  return {array.data(), dtype, product(batch), planes * width, planes > 1 ? width : 0, nullptr};
}

void check_message_dtype(const RowsOf& a, const RowsOf& b, const char* name) {
  const bool half = a.dtype == cpu::DType::kFloat16 || a.dtype == cpu::DType::kBFloat16;
  if (b.dtype == a.dtype || (half && b.dtype == cpu::DType::kFloat32)) return;
  throw py::type_error(std::string(name) + ": expected the dtype of a" +
                       (half ? " or float32" : "") + ", got " +
                       py::str(b.array.dtype()).cast<std::string>());
}

py::array checked_labels(const py::array& labels, const Shape& batch, int64_t classes) {
  if (!labels.dtype().equal(py::dtype::of<int64_t>())) {
    throw py::type_error("labels: expected int64, got " +
                         py::str(labels.dtype()).cast<std::string>());
  }
  if (shape_of(labels) != batch) {
    throw py::value_error("labels: expected shape " + shape_string(batch) + ", got " +
                          shape_string(shape_of(labels)));
  }
  py::array out = dense(labels);
  const auto* values = static_cast<const int64_t*>(out.data());
  for (int64_t i = 0, count = out.size(); i < count; ++i) {
    if (values[i] < 0 || values[i] >= classes) {
      throw py::value_error("labels: expected values in [0, " + std::to_string(classes) +
                            "), got " + std::to_string(values[i]));
    }
  }
  return out;
}

py::array checked_accumulate(const py::array& array, cpu::DType dtype, const Shape& shape,
                             const char* name) {
  const py::dtype expected = accumulate_dtype(dtype);
  if (!array.dtype().equal(expected)) {
    throw py::type_error(std::string(name) + ": expected " + py::str(expected).cast<std::string>() +
                         ", got " + py::str(array.dtype()).cast<std::string>());
  }
  if (shape_of(array) != shape) {
    throw py::value_error(std::string(name) + ": expected shape " + shape_string(shape) + ", got " +
                          shape_string(shape_of(array)));
  }
  return dense(array);
}

}  // namespace bll::door
