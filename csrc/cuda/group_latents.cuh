// The latents of one group that one thread has: in registers, in shared memory, or read again by
// every sweep.
#pragma once

#include "cuda/access.h"
#include "cuda/cluster.h"
#include "cuda/groups.h"

namespace bll::cuda {

// Where one thread finds its latents of one group.
struct GroupPlace {
  int64_t a, b, out;  // offsets of the group's first latent; b < 0: no such row
  int64_t group;      // its latents
  int first, step;    // the thread's first vector and the distance to its next, in vectors
  bool inside;
};

// Latents held in registers.
template <class Access, int held>
struct Resident {
  static constexpr int kCount = Access::kCount, kVectors = held / Access::kCount;
  static constexpr bool kSums = false;
  // Vectors of each operand that set out together: the addresses of more would spill.
  static constexpr int kBatch = kVectors < 8 ? kVectors : 8;
  float a[kVectors][kCount], b[kVectors][kCount];

  __device__ __forceinline__ void load(const PairView& v, const GroupPlace& place) {
#pragma unroll
    for (int from = 0; from < kVectors; from += kBatch) load_batch(v, place, from);
  }

  // function(a[kCount], b[kCount], number, column) for every vector of the thread.
  template <class Function>
  __device__ __forceinline__ void each(const PairView&, const GroupPlace& place,
                                       Function&& function) const {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int64_t column = int64_t{place.first + k * place.step} * kCount;
      if (place.inside && column < place.group) function(a[k], b[k], k, column);
    }
  }

 private:
  __device__ __forceinline__ void load_batch(const PairView& v, const GroupPlace& place, int from) {
    typename Access::Raw raw_a[kBatch], raw_b[kBatch];
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      const int64_t column = int64_t{place.first + (from + i) * place.step} * kCount;
      if (place.inside && column < place.group) {
        raw_a[i] = Access::load(v.a, v.a_dtype, place.a + column);
        raw_b[i] = place.b < 0 ? Access::nan() : Access::load(v.b, v.b_dtype, place.b + column);
      }
    }
#pragma unroll
    for (int i = 0; i < kBatch; ++i) {
      Access::unpack(raw_a[i], v.a_dtype, a[from + i]);
      Access::unpack(raw_b[i], v.b_dtype, b[from + i]);
    }
  }
};

// function(number, column) for the first `kept` vectors of a thread, of `count` latents each.
template <int count, class Function>
__device__ __forceinline__ void each_kept(const GroupPlace& place, int kept, Function&& function) {
  const int end = static_cast<int>(place.group), step = place.step * count;
  int column = place.first * count;
#pragma unroll 2
  for (int k = 0; k < kept && column < end; ++k, column += step) function(k, column);
}

// Where a thread of a block of kLongBlock keeps the raw latents of its vectors in shared memory,
// and their sums where there are some: neighbouring threads side by side, whatever the operands'
// dtypes.
template <class Access, bool sums>
struct Slots;

template <class T, bool sums>
struct Slots<Wide<T>, sums> {
  using Raw = typename Wide<T>::Raw;
  using Sum = typename Wide<T>::Floats;
  static constexpr int kPacks = Wide<T>::kQuads;  // of a vector's sums
  uint4* memory;

  __device__ __forceinline__ uint4* at(const PairView& v, int k, int quad) const {
    const int quads = 1 + Wide<T>::quads(v.b_dtype) + (sums ? kPacks : 0);
    return memory + (k * quads + quad) * kLongBlock + threadIdx.x;
  }
  __device__ __forceinline__ Sum* sum(const PairView& v, int k, int pack) const {
    return reinterpret_cast<Sum*>(at(v, k, 1 + Wide<T>::quads(v.b_dtype) + pack));
  }
  // Both set out for the first `kept` vectors of the operand.
  __device__ __forceinline__ void fetch_a(const PairView& v, const GroupPlace& place,
                                          int kept) const {
    each_kept<Wide<T>::kCount>(place, kept, [&](int k, int column) {
      BLL_COPY_ASYNC(at(v, k, 0), Wide<T>::address(v.a, v.a_dtype, place.a + column));
    });
  }
  __device__ __forceinline__ void fetch_b(const PairView& v, const GroupPlace& place,
                                          int kept) const {
    each_kept<Wide<T>::kCount>(place, kept, [&](int k, int column) {
      const uint4* from = Wide<T>::address(v.b, v.b_dtype, place.b + column);
      for (int q = 0; q < Wide<T>::quads(v.b_dtype); ++q) {
        BLL_COPY_ASYNC(at(v, k, 1 + q), from + q);
      }
    });
  }
  __device__ __forceinline__ void read(const PairView& v, int k, Raw& a, Raw& b) const {
    a.quad[0] = *at(v, k, 0);
#pragma unroll
    for (int q = 0; q < Wide<T>::kQuads; ++q) {
      if (q < Wide<T>::quads(v.b_dtype)) b.quad[q] = *at(v, k, 1 + q);
    }
  }
};

template <bool sums>
struct Slots<Single, sums> {
  using Raw = Single::Raw;
  struct Sum {
    float x[1];
  };
  static constexpr int kPacks = 1;
  uint4* memory;

  __device__ __forceinline__ uint32_t* at(int k, int item) const {
    constexpr int items = sums ? 3 : 2;
    return reinterpret_cast<uint32_t*>(memory) + (items * k + item) * kLongBlock + threadIdx.x;
  }
  __device__ __forceinline__ Sum* sum(const PairView&, int k, int) const {
    return reinterpret_cast<Sum*>(at(k, 2));
  }
  __device__ __forceinline__ void fetch_a(const PairView& v, const GroupPlace& place,
                                          int kept) const {
    fetch(v.a, v.a_dtype, place.a, 0, place, kept);
  }
  __device__ __forceinline__ void fetch_b(const PairView& v, const GroupPlace& place,
                                          int kept) const {
    fetch(v.b, v.b_dtype, place.b, 1, place, kept);
  }
  __device__ __forceinline__ void read(const PairView&, int k, Raw& a, Raw& b) const {
    a.bits = *at(k, 0), b.bits = *at(k, 1);
  }

 private:
  // Loads of an operand that are in flight before the first is stored.
  static constexpr int kBatch = 8;

  __device__ __forceinline__ void fetch(const void* base, DType dtype, int64_t start, int item,
                                        const GroupPlace& place, int kept) const {
    const int64_t left = ceil_div(place.group - place.first, int64_t{place.step});
    const int own = left < kept ? static_cast<int>(left) : kept;
    for (int first = 0; first < own; first += kBatch) {
      Raw raw[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int64_t column = place.first + int64_t{first + i} * place.step;
        if (first + i < own) raw[i] = Single::load(base, dtype, start + column);
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        if (first + i < own) *at(first + i, item) = raw[i].bits;
      }
    }
  }
};

// Latents of long groups: a thread's first `kept` vectors wait in shared memory for the next sweep,
// the others are read again by every sweep. A thread only ever reads what it has put there itself.
template <class Access, bool sums = false>
struct Staged {
  static constexpr int kCount = Access::kCount;
  static constexpr bool kSums = false;
  Slots<Access, sums> slots;
  int kept;

  __device__ __forceinline__ void load(const PairView& v, const GroupPlace& place) const {
    slots.fetch_a(v, place, kept);
    if (place.b >= 0) slots.fetch_b(v, place, kept);
    BLL_COPY_WAIT();
  }

  // function(a[kCount], b[kCount], number, column) for every vector of the thread.
  template <class Function>
  __device__ __forceinline__ void each(const PairView& v, const GroupPlace& place,
                                       Function&& function) const {
    const int end = static_cast<int>(place.group), step = place.step * kCount;
    int column = place.first * kCount;
#pragma unroll 1
    for (int k = 0; column < end; ++k, column += step) {
      typename Access::Raw raw_a, raw_b;
      if (k < kept) {
        slots.read(v, k, raw_a, raw_b);
      } else {
        raw_a = Access::load(v.a, v.a_dtype, place.a + column);
        if (place.b >= 0) raw_b = Access::load(v.b, v.b_dtype, place.b + column);
      }
      float a[kCount], b[kCount];
      Access::unpack(raw_a, v.a_dtype, a);
      Access::unpack(place.b < 0 ? Access::nan() : raw_b, v.b_dtype, b);
      function(a, b, k, column);
    }
  }
};

}  // namespace bll::cuda
