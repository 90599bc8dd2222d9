// float8_e4m3fn: one sign, four exponent and three mantissa bits, no infinities, largest 448.
#pragma once

#include "core/defs.h"

namespace bll {

// To nearest even; beyond the range, infinities too, the largest number.
BLL_HD uint8_t to_float8(float x) {
  const uint32_t bits = float_bits(x) & 0x7fffffffu;
  const uint32_t sign = (float_bits(x) >> 24) & 0x80u;
  const uint32_t normal = (bits - 0x3c000000u + 0x7ffffu + ((bits >> 20) & 1u)) >> 20;
  // Below 2^-6 the sum with 2^14 has the spacing of subnormal numbers, and rounds for us.
  const uint32_t subnormal = float_bits(bits_float(bits) + 16384.0f) - 0x46800000u;
  const uint32_t rounded = bits < 0x3c800000u ? subnormal : normal < 0x7eu ? normal : 0x7eu;
  const uint32_t magnitude = bits > 0x7f800000u ? 0x7fu : rounded;
  return static_cast<uint8_t>(magnitude | sign);
}

}  // namespace bll
