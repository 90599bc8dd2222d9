// The latents of one thread where one group after the other shares a message, that of their class:
// the message is loaded once, and its gradients are added up.
#pragma once

#include "cuda/group_latents.cuh"

namespace bll::cuda {

// Latents in registers, sums in shared memory, where every thread of a block has `held` floats; in
// registers they would spill.
template <class Access, int held, int block>
struct ResidentSums : Resident<Access, held> {
  using Base = Resident<Access, held>;
  using Base::kCount, Base::kVectors;
  static constexpr bool kSums = true;
  float* sums;

  __device__ __forceinline__ explicit ResidentSums(float* shared) : sums(shared + threadIdx.x) {
#pragma unroll
    for (int i = 0; i < held; ++i) sums[i * block] = 0;
  }

  __device__ __forceinline__ void load_message(const PairView& v, const GroupPlace& place) {
    load_from(v.b, v.b_dtype, place, place.b, Base::b);
  }

  __device__ __forceinline__ void load(const PairView& v, const GroupPlace& place) {
    load_from(v.a, v.a_dtype, place, place.a, Base::a);
  }

  __device__ __forceinline__ void add(const PairView&, int k, int64_t,
                                      const float (&grad)[kCount]) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) sums[(k * kCount + i) * block] += grad[i];
  }

  // Stores the sums of the threads `width` apart, added up in their order; for the first of them.
  __device__ __forceinline__ void store(void* out, DType dtype, int64_t at, const GroupPlace& place,
                                        int width) const {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int64_t column = int64_t{place.first + k * place.step} * kCount;
      if (!place.inside || column >= place.group) continue;
      float total[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float* own = sums + (k * kCount + i) * block;
        total[i] = own[0];
        for (int s = width; s < block; s += width) total[i] += own[s];
      }
      Access::store(out, dtype, at + column, total);
    }
  }

 private:
  // start < 0: nowhere.
  __device__ __forceinline__ static void load_from(const void* base, DType dtype,
                                                   const GroupPlace& place, int64_t start,
                                                   float (&x)[kVectors][kCount]) {
    typename Access::Raw raw[kVectors];
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int64_t column = int64_t{place.first + k * place.step} * kCount;
      if (place.inside && column < place.group) {
        raw[k] = start < 0 ? Access::nan() : Access::load(base, dtype, start + column);
      }
    }
#pragma unroll
    for (int k = 0; k < kVectors; ++k) Access::unpack(raw[k], dtype, x[k]);
  }
};

// Latents of long groups, and their sums beside them in shared memory; those of vectors that are
// read again are in the sums' own place `out` ([group] float32; nullptr: no such message).
template <class Access>
struct StagedSums : Staged<Access, true> {
  using Base = Staged<Access, true>;
  using Sum = typename Slots<Access, true>::Sum;
  using Base::kCount, Base::slots, Base::kept;
  static constexpr bool kSums = true;
  static constexpr int kPacks = Slots<Access, true>::kPacks, kPack = kCount / kPacks;
  float* out;

  __device__ __forceinline__ StagedSums(uint4* memory, int vectors, float* sums)
      : Base{{memory}, vectors}, out(sums) {}

  // And sums of nothing.
  __device__ __forceinline__ void load_message(const PairView& v, const GroupPlace& place) const {
    if (place.b >= 0) slots.fetch_b(v, place, kept);
    each_kept<kCount>(place, kept, [&](int k, int) {
#pragma unroll
      for (int p = 0; p < kPacks; ++p) *slots.sum(v, k, p) = Sum{};
    });
    BLL_COPY_WAIT();
    constexpr float none[kCount] = {};
    const int step = place.step * kCount;
    for (int64_t column = (place.first + int64_t{kept} * place.step) * kCount;
         out != nullptr && column < place.group; column += step) {
      Access::store(out, DType::kFloat32, column, none);
    }
  }

  __device__ __forceinline__ void load(const PairView& v, const GroupPlace& place) const {
    slots.fetch_a(v, place, kept);
    BLL_COPY_WAIT();
  }

  __device__ __forceinline__ void add(const PairView& v, int k, int64_t column,
                                      const float (&grad)[kCount]) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      if (k < kept) {
        Sum* at = slots.sum(v, k, p);
#pragma unroll
        for (int i = 0; i < kPack; ++i) at->x[i] += grad[p * kPack + i];
      } else if (out != nullptr) {
        Sum* at = reinterpret_cast<Sum*>(out + column) + p;
        Sum sum = BLL_LOAD(at);
#pragma unroll
        for (int i = 0; i < kPack; ++i) sum.x[i] += grad[p * kPack + i];
        *at = sum;
        BLL_COUNT_STORED(sizeof(Sum));
      }
    }
  }

  // The sums in shared memory, to join the others.
  __device__ __forceinline__ void store(const PairView& v, const GroupPlace& place) const {
    if (out == nullptr) return;
    each_kept<kCount>(place, kept, [&](int k, int column) {
      float sums[kCount];
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
#pragma unroll
        for (int i = 0; i < kPack; ++i) sums[p * kPack + i] = slots.sum(v, k, p)->x[i];
      }
      Access::store(out, DType::kFloat32, column, sums);
    });
  }
};

}  // namespace bll::cuda
