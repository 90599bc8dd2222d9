// Conversions of half types as integer arithmetic, so that they vectorise everywhere.
#pragma once

#include "core/defs.h"

namespace bll::cpu {

BLL_HD float from_bfloat16(uint16_t x) { return bits_float(static_cast<uint32_t>(x) << 16); }

BLL_HD uint16_t to_bfloat16(float x) {
  const uint32_t bits = float_bits(x);
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const uint32_t quiet_nan = bits | 0x400000u;
  return static_cast<uint16_t>((x != x ? quiet_nan : rounded) >> 16);
}

BLL_HD float from_float16(uint16_t x) {
  const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16;
  const uint32_t bits = static_cast<uint32_t>(x & 0x7fffu) << 13;
  // 2^112 moves the exponent's bias, and turns subnormal numbers into normal ones.
  const float finite = bits_float(bits) * 5.192296858534828e33f;
  const uint32_t special = bits | 0x7f800000u;
  const uint32_t magnitude = bits >= 0x0f800000u ? special : float_bits(finite);
  return bits_float(magnitude | sign);
}

BLL_HD uint16_t to_float16(float x) {
  const uint32_t bits = float_bits(x) & 0x7fffffffu;
  const uint32_t sign = (float_bits(x) >> 16) & 0x8000u;
  const uint32_t normal = (bits - 0x38000000u + 0xfffu + ((bits >> 13) & 1u)) >> 13;
  // Below 2^-14 the sum with 1/2 has the spacing of subnormal halves, and rounds for us.
  const uint32_t subnormal = float_bits(bits_float(bits) + 0.5f) - 0x3f000000u;
  const uint32_t large = bits > 0x7f800000u ? 0x7e00u : 0x7c00u;
  const uint32_t half = bits < 0x38800000u ? subnormal : bits < 0x477ff000u ? normal : large;
  return static_cast<uint16_t>(half | sign);
}

}  // namespace bll::cpu
