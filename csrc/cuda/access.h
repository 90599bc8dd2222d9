// Latents in memory as floats in registers. An access policy says how many a thread takes at once
// (kCount) and moves them: 16 bytes where everything is aligned, one by one elsewhere. Loads give
// raw bits, so that many can be in flight before the first is used.
#pragma once

#include "core/defs.h"
#include "cuda/api.h"
#include "cuda/launch.h"

namespace bll::cuda {

template <class T>
__device__ __forceinline__ float to_float(T x);
template <>
__device__ __forceinline__ float to_float(float x) {
  return x;
}
template <>
__device__ __forceinline__ float to_float(__nv_bfloat16 x) {
  return __bfloat162float(x);
}
template <>
__device__ __forceinline__ float to_float(__half x) {
  return __half2float(x);
}

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float(float x) {
  return x;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half from_float(float x) {
  return __float2half_rn(x);
}

// 16 bytes of T, or as many float32 where the operand's dtype says so (a message beside a half
// type). Offsets are multiples of kCount from an aligned base.
template <class T>
struct Wide {
  static constexpr int kCount = 16 / sizeof(T);
  static constexpr int kQuads = 4 / sizeof(T);  // that kCount float32 fill
  struct Raw {
    uint4 quad[kQuads];
  };
  struct alignas(16) Packed {
    T x[kCount];
  };
  struct alignas(16) Floats {
    float x[4];
  };

  __device__ __forceinline__ static bool is_float(DType dtype) {
    return sizeof(T) == 4 || dtype == DType::kFloat32;
  }

  // 16-byte pieces of kCount latents.
  __device__ __forceinline__ static int quads(DType dtype) { return is_float(dtype) ? kQuads : 1; }

  __device__ __forceinline__ static const uint4* address(const void* base, DType dtype,
                                                         int64_t offset) {
    const int64_t item = is_float(dtype) ? 4 : sizeof(T);
    return reinterpret_cast<const uint4*>(static_cast<const char*>(base) + offset * item);
  }

  __device__ __forceinline__ static Raw load(const void* base, DType dtype, int64_t offset) {
    Raw raw;
    const bool wide = is_float(dtype);
    const char* at = static_cast<const char*>(base) + offset * (wide ? 4 : sizeof(T));
    BLL_CHECK_ALIGNED(at);
    raw.quad[0] = __ldg(reinterpret_cast<const uint4*>(at));
    if (kQuads > 1 && wide) raw.quad[kQuads - 1] = __ldg(reinterpret_cast<const uint4*>(at) + 1);
    return raw;
  }

  // Of 16 bytes of T that the same kernel writes later, which __ldg must not read.
  __device__ __forceinline__ static Raw load_own(const void* base, DType, int64_t offset) {
    Raw raw;
    const char* at = static_cast<const char*>(base) + offset * sizeof(T);
    BLL_CHECK_ALIGNED(at);
    raw.quad[0] = BLL_LOAD(reinterpret_cast<const uint4*>(at));
    return raw;
  }

  // All bits set is NaN in every dtype.
  __device__ __forceinline__ static Raw nan() {
    Raw raw;
    for (int i = 0; i < kQuads; ++i) raw.quad[i] = make_uint4(~0u, ~0u, ~0u, ~0u);
    return raw;
  }

  __device__ __forceinline__ static void unpack(const Raw& raw, DType dtype, float (&x)[kCount]) {
    if (is_float(dtype)) {
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        const Floats part = bits<Floats>(raw.quad[q]);
#pragma unroll
        for (int i = 0; i < 4; ++i) x[4 * q + i] = part.x[i];
      }
    } else {
      const Packed packed = bits<Packed>(raw.quad[0]);
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] = to_float(packed.x[i]);
    }
  }

  __device__ __forceinline__ static void store(void* base, DType dtype, int64_t offset,
                                               const float (&x)[kCount]) {
    const bool wide = is_float(dtype);
    char* at = static_cast<char*>(base) + offset * (wide ? 4 : sizeof(T));
    BLL_CHECK_ALIGNED(at);
    BLL_COUNT_STORED(kCount * (wide ? 4 : sizeof(T)));
    if (wide) {
#pragma unroll
      for (int q = 0; q < kQuads; ++q) {
        Floats part;
#pragma unroll
        for (int i = 0; i < 4; ++i) part.x[i] = x[4 * q + i];
        reinterpret_cast<uint4*>(at)[q] = bits<uint4>(part);
      }
    } else {
      Packed packed;
#pragma unroll
      for (int i = 0; i < kCount; ++i) packed.x[i] = from_float<T>(x[i]);
      *reinterpret_cast<uint4*>(at) = bits<uint4>(packed);
    }
  }

 private:
  template <class To, class From>
  __device__ __forceinline__ static To bits(const From& from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
  }
};

// One latent of any dtype at any address.
struct Single {
  static constexpr int kCount = 1;
  struct Raw {
    uint32_t bits;  // the upper half of a half type's is 0
  };

  __device__ __forceinline__ static Raw load(const void* base, DType dtype, int64_t offset) {
    if (dtype != DType::kFloat32) return {__ldg(static_cast<const uint16_t*>(base) + offset)};
    return {float_bits(__ldg(static_cast<const float*>(base) + offset))};
  }

  __device__ __forceinline__ static Raw load_own(const void* base, DType dtype, int64_t offset) {
    if (dtype != DType::kFloat32) return {BLL_LOAD(static_cast<const uint16_t*>(base) + offset)};
    return {float_bits(BLL_LOAD(static_cast<const float*>(base) + offset))};
  }

  // All bits set is NaN in every dtype.
  __device__ __forceinline__ static Raw nan() { return {~0u}; }

  __device__ __forceinline__ static void unpack(const Raw& raw, DType dtype, float (&x)[1]) {
    const auto half = static_cast<unsigned short>(raw.bits);
    if (dtype == DType::kFloat32) {
      x[0] = bits_float(raw.bits);
    } else if (dtype == DType::kBFloat16) {
      x[0] = to_float(__ushort_as_bfloat16(half));
    } else {
      x[0] = to_float(__ushort_as_half(half));
    }
  }

  // For one that nothing else waits beside.
  __device__ __forceinline__ static float value(const void* base, DType dtype, int64_t offset) {
    float x[1];
    unpack(load(base, dtype, offset), dtype, x);
    return x[0];
  }

  __device__ __forceinline__ static void store(void* base, DType dtype, int64_t offset,
                                               const float (&x)[1]) {
    BLL_COUNT_STORED(dtype == DType::kFloat32 ? 4 : 2);
    if (dtype == DType::kFloat32) {
      static_cast<float*>(base)[offset] = x[0];
    } else if (dtype == DType::kBFloat16) {
      static_cast<__nv_bfloat16*>(base)[offset] = from_float<__nv_bfloat16>(x[0]);
    } else {
      static_cast<__half*>(base)[offset] = from_float<__half>(x[0]);
    }
  }
};

// An access policy and the one dtype that it then meets.
template <class Access, DType dtype_>
struct Typed : Access {
  static constexpr DType dtype = dtype_;
};

// Calls function(typed access policy) for a dtype, 16 bytes at a time or one by one.
template <class Function>
__device__ __forceinline__ void with_access(DType dtype, bool wide, Function&& function) {
  if (dtype == DType::kFloat32) {
    if (wide) return function(Typed<Wide<float>, DType::kFloat32>());
    function(Typed<Single, DType::kFloat32>());
  } else if (dtype == DType::kBFloat16) {
    if (wide) return function(Typed<Wide<__nv_bfloat16>, DType::kBFloat16>());
    function(Typed<Single, DType::kBFloat16>());
  } else {
    if (wide) return function(Typed<Wide<__half>, DType::kFloat16>());
    function(Typed<Single, DType::kFloat16>());
  }
}

}  // namespace bll::cuda
