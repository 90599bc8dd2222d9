// The latents of one group that one thread has: in registers, or read again by every sweep.
#pragma once

#include "cuda/access.h"
#include "cuda/pair.h"

namespace bll::cuda {

// Where one thread finds its latents of one group.
struct GroupPlace {
  int64_t a, b, out;  // offsets of the group's first latent; b < 0: no such row
  int64_t group;
  int first, step;  // the thread's first vector and the distance to its next, in vectors
  bool inside;
};

// Latents held in registers.
template <class Access, int held>
struct Resident {
  static constexpr int kCount = Access::kCount, kVectors = held / Access::kCount;
  float a[kVectors][kCount], b[kVectors][kCount];

  __device__ __forceinline__ void load(const PairView& v, const GroupPlace& place) {
    typename Access::Raw raw_a[kVectors], raw_b[kVectors];
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int64_t column = int64_t{place.first + k * place.step} * kCount;
      if (place.inside && column < place.group) {
        raw_a[k] = Access::load(v.a, v.a_dtype, place.a + column);
        raw_b[k] = place.b < 0 ? Access::nan() : Access::load(v.b, v.b_dtype, place.b + column);
      }
    }
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      Access::unpack(raw_a[k], v.a_dtype, a[k]);
      Access::unpack(raw_b[k], v.b_dtype, b[k]);
    }
  }

  // function(a[kCount], b[kCount], column) for every vector of the thread.
  template <class Function>
  __device__ __forceinline__ void each(const PairView&, const GroupPlace& place,
                                       Function&& function) const {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int64_t column = int64_t{place.first + k * place.step} * kCount;
      if (place.inside && column < place.group) function(a[k], b[k], column);
    }
  }
};

// Latents read again by every sweep.
template <class Access>
struct Resident<Access, 0> {
  static constexpr int kCount = Access::kCount;

  __device__ __forceinline__ void load(const PairView&, const GroupPlace&) {}

  template <class Function>
  __device__ __forceinline__ void each(const PairView& v, const GroupPlace& place,
                                       Function&& function) const {
    if (!place.inside) return;
#pragma unroll 1
    for (int64_t i = place.first; i * kCount < place.group; i += place.step) {
      const int64_t column = i * kCount;
      float a[kCount], b[kCount];
      Access::unpack(Access::load(v.a, v.a_dtype, place.a + column), v.a_dtype, a);
      Access::unpack(place.b < 0 ? Access::nan() : Access::load(v.b, v.b_dtype, place.b + column),
                     v.b_dtype, b);
      function(a, b, column);
    }
  }
};

}  // namespace bll::cuda
