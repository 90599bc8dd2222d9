"""How close is close enough, in one place.

Two rules:

* ``assert_gradient_accuracy``: the accuracy promised for the gradient to ``a`` (docs/method.md):
  relative error in the L2 norm for every dtype, and elementwise relative error where the output
  dtype is not itself the limit.
* ``assert_close``: everything else. An element may differ by half a unit in the last place of
  the dtype it is stored in (doubled, for the rounding of the inputs' sum), plus a floor relative
  to the size of the terms that were added up (the largest element unless ``scale`` says more).
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Promised relative L2 error of da against float64 on the same (rounded) inputs.
GRADIENT_L2 = {
    torch.float64: 1e-14,
    torch.float32: 3e-7,
    torch.bfloat16: 2e-3,
    torch.float16: 3e-4,
}
#: Promised elementwise relative error of da.
GRADIENT_ELEMENTWISE = {torch.float64: 1e-12, torch.float32: 3e-6}
#: Message scales the promise holds for.
MESSAGE_SCALES = (1.0, 0.05, 0.005)

#: Error of a sum relative to the size of its terms: the accumulate dtype decides.
FLOOR = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 1e-5,
    torch.float16: 1e-5,
}
#: Relative spacing of the stored numbers.
SPACING = {dtype: torch.finfo(dtype).eps for dtype in FLOOR}


def relative_l2(got: Tensor, want: Tensor) -> float:
    """||got - want|| / ||want|| in float64; 0 when both are zero."""
    error = (got.double() - want.double()).norm().item()
    size = want.double().norm().item()
    return error / size if size else error


def relative_elementwise(got: Tensor, size: Tensor, want: Tensor, noise: float = 0.0) -> float:
    """Largest (|got - want| - noise) / size; infinite where only ``size`` is zero."""
    got, want = got.double(), want.double()
    error = ((got - want).abs() - noise).clamp_min(0)
    ratio = torch.where(error == 0, 0.0, error / size)
    return ratio.max().item() if ratio.numel() else 0.0


def assert_gradient_accuracy(
    got: Tensor, want: Tensor, dtype: torch.dtype, size: Tensor | None = None, noise: float = 0.0
) -> None:
    """The promised accuracy of da, for gradients stored as ``dtype``.

    Args:
        got: The gradient.
        want: float64 truth.
        dtype: Dtype of the gradient.
        size: What an element's error is relative to: the terms it is a sum of; ``|want|``
            unless given.
        noise: Absolute error of ``want`` itself.
    """
    assert got.shape == want.shape, (got.shape, want.shape)
    assert torch.isfinite(got).all()
    error = relative_l2(got, want)
    assert error <= GRADIENT_L2[dtype], f"relative L2 error {error:.2e}"
    if dtype in GRADIENT_ELEMENTWISE:
        error = relative_elementwise(got, want.abs() if size is None else size, want, noise)
        assert error <= GRADIENT_ELEMENTWISE[dtype], f"elementwise relative error {error:.2e}"


def assert_close(
    got: Tensor,
    want: Tensor,
    *,
    dtype: torch.dtype | None = None,
    scale: Tensor | float | None = None,
    floor: float | None = None,
    noise: float = 0.0,
) -> None:
    """``got`` equals ``want`` up to rounding.

    Args:
        got: The result, in its own dtype.
        want: float64 truth of the same shape.
        dtype: Dtype the computation took its inputs in; the dtype of ``got`` unless given.
        scale: Size of the terms behind an element; the largest ``|want|`` unless given.
        floor: Error allowed relative to ``scale``; the entry of ``FLOOR`` unless given.
        noise: Absolute error of ``want`` itself.
    """
    assert got.shape == want.shape, (got.shape, want.shape)
    if not got.numel():
        return
    dtype = dtype or got.dtype
    floor = FLOOR[dtype] if floor is None else floor
    got64, want = got.double(), want.double()
    same = torch.isfinite(got64) == torch.isfinite(want)
    assert same.all(), f"finite here, not there: {got64[~same][:4]} against {want[~same][:4]}"
    scale = want.abs().max() if scale is None else scale
    smallest = torch.finfo(got.dtype).smallest_normal * torch.finfo(got.dtype).eps
    limit = SPACING[got.dtype] * want.abs() + floor * scale + noise + smallest
    excess = (got64 - want).abs() / limit
    worst = excess.nan_to_num(0.0).max().item()
    assert worst <= 1.0, f"error is {worst:.3g} times the tolerance"


def assert_same_bits(got: Tensor, want: Tensor) -> None:
    """Equal to the last bit, NaNs included."""
    assert got.dtype == want.dtype and got.shape == want.shape
    view = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}[got.element_size()]
    left, right = got.contiguous().view(view), want.contiguous().view(view)
    assert torch.equal(left, right), f"{(left != right).sum().item()} elements differ"
