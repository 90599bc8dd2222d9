// The class loss and its gradients from their definitions, in long double and without a thought for
// speed or cancellation.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/api.h"

namespace bll::test {

using Exact = long double;

struct ClassShape {
  cpu::FamilyArgs family;
  int64_t rows, classes, width;
  bool normalize = false;
  cpu::Reduction reduction = cpu::Reduction::kBatchMean;
  bool weighted = false, upstream = false, biased = false;

  int planes() const { return family_planes(family.id); }
  int64_t row_size() const { return width * planes(); }
};

// Inputs as the kernels see them after rounding.
struct ClassInputs {
  std::vector<Exact> a, table, bias, weight, grad;  // the last three may be empty
  std::vector<int64_t> labels;
};

struct ClassTruth {
  std::vector<Exact> value, residual, da, dtable, dbias;
  Exact size = 1;   // of the largest score
  Exact slope = 1;  // of a score's largest derivative
};

inline Exact softplus(Exact x) { return (x > 0 ? x : 0) + log1pl(expl(-fabsl(x))); }
inline Exact sigmoid(Exact x) { return 1 / (1 + expl(-x)); }

// One row against one message: the log-evidence, and its gradients to both.
struct Score {
  Exact value = 0;
  std::vector<Exact> da, db;

  Score(const ClassShape& s, const Exact* a, const Exact* b)
      : da(s.row_size(), 0), db(s.row_size(), 0) {
    const Exact tilt = s.family.tilt;
    switch (s.family.id) {
      case FamilyId::kBernoulli:
        for (int64_t j = 0; j < s.width; ++j) {
          const Exact message = tilt * b[j], own = s.normalize ? sigmoid(message) : Exact(0);
          value += softplus(a[j] + message) - softplus(a[j]);
          if (s.normalize) value -= softplus(message);
          da[j] = sigmoid(a[j] + message) - sigmoid(a[j]);
          db[j] = tilt * (sigmoid(a[j] + message) - own);
        }
        break;
      case FamilyId::kGaussian:
        for (int64_t j = 0; j < s.width; ++j) {
          const Exact message = tilt * b[j];
          value += message * a[j] + (s.normalize ? Exact(0) : message * message / 2);
          da[j] = message;
          db[j] = tilt * (a[j] + (s.normalize ? Exact(0) : message));
        }
        break;
      case FamilyId::kGaussianPrecision:
        for (int64_t j = 0; j < s.width; ++j) {
          const Exact variance = 1 + 1 / (Exact(s.family.tau) * tilt);
          add_normal(a[j], b[j], variance, &da[j], &db[j]);
        }
        break;
      case FamilyId::kGaussianDiagonal:
        for (int64_t j = 0, k = s.width; j < s.width; ++j, ++k) {
          const Exact own = expl(a[k]), other = expl(b[k]) / tilt, variance = own + other;
          const Exact square = (b[j] - a[j]) * (b[j] - a[j]) / variance;
          add_normal(a[j], b[j], variance, &da[j], &db[j]);
          da[k] = own / variance * (square - 1) / 2;
          db[k] = other / variance * (square - 1) / 2;
        }
        break;
      case FamilyId::kCategorical:
        for (int64_t j = 0; j < s.width; j += s.family.group) add_group(s, a, b, j);
        break;
    }
  }

 private:
  // log N(b; a, variance)
  void add_normal(Exact a, Exact b, Exact variance, Exact* slope_a, Exact* slope_b) {
    value -= (logl(2 * acosl(Exact(-1)) * variance) + (b - a) * (b - a) / variance) / 2;
    *slope_a = (b - a) / variance;
    *slope_b = (a - b) / variance;
  }

  void add_group(const ClassShape& s, const Exact* a, const Exact* b, int64_t start) {
    const Exact tilt = s.family.tilt;
    Exact prior = 0, message = 0, joint = 0;
    const int64_t end = start + s.family.group;
    for (int64_t j = start; j < end; ++j) {
      prior += expl(a[j]);
      message += expl(tilt * b[j]);
      joint += expl(a[j] + tilt * b[j]);
    }
    value += logl(joint) - logl(prior) - (s.normalize ? logl(message) : Exact(0));
    for (int64_t j = start; j < end; ++j) {
      const Exact rho = expl(a[j] + tilt * b[j]) / joint;
      da[j] = rho - expl(a[j]) / prior;
      db[j] = tilt * (rho - (s.normalize ? expl(tilt * b[j]) / message : Exact(0)));
    }
  }
};

// The larger size of two finite numbers.
inline Exact larger(Exact size, Exact x) {
  return std::isfinite(x) ? std::max(size, fabsl(x)) : size;
}

inline ClassTruth class_truth(const ClassShape& s, const ClassInputs& in) {
  const int64_t row = s.row_size();
  const bool none = s.reduction == cpu::Reduction::kNone;
  const Exact mean = s.reduction == cpu::Reduction::kBatchMean ? Exact(1) / s.rows : Exact(1);
  ClassTruth out{std::vector<Exact>(none ? s.rows : 1), std::vector<Exact>(s.rows * s.classes),
                 std::vector<Exact>(s.rows * row), std::vector<Exact>(s.classes * row),
                 std::vector<Exact>(s.classes)};
  for (int64_t i = 0; i < s.rows; ++i) {
    std::vector<Score> scores;
    for (int64_t c = 0; c < s.classes; ++c) {
      scores.emplace_back(s, &in.a[i * row], &in.table[c * row]);
      if (!in.bias.empty()) scores[c].value += in.bias[c];
      out.size = larger(out.size, scores[c].value);
      for (int64_t j = 0; j < row; ++j) {
        out.slope = larger(larger(out.slope, scores[c].da[j]), scores[c].db[j]);
      }
    }
    const Exact own = scores[in.labels[i]].value;
    Exact top = own, total = 0;
    for (const Score& score : scores) top = std::max(top, score.value);
    for (const Score& score : scores) total += expl(score.value - top);
    const Exact factor = mean * (in.weight.empty() ? Exact(1) : in.weight[i]);
    const Exact grad = in.grad.empty() ? Exact(1) : in.grad[none ? i : 0];
    out.value[none ? i : 0] += factor * (logl(total) + (top - own));
    for (int64_t c = 0; c < s.classes; ++c) {
      const Exact p = expl(scores[c].value - top) / total - (c == in.labels[i] ? 1 : 0);
      out.residual[i * s.classes + c] = factor * p;
      const Exact slope = factor * p * grad;
      out.dbias[c] += slope;
      for (int64_t j = 0; j < row; ++j) {
        out.da[i * row + j] += slope * scores[c].da[j];
        out.dtable[c * row + j] += slope * scores[c].db[j];
      }
    }
  }
  return out;
}

}  // namespace bll::test
