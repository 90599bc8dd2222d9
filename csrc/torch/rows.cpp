#include "torch/rows.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>
#include <torch/csrc/stable/library.h>

#include "torch/device.h"

namespace bll::binding {

namespace {

std::string shape_string(const std::vector<int64_t>& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

bool has_shape(const Tensor& tensor, const std::vector<int64_t>& sizes) {
  return leading_sizes(tensor, tensor.dim()) == sizes;
}

// The one stride that walks over all leading dimensions, if there is one.
std::optional<int64_t> collapsed_stride(const Tensor& tensor, int64_t rank) {
  std::optional<int64_t> stride;
  int64_t next = 0;
  for (int64_t dim = rank - 1; dim >= 0; --dim) {
    if (tensor.size(dim) == 1) continue;
    if (!stride) {
      stride = tensor.stride(dim);
    } else if (tensor.stride(dim) != next) {
      return std::nullopt;
    }
    next = tensor.stride(dim) * tensor.size(dim);
  }
  return stride ? stride : 0;
}

std::vector<int64_t> row_offsets(const Tensor& tensor, int64_t rank, int64_t count) {
  std::vector<int64_t> offsets(count);
  std::vector<int64_t> index(rank, 0);
  int64_t offset = 0;
  for (int64_t row = 0; row < count; ++row) {
    offsets[row] = offset;
    for (int64_t dim = rank - 1; dim >= 0; --dim) {
      offset += tensor.stride(dim);
      if (++index[dim] < tensor.size(dim)) break;
      offset -= tensor.stride(dim) * tensor.size(dim);
      index[dim] = 0;
    }
  }
  return offsets;
}

}  // namespace

cpu::DType dtype_of(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      STD_TORCH_CHECK(device::kFloat64, name,
                      ": expected float32, bfloat16 or float16 for the CUDA kernels, got float64 "
                      "(the reference backend takes it)");
      return cpu::DType::kFloat64;
    case ScalarType::Float:
      return cpu::DType::kFloat32;
    case ScalarType::BFloat16:
      return cpu::DType::kBFloat16;
    case ScalarType::Half:
      return cpu::DType::kFloat16;
    default:
      STD_TORCH_CHECK(false, name, ": expected float64, float32, bfloat16 or float16, got ",
                      torch::headeronly::toString(tensor.scalar_type()));
  }
}

ScalarType accumulate_type(const Tensor& a) {
  return a.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

std::string shape_string(const Tensor& tensor) {
  return shape_string(leading_sizes(tensor, tensor.dim()));
}

bool same_shape(const Tensor& a, const Tensor& b) {
  return has_shape(b, leading_sizes(a, a.dim()));
}

std::vector<int64_t> leading_sizes(const Tensor& tensor, int64_t rank) {
  const auto sizes = tensor.sizes();
  return {sizes.begin(), sizes.begin() + rank};
}

int64_t product(const std::vector<int64_t>& sizes) {
  int64_t count = 1;
  for (const int64_t size : sizes) count *= size;
  return count;
}

// Straight to the operator: torch::stable::new_empty looks it up by its name at every call, which
// takes longer than the kernels of a small block.
Tensor new_empty(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  int32_t code = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle made = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_aten_new_empty(like.get(), sizes.data(),
                                                   static_cast<int64_t>(sizes.size()), &code,
                                                   nullptr, nullptr, -1, nullptr, &made));
  return Tensor(made);
}

Tensor dense(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

RowsOf::RowsOf(const Tensor& tensor, int planes, const char* name)
    : tensor_(tensor), dtype_(dtype_of(tensor, name)) {
  const int64_t inner = planes > 1 ? 2 : 1;
  STD_TORCH_CHECK(tensor.dim() >= inner, name, ": expected at least ", inner,
                  " dimensions, got shape ", shape_string(tensor));
  const int64_t rank = tensor.dim() - inner;
  STD_TORCH_CHECK(planes == 1 || tensor.size(rank) == planes, name, ": expected ", planes,
                  " planes before the latents, got shape ", shape_string(tensor));
  batch_ = leading_sizes(tensor, rank);
  width_ = tensor.size(tensor.dim() - 1);
  count_ = product(batch_);
  if (width_ > 1 && tensor.stride(tensor.dim() - 1) != 1) {
    tensor_ = dense(tensor);
  }
  const auto stride = collapsed_stride(tensor_, rank);
  if (count_ > 0 && !stride) {
    if (device::kHostReads) {
      offsets_ = row_offsets(tensor_, rank, count_);
    } else {
      tensor_ = dense(tensor_);
    }
  }
  stride_ = stride ? *stride : planes * width_;
  plane_stride_ = planes > 1 ? tensor_.stride(rank) : 0;
}

cpu::Rows RowsOf::view() const {
  return {tensor_.const_data_ptr(),
          dtype_,
          count_,
          stride_,
          plane_stride_,
          offsets_.empty() ? nullptr : offsets_.data()};
}

void check_message_dtype(const Tensor& a, const Tensor& b, const char* name) {
  const ScalarType of_a = a.scalar_type(), of_b = b.scalar_type();
  const bool half = of_a == ScalarType::BFloat16 || of_a == ScalarType::Half;
  STD_TORCH_CHECK(of_b == of_a || (half && of_b == ScalarType::Float), name,
                  ": expected the dtype of a (", torch::headeronly::toString(of_a),
                  half ? ") or float32, got " : "), got ", torch::headeronly::toString(of_b));
}

void check_device(const Tensor& tensor, const Tensor& a, const char* name) {
  const bool same =
      tensor.is_cuda() == a.is_cuda() && tensor.get_device_index() == a.get_device_index();
  STD_TORCH_CHECK(same, name, ": expected a tensor on the device of a");
}

Tensor checked_labels(const Tensor& labels, const std::vector<int64_t>& batch, int64_t classes) {
  STD_TORCH_CHECK(labels.scalar_type() == ScalarType::Long, "labels: expected int64, got ",
                  torch::headeronly::toString(labels.scalar_type()));
  STD_TORCH_CHECK(has_shape(labels, batch), "labels: expected shape ", shape_string(batch),
                  ", got ", shape_string(labels));
  Tensor dense_labels = dense(labels);
  if (!device::kHostReads) return dense_labels;
  const int64_t* values = static_cast<const int64_t*>(dense_labels.const_data_ptr());
  for (int64_t i = 0, count = dense_labels.numel(); i < count; ++i) {
    STD_TORCH_CHECK(values[i] >= 0 && values[i] < classes, "labels: expected values in [0, ",
                    classes, "), got ", values[i]);
  }
  return dense_labels;
}

Tensor checked_accumulate(const Tensor& tensor, const Tensor& a, const std::vector<int64_t>& shape,
                          const char* name) {
  STD_TORCH_CHECK(tensor.scalar_type() == accumulate_type(a), name, ": expected ",
                  torch::headeronly::toString(accumulate_type(a)), ", got ",
                  torch::headeronly::toString(tensor.scalar_type()));
  STD_TORCH_CHECK(has_shape(tensor, shape), name, ": expected shape ", shape_string(shape),
                  ", got ", shape_string(tensor));
  return dense(tensor);
}

}  // namespace bll::binding
