// Class losses of extreme latents on every instruction set, against the definition in long double:
// far beyond what a probability can show, beside ordinary numbers, infinite and NaN.
#include <algorithm>
#include <string>

#include "class_run.h"

namespace {

using namespace bll;
using namespace bll::cpu;
using namespace bll::test;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Ordinary numbers with every 5th latent and every 7th message replaced, so that each meets each;
// of infinite ones a row's or class's first alone, so that the definition has something to say:
// latents of both signs, and messages that rule a latent's state out.
Batch make_batch(const ClassShape& s, double latent, double message) {
  auto a = normal_numbers<double>(s.rows * s.row_size(), 1);
  auto table = normal_numbers<double>(s.classes * s.row_size(), 2, 0.5);
  const bool far = std::isinf(latent), ruled_out = std::isinf(message);
  // Log-variances, the second plane, stay within what long double can show.
  const double range = s.planes() == 2 ? 1.0 / 8 : 1.0;
  for (size_t i = 0; i < a.size() && !far; i += 5) a[i] = (i % 2 ? latent : -latent) * range;
  for (size_t i = 0; i < table.size() && !ruled_out; i += 7) {
    table[i] = (i % 2 ? message : -message) * range;
  }
  for (int64_t r = 0; r < 2 && far; ++r) a[r * s.row_size()] = r ? -latent : latent;
  for (int64_t c = 0; c < s.classes && ruled_out; ++c) table[c * s.row_size() + c] = -message;
  std::vector<int64_t> labels(s.rows);
  for (int64_t i = 0; i < s.rows; ++i) labels[i] = i * 5 % s.classes;
  return {
      Stored(a, DType::kFloat32), Stored(table, DType::kFloat32), std::move(labels), {}, {}, {}};
}

// Where subtracting infinities leaves the definition without a number, it says nothing.
template <class Got>
void expect_all(const Got& got, const std::vector<Exact>& want, double tolerance,
                const std::string& what) {
  for (size_t i = 0; i < want.size(); ++i) {
    if (std::isnan(want[i])) continue;
    const double expected = static_cast<double>(want[i]);
    const double rounding = std::isfinite(expected) ? 1e-6 * std::fabs(expected) : 0;
    expect_near(static_cast<double>(got[i]), expected, tolerance + rounding, what.c_str());
  }
}

void check(const ClassShape& s, double latent, double message) {
  const std::string what = std::string(kFamilies[static_cast<int>(s.family.id)].name) +
                           ", latents " + std::to_string(latent) + ", messages " +
                           std::to_string(message) + ", " + std::to_string(s.classes) +
                           " classes on ";
  const Batch batch = make_batch(s, latent, message);
  ClassInputs in;
  for (int64_t i = 0; i < s.rows * s.row_size(); ++i) in.a.push_back(batch.a[i]);
  for (int64_t i = 0; i < s.classes * s.row_size(); ++i) in.table.push_back(batch.table[i]);
  in.labels = batch.labels;
  const ClassTruth want = class_truth(s, in);
  const bool finite = std::isfinite(latent) && std::isfinite(message);
  // A score's rounding moves probabilities by as much, and gradients by that times their slopes.
  const double each = 1e-6 * (static_cast<double>(want.size) + 1), residual = std::min(each, 1.0);
  const double slope = 2 * static_cast<double>(want.slope);
  for (int i = 0; i < isa_count(); ++i) {
    select_isa(isa_name(i));
    const auto got = run<float>(s, batch, dense(batch.a, s, s.rows),
                                dense(batch.table, s, s.classes), run_serially);
    const std::string on = what + isa_name(i) + ": ";
    for (const float x : got.value) expect(std::isfinite(x) || !finite, (on + "finite").c_str());
    expect_all(got.value, want.value, each, on + "value");
    expect_all(got.residual, want.residual, residual, on + "residual");
    expect_all(got.da, want.da, residual * slope, on + "da");
    expect_all(got.dtable, want.dtable, residual * slope * static_cast<double>(s.rows),
               on + "dtable");
  }
}

// A row that is not a number spoils its own loss and the table's sums, and no other row.
void check_nan(const ClassShape& s) {
  Batch batch = make_batch(s, 1, 1);
  std::vector<double> a;
  for (int64_t i = 0; i < s.rows * s.row_size(); ++i) a.push_back(batch.a[i]);
  a[s.row_size() + 2] = kNan;
  batch.a = Stored(a, DType::kFloat32);
  const auto got = run<float>(s, batch, dense(batch.a, s, s.rows), dense(batch.table, s, s.classes),
                              run_serially);
  for (int64_t i = 0; i < s.rows; ++i) {
    expect(std::isnan(got.value[i]) == (i == 1), "a NaN spoils the loss of its own row alone");
    expect(std::isnan(got.da[i * s.row_size() + 2]) == (i == 1), "and its gradient");
  }
  expect(std::isnan(got.dtable[2]), "a NaN reaches the table's sums");
}

}  // namespace

int main() {
  const double sizes[] = {1, 60, 300, kInfinity};
  for (const FamilyInfo& family : kFamilies) {
    for (const int64_t classes : {3, 17}) {
      const ClassShape s{{family.id, 11, 0.5, 1.0}, 19, classes, 44, false, Reduction::kNone};
      for (const double latent : sizes) {
        for (const double message : sizes) check(s, latent, message);
      }
      for (int i = 0; i < isa_count(); ++i) {
        select_isa(isa_name(i));
        check_nan(s);
      }
    }
  }
  return finish("test_class_extremes");
}
