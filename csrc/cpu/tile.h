// A tile: a run of latents of one row, short enough to live in the first-level cache, and the
// table of kernels that an instruction set provides for it. Tiles are in the accumulate type;
// half types are converted on the way in and out.
#pragma once

#include <cstdint>

#include "cpu/api.h"

namespace bll::cpu {

template <class Real>
struct Tile {
  const void* family;  // Family<Real>
  int64_t group;       // categorical; then `size` is a multiple of it
  int64_t size;
  const Real* a;
  const Real* b;
  Real* grad_a;
  Real* grad_b;
  int64_t a_plane, b_plane, grad_a_plane, grad_b_plane;  // distance of the second parameter
  Real scale;                                            // multiplies the gradients, not the value
  Real* scratch;                                         // categorical: `group` numbers
};

// What is wanted of a tile. A kernel may write more, so every gradient needs its memory. Stopped
// losses have no gradient to b, hence no kGradAB*.
enum class Want : int { kValue, kGradA, kGradAValue, kGradAB, kGradABValue };
inline constexpr int kWantCount = 5;

// Returns the sum of the latents' losses (any number if the value is not wanted).
template <class Real>
using TileKernel = Real (*)(const Tile<Real>& tile);

template <class Real>
struct TileKernels {
  TileKernel<Real> pair[kFamilyCount][kLossCount][kWantCount];
  // Conversions between kBFloat16 / kFloat16 and Real (float only), rounding to nearest even.
  void (*load_bfloat16)(const uint16_t* from, Real* to, int64_t size);
  void (*load_float16)(const uint16_t* from, Real* to, int64_t size);
  void (*store_bfloat16)(const Real* from, uint16_t* to, int64_t size);
  void (*store_float16)(const Real* from, uint16_t* to, int64_t size);
  void (*add)(const Real* from, Real* to, int64_t size);  // to += from
};

// Kernels of the selected instruction set.
template <class Real>
const TileKernels<Real>& tile_kernels();

// Latents of one tile; buffers for converted types have this size per parameter.
inline constexpr int64_t kTileSize = 512;

// Categorical groups of up to kMaxLaneGroup latents are taken kLanes at a time where at least
// kMinLaneGroups are left: fewer would leave most lanes empty.
inline constexpr int kLanes = 16;
inline constexpr int64_t kMaxLaneGroup = 32;
inline constexpr int64_t kMinLaneGroups = 4;

// A family object for tile kernels, whatever its type.
struct FamilyObject {
  alignas(16) unsigned char bytes[64];
};

template <class Real>
FamilyObject make_family(const FamilyArgs& args);

inline int64_t element_size(DType dtype) {
  return dtype == DType::kFloat64   ? 8
         : dtype == DType::kFloat32 ? 4
         : dtype == DType::kFloat8  ? 1
                                    : 2;
}

inline const void* advance(const void* data, DType dtype, int64_t elements) {
  return static_cast<const char*>(data) + elements * element_size(dtype);
}

inline void* advance(void* data, DType dtype, int64_t elements) {
  return static_cast<char*>(data) + elements * element_size(dtype);
}

// `from` itself where it is of type Real already, else `buffer`, filled with its conversion.
template <class Real>
const Real* load_tile(const TileKernels<Real>& kernels, const void* from, DType dtype, int64_t size,
                      Real* buffer) {
  if (dtype == DType::kBFloat16) {
    kernels.load_bfloat16(static_cast<const uint16_t*>(from), buffer, size);
    return buffer;
  }
  if (dtype == DType::kFloat16) {
    kernels.load_float16(static_cast<const uint16_t*>(from), buffer, size);
    return buffer;
  }
  return static_cast<const Real*>(from);
}

// Where to write a tile that store_tile then brings to `to`.
template <class Real>
Real* output_tile(void* to, DType dtype, Real* buffer) {
  return element_size(dtype) == 2 ? buffer : static_cast<Real*>(to);
}

template <class Real>
void store_tile(const TileKernels<Real>& kernels, const Real* from, void* to, DType dtype,
                int64_t size) {
  if (dtype == DType::kBFloat16) {
    kernels.store_bfloat16(from, static_cast<uint16_t*>(to), size);
  } else if (dtype == DType::kFloat16) {
    kernels.store_float16(from, static_cast<uint16_t*>(to), size);
  }
}

}  // namespace bll::cpu
