"""The class means ops."""

from __future__ import annotations

import torch
from torch import Tensor

from bll_kernels.backends.triton import mean_kernels
from bll_kernels.backends.triton.launch import (
    ELEMENTS,
    ceil_div,
    launch,
    power_of_two,
    sections,
    table_tile,
)
from bll_kernels.backends.triton.operands import as_rows, check_dtypes
from bll_kernels.backends.triton.tables import parts_of, rows_by_label, sum_parts


def class_means(x: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean of every class's rows and their number."""
    check_dtypes(x)
    rows = as_rows(x, "gaussian")
    means = torch.empty((classes, rows.width), dtype=torch.float32, device=x.device)
    order, start = rows_by_label(labels.contiguous(), classes)
    if means.numel():
        tile = table_tile(rows.width, False)
        chunks = ceil_div(rows.width, tile.columns)
        parts = sections(rows.count, classes, chunks, tile)
        sums = parts_of(means, parts)
        launch(
            mean_kernels.class_sums, parts * classes * chunks, tile.warps,
            x_ptr=rows.tensor, order_ptr=order, start_ptr=start, out_ptr=sums, width=rows.width,
            classes=classes, parts=parts, x_row=rows.row, ROWS=tile.rows, COLUMNS=tile.columns,
        )  # fmt: skip
        sum_parts(sums, means)
    return means, start[: classes + 1].diff()


def class_means_backward(grad: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Every row gets its class's gradient divided by the class's count."""
    check_dtypes(grad)
    classes, width = grad.shape
    grad_x = grad.new_empty((labels.shape[0], width))
    if width:
        columns = min(power_of_two(width), ELEMENTS)
        launch(
            mean_kernels.class_spread, labels.shape[0] * ceil_div(width, columns), 4,
            grad_ptr=grad.contiguous(), labels_ptr=labels.contiguous(), counts_ptr=counts,
            out_ptr=grad_x, width=width, classes=classes, COLUMNS=columns,
        )  # fmt: skip
    return grad_x
