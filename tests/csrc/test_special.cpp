// Special functions against libm in extended precision, half conversions against their definition.
#include <cstdint>
#include <limits>
#include <random>

#include "check.h"
#include "core/special.h"
#include "cpu/half_tile.h"

namespace {

using namespace bll;
using namespace bll::cpu;
using namespace bll::test;

// Largest relative error of `f` against `truth` on [low, high], small arguments included.
template <class Real, class F, class G>
void check_function(const char* name, F f, G truth, double low, double high, double tolerance) {
  std::mt19937_64 engine(1);
  std::uniform_real_distribution<double> uniform(low, high), tiny(-6, 0);
  double worst = 0;
  for (int i = 0; i < 200000; ++i) {
    const Real x = static_cast<Real>(uniform(engine) * (i % 2 ? std::pow(10, tiny(engine)) : 1));
    const long double want = truth(static_cast<long double>(x));
    const long double size = std::fabs(want) + std::numeric_limits<Real>::min();
    worst = std::max(worst, static_cast<double>(std::fabs(f(x) - want) / size));
  }
  expect_near(worst, 0, tolerance, name);
}

template <class Real>
void check_functions(double tolerance) {
  const auto exp = [](long double x) { return std::exp(x); };
  const auto expm1 = [](long double x) { return std::expm1(x); };
  // Summed, not subtracted: the tail of the series keeps its digits.
  const auto expm1_rest_truth = [](long double x) {
    if (std::fabs(x) > 2) return std::expm1(x) - x;
    long double term = x * x / 2, sum = 0;
    for (int k = 3; k < 40; ++k) {
      sum += term;
      term *= x / k;
    }
    return sum;
  };
  const auto atanh_rest_truth = [](long double s) {
    long double power = s * s * s, sum = 0;
    for (int k = 3; k < 80; k += 2, power *= s * s) sum += power / k;
    return sum;
  };
  check_function<Real>(
      "exp_nonpositive", [](Real x) { return exp_nonpositive(x); }, exp, -86.9, 0, tolerance);
  check_function<Real>("exp_any", [](Real x) { return exp_any(x); }, exp, -85.9, 88.7, tolerance);
  check_function<Real>(
      "expm1_small", [](Real x) { return expm1_small(x); }, expm1, -0.5, 0.5, 2 * tolerance);
  check_function<Real>(
      "expm1_rest", [](Real x) { return expm1_rest(x); }, expm1_rest_truth, -0.5, 0.5,
      2 * tolerance);
  const double reach = sizeof(Real) == 4 ? 80 : 700;
  check_function<Real>(
      "growth_of.factor", [](Real x) { return growth_of(x).factor; }, exp, -reach, reach,
      2 * tolerance);
  check_function<Real>(
      "growth_of.growth", [](Real x) { return growth_of(x).growth; }, expm1, -reach, reach,
      2 * tolerance);
  check_function<Real>(
      "growth_of.growth", [](Real x) { return growth_of(x).growth; }, expm1, -1, 1, 2 * tolerance);
  check_function<Real>(
      "growth_of.rest", [](Real x) { return growth_of(x).rest; }, expm1_rest_truth, -reach, reach,
      8 * tolerance);
  check_function<Real>(
      "growth_of.rest", [](Real x) { return growth_of(x).rest; }, expm1_rest_truth, -1, 1,
      8 * tolerance);
  check_function<Real>(
      "expm1_rest_ratio", [](Real x) { return x * x * expm1_rest_ratio(x); }, expm1_rest_truth, -1,
      1, 2 * tolerance);
  check_function<Real>(
      "atanh", [](Real x) { return x + atanh_rest(x); },
      [](long double x) { return std::atanh(x); }, -1.0 / 3, 1.0 / 3, tolerance);
  check_function<Real>(
      "atanh_rest", [](Real x) { return atanh_rest(x); }, atanh_rest_truth, -1.0 / 3, 1.0 / 3,
      7 * tolerance);
  check_function<Real>(
      "log1p_nonnegative", [](Real x) { return log1p_nonnegative(x); },
      [](long double x) { return std::log1p(x); }, 0, 50, 2 * tolerance);
  check_function<Real>(
      "log1p_nonnegative", [](Real x) { return log1p_nonnegative(x); },
      [](long double x) { return std::log1p(x); }, 0, 3e38, 2 * tolerance);
}

void check_edges() {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  expect(std::isnan(exp_nonpositive(nan)) && std::isnan(exp_any(nan)), "exp of NaN");
  expect(std::isnan(log1p_nonnegative(nan)), "log1p of NaN");
  expect(exp_nonpositive(-inf) == 0, "exp_nonpositive(-inf)");
  expect(exp_any(-inf) == 0 && exp_any(inf) == inf, "exp_any(+-inf)");
  expect(exp_nonpositive(0.0f) == 1 && exp_any(0.0f) == 1, "exp(0)");
  expect(log1p_nonnegative(inf) == inf && log1p_nonnegative(0.0f) == 0, "log1p(inf), log1p(0)");
  for (const float x : {0.0f, -0.0f, 1.5f, -1.5f, inf, -inf}) {
    expect(mirror(3.0f, x) == (x > 0 ? -3.0f : 3.0f), "mirror");
    expect(mirror(3.0, static_cast<double>(x)) == (x > 0 ? -3.0 : 3.0), "mirror in double");
  }
}

// The float nearest to a half type's number, by the definition of the type.
double half_value(uint16_t bits, int fraction_bits, int bias) {
  const int exponent_bits = 15 - fraction_bits;
  const int exponent = (bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}

template <class From, class To>
void check_half(const char* name, From from, To to, int fraction_bits, int bias) {
  const uint16_t infinity =
      static_cast<uint16_t>(((1 << (15 - fraction_bits)) - 1) << fraction_bits);
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const uint16_t size = half & 0x7fff;
    if (size > infinity) {
      expect(std::isnan(from(half)) && (to(from(half)) & 0x7fff) > infinity, name);
      continue;
    }
    expect(to(from(half)) == half, name);
    if (size == infinity) continue;
    const double value = half_value(half, fraction_bits, bias);
    expect(from(half) == value, name);
    if (size + 1 > infinity) continue;
    // Halfway to the next number goes to the even one, beside it to the nearer one.
    const double next =
        size + 1 == infinity
            ? value * 2 - half_value(static_cast<uint16_t>(half - 1), fraction_bits, bias)
            : half_value(static_cast<uint16_t>(half + 1), fraction_bits, bias);
    const float middle = static_cast<float>((value + next) / 2);
    expect(to(middle) == (half & 1 ? half + 1 : half), name);
    const float away = half & 0x8000 ? -HUGE_VALF : HUGE_VALF;
    expect(to(std::nextafter(middle, -away)) == half, name);
    expect(to(std::nextafter(middle, away)) == half + 1, name);
  }
}

}  // namespace

int main() {
  check_functions<float>(1.25e-7);
  check_functions<double>(1e-15);
  check_edges();
  check_half("bfloat16", from_bfloat16, to_bfloat16, 7, 127);
  check_half("float16", from_float16, to_float16, 10, 15);
  return finish("test_special");
}
