"""The class means ops."""

from __future__ import annotations

import torch
from torch import Tensor

from bll_kernels.backends.triton import mean_kernels
from bll_kernels.backends.triton.launch import ELEMENTS, ceil_div, launch, power_of_two, table_tile
from bll_kernels.backends.triton.operands import as_rows, check_dtypes


def class_means(x: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean of every class's rows and their number."""
    check_dtypes(x)
    rows, labels = as_rows(x, "gaussian"), labels.contiguous()
    means = torch.empty((classes, rows.width), dtype=torch.float32, device=x.device)
    counts = torch.empty((classes + 1,), dtype=torch.int64, device=x.device)
    launch(
        mean_kernels.class_counts, classes + 1, 4,
        labels_ptr=labels, out_ptr=counts, rows=rows.count, classes=classes, BLOCK=ELEMENTS,
    )  # fmt: skip
    if rows.width:
        tile = table_tile(rows.width, False)
        launch(
            mean_kernels.class_sums, classes * ceil_div(rows.width, tile.columns), tile.warps,
            x_ptr=rows.tensor, labels_ptr=labels, counts_ptr=counts, out_ptr=means,
            rows=rows.count, width=rows.width, classes=classes, x_row=rows.row, ROWS=tile.rows,
            COLUMNS=tile.columns,
        )  # fmt: skip
    return means, counts[:classes].clone()


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
