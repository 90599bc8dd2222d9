// Class losses on every instruction set and accumulate type against the tables of 140 digits.
#include <algorithm>
#include <string>

#include "golden.h"
#include "inputs.h"

namespace {

using namespace bll;
using namespace bll::cpu;
using namespace bll::test;

double largest(const std::vector<double>& numbers) {
  double found = 0;
  for (const double x : numbers) found = std::max(found, std::fabs(x));
  return found;
}

// Rows of the line, all equal: blocks of rows and what is left of them see it.
constexpr int64_t kRows = 19;

// A wrong digit of a score moves every probability by that much, so errors are measured against
// the scores, the residuals and the slopes.
template <class Real>
struct Tolerance {
  double relative = sizeof(Real) == 4 ? 1e-5 : 1e-10;
  double absolute = sizeof(Real) == 4 ? 1e-6 : 1e-14;

  double of(double want, double size, double factor) const {
    const double smallest = std::max<double>(4 * factor * std::numeric_limits<Real>::min(), 1e-99);
    return relative * std::fabs(want) + absolute * size + smallest;
  }
};

template <class Real>
std::vector<Real> rounded(const std::vector<double>& numbers, int64_t copies = 1) {
  std::vector<Real> out;
  for (int64_t i = 0; i < copies; ++i) out.insert(out.end(), numbers.begin(), numbers.end());
  return out;
}

template <class Real>
void check_line(const FamilyInfo& family, const GoldenClass& line, const std::string& what) {
  const DType dtype = sizeof(Real) == 4 ? DType::kFloat32 : DType::kFloat64;
  const int64_t row = static_cast<int64_t>(line.a.size()), width = row / family.planes;
  const int64_t classes = static_cast<int64_t>(line.bias.size());
  const auto a = rounded<Real>(line.a, kRows), table = rounded<Real>(line.table);
  const auto bias = rounded<Real>(line.bias);
  const std::vector<int64_t> labels(kRows, line.label);
  std::vector<Real> value(kRows), residual(kRows * classes), da(a.size()), dtable(table.size()),
      dbias(classes);
  ClassArgs args{};
  args.family = {family.id, width, line.tau, 1.0};
  args.reduction = Reduction::kNone;
  args.normalize_message = line.normalize;
  args.width = width;
  args.a = {a.data(), dtype, kRows, row, width, nullptr};
  args.table = {table.data(), dtype, classes, row, width, nullptr};
  args.labels = labels.data();
  args.bias = bias.data();
  args.value = value.data();
  args.residual = residual.data();
  args.grad_a = da.data();
  args.grad_table = dtable.data();
  args.grad_bias = dbias.data();
  class_loss_forward(args, run_serially);
  class_loss_backward(args, run_serially);

  const Tolerance<Real> tolerance;
  // The label's own score is the one the value is measured from.
  const double size = 1 + largest(line.a) * largest(line.table) * width + line.value +
                      largest(line.table) * largest(line.table) * width + largest(line.bias);
  const double off = largest(line.dbias);
  const double slope = (1 + largest(line.a) + largest(line.table)) * std::max(1.0, line.tau);
  for (int64_t i = 0; i < kRows; ++i) {
    expect_near(value[i], line.value, tolerance.of(line.value, size, 1), (what + " value").c_str());
    for (int64_t c = 0; c < classes; ++c) {
      expect_near(residual[i * classes + c], line.dbias[c],
                  tolerance.of(line.dbias[c], size * off, 1), (what + " residual").c_str());
    }
    for (int64_t j = 0; j < row; ++j) {
      expect_near(da[i * row + j], line.da[j], tolerance.of(line.da[j], size * slope * off, slope),
                  (what + " da").c_str());
    }
  }
  for (size_t j = 0; j < dtable.size(); ++j) {
    const double want = kRows * line.dtable[j];
    expect_near(dtable[j], want, tolerance.of(want, kRows * size * slope * off, kRows * slope),
                (what + " dtable").c_str());
  }
  for (int64_t c = 0; c < classes; ++c) {
    const double want = kRows * line.dbias[c];
    expect_near(dbias[c], want, tolerance.of(want, kRows * size * off, kRows),
                (what + " dbias").c_str());
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::string folder = argc > 1 ? argv[1] : BLL_GOLDEN_DIR;
  for (const FamilyInfo& family : kFamilies) {
    const auto lines = read_golden_classes(folder + "/class_" + family.name + ".tsv");
    expect(lines.size() >= 20, "the table has its lines");
    for (int i = 0; i < isa_count(); ++i) {
      expect(select_isa(isa_name(i)), "the instruction set can be selected");
      for (size_t k = 0; k < lines.size(); ++k) {
        const std::string what =
            std::string(family.name) + " point " + std::to_string(k + 1) + " on " + isa_name(i);
        check_line<float>(family, lines[k], what + " in float");
        check_line<double>(family, lines[k], what + " in double");
      }
    }
  }
  return finish("test_class_golden");
}
