// Rows, labels, weights, reductions, strides, half types and work sharing around the pair losses:
// each against the same loss taken row by row.
#include <string>

#include "inputs.h"

namespace {

using namespace bll;
using namespace bll::cpu;
using namespace bll::test;

struct Shape {
  FamilyId id;
  int64_t rows, width, classes, group;
  int planes() const { return family_planes(id); }
};

Rows dense_rows(const void* data, DType dtype, const Shape& s, int64_t count) {
  return {data, dtype, count, s.width * s.planes(), s.width, nullptr};
}

PairArgs make_args(const Shape& s, Loss loss, Reduction reduction, const float* a, const float* b,
                   int64_t b_rows) {
  PairArgs args{};
  args.family = {s.id, s.group, 0.5, 1.25};
  args.loss = loss;
  args.reduction = reduction;
  args.width = s.width;
  args.a = dense_rows(a, DType::kFloat32, s, s.rows);
  args.b = dense_rows(b, DType::kFloat32, s, b_rows);
  return args;
}

struct Result {
  std::vector<float> value, da, db;
};

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t kGuard = 16;  // NaN behind each output: a kernel must not write there

Result run(PairArgs args, int64_t b_rows, ParallelFor parallel_for = run_serially) {
  const int64_t planes = family_planes(args.family.id), row = args.width * planes;
  const int64_t values = args.reduction == Reduction::kNone ? args.a.count : 1;
  Result out{std::vector<float>(values + kGuard, kNan),
             std::vector<float>(args.a.count * row + kGuard, kNan),
             std::vector<float>(b_rows * row + kGuard, kNan)};
  args.value = out.value.data();
  args.grad_a = out.da.data();
  args.grad_b = out.db.data();
  pair_loss(args, parallel_for);
  for (std::vector<float>* v : {&out.value, &out.da, &out.db}) {
    for (int64_t i = 0; i < kGuard; ++i) {
      expect(std::isnan((*v)[v->size() - kGuard + i]), "nothing is written behind an output");
    }
    v->resize(v->size() - kGuard);
    for (const float x : *v) expect(std::isfinite(x), "every output is written");
  }
  return out;
}

void expect_all_near(const std::vector<float>& got, const std::vector<double>& want,
                     double tolerance, const std::string& what) {
  expect(got.size() == want.size(), what.c_str());
  for (size_t i = 0; i < got.size(); ++i) {
    expect_near(got[i], want[i], tolerance * (1 + std::fabs(want[i])), what.c_str());
  }
}

// Table and labels, weights and upstream gradients, against one dense row after the other.
void check_table(const Shape& s, Loss loss, Reduction reduction) {
  const std::string what = std::string(kFamilies[static_cast<int>(s.id)].name) + " loss " +
                           std::to_string(static_cast<int>(loss)) + " with a table";
  const int64_t row = s.width * s.planes();
  const auto a = normal_numbers(s.rows * row, 1), table = normal_numbers(s.classes * row, 2);
  std::vector<int64_t> labels(s.rows);
  std::mt19937 engine(3);
  for (auto& y : labels) y = engine() % (s.classes > 1 ? s.classes - 1 : 1);  // one stays unused
  const auto weight = normal_numbers(s.rows, 4), grad = normal_numbers(s.rows, 5);

  PairArgs args = make_args(s, loss, reduction, a.data(), table.data(), s.classes);
  args.labels = labels.data();
  args.weight = weight.data();
  args.grad = grad.data();
  const Result got = run(args, s.classes);
  const Result again = run(args, s.classes, run_backwards);
  expect(same_bits(got.value, again.value) && same_bits(got.da, again.da) &&
             same_bits(got.db, again.db),
         (what + " has the same bits however the work is shared").c_str());

  const bool none = reduction == Reduction::kNone;
  std::vector<double> value(none ? s.rows : 1), da(s.rows * row), db(s.classes * row);
  for (int64_t i = 0; i < s.rows; ++i) {
    Shape one = s;
    one.rows = 1;
    const Result r =
        run(make_args(one, loss, Reduction::kNone, &a[i * row], &table[labels[i] * row], 1), 1);
    const double mean = reduction == Reduction::kBatchMean ? 1.0 / s.rows : 1.0;
    value[none ? i : 0] += mean * weight[i] * r.value[0];
    const double scale = mean * weight[i] * grad[none ? i : 0];
    for (int64_t j = 0; j < row; ++j) {
      da[i * row + j] = scale * r.da[j];
      db[labels[i] * row + j] += scale * r.db[j];
    }
  }
  expect_all_near(got.value, value, 2e-6 * std::sqrt(s.rows * row), what + ", value");
  expect_all_near(got.da, da, 1e-6, what + ", da");
  expect_all_near(got.db, db, 4e-6, what + ", db");
}

// Contiguous dense rows run as one long row; the sum and the gradients must not tell.
void check_flat(const Shape& s, Loss loss) {
  const int64_t size = s.rows * s.width * s.planes();
  const auto a = normal_numbers(size, 10), b = normal_numbers(size, 11);
  const Result rows = run(make_args(s, loss, Reduction::kNone, a.data(), b.data(), s.rows), s.rows);
  PairArgs args = make_args(s, loss, Reduction::kBatchMean, a.data(), b.data(), s.rows);
  const Result flat = run(args, s.rows);
  expect(same_bits(flat.value, run(args, s.rows, run_backwards).value), "the sum is repeatable");
  double mean = 0;
  for (const float x : rows.value) mean += x / static_cast<double>(s.rows);
  expect_near(flat.value[0], mean, 1e-6 * (s.width + std::fabs(mean)), "batchmean of dense rows");
  const auto per_row = [&](const std::vector<float>& x) {
    std::vector<double> out(x.begin(), x.end());
    for (double& y : out) y /= static_cast<double>(s.rows);
    return out;
  };
  expect_all_near(flat.da, per_row(rows.da), 1e-6, "da of dense rows");
  expect_all_near(flat.db, per_row(rows.db), 1e-6, "db of dense rows");
}

// Rows far apart, or at given offsets, equal rows side by side.
void check_strides(const Shape& s, Loss loss) {
  const int64_t row = s.width * s.planes(), stride = row + 5, plane = s.width + 2;
  const auto a = normal_numbers(s.rows * row, 6), b = normal_numbers(s.rows * row, 7);
  const Result want = run(make_args(s, loss, Reduction::kNone, a.data(), b.data(), s.rows), s.rows);
  std::vector<float> spread(s.rows * stride + 2, kNan);
  std::vector<int64_t> offsets(s.rows);
  for (int64_t i = 0; i < s.rows; ++i) {
    offsets[i] = (s.rows - 1 - i) * stride;
    for (int p = 0; p < s.planes(); ++p) {
      std::memcpy(&spread[offsets[i] + p * plane], &a[i * row + p * s.width],
                  s.width * sizeof(float));
    }
  }
  const auto before = spread;
  PairArgs args = make_args(s, loss, Reduction::kNone, spread.data(), b.data(), s.rows);
  args.a = {spread.data(), DType::kFloat32, s.rows, 0, plane, offsets.data()};
  const Result got = run(args, s.rows);
  expect(
      same_bits(got.value, want.value) && same_bits(got.da, want.da) && same_bits(got.db, want.db),
      "rows at offsets equal contiguous rows, bit for bit");
  expect(std::memcmp(before.data(), spread.data(), spread.size() * sizeof(float)) == 0,
         "inputs are not written");
}

// Half types: the float result on the rounded inputs, rounded once.
void check_half(const Shape& s, Loss loss, DType dtype) {
  const int64_t size = s.rows * s.width * s.planes();
  const bool brain = dtype == DType::kBFloat16;
  auto a = normal_numbers(size, 8), b = normal_numbers(size, 9);
  std::vector<uint16_t> a16(size), b16(size), da16(size), db16(size);
  for (int64_t i = 0; i < size; ++i) {
    a16[i] = brain ? to_bfloat16(a[i]) : to_float16(a[i]);
    b16[i] = brain ? to_bfloat16(b[i]) : to_float16(b[i]);
    a[i] = brain ? from_bfloat16(a16[i]) : from_float16(a16[i]);
    b[i] = brain ? from_bfloat16(b16[i]) : from_float16(b16[i]);
  }
  const Result want = run(make_args(s, loss, Reduction::kSum, a.data(), b.data(), s.rows), s.rows);
  PairArgs args = make_args(s, loss, Reduction::kSum, nullptr, nullptr, s.rows);
  float value = kNan;
  args.a = dense_rows(a16.data(), dtype, s, s.rows);
  args.b = dense_rows(b16.data(), dtype, s, s.rows);
  args.value = &value;
  args.grad_a = da16.data();
  args.grad_b = db16.data();
  pair_loss(args, run_backwards);
  expect_near(value, want.value[0], 1e-6 * std::fabs(want.value[0]), "value of half inputs");
  for (int64_t i = 0; i < size; ++i) {
    expect(da16[i] == (brain ? to_bfloat16(want.da[i]) : to_float16(want.da[i])),
           "da of half inputs is the float gradient rounded once");
    expect(db16[i] == (brain ? to_bfloat16(want.db[i]) : to_float16(want.db[i])),
           "db of half inputs is the float gradient rounded once");
  }
}

void check_empty(const Shape& s) {
  for (const Reduction reduction : {Reduction::kSum, Reduction::kBatchMean, Reduction::kNone}) {
    Shape none = s;
    none.rows = 0;
    const std::vector<float> table(s.classes * s.width * s.planes(), 1.0f);
    const int64_t* no_labels = reinterpret_cast<const int64_t*>(table.data());  // never read
    PairArgs args = make_args(none, Loss::kEvidence, reduction, nullptr, table.data(), s.classes);
    args.labels = no_labels;
    const Result got = run(args, s.classes);
    for (const float x : got.value) expect(x == 0, "no rows: value 0");
    for (const float x : got.db) expect(x == 0, "no rows: gradient of the table 0");
    Shape narrow = s;
    narrow.width = 0;
    const Result zero =
        run(make_args(narrow, Loss::kEvidence, reduction, nullptr, nullptr, s.rows), s.rows);
    for (const float x : zero.value) expect(x == 0, "no latents: value 0");
  }
}

}  // namespace

int main() {
  for (int i = 0; i < isa_count(); ++i) {
    select_isa(isa_name(i));
    for (const FamilyInfo& family : kFamilies) {
      const Shape small{family.id, 23, 66, 4, 11};
      const Shape wide{family.id, 3, 40007, 2, 40007};
      const Shape many{family.id, 700, 6, 3, 3};
      for (int l = 0; l < kLossCount; ++l) {
        const Loss loss = static_cast<Loss>(l);
        for (const Shape& s : {small, wide, many}) {
          check_table(s, loss, Reduction::kNone);
          check_table(s, loss, Reduction::kBatchMean);
        }
        for (const Shape& s : {small, wide, many}) check_flat(s, loss);
        check_strides(small, loss);
        check_half(small, loss, DType::kBFloat16);
        check_half(small, loss, DType::kFloat16);
        check_half(many, loss, DType::kBFloat16);
      }
      check_empty(small);
    }
  }
  return finish("test_pair_rows");
}
