// From NumPy arrays to the kernels' raw views. float64, float32 and float16 arrays are what they
// say; uint16 arrays hold bfloat16 bits, which NumPy has no dtype for.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <string>
#include <vector>

#include "cpu/api.h"

namespace bll::door {

namespace py = pybind11;
using Shape = std::vector<py::ssize_t>;

cpu::DType dtype_of(const py::array& array, const char* name);
std::string shape_string(const Shape& shape);
Shape shape_of(const py::array& array);
int64_t product(const Shape& shape);

// The dtype values, residuals and weights have: float64 for float64 inputs, else float32.
py::dtype accumulate_dtype(cpu::DType dtype);

// The array in C order; a copy if it is not.
py::array dense(const py::array& array);

// A dense array [*batch, D] or [*batch, 2, D] as rows of latents.
struct RowsOf {
  py::array array;
  Shape batch;
  int64_t width;
  cpu::DType dtype;

  RowsOf(const py::array& source, int planes, const char* name);
  cpu::Rows view() const;
};

void check_message_dtype(const RowsOf& a, const RowsOf& b, const char* name);

py::array checked_labels(const py::array& labels, const Shape& batch, int64_t classes);
py::array checked_accumulate(const py::array& array, cpu::DType dtype, const Shape& shape,
                             const char* name);

inline const void* data_or_null(const std::optional<py::array>& array) {
  return array ? array->data() : nullptr;
}

}  // namespace bll::door
