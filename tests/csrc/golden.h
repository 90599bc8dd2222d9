// Reader of the golden tables (tests/golden/generate.py).
#pragma once

#include <fstream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/api.h"

namespace bll::test {

struct GoldenLine {
  Loss loss;
  double tau;
  std::vector<double> a, b;
  double value;
  std::vector<double> da, db;
};

inline Loss loss_named(const std::string& name) {
  const char* names[] = {"kl", "kl_full", "reverse_kl", "reverse_kl_full", "evidence"};
  for (int i = 0; i < kLossCount; ++i) {
    if (name == names[i]) return static_cast<Loss>(i);
  }
  throw std::runtime_error("unknown loss in a golden table: " + name);
}

inline std::vector<double> numbers(const std::string& text) {
  std::istringstream stream(text);
  std::vector<double> found;
  for (std::string word; stream >> word;) found.push_back(std::stod(word));
  return found;
}

inline double tau_of(const std::string& params) {
  return params.rfind("tau=", 0) == 0 ? std::stod(params.substr(4)) : 1.0;
}

// The fields of every line that is no comment.
inline std::vector<std::vector<std::string>> read_fields(const std::string& path, size_t count) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::vector<std::vector<std::string>> lines;
  for (std::string text; std::getline(file, text);) {
    if (text.empty() || text[0] == '#') continue;
    std::istringstream stream(text);
    std::vector<std::string> fields(count);
    for (auto& field : fields) {
      if (!std::getline(stream, field, '\t')) throw std::runtime_error("short line in " + path);
    }
    lines.push_back(std::move(fields));
  }
  return lines;
}

inline std::vector<GoldenLine> read_golden(const std::string& path) {
  std::vector<GoldenLine> lines;
  for (const auto& f : read_fields(path, 7)) {
    lines.push_back({loss_named(f[0]), tau_of(f[1]), numbers(f[2]), numbers(f[3]), std::stod(f[4]),
                     numbers(f[5]), numbers(f[6])});
  }
  return lines;
}

// One class loss: `table` holds three messages, row by row.
struct GoldenClass {
  bool normalize;
  double tau;
  std::vector<double> a, table, bias;
  int64_t label;
  double value;
  std::vector<double> da, dtable, dbias;
};

inline std::vector<GoldenClass> read_golden_classes(const std::string& path) {
  std::vector<GoldenClass> lines;
  for (const auto& f : read_fields(path, 10)) {
    lines.push_back({f[0] == "1", tau_of(f[1]), numbers(f[2]), numbers(f[3]), numbers(f[4]),
                     std::stoll(f[5]), std::stod(f[6]), numbers(f[7]), numbers(f[8]),
                     numbers(f[9])});
  }
  return lines;
}

}  // namespace bll::test
