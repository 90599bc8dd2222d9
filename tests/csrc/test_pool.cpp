// Grid pooling on every instruction set: mean, maximum and standard deviation of both layouts and
// every dtype, each cell and each gradient against its definition.
#include <algorithm>
#include <string>

#include "inputs.h"

namespace {

using namespace bll;
using namespace bll::cpu;
using namespace bll::test;

struct MapShape {
  int64_t batch, channels, height, width, grid;
  int64_t size() const { return batch * channels * height * width; }
  int64_t cells() const { return batch * channels * grid * grid; }
};

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr int64_t kGuard = 16;

int64_t map_index(const MapShape& s, bool last, int64_t n, int64_t c, int64_t h, int64_t w) {
  return last ? ((n * s.height + h) * s.width + w) * s.channels + c
              : ((n * s.channels + c) * s.height + h) * s.width + w;
}

struct PoolTruth {
  std::vector<double> pooled, grad_map;
};

// Cell i covers [floor(i size / grid), ceil((i + 1) size / grid)).
PoolTruth pool_truth(const MapShape& s, Pool kind, bool last, const Stored& map,
                     const std::vector<double>& upstream) {
  PoolTruth out{std::vector<double>(s.cells()), std::vector<double>(s.size())};
  for (int64_t cell = 0; cell < s.cells(); ++cell) {
    const int64_t j = cell % s.grid, i = cell / s.grid % s.grid;
    const int64_t c = cell / (s.grid * s.grid) % s.channels;
    const int64_t n = cell / (s.grid * s.grid) / s.channels;
    std::vector<int64_t> members;
    for (int64_t h = i * s.height / s.grid; h * s.grid < (i + 1) * s.height; ++h) {
      for (int64_t w = j * s.width / s.grid; w * s.grid < (j + 1) * s.width; ++w) {
        members.push_back(map_index(s, last, n, c, h, w));
      }
    }
    const double count = static_cast<double>(members.size());
    long double sum = 0, squares = 0;
    int64_t best = members[0];
    for (const int64_t m : members) sum += map[m];
    const long double mean = sum / count;
    for (const int64_t m : members) {
      squares += (map[m] - mean) * (map[m] - mean);
      if (map[m] > map[best]) best = m;
    }
    const double deviation =
        members.size() > 1 ? static_cast<double>(sqrtl(squares / (count - 1))) : 0;
    out.pooled[cell] = kind == Pool::kMean  ? static_cast<double>(mean)
                       : kind == Pool::kMax ? map[best]
                                            : deviation;
    for (const int64_t m : members) {
      double slope = kind == Pool::kMean ? 1 / count : kind == Pool::kMax ? m == best : 0;
      if (kind == Pool::kStd && deviation > 0) {
        slope = static_cast<double>((map[m] - mean) / ((count - 1) * deviation));
      }
      out.grad_map[m] += upstream[cell] * slope;
    }
  }
  return out;
}

// Maps with ties, constant cells and far means: a standard deviation of exactly zero, the first of
// equal maxima.
std::vector<double> map_values(const MapShape& s) {
  auto values = normal_numbers<double>(s.size(), 1, 2);
  std::mt19937 engine(2);
  for (double& x : values) {
    if (engine() % 3 == 0) x = std::round(x);
    x += 3;
  }
  for (int64_t i = 0; i < s.size() / 4; ++i) values[i] = 1.25;
  return values;
}

template <class Real>
struct Pooled {
  std::vector<Real> pooled;
  Stored grad_map;
};

template <class Real>
Pooled<Real> run(const MapShape& s, Pool kind, bool last, const Stored& map,
                 const std::vector<double>& upstream, ParallelFor parallel_for) {
  const std::vector<Real> grad(upstream.begin(), upstream.end());
  Pooled<Real> out{std::vector<Real>(s.cells() + kGuard, Real(kNan)),
                   Stored(std::vector<double>(s.size() + kGuard, kNan), map.dtype())};
  PoolArgs args{kind, s.batch,     s.channels, s.height,          s.width,     s.grid,
                last, map.dtype(), map.data(), out.pooled.data(), grad.data(), out.grad_map.data()};
  grid_pool_forward(args, parallel_for);
  grid_pool_backward(args, parallel_for);
  for (int64_t i = 0; i < kGuard; ++i) {
    expect(std::isnan(out.pooled[s.cells() + i]), "nothing is written behind the pooled cells");
    expect(std::isnan(out.grad_map[s.size() + i]), "nothing is written behind the gradient");
  }
  return out;
}

template <class Real>
void check(const MapShape& s, Pool kind, bool last, DType dtype, const std::string& on) {
  constexpr const char* kinds[] = {"mean", "max", "std"};
  const std::string what = std::string(kinds[static_cast<int>(kind)]) + " of [" +
                           std::to_string(s.channels) + ", " + std::to_string(s.height) + ", " +
                           std::to_string(s.width) + "] on a grid of " + std::to_string(s.grid) +
                           (last ? ", channels last, " : ", ") + dtype_name(dtype) + " on " + on;
  const Stored map(map_values(s), dtype);
  // Rounded to float, so that every accumulate type sees the same.
  const auto floats = normal_numbers<float>(s.cells(), 3);
  const std::vector<double> upstream(floats.begin(), floats.end());
  const PoolTruth want = pool_truth(s, kind, last, map, upstream);
  const auto before = map.bytes();
  const auto got = run<Real>(s, kind, last, map, upstream, run_serially);
  const auto again = run<Real>(s, kind, last, map, upstream, run_backwards);
  expect(same_bits(std::vector<Real>(got.pooled.begin(), got.pooled.end() - kGuard),
                   std::vector<Real>(again.pooled.begin(), again.pooled.end() - kGuard)) &&
             got.grad_map.bytes() == again.grad_map.bytes(),
         (what + ": same bits however the work is shared").c_str());
  expect(map.bytes() == before, "the map is not written");
  const double epsilon = sizeof(Real) == 4 ? 1e-6 : 1e-14, exact = kind == Pool::kMax ? 0 : 1;
  for (int64_t i = 0; i < s.cells(); ++i) {
    expect_near(got.pooled[i], want.pooled[i], exact * epsilon * (4 + std::fabs(want.pooled[i])),
                (what + ", cell").c_str());
    if (kind == Pool::kStd && want.pooled[i] == 0) {
      expect(got.pooled[i] == 0, (what + ": a constant cell does not deviate").c_str());
    }
  }
  for (int64_t i = 0; i < s.size(); ++i) {
    expect_near(got.grad_map[i], want.grad_map[i],
                4 * epsilon + stored_error(want.grad_map[i], dtype), (what + ", gradient").c_str());
  }
}

// The first NaN of a cell is its maximum; what is not finite stays in its own cell, and so does
// its gradient.
void check_odd(Pool kind, bool last, double odd) {
  const MapShape s{1, 3, 4, 6, 2};
  auto values = map_values(s);
  const int64_t at = map_index(s, last, 0, 1, 1, 2);  // in cell 4
  values[at] = odd;
  const Stored map(values, DType::kFloat32);
  const std::vector<double> upstream(s.cells(), 1.0);
  const auto got = run<float>(s, kind, last, map, upstream, run_serially);
  const bool hidden = kind == Pool::kMax && odd == -kInfinity;
  for (int64_t cell = 0; cell < s.cells(); ++cell) {
    const float found = got.pooled[cell];
    expect(std::isfinite(found) == (cell != 4 || hidden), "odd in its own cell alone");
    if (cell != 4 || hidden) continue;
    const bool same = std::isnan(odd) ? std::isnan(found) : found == static_cast<float>(odd);
    expect(kind == Pool::kStd ? std::isnan(found) : same, "the cell of an odd pixel");
  }
  for (int64_t c = 0; c < 3; ++c) {
    for (int64_t k = 0; k < 24; ++k) {
      const int64_t h = k / 6, w = k % 6;
      const float slope = got.grad_map[map_index(s, last, 0, c, h, w)];
      const bool own = kind == Pool::kStd && c == 1 && h < 2 && w < 3;
      expect(std::isfinite(slope) != own, "a spread that is no number has no gradient");
    }
  }
  if (kind == Pool::kMax) expect(got.grad_map[at] == (hidden ? 0 : 1), "who takes the gradient");
}

}  // namespace

int main() {
  const MapShape shapes[] = {{2, 3, 8, 8, 4},   {1, 70, 7, 5, 4},
                             {2, 5, 9, 16, 2},  {1, 2, 33, 31, 1},
                             {3, 65, 4, 4, 2},  {1, 4, 2, 3, 4},
                             {1, 3, 1, 1, 1},   {0, 3, 4, 4, 2},
                             {1, 300, 5, 30, 4}};  // longer rows than are added up whole
  for (int i = 0; i < isa_count(); ++i) {
    select_isa(isa_name(i));
    for (const Pool kind : {Pool::kMean, Pool::kMax, Pool::kStd}) {
      for (const bool last : {false, true}) {
        for (const MapShape& s : shapes) {
          check<double>(s, kind, last, DType::kFloat64, isa_name(i));
          check<float>(s, kind, last, DType::kFloat32, isa_name(i));
          check<float>(s, kind, last, DType::kBFloat16, isa_name(i));
          check<float>(s, kind, last, DType::kFloat16, isa_name(i));
        }
        for (const double odd : {kNan, kInfinity, -kInfinity}) check_odd(kind, last, odd);
      }
    }
  }
  return finish("test_pool");
}
