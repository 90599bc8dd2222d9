// Class losses of whole batches on every instruction set: rows, classes and widths around the sizes
// of the kernels' blocks, weights, reductions, strides, half types and work sharing, each against
// the definition in long double.
#include <algorithm>
#include <string>

#include "class_run.h"

namespace {

using namespace bll;
using namespace bll::cpu;
using namespace bll::test;

Batch make_batch(const ClassShape& s, DType dtype) {
  auto a = normal_numbers<double>(s.rows * s.row_size(), 1, 1.5);
  auto table = normal_numbers<double>(s.classes * s.row_size(), 2, s.width > 100 ? 0.2 : 0.7);
  std::vector<int64_t> labels(s.rows);
  std::mt19937 engine(3);
  for (auto& y : labels) y = static_cast<int64_t>(engine() % s.classes);
  const bool none = s.reduction == Reduction::kNone;
  return {Stored(a, dtype),
          Stored(table, dtype),
          std::move(labels),
          normal_numbers<double>(s.weighted ? s.rows : 0, 4),
          normal_numbers<double>(s.upstream ? (none ? s.rows : 1) : 0, 5),
          normal_numbers<double>(s.biased ? s.classes : 0, 6)};
}

template <class Got>
void expect_all(const Got& got, const std::vector<Exact>& want, double floor, DType dtype,
                const std::string& what) {
  for (size_t i = 0; i < want.size(); ++i) {
    const double expected = static_cast<double>(want[i]);
    expect_near(got[i], expected, stored_error(expected, dtype) + floor, what.c_str());
  }
}

double largest(const std::vector<Exact>& numbers) {
  Exact found = 0;
  for (const Exact x : numbers) found = std::max(found, fabsl(x));
  return static_cast<double>(found);
}

template <class Real>
void check(const ClassShape& s, DType dtype, const std::string& on) {
  const std::string what = std::string(kFamilies[static_cast<int>(s.family.id)].name) + " " +
                           std::to_string(s.rows) + " rows, " + std::to_string(s.classes) +
                           " classes, " + std::to_string(s.width) + " latents, " +
                           dtype_name(dtype) + " on " + on + ": ";
  const Batch batch = make_batch(s, dtype);
  ClassInputs in;
  for (int64_t i = 0; i < s.rows * s.row_size(); ++i) in.a.push_back(batch.a[i]);
  for (int64_t i = 0; i < s.classes * s.row_size(); ++i) in.table.push_back(batch.table[i]);
  for (const Real x : cast<Real>(batch.weight)) in.weight.push_back(x);
  for (const Real x : cast<Real>(batch.grad)) in.grad.push_back(x);
  for (const Real x : cast<Real>(batch.bias)) in.bias.push_back(x);
  in.labels = batch.labels;
  const ClassTruth want = class_truth(s, in);
  const auto got = run<Real>(s, batch, dense(batch.a, s, s.rows), dense(batch.table, s, s.classes),
                             run_serially);
  const auto again = run<Real>(s, batch, dense(batch.a, s, s.rows),
                               dense(batch.table, s, s.classes), run_backwards);
  expect(same(got, again), (what + "same bits however the work is shared").c_str());

  const double epsilon = sizeof(Real) == 4 ? 2e-6 : 1e-14;
  const double size = static_cast<double>(want.size) + 1;
  const double each = epsilon * size * (1 + largest(in.weight)) * (1 + largest(in.grad)) /
                      (s.reduction == Reduction::kBatchMean ? static_cast<double>(s.rows) : 1.0);
  const double slope = (1 + largest(in.a) + largest(in.table)) * (1 + s.family.tilt);
  const double total = each * static_cast<double>(s.rows);
  const DType accumulate = sizeof(Real) == 4 ? DType::kFloat32 : DType::kFloat64;
  expect_all(got.value, want.value, s.reduction == Reduction::kNone ? each : total, accumulate,
             what + "value");
  expect_all(got.residual, want.residual, each, accumulate, what + "residual");
  expect_all(got.da, want.da, each * slope, dtype, what + "da");
  expect_all(got.dtable, want.dtable, total * slope, dtype, what + "dtable");
  expect_all(got.dbias, want.dbias, total, accumulate, what + "dbias");
}

// Rows at offsets, last first, and a table with gaps, equal contiguous memory bit for bit.
void check_strides(const ClassShape& s) {
  const Batch batch = make_batch(s, DType::kFloat32);
  const auto want = run<float>(s, batch, dense(batch.a, s, s.rows),
                               dense(batch.table, s, s.classes), run_serially);
  const int64_t plane = s.width + 3, stride = s.planes() * plane + 1;
  const auto spread = [&](const Stored& from, int64_t count, bool reversed) {
    std::vector<double> to(count * stride, kNan);
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t k = 0; k < s.row_size(); ++k) {
        const int64_t at = (reversed ? count - 1 - i : i) * stride + k / s.width * plane;
        to[at + k % s.width] = from[i * s.row_size() + k];
      }
    }
    return Stored(to, DType::kFloat32);
  };
  const Stored a = spread(batch.a, s.rows, true), table = spread(batch.table, s.classes, false);
  const auto before = a.bytes();
  std::vector<int64_t> offsets(s.rows);
  for (int64_t i = 0; i < s.rows; ++i) offsets[i] = (s.rows - 1 - i) * stride;
  const Rows rows{a.data(), DType::kFloat32, s.rows, 0, plane, offsets.data()};
  const Rows classes{table.data(), DType::kFloat32, s.classes, stride, plane, nullptr};
  expect(same(run<float>(s, batch, rows, classes, run_serially), want),
         "rows at offsets equal contiguous rows, bit for bit");
  expect(a.bytes() == before, "inputs are not written");
}

void check_empty(const ClassShape& shape) {
  for (const Reduction reduction : {Reduction::kNone, Reduction::kSum, Reduction::kBatchMean}) {
    ClassShape s = shape;
    s.reduction = reduction;
    s.weighted = s.upstream = false;
    s.rows = 0;
    const Batch batch = make_batch(s, DType::kFloat32);
    const auto got =
        run<float>(s, batch, dense(batch.a, s, 0), dense(batch.table, s, s.classes), run_serially);
    for (const float x : got.value) expect(x == 0, "no rows: value 0");
    for (const float x : got.dbias) expect(x == 0, "no rows: gradient of the bias 0");
    for (int64_t i = 0; i < s.classes * s.row_size(); ++i) {
      expect(got.dtable[i] == 0, "no rows: gradient of the table 0");
    }
  }
}

}  // namespace

int main() {
  for (int i = 0; i < isa_count(); ++i) {
    select_isa(isa_name(i));
    for (const FamilyInfo& family : kFamilies) {
      const bool dense_message = family.id == FamilyId::kGaussianPrecision || family.planes == 2;
      const FamilyArgs args{family.id, 11, 0.5, dense_message ? 1.0 : 1.25};
      ClassShape odd{args, 23, 13, 77};
      odd.normalize = odd.weighted = odd.upstream = odd.biased = true;
      ClassShape wide{args, 3, 3, 1111};
      ClassShape many{args, 1100, 2, 22, true, Reduction::kSum};
      ClassShape classes{args, 9, 101, 66, false, Reduction::kNone};
      classes.upstream = true;
      const ClassShape one{args, 5, 1, 11};
      const ClassShape panels{args, 139, 17, 77};  // rows of two panels, the last of them few
      const ClassShape tiles{args, 6, 17, 308};    // two tiles of latents
      for (const ClassShape& s : {odd, wide, many, classes, one, panels, tiles}) {
        check<float>(s, DType::kFloat32, isa_name(i));
        check<double>(s, DType::kFloat64, isa_name(i));
      }
      for (const DType half : {DType::kBFloat16, DType::kFloat16}) {
        check<float>(odd, half, isa_name(i));
        check<float>(classes, half, isa_name(i));
      }
      check_strides(odd);
      check_empty(odd);
    }
  }
  return finish("test_class_rows");
}
