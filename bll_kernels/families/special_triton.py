"""Special functions of the Triton kernels: those of csrc/core/special.h, in float32.

Triton's own exponential and logarithm are the fast approximations of the device, whose relative
error grows with the argument (exp) or near one (log). These keep a few units in the last place,
and the interpreter computes them by the same steps. NaN in gives NaN out, so bounds are selects:
Triton's maximum and minimum drop NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl

_EXACT = tl.constexpr(0.693145752)  # ln 2 = _EXACT + _REST; n * _EXACT is exact for |n| < 256
_REST = tl.constexpr(1.42860677e-6)


@triton.jit
def _exp_biased(x, bias):
    """e^x * 2^(bias - 127) for -87 <= x, as far as the power of two is a float."""
    magic = 12582912.0 + bias  # adding 1.5 * 2^23 rounds to an integer, left in the low bits
    shifted = x * 1.44269504 + magic
    n = shifted - magic
    r = (x - n * _EXACT) - n * _REST
    power = (shifted.to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)
    return tl.exp2(r * 1.44269504) * power


@triton.jit
def exp_nonpositive(x):
    """e^x for x <= 0; never below e^-87, where float32 runs out of normal numbers."""
    return _exp_biased(tl.where(x < -87.0, -87.0, x), 127.0)


@triton.jit
def exp_any(x):
    """e^x for any x; 0 below -86."""
    # Half the power, then twice the product: 2^128 itself is no float.
    bounded = tl.where(x < -86.0, -86.0, tl.where(x > 89.0, 89.0, x))
    y = _exp_biased(bounded, 126.0) * 2.0
    return tl.where(x < -86.0, 0.0, tl.where(x > 88.72283, float("inf"), y))


@triton.jit
def expm1_small(x):
    """e^x - 1 for |x| <= 1/2."""
    x2 = x * x
    low = x * 1.666613519191742e-1 + 4.999998211860657e-1
    high = x * 8.402394130825996e-3 + 4.166897013783455e-2
    top = x2 * 1.3875731965526938e-3 + high
    return x + x2 * (x2 * top + low)


@triton.jit
def expm1_rest_ratio(x):
    """(e^x - 1 - x) / x^2 for |x| <= 1."""
    q = x * 2.772278776319581e-6 + 2.535482963139657e-5
    q = q * x + 1.9844024791382253e-4
    q = q * x + 1.388545148074627e-3
    q = q * x + 8.33331048488617e-3
    q = q * x + 4.166673496365547e-2
    q = q * x + 1.666666716337204e-1
    return q * x + 0.5


@triton.jit
def atanh_rest(s):
    """The rest of atanh(s) beyond s for |s| <= 1/3, relatively accurate down to 0."""
    y = s * s
    q = y * 1.3430505990982056e-1 + 1.4117521047592163e-1
    q = q * y + 2.000381350517273e-1
    q = q * y + 3.3333319425582886e-1
    return s * y * q


@triton.jit
def _log_parts(u):
    """(n, m) with u = 2^n m and m in [sqrt(1/2), sqrt(2)), and 2^-n."""
    bits = u.to(tl.int32, bitcast=True) - 0x3F3504F3
    n = (bits >> 23).to(tl.float32)
    m = ((bits & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True)
    inverse = (0x3F800000 - ((bits >> 23) << 23)).to(tl.float32, bitcast=True)
    return n, m, inverse


@triton.jit
def log_positive(x):
    """log(x) for normal x > 0."""
    n, m, _ = _log_parts(x)
    s = (m - 1.0) / (m + 1.0)
    y = 2.0 * (s + atanh_rest(s)) + n * _REST + n * _EXACT
    return tl.where(x < 3.0e38, y, x)


@triton.jit
def log1p_nonnegative(x):
    """log(1 + x) for x >= 0."""
    u = 1.0 + x
    n, m, inverse = _log_parts(u)
    # What 1 + x rounded away, scaled like m; above 4 it is below the rounding of the result.
    lost = (x - (u - 1.0)) * inverse
    top = (m - 1.0) + tl.where(u > 4.0, 0.0, lost)
    s = top / (2.0 + top)
    y = 2.0 * (s + atanh_rest(s)) + n * _REST + n * _EXACT
    return tl.where(u < 3.0e38, y, u)


@triton.jit
def blend(prior, posterior, mix):
    """(1 - mix) prior + mix posterior; the posterior is not looked at for mix = 0."""
    return tl.where(mix == 0.0, prior, (1.0 - mix) * prior + mix * posterior)


@triton.jit
def float8_bits(x):
    """x as float8_e4m3fn, to nearest even, at most 448: that of csrc/core/float8.h."""
    raw = x.to(tl.int32, bitcast=True)
    bits = raw & 0x7FFFFFFF
    normal = (bits - 0x3C000000 + 0x7FFFF + ((bits >> 20) & 1)) >> 20
    size = bits.to(tl.float32, bitcast=True)
    subnormal = (size + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
    magnitude = tl.where(normal < 0x7E, normal, 0x7E)
    magnitude = tl.where(bits < 0x3C800000, subnormal, magnitude)
    magnitude = tl.where(bits > 0x7F800000, 0x7F, magnitude)
    return (magnitude | ((raw >> 24) & 0x80)).to(tl.uint8)
