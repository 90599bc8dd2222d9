// Standardised channels on every instruction set: values, scales and gradients against their
// definition in long double.
#include <string>

#include "inputs.h"

namespace {

using namespace bll;
using namespace bll::cpu;
using namespace bll::test;

struct Shape {
  int64_t rows, channels, cells;
  int64_t size() const { return rows * channels * cells; }
  int64_t channel_of(int64_t at) const { return at / cells % channels; }
};

constexpr double kEps = 1e-3;
constexpr int64_t kGuard = 16;

struct Truth {
  std::vector<double> standard, scale, grad;
};

Truth truth(const Shape& s, const std::vector<double>& x, const std::vector<double>& upstream) {
  std::vector<long double> mean(s.channels), squares(s.channels), plain(s.channels),
      along(s.channels);
  const long double count = static_cast<long double>(s.rows * s.cells);
  for (int64_t i = 0; i < s.size(); ++i) mean[s.channel_of(i)] += x[i] / count;
  for (int64_t i = 0; i < s.size(); ++i) {
    const long double gap = x[i] - mean[s.channel_of(i)];
    squares[s.channel_of(i)] += gap * gap / count;
  }
  Truth out{std::vector<double>(s.size()), std::vector<double>(s.channels),
            std::vector<double>(s.size())};
  std::vector<long double> standard(s.size());
  for (int64_t i = 0; i < s.size(); ++i) {
    const int64_t c = s.channel_of(i);
    standard[i] = (x[i] - mean[c]) / sqrtl(squares[c] + kEps);
    plain[c] += upstream[i] / count;
    along[c] += upstream[i] * standard[i] / count;
    out.standard[i] = static_cast<double>(standard[i]);
  }
  for (int64_t i = 0; i < s.size(); ++i) {
    const int64_t c = s.channel_of(i);
    out.scale[c] = static_cast<double>(1 / sqrtl(squares[c] + kEps));
    out.grad[i] = static_cast<double>((upstream[i] - plain[c] - along[c] * standard[i]) /
                                      sqrtl(squares[c] + kEps));
  }
  return out;
}

template <class Real>
struct Result {
  std::vector<Real> standard, scale, grad;
};

template <class Real>
Result<Real> run(const Shape& s, const std::vector<Real>& x, const std::vector<Real>& upstream,
                 ParallelFor parallel_for) {
  const Real nan = std::numeric_limits<Real>::quiet_NaN();
  Result<Real> out{std::vector<Real>(s.size() + kGuard, nan),
                   std::vector<Real>(s.channels + kGuard, nan),
                   std::vector<Real>(s.size() + kGuard, nan)};
  StandardizeArgs args{};
  args.dtype = sizeof(Real) == 8 ? DType::kFloat64 : DType::kFloat32;
  args.rows = s.rows;
  args.channels = s.channels;
  args.cells = s.cells;
  args.eps = kEps;
  args.x = x.data();
  args.out = out.standard.data();
  args.scale = out.scale.data();
  standardize_forward(args, parallel_for);
  args.grad = upstream.data();
  args.standard = out.standard.data();
  args.known_scale = out.scale.data();
  args.out = out.grad.data();
  standardize_backward(args, parallel_for);
  for (int64_t i = 0; i < kGuard; ++i) {
    expect(std::isnan(out.standard[s.size() + i]) && std::isnan(out.scale[s.channels + i]) &&
               std::isnan(out.grad[s.size() + i]),
           "nothing is written behind the results");
  }
  out.standard.resize(s.size());
  out.scale.resize(s.channels);
  out.grad.resize(s.size());
  return out;
}

// `offset`: how many deviations the mean is from 0, by which rounding grows.
template <class Real>
void check(const Shape& s, double offset, const char* isa) {
  const std::string what = std::string("[") + std::to_string(s.rows) + ", " +
                           std::to_string(s.channels) + ", " + std::to_string(s.cells) + "] on " +
                           isa;
  auto x = normal_numbers<Real>(s.size(), 4);
  for (Real& number : x) number += static_cast<Real>(offset);
  const auto upstream = normal_numbers<Real>(s.size(), 5);
  const Truth want = truth(s, std::vector<double>(x.begin(), x.end()),
                           std::vector<double>(upstream.begin(), upstream.end()));
  const auto got = run(s, x, upstream, run_serially);
  const auto again = run(s, x, upstream, run_backwards);
  expect(same_bits(got.standard, again.standard) && same_bits(got.scale, again.scale) &&
             same_bits(got.grad, again.grad),
         (what + ": same bits however the work is shared").c_str());
  const double epsilon = (1 + offset) * (sizeof(Real) == 4 ? 1e-6 : 1e-14);
  for (int64_t c = 0; c < s.channels; ++c) {
    expect_near(got.scale[c], want.scale[c], epsilon * want.scale[c], (what + ", scale").c_str());
  }
  for (int64_t i = 0; i < s.size(); ++i) {
    const double size = want.scale[s.channel_of(i)];
    expect_near(got.standard[i], want.standard[i], epsilon * (1 + size),
                (what + ", value").c_str());
    expect_near(got.grad[i], want.grad[i], 4 * epsilon * size, (what + ", gradient").c_str());
  }
}

}  // namespace

int main() {
  // Segments of 256 latents: channels that share one, that fill one, that take several.
  const Shape shapes[] = {{2, 1, 1},   {7, 5, 1},   {64, 300, 1}, {17, 31, 9}, {100, 20, 16},
                          {5, 3, 256}, {3, 2, 700}, {1, 4, 10},   {33, 2, 129}};
  for (int i = 0; i < isa_count(); ++i) {
    select_isa(isa_name(i));
    for (const Shape& s : shapes) {
      for (const double offset : {0.0, 100.0}) {
        check<double>(s, offset, isa_name(i));
        check<float>(s, offset, isa_name(i));
      }
    }
  }
  return finish("test_standardize");
}
