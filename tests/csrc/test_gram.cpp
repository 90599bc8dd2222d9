// Gram losses and class means on every instruction set, against their definitions in long double.
#include <algorithm>
#include <string>

#include "inputs.h"

namespace {

using namespace bll;
using namespace bll::cpu;
using namespace bll::test;

using Exact = long double;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kGuard = 16;

struct GramShape {
  int64_t rows, width, vectors_width;  // vectors_width == 0: labels are the target
  bool center, weighted;
  Reduction reduction;
};

struct GramInputs {
  Stored x, vectors;
  std::vector<int64_t> labels;
  std::vector<double> weight, grad;
};

GramInputs make_inputs(const GramShape& s, DType dtype) {
  auto x = normal_numbers<double>(s.rows * s.width, 1, 1.5);
  for (int64_t j = 0; j < s.width; ++j) x[2 * s.width + j] = 0;  // a row without a direction
  std::vector<int64_t> labels(s.rows);
  std::mt19937 engine(3);
  for (auto& y : labels) y = static_cast<int64_t>(engine() % 4);
  const int64_t upstream = s.reduction == Reduction::kNone ? s.rows : 1;
  return {Stored(x, dtype), Stored(normal_numbers<double>(s.rows * s.vectors_width, 2), dtype),
          std::move(labels), normal_numbers<double>(s.weighted ? s.rows : 0, 4),
          normal_numbers<double>(upstream, 5)};
}

// Rows of length one, and the inverse of their lengths (0 for a row of zeros).
struct Units {
  std::vector<Exact> rows, inverse;
  int64_t width;

  Units(const Stored& x, int64_t count, int64_t latents, bool center)
      : rows(count * latents), inverse(count), width(latents) {
    for (int64_t i = 0; i < count; ++i) {
      Exact mean = 0, square = 0;
      for (int64_t j = 0; center && j < width; ++j) mean += Exact(x[i * width + j]) / width;
      for (int64_t j = 0; j < width; ++j) {
        const Exact y = x[i * width + j] - mean;
        rows[i * width + j] = y;
        square += y * y;
      }
      inverse[i] = square > 0 ? 1 / sqrtl(square) : Exact(0);
      for (int64_t j = 0; j < width; ++j) rows[i * width + j] *= inverse[i];
    }
  }

  Exact dot(int64_t i, int64_t k) const {
    Exact sum = 0;
    for (int64_t j = 0; j < width; ++j) sum += rows[i * width + j] * rows[k * width + j];
    return sum;
  }
};

constexpr double kSame = 0.75, kOther = -0.25;

struct GramTruth {
  std::vector<Exact> value, dx;
};

GramTruth gram_truth(const GramShape& s, const GramInputs& in) {
  const Units x(in.x, s.rows, s.width, s.center);
  const Units target(in.vectors, s.vectors_width > 0 ? s.rows : 0, s.vectors_width, s.center);
  const bool none = s.reduction == Reduction::kNone;
  const Exact mean = s.reduction == Reduction::kBatchMean ? Exact(1) / s.rows : Exact(1);
  const auto factor = [&](int64_t i) { return mean * (s.weighted ? in.weight[i] : 1.0); };
  const auto slope = [&](int64_t i) { return factor(i) * in.grad[none ? i : 0]; };
  GramTruth out{std::vector<Exact>(none ? s.rows : 1), std::vector<Exact>(s.rows * s.width)};
  for (int64_t i = 0; i < s.rows; ++i) {
    for (int64_t k = 0; k < s.rows; ++k) {
      const Exact similar = x.dot(i, k);
      const Exact wanted = s.vectors_width > 0            ? target.dot(i, k)
                           : in.labels[i] == in.labels[k] ? kSame
                                                          : kOther;
      const Exact gap = similar - wanted;
      out.value[none ? i : 0] += factor(i) * gap * gap / s.rows;
      const Exact pull = (slope(i) + slope(k)) * 2 * gap / s.rows * x.inverse[i];
      for (int64_t j = 0; j < s.width; ++j) {
        const Exact across = x.rows[k * s.width + j] - similar * x.rows[i * s.width + j];
        out.dx[i * s.width + j] += pull * across;
      }
    }
  }
  return out;
}

template <class Real>
struct GramResult {
  std::vector<Real> value;
  Stored dx;
};

template <class Real>
GramResult<Real> run(const GramShape& s, const GramInputs& in, bool gradient,
                     ParallelFor parallel_for) {
  const std::vector<Real> weight(in.weight.begin(), in.weight.end());
  const std::vector<Real> grad(in.grad.begin(), in.grad.end());
  const int64_t values = s.reduction == Reduction::kNone ? s.rows : 1;
  GramResult<Real> out{std::vector<Real>(values, Real(kNan)),
                       Stored(std::vector<double>(s.rows * s.width + kGuard, kNan), in.x.dtype())};
  const bool vectors = s.vectors_width > 0;
  GramArgs args{};
  args.reduction = s.reduction;
  args.center = s.center;
  args.same = kSame;
  args.other = kOther;
  args.width = s.width;
  args.vectors_width = s.vectors_width;
  args.x = {in.x.data(), in.x.dtype(), s.rows, s.width, s.width, nullptr};
  args.vectors = {vectors ? in.vectors.data() : nullptr,
                  in.x.dtype(),
                  s.rows,
                  s.vectors_width,
                  s.vectors_width,
                  nullptr};
  args.labels = vectors ? nullptr : in.labels.data();
  args.weight = weight.empty() ? nullptr : weight.data();
  args.grad = grad.data();
  args.value = out.value.data();
  args.grad_x = gradient ? out.dx.data() : nullptr;
  gram_loss(args, parallel_for);
  for (int64_t i = 0; i < kGuard; ++i) {
    expect(std::isnan(out.dx[s.rows * s.width + i]), "nothing is written behind dx");
  }
  return out;
}

template <class Real>
void check_gram(const GramShape& s, DType dtype, const std::string& on) {
  const std::string what = "gram of [" + std::to_string(s.rows) + ", " + std::to_string(s.width) +
                           "] " + dtype_name(dtype) + " on " + on;
  GramInputs in = make_inputs(s, dtype);
  for (auto* x : {&in.weight, &in.grad}) {
    for (double& y : *x) y = static_cast<double>(static_cast<Real>(y));
  }
  const GramTruth want = gram_truth(s, in);
  const auto got = run<Real>(s, in, true, run_serially);
  const auto again = run<Real>(s, in, true, run_backwards);
  const auto alone = run<Real>(s, in, false, run_serially);
  expect(same_bits(got.value, again.value) && got.dx.bytes() == again.dx.bytes(),
         (what + ": same bits however the work is shared").c_str());
  const double epsilon = sizeof(Real) == 4 ? 2e-6 : 1e-14;
  for (size_t i = 0; i < want.value.size(); ++i) {
    const double value = static_cast<double>(want.value[i]);
    const double near = epsilon * (1 + std::fabs(value));
    expect_near(got.value[i], value, near, (what + ", value").c_str());
    expect_near(alone.value[i], value, near, (what + ", value alone").c_str());
  }
  double largest = 0;
  for (const Exact x : want.dx) largest = std::max(largest, std::fabs(static_cast<double>(x)));
  for (int64_t i = 0; i < s.rows * s.width; ++i) {
    const double dx = static_cast<double>(want.dx[i]);
    expect_near(got.dx[i], dx, 4 * epsilon * largest + stored_error(dx, dtype),
                (what + ", dx").c_str());
  }
  for (int64_t j = 0; j < s.width; ++j) {
    expect(got.dx[2 * s.width + j] == 0, "a row of zeros gets no gradient");
  }
}

template <class Real>
void check_means(int64_t rows, int64_t classes, int64_t width, DType dtype) {
  const Stored x(normal_numbers<double>(rows * width, 7), dtype);
  std::vector<int64_t> labels(rows), counts(classes, -1), wanted(classes);
  std::mt19937 engine(8);
  for (auto& y : labels) y = static_cast<int64_t>(engine() % (classes > 1 ? classes - 1 : 1));
  std::vector<Exact> sums(classes * width);
  for (int64_t i = 0; i < rows; ++i) {
    ++wanted[labels[i]];
    for (int64_t j = 0; j < width; ++j) sums[labels[i] * width + j] += x[i * width + j];
  }
  std::vector<Real> means(classes * width, Real(kNan)), again = means;
  ClassMeansArgs args{classes,       width,        {x.data(), dtype, rows, width, width, nullptr},
                      labels.data(), means.data(), counts.data()};
  class_means(args, run_serially);
  args.means = again.data();
  class_means(args, run_backwards);
  expect(same_bits(means, again), "class means: same bits however the work is shared");
  expect(counts == wanted, "rows of every class are counted");
  const double epsilon = sizeof(Real) == 4 ? 1e-6 : 1e-14;
  for (int64_t k = 0; k < classes * width; ++k) {
    const int64_t count = std::max<int64_t>(wanted[k / width], 1);
    expect_near(means[k], static_cast<double>(sums[k] / count), epsilon, "a mean of its rows");
  }

  const auto grad = normal_numbers<Real>(classes * width, 9);
  std::vector<Real> dx(rows * width, Real(kNan));
  const DType accumulate = sizeof(Real) == 4 ? DType::kFloat32 : DType::kFloat64;
  const ClassMeansGradArgs back{classes,     width,         rows,          accumulate,
                                grad.data(), labels.data(), counts.data(), dx.data()};
  class_means_backward(back, run_backwards);
  for (int64_t i = 0; i < rows * width; ++i) {
    const int64_t label = labels[i / width];
    const double want = static_cast<double>(grad[label * width + i % width]) / wanted[label];
    expect_near(dx[i], want, epsilon * std::fabs(want), "the class's gradient over its count");
  }
}

}  // namespace

int main() {
  const GramShape shapes[] = {{40, 77, 0, true, true, Reduction::kBatchMean},
                              {5, 600, 0, false, false, Reduction::kNone},
                              {67, 9, 12, true, false, Reduction::kSum},
                              {33, 64, 5, false, true, Reduction::kNone}};
  for (int i = 0; i < isa_count(); ++i) {
    select_isa(isa_name(i));
    for (const GramShape& s : shapes) {
      check_gram<double>(s, DType::kFloat64, isa_name(i));
      for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
        check_gram<float>(s, dtype, isa_name(i));
      }
    }
    check_means<double>(300, 4, 600, DType::kFloat64);
    check_means<float>(300, 4, 600, DType::kFloat32);
    check_means<float>(77, 10, 33, DType::kBFloat16);
    check_means<float>(7, 1, 5, DType::kFloat16);
  }
  return finish("test_gram");
}
