// Special functions without branches, so that loops over them vectorise. float: own polynomials
// (near-minimax, relative error below 2e-7 over the stated range); double: Taylor sums, to the last
// bits. NaN in gives NaN out.
#pragma once

#include <cmath>

#include "core/defs.h"

namespace bll {

BLL_HD float magnitude(float x) { return ::fabsf(x); }
BLL_HD double magnitude(double x) { return ::fabs(x); }

// -x where side > 0, else x, as bit operations.
BLL_HD float mirror(float x, float side) {
  return bits_float(float_bits(x) ^ (float_bits(0.0f - side) & 0x80000000u));
}
BLL_HD double mirror(double x, double side) {
  return bits_double(double_bits(x) ^ (double_bits(0.0 - side) & 0x8000000000000000u));
}

// e^x / 2^(bias - 127) for -87 <= x, as far as the power of two is a float.
BLL_HD float exp_biased(float x, float bias) {
  BLL_COUNT_SPECIAL();
  // Adding 1.5 * 2^23 rounds x / ln 2 to an integer n and leaves n in the low bits.
  const float magic = 12582912.0f + bias;
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;  // n ln 2 in two exact steps
  const float r2 = r * r;
  const float low = r * 1.666652113199234e-1f + 4.999999403953552e-1f;
  const float high = r * 8.368710055947304e-3f + 4.166838899254799e-2f;
  const float top = r2 * 1.381461275741458e-3f + high;
  const float y = (r + 1.0f) + r2 * (r2 * top + low);
  return y * bits_float(float_bits(shifted) << 23);
}

// e^x for x <= 0; 0 below -87 (-708 in double), where normal numbers end.
BLL_HD float exp_nonpositive(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  const float y = exp_biased(x, 127.0f);
  return x < -87.0f ? 0.0f : y;
#endif
}

// The same in double, for -708 <= x.
BLL_HD double exp_biased(double x, double bias) {
  const double magic = 6755399441055744.0 + bias;
  const double shifted = x * 1.4426950408889634 + magic;
  const double n = shifted - magic;
  const double r = (x - n * 0.6931471803691238) - n * 1.9082149292705877e-10;
  double y = 1.0 / 6227020800.0;
  y = y * r + 1.0 / 479001600.0;
  y = y * r + 1.0 / 39916800.0;
  y = y * r + 1.0 / 3628800.0;
  y = y * r + 1.0 / 362880.0;
  y = y * r + 1.0 / 40320.0;
  y = y * r + 1.0 / 5040.0;
  y = y * r + 1.0 / 720.0;
  y = y * r + 1.0 / 120.0;
  y = y * r + 1.0 / 24.0;
  y = y * r + 1.0 / 6.0;
  y = y * r + 1.0 / 2.0;
  y = y * r + 1.0;
  y = y * r + 1.0;
  return y * bits_double(double_bits(shifted) << 52);
}

BLL_HD double exp_nonpositive(double x) {
#if defined(__CUDA_ARCH__)
  return ::exp(x);
#else
  const double y = exp_biased(x, 1023.0);
  return x < -708.0 ? 0.0 : y;
#endif
}

// e^x for any x; 0 below -86 (-707 in double).
BLL_HD float exp_any(float x) {
#if defined(__CUDA_ARCH__)
  return expf(x);
#else
  // Half the power, then twice the product: 2^128 itself is no float.
  const float y = exp_biased(x, 126.0f) * 2.0f;
  return x < -86.0f ? 0.0f : x > 88.72283f ? HUGE_VALF : y;
#endif
}

BLL_HD double exp_any(double x) {
#if defined(__CUDA_ARCH__)
  return ::exp(x);
#else
  const double y = exp_biased(x, 1022.0) * 2.0;
  return x < -707.0 ? 0.0 : x > 709.782712893384 ? HUGE_VAL : y;
#endif
}

// e^x - 1 - x for |x| <= 1/2.
BLL_HD float expm1_rest(float x) {
  const float x2 = x * x;
  const float low = x * 1.666666543e-1f + 0.5f;
  const float high = x * 8.333480095e-3f + 4.166599934e-2f;
  const float top = x * 1.986334553e-4f + 1.397533138e-3f;
  return x2 * (x2 * (x2 * top + high) + low);
}

BLL_HD double expm1_rest(double x) {
  double y = 1.0 / 1307674368000.0;
  y = y * x + 1.0 / 87178291200.0;
  y = y * x + 1.0 / 6227020800.0;
  y = y * x + 1.0 / 479001600.0;
  y = y * x + 1.0 / 39916800.0;
  y = y * x + 1.0 / 3628800.0;
  y = y * x + 1.0 / 362880.0;
  y = y * x + 1.0 / 40320.0;
  y = y * x + 1.0 / 5040.0;
  y = y * x + 1.0 / 720.0;
  y = y * x + 1.0 / 120.0;
  y = y * x + 1.0 / 24.0;
  y = y * x + 1.0 / 6.0;
  y = y * x + 1.0 / 2.0;
  return x * x * y;
}

// e^x - 1 for |x| <= 1/2.
BLL_HD float expm1_small(float x) { return x + expm1_rest(x); }
BLL_HD double expm1_small(double x) { return x + expm1_rest(x); }

// e^x and its differences for |x| <= 80 (700 in double), each to a few roundings of itself.
template <class Real>
struct Growth {
  Real factor;  // e^x
  Real growth;  // e^x - 1
  Real rest;    // e^x - 1 - x
};

// x = n ln 2 + r and power = 2^n.
template <class Real>
BLL_HD Growth<Real> growth_of(Real x, Real r, Real power) {
  const Real rest = expm1_rest(r);
  const Real growth = power * (r + rest) + (power - 1);
  return {power * (r + rest) + power, growth, power == 1 ? rest : growth - x};
}

BLL_HD Growth<float> growth_of(float x) {
  const float magic = 12582912.0f + 127.0f;
  const float shifted = x * 1.44269504f + magic;
  const float n = shifted - magic;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  return growth_of(x, r, bits_float(float_bits(shifted) << 23));
}

BLL_HD Growth<double> growth_of(double x) {
  const double magic = 6755399441055744.0 + 1023.0;
  const double shifted = x * 1.4426950408889634 + magic;
  const double n = shifted - magic;
  const double r = (x - n * 0.6931471803691238) - n * 1.9082149292705877e-10;
  return growth_of(x, r, bits_double(double_bits(shifted) << 52));
}

// (e^x - 1 - x) / x^2 for |x| <= 1.
BLL_HD float expm1_rest_ratio(float x) {
  float q = 2.772278776319581e-6f;
  q = q * x + 2.535482963139657e-5f;
  q = q * x + 1.9844024791382253e-4f;
  q = q * x + 1.388545148074627e-3f;
  q = q * x + 8.33331048488617e-3f;
  q = q * x + 4.166673496365547e-2f;
  q = q * x + 1.666666716337204e-1f;
  q = q * x + 0.5f;
  return q;
}

BLL_HD double expm1_rest_ratio(double x) {
  double y = 1.0 / 6402373705728000.0;
  y = y * x + 1.0 / 355687428096000.0;
  y = y * x + 1.0 / 20922789888000.0;
  y = y * x + 1.0 / 1307674368000.0;
  y = y * x + 1.0 / 87178291200.0;
  y = y * x + 1.0 / 6227020800.0;
  y = y * x + 1.0 / 479001600.0;
  y = y * x + 1.0 / 39916800.0;
  y = y * x + 1.0 / 3628800.0;
  y = y * x + 1.0 / 362880.0;
  y = y * x + 1.0 / 40320.0;
  y = y * x + 1.0 / 5040.0;
  y = y * x + 1.0 / 720.0;
  y = y * x + 1.0 / 120.0;
  y = y * x + 1.0 / 24.0;
  y = y * x + 1.0 / 6.0;
  y = y * x + 1.0 / 2.0;
  return y;
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
  double q = 1.0 / 35;
  q = q * y + 1.0 / 33;
  q = q * y + 1.0 / 31;
  q = q * y + 1.0 / 29;
  q = q * y + 1.0 / 27;
  q = q * y + 1.0 / 25;
  q = q * y + 1.0 / 23;
  q = q * y + 1.0 / 21;
  q = q * y + 1.0 / 19;
  q = q * y + 1.0 / 17;
  q = q * y + 1.0 / 15;
  q = q * y + 1.0 / 13;
  q = q * y + 1.0 / 11;
  q = q * y + 1.0 / 9;
  q = q * y + 1.0 / 7;
  q = q * y + 1.0 / 5;
  q = q * y + 1.0 / 3;
  return s * y * q;
}

// log(1 + x) for x >= 0.
BLL_HD float log1p_nonnegative(float x) {
  BLL_COUNT_SPECIAL();
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
