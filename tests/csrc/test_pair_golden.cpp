// Every instruction set and accumulate type against the tables computed with 140 digits.
#include <algorithm>
#include <cfloat>
#include <limits>

#include "golden.h"
#include "inputs.h"

namespace {

using namespace bll;
using namespace bll::cpu;
using namespace bll::test;

constexpr int kCopies = 37;  // of each latent: vector bodies and their remainders see it

double largest(const std::vector<double>& numbers) {
  double found = 0;
  for (const double x : numbers) found = std::max(found, std::fabs(x));
  return found;
}

// Latents of one line: kCopies groups, or kCopies columns per plane.
template <class Real>
std::vector<Real> repeat(const std::vector<double>& numbers, bool grouped) {
  std::vector<Real> out;
  const size_t outer = grouped ? kCopies : numbers.size();
  for (size_t i = 0; i < outer; ++i) {
    const size_t inner = grouped ? numbers.size() : kCopies;
    for (size_t j = 0; j < inner; ++j) out.push_back(static_cast<Real>(numbers[grouped ? j : i]));
  }
  return out;
}

template <class Real>
void expect_gradient(const std::vector<Real>& got, const std::vector<double>& want, double size,
                     bool grouped, const std::string& what) {
  const double floor = sizeof(Real) == 4 ? 2e-6 * size + 1e-36 : 1e-12 * size + 1e-100;
  for (size_t i = 0; i < got.size(); ++i) {
    const double expected = want[grouped ? i % want.size() : i / kCopies];
    const double relative = sizeof(Real) == 4 ? 3e-6 : 1e-12;
    expect_near(got[i], expected, relative * std::fabs(expected) + floor, what.c_str());
  }
}

template <class Real>
void check_line(const FamilyInfo& family, const GoldenLine& line, const std::string& what) {
  const bool grouped = family.id == FamilyId::kCategorical;
  const DType dtype = sizeof(Real) == 4 ? DType::kFloat32 : DType::kFloat64;
  const auto a = repeat<Real>(line.a, grouped), b = repeat<Real>(line.b, grouped);
  const int64_t group = grouped ? static_cast<int64_t>(line.a.size()) : 1;
  const int64_t width = kCopies * group;
  Real value = std::numeric_limits<Real>::quiet_NaN();
  std::vector<Real> da(a.size(), value), db(b.size(), value);
  PairArgs args{};
  args.family = {family.id, group, line.tau, 1.0};
  args.loss = line.loss;
  args.reduction = Reduction::kSum;
  args.width = width;
  args.a = {a.data(), dtype, 1, width * family.planes, width, nullptr};
  args.b = {b.data(), dtype, 1, width * family.planes, width, nullptr};
  args.value = &value;
  args.grad_a = da.data();
  args.grad_b = db.data();
  pair_loss(args, run_serially);
  const double relative = sizeof(Real) == 4 ? 3e-6 : 1e-12;
  const double floor = sizeof(Real) == 4 ? 1e-36 : 1e-290;
  const double total = kCopies * line.value;
  expect_near(value, total, relative * std::fabs(total) + floor, (what + " value").c_str());
  if (line.loss != Loss::kEvidence) expect(value >= 0, (what + " is not negative").c_str());
  // A gradient near its zero is a difference of terms as large as the others.
  double size = line.da.size() > 1 ? std::max(largest(line.da), largest(line.db)) : 0;
  // A full gradient crosses zero where v b meets mu(r) - mu(a); the value, smaller than both, does
  // not.
  if (line.loss == Loss::kKlFull || line.loss == Loss::kReverseKlFull) {
    size = std::max(size, line.value);
  }
  expect_gradient(da, line.da, size, grouped, what + " da");
  expect_gradient(db, line.db, size, grouped, what + " db");
}

}  // namespace

int main(int argc, char** argv) {
  const std::string folder = argc > 1 ? argv[1] : BLL_GOLDEN_DIR;
  for (const FamilyInfo& family : kFamilies) {
    const auto lines = read_golden(folder + "/" + family.name + ".tsv");
    expect(lines.size() >= 50, "the table has its lines");
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
  return finish("test_pair_golden");
}
