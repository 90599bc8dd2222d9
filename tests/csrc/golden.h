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

inline std::vector<GoldenLine> read_golden(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw std::runtime_error("cannot read " + path);
  std::vector<GoldenLine> lines;
  for (std::string text; std::getline(file, text);) {
    if (text.empty() || text[0] == '#') continue;
    std::istringstream stream(text);
    std::string field[7];
    for (auto& part : field) {
      if (!std::getline(stream, part, '\t')) throw std::runtime_error("short line in " + path);
    }
    const double tau = field[1].rfind("tau=", 0) == 0 ? std::stod(field[1].substr(4)) : 1.0;
    lines.push_back({loss_named(field[0]), tau, numbers(field[2]), numbers(field[3]),
                     std::stod(field[4]), numbers(field[5]), numbers(field[6])});
  }
  return lines;
}

}  // namespace bll::test
