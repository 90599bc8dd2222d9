"""What reductions are made with: rows by label, and sums of what programs left."""

from __future__ import annotations

import torch
from torch import Tensor

from bll_kernels.backends.triton import reduce_kernels
from bll_kernels.backends.triton.launch import ELEMENTS, ceil_div, launch, section_tile
from bll_kernels.backends.triton.operands import per_row


def rows_by_label(labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Row numbers sorted by label, in their order within a label, and where each label begins.

    Labels that name no class count as label `classes`; the last beginning is the number of rows.
    """
    known = (labels >= 0) & (labels < classes)
    ordered, order = torch.sort(torch.where(known, labels, classes), stable=True)
    borders = torch.arange(classes + 2, device=labels.device, dtype=labels.dtype)
    return order, torch.searchsorted(ordered, borders)


def parts_of(out: Tensor, parts: int) -> Tensor:
    """Where programs leave their parts of `out`: float32, `out` itself if there is one of those."""
    if parts == 1 and out.dtype == torch.float32:
        return out
    return out.new_empty((parts, *out.shape), dtype=torch.float32)


def sum_parts(partial: Tensor, out: Tensor) -> None:
    """Add up what programs left in `parts_of(out, ...)`, in a fixed order."""
    if partial is out:
        return
    tile = section_tile(partial.shape[0])
    launch(
        reduce_kernels.sum_sections, ceil_div(out.numel(), tile.columns), tile.warps,
        partial_ptr=partial, out_ptr=out, sections=partial.shape[0], size=out.numel(),
        SECTIONS=tile.rows, BLOCK=tile.columns,
    )  # fmt: skip


def reduce_partials(
    partial: Tensor, rows: int, count: int, scale: float, weight: Tensor | None = None
) -> Tensor:
    """Sum [rows, count] partial sums to [rows], each times `scale` and its row's weight."""
    out = partial.new_empty((rows,))
    factor = per_row(weight)
    launch(
        reduce_kernels.sum_partials, rows, 4,
        partial_ptr=partial, weight_ptr=factor.tensor, out_ptr=out, count=count,
        weight_stride=factor.stride, scale=scale, BLOCK=ELEMENTS,
    )  # fmt: skip
    return out
