// What the test programs feed the kernels with: random numbers, half types, ways of sharing work.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/api.h"
#include "cpu/half_tile.h"

namespace bll::test {

inline void run_serially(int64_t size, int64_t, void (*body)(int64_t, int64_t, void*),
                         void* context) {
  body(0, size, context);
}

// Stands for threads that finish in any order: pieces of 3, last first.
inline void run_backwards(int64_t size, int64_t, void (*body)(int64_t, int64_t, void*),
                          void* context) {
  for (int64_t end = size; end > 0; end -= 3) body(end < 3 ? 0 : end - 3, end, context);
}

template <class Real = float>
std::vector<Real> normal_numbers(int64_t size, unsigned seed, double scale = 1) {
  std::mt19937 engine(seed);
  std::normal_distribution<double> normal;
  std::vector<Real> out(size);
  for (Real& x : out) x = static_cast<Real>(scale * normal(engine));
  return out;
}

template <class T>
bool same_bits(const std::vector<T>& x, const std::vector<T>& y) {
  return x.size() == y.size() &&
         (x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(T)) == 0);
}

// Numbers in memory of any dtype, and what they are after its rounding.
class Stored {
 public:
  Stored(const std::vector<double>& numbers, cpu::DType dtype) : dtype_(dtype) {
    const int64_t size = dtype == cpu::DType::kFloat64 ? 8 : dtype == cpu::DType::kFloat32 ? 4 : 2;
    bytes_.resize(numbers.size() * size);
    for (size_t i = 0; i < numbers.size(); ++i) put(i, numbers[i]);
  }

  const void* data() const { return bytes_.data(); }
  void* data() { return bytes_.data(); }
  cpu::DType dtype() const { return dtype_; }
  const std::vector<unsigned char>& bytes() const { return bytes_; }

  double operator[](size_t i) const {
    if (dtype_ == cpu::DType::kFloat64) return get<double>(i);
    if (dtype_ == cpu::DType::kFloat32) return get<float>(i);
    const uint16_t half = get<uint16_t>(i);
    return dtype_ == cpu::DType::kBFloat16 ? cpu::from_bfloat16(half) : cpu::from_float16(half);
  }

 private:
  template <class T>
  T get(size_t i) const {
    T x;
    std::memcpy(&x, &bytes_[i * sizeof(T)], sizeof x);
    return x;
  }
  template <class T>
  void set(size_t i, T x) {
    std::memcpy(&bytes_[i * sizeof(T)], &x, sizeof x);
  }
  void put(size_t i, double x) {
    const float rounded = static_cast<float>(x);
    if (dtype_ == cpu::DType::kFloat64) set(i, x);
    if (dtype_ == cpu::DType::kFloat32) set(i, rounded);
    if (dtype_ == cpu::DType::kBFloat16) set(i, cpu::to_bfloat16(rounded));
    if (dtype_ == cpu::DType::kFloat16) set(i, cpu::to_float16(rounded));
  }

  cpu::DType dtype_;
  std::vector<unsigned char> bytes_;
};

// How far a number may be from what it is stored as.
inline double stored_error(double x, cpu::DType dtype) {
  switch (dtype) {
    case cpu::DType::kFloat64:
      return std::fabs(x) * std::numeric_limits<double>::epsilon() / 2;
    case cpu::DType::kFloat32:
      return std::fabs(x) * std::numeric_limits<float>::epsilon() / 2;
    case cpu::DType::kBFloat16:
      return std::fabs(x) / 256;
    default:
      return std::fabs(x) / 2048 + 0x1p-25;  // half the spacing of subnormal numbers
  }
}

inline const char* dtype_name(cpu::DType dtype) {
  constexpr const char* names[] = {"float64", "float32", "bfloat16", "float16", "float8"};
  return names[static_cast<int>(dtype)];
}

}  // namespace bll::test
