// Special functions without branches, so that loops over them vectorise. float: own polynomials
// (near-minimax, relative error below 2e-7 over the stated range); double: libm or Taylor sums.
// NaN in gives NaN out.
#pragma once

#include <cmath>

#include "core/defs.h"

namespace bll {

BLL_HD float magnitude(float x) { return ::fabsf(x); }
BLL_HD double magnitude(double x) { return ::fabs(x); }

// The two factors of e^x, `mantissa` in [0.7, 1.42] and a power of two given by its float bits.
struct ExpParts {
  float mantissa;
  uint32_t power;
};

BLL_HD ExpParts exp_parts(float x) {
  // Adding 1.5 * 2^23 rounds x / ln 2 to an integer n and leaves n in the low bits.
  const float shifted = x * 1.44269504f + 12582912.0f;
  const float n = shifted - 12582912.0f;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  float q = 1.381461275741458e-3f;
  q = q * r + 8.368710055947304e-3f;
  q = q * r + 4.166838899254799e-2f;
  q = q * r + 1.666652113199234e-1f;
  q = q * r + 4.999999403953552e-1f;
  return {1.0f + (r + r * r * q), float_bits(shifted) << 23};
}

// e^x for x <= 0; 0 below -87, where float runs out of normal numbers.
BLL_HD float exp_nonpositive(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  const ExpParts y = exp_parts(x);
  return x < -87.0f ? 0.0f : y.mantissa * bits_float(y.power + (127u << 23));
#endif
}

BLL_HD double exp_nonpositive(double x) { return ::exp(x); }

// e^x for any x; 0 below -86.
BLL_HD float exp_any(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  // Half the power, then twice the product: 2^128 itself is no float.
  const ExpParts y = exp_parts(x);
  const float e = y.mantissa * bits_float(y.power + (126u << 23)) * 2.0f;
  return x < -86.0f ? 0.0f : x > 88.72283f ? HUGE_VALF : e;
#endif
}

BLL_HD double exp_any(double x) { return ::exp(x); }

// e^x - 1 for |x| <= 1/2 (any x in double).
BLL_HD float expm1_small(float x) {
  float q = 1.9849810632877052e-4f;
  q = q * x + 1.3996176421642303e-3f;
  q = q * x + 8.333578705787659e-3f;
  q = q * x + 4.166536033153534e-2f;
  q = q * x + 1.66666641831398e-1f;
  q = q * x + 5.000000596046448e-1f;
  return x + x * x * q;
}

BLL_HD double expm1_small(double x) { return ::expm1(x); }

// e^x - 1 - x for |x| <= 1, relatively accurate down to x = 0.
BLL_HD float expm1_rest_small(float x) {
  float q = 2.772278776319581e-6f;
  q = q * x + 2.535482963139657e-5f;
  q = q * x + 1.9844024791382253e-4f;
  q = q * x + 1.388545148074627e-3f;
  q = q * x + 8.33331048488617e-3f;
  q = q * x + 4.166673496365547e-2f;
  q = q * x + 1.666666716337204e-1f;
  q = q * x + 0.5f;
  return x * x * q;
}

BLL_HD double expm1_rest_small(double x) {
  double q = 1.0;
  for (int k = 20; k > 2; --k) q = 1.0 + q * x / k;
  return 0.5 * x * x * q;
}

// atanh(s) - s for |s| <= 1/3, relatively accurate (6e-7) down to s = 0; s + atanh_rest(s) is
// accurate to the last bit or two.
BLL_HD float atanh_rest(float s) {
  const float y = s * s;
  float q = 1.3430505990982056e-1f;
  q = q * y + 1.4117521047592163e-1f;
  q = q * y + 2.000381350517273e-1f;
  q = q * y + 3.3333319425582886e-1f;
  return s * y * q;
}

BLL_HD double atanh_rest(double s) {
  const double y = s * s;
  double q = 0.0;
  for (int k = 35; k >= 3; k -= 2) q = q * y + 1.0 / k;
  return s * y * q;
}

// log(1 + x) for x >= 0.
BLL_HD float log1p_nonnegative(float x) {
#if defined(__CUDA_ARCH__)
  return log1pf(x);
#else
  const float u = 1.0f + x;
  // u = 2^n * m with m in [sqrt(1/2), sqrt(2)).
  const uint32_t bits = float_bits(u) - 0x3f3504f3u;
  const float n = static_cast<float>(static_cast<int32_t>(bits) >> 23);
  const float m = bits_float((bits & 0x007fffffu) + 0x3f3504f3u);
  // What 1 + x rounded away, scaled like m; it is below the rounding of the result for u > 4.
  const float lost = (x - (u - 1.0f)) * bits_float(0x3f800000u - (bits & 0xff800000u));
  const float top = (m - 1.0f) + (u > 4.0f ? 0.0f : lost);
  const float s = top / (2.0f + top);
  const float y = 2.0f * (s + atanh_rest(s)) + n * 1.42860677e-6f + n * 0.693145752f;
  return u > 3.4028235e38f ? u : y;
#endif
}

BLL_HD double log1p_nonnegative(double x) { return ::log1p(x); }

}  // namespace bll
