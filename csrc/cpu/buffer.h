// Uninitialised memory that starts on a cache line, so that no vector of it straddles two.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <utility>

namespace bll::cpu {

template <class Real>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t size)
      : data_(static_cast<Real*>(::operator new[](size * sizeof(Real), kAlignment))) {}
  Buffer(Buffer&& other) noexcept : data_(std::exchange(other.data_, nullptr)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    return *this;
  }
  ~Buffer() { ::operator delete[](data_, kAlignment); }

  Real* get() const { return data_; }
  Real& operator[](int64_t i) const { return data_[i]; }

 private:
  static constexpr std::align_val_t kAlignment{64};
  Real* data_ = nullptr;
};

}  // namespace bll::cpu
