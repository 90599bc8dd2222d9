// From torch tensors to the kernels' raw views: dtypes, rows of latents, threads.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cpu/api.h"

namespace bll::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

cpu::DType dtype_of(const Tensor& tensor, const char* name);

// The dtype values, residuals and weights have: float64 for float64 inputs, else float32.
ScalarType accumulate_type(const Tensor& a);

std::string shape_string(const Tensor& tensor);
bool same_shape(const Tensor& a, const Tensor& b);

// The leading `rank` dimensions of `tensor`.
std::vector<int64_t> leading_sizes(const Tensor& tensor, int64_t rank);
int64_t product(const std::vector<int64_t>& sizes);

Tensor new_empty(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype);
// The tensor itself where it is contiguous, else a copy.
Tensor dense(const Tensor& tensor);
inline Tensor not_wanted(const Tensor& like) { return new_empty(like, {0}, like.scalar_type()); }

// A tensor [*batch, D] or [*batch, 2, D] as rows. Holds what the view points to: the tensor (a
// contiguous copy of it if the latents have no unit stride) and, if the leading dimensions do not
// collapse to one stride, the start of every row; where the host does not read, a copy instead.
class RowsOf {
 public:
  RowsOf(const Tensor& tensor, int planes, const char* name);

  cpu::Rows view() const;
  const std::vector<int64_t>& batch() const { return batch_; }
  int64_t width() const { return width_; }
  int64_t count() const { return count_; }

 private:
  Tensor tensor_;
  cpu::DType dtype_;
  std::vector<int64_t> batch_;
  std::vector<int64_t> offsets_;
  int64_t width_ = 0, count_ = 1, stride_ = 0, plane_stride_ = 0;
};

// b, or a class table: its dtype must be that of a, or float32 beside a half type.
void check_message_dtype(const Tensor& a, const Tensor& b, const char* name);

// Every tensor must live where `a` does.
void check_device(const Tensor& tensor, const Tensor& a, const char* name);

// int64 labels of shape `batch`, contiguous; every one in [0, classes) where the host reads.
Tensor checked_labels(const Tensor& labels, const std::vector<int64_t>& batch, int64_t classes);

// A tensor of the accumulate dtype and the given shape (weight, bias, grad, residual); contiguous.
Tensor checked_accumulate(const Tensor& tensor, const Tensor& a, const std::vector<int64_t>& shape,
                          const char* name);

// CPU only.
void parallel_for(int64_t size, int64_t grain, void (*body)(int64_t, int64_t, void*),
                  void* context);

// The address of an optional tensor's data, or nullptr if there is no tensor. An empty tensor has
// no address; it still counts as given.
inline const void* data_or_null(const std::optional<Tensor>& tensor) {
  static const double nothing = 0;
  if (!tensor) return nullptr;
  const void* data = tensor->const_data_ptr();
  return data ? data : &nothing;
}

}  // namespace bll::binding
