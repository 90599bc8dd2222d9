#include "cuda/softmax.h"

#include <torch/csrc/stable/library.h>

#include "torch/device.h"
#include "torch/rows.h"

namespace bll::binding {

namespace {

Tensor softmax_rows(Tensor scores, Tensor labels, std::optional<Tensor> offset,
                    std::optional<Tensor> weight, Tensor slopes) {
  STD_TORCH_CHECK(
      scores.scalar_type() == ScalarType::Float && scores.dim() == 2 && scores.is_contiguous(),
      "scores: expected contiguous float32 [rows, classes], got shape ", shape_string(scores));
  STD_TORCH_CHECK(same_shape(scores, slopes) && slopes.is_contiguous(),
                  "slopes: expected contiguous memory of shape ", shape_string(scores), ", got ",
                  shape_string(slopes));
  check_device(labels, scores, "labels");
  check_device(slopes, scores, "slopes");
  if (offset) check_device(*offset, scores, "offset");
  if (weight) check_device(*weight, scores, "weight");
  cuda::SoftmaxRows args{};
  args.rows = scores.size(0);
  args.classes = scores.size(1);
  const Tensor dense = checked_labels(labels, {args.rows}, args.classes);
  if (offset) offset = checked_accumulate(*offset, scores, {args.classes}, "offset");
  if (weight) weight = checked_accumulate(*weight, scores, {args.rows}, "weight");
  Tensor losses = new_empty(scores, {args.rows}, ScalarType::Float);
  args.scores = static_cast<const float*>(scores.const_data_ptr());
  args.labels = static_cast<const int64_t*>(dense.const_data_ptr());
  args.offset = static_cast<const float*>(data_or_null(offset));
  args.weight = static_cast<const float*>(data_or_null(weight));
  args.losses = static_cast<float*>(losses.mutable_data_ptr());
  args.slopes = slopes.mutable_data_ptr();
  args.slopes_dtype = dtype_of(slopes, "slopes");
  device::softmax_rows(args, scores);
  return losses;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(BLL_OPS, BLL_DISPATCH_KEY, m) {
  m.impl("softmax_rows", TORCH_BOX(&softmax_rows));
}

}  // namespace bll::binding
