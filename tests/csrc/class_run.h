// One class loss through the kernels' door: forward, backward, and guards behind every output.
#pragma once

#include "class_truth.h"
#include "inputs.h"

namespace bll::test {

using cpu::ClassArgs;
using cpu::DType;
using cpu::ParallelFor;
using cpu::Reduction;
using cpu::Rows;

struct Batch {
  Stored a, table;
  std::vector<int64_t> labels;
  std::vector<double> weight, grad, bias;  // in the accumulate type's range
};

template <class Real>
struct Result {
  std::vector<Real> value, residual, dbias;
  Stored da, dtable;
};

inline constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Outputs start as NaN, so that one that is not written fails; guards lie behind each.
inline constexpr int64_t kGuard = 16;

template <class Real>
void expect_guard(std::vector<Real>& x) {
  for (int64_t i = 0; i < kGuard; ++i) {
    expect(std::isnan(x[x.size() - 1 - i]), "nothing is written behind an output");
  }
  x.resize(x.size() - kGuard);
}

template <class Real>
std::vector<Real> cast(const std::vector<double>& x) {
  return std::vector<Real>(x.begin(), x.end());
}

inline Rows dense(const Stored& data, const ClassShape& s, int64_t count) {
  return {data.data(), data.dtype(), count, s.row_size(), s.width, nullptr};
}

template <class Real>
Result<Real> run(const ClassShape& s, const Batch& batch, const Rows& a, const Rows& table,
                 ParallelFor parallel_for) {
  const auto weight = cast<Real>(batch.weight), grad = cast<Real>(batch.grad);
  const auto bias = cast<Real>(batch.bias);
  const int64_t values = s.reduction == Reduction::kNone ? s.rows : 1;
  const auto nans = [](int64_t size) { return std::vector<Real>(size + kGuard, Real(kNan)); };
  const auto stored = [&](int64_t size) {
    return Stored(std::vector<double>(size + kGuard, kNan), a.dtype);
  };
  Result<Real> out{nans(values), nans(s.rows * s.classes), nans(s.classes),
                   stored(s.rows * s.row_size()), stored(s.classes * s.row_size())};
  ClassArgs args{};
  args.family = s.family;
  args.reduction = s.reduction;
  args.normalize_message = s.normalize;
  args.width = s.width;
  args.a = a;
  args.table = table;
  args.labels = batch.labels.data();
  args.bias = bias.empty() ? nullptr : bias.data();
  args.weight = weight.empty() ? nullptr : weight.data();
  args.grad = grad.empty() ? nullptr : grad.data();
  args.value = out.value.data();
  args.residual = out.residual.data();
  args.grad_a = out.da.data();
  args.grad_table = out.dtable.data();
  args.grad_bias = out.dbias.data();
  class_loss_forward(args, parallel_for);
  class_loss_backward(args, parallel_for);
  for (auto* x : {&out.value, &out.residual, &out.dbias}) expect_guard(*x);
  for (int64_t i = 0; i < kGuard; ++i) {
    expect(std::isnan(out.da[s.rows * s.row_size() + i]), "nothing is written behind da");
    expect(std::isnan(out.dtable[s.classes * s.row_size() + i]), "nothing behind dtable");
  }
  return out;
}

template <class Real>
bool same(const Result<Real>& x, const Result<Real>& y) {
  return same_bits(x.value, y.value) && same_bits(x.residual, y.residual) &&
         same_bits(x.dbias, y.dbias) && x.da.bytes() == y.da.bytes() &&
         x.dtable.bytes() == y.dtable.bytes();
}

}  // namespace bll::test
