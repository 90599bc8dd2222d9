"""Reads the golden tables into float64 tensors, one batch per (loss, options, latents)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class PairBatch:
    """Golden rows that share a loss and its options; a, b, da, db are [rows, (2,) latents]."""

    family: str
    loss: str
    tau: float
    a: Tensor
    b: Tensor
    value: Tensor
    da: Tensor
    db: Tensor

    @property
    def group(self) -> int:
        return self.a.shape[-1] if self.family == "categorical" else 1


@dataclass(frozen=True)
class ClassRow:
    """One golden class loss; dtable has the shape of table."""

    family: str
    normalize: bool
    tau: float
    a: Tensor
    table: Tensor
    bias: Tensor
    label: int
    value: Tensor
    da: Tensor
    dtable: Tensor
    dbias: Tensor


def _numbers(text: str) -> Tensor:
    return torch.tensor([float(word) for word in text.split(" ")], dtype=torch.float64)


def _tau(params: str) -> float:
    return float(params.removeprefix("tau=")) if params != "-" else 1.0


def _lines(name: str) -> list[list[str]]:
    header, *lines = (FOLDER / f"{name}.tsv").read_text().splitlines()
    assert header.startswith("#")
    return [line.split("\t") for line in lines]


@cache
def pair_batches(family: str) -> list[PairBatch]:
    """Every row of <family>.tsv, batched by loss, tau and number of latents."""
    rows: dict[tuple[str, float, int], list[list[Tensor]]] = {}
    for loss, params, *columns in _lines(family):
        numbers = [_numbers(column) for column in columns]
        rows.setdefault((loss, _tau(params), numbers[0].numel()), []).append(numbers)
    batches = []
    for (loss, tau, _), members in rows.items():
        a, b, value, da, db = (torch.stack(column) for column in zip(*members, strict=True))
        if family == "gaussian-diagonal":
            a, b, da, db = (x.unsqueeze(-1) for x in (a, b, da, db))
        batches.append(PairBatch(family, loss, tau, a, b, value[:, 0], da, db))
    return batches


@cache
def class_rows(family: str) -> list[ClassRow]:
    """Every row of class_<family>.tsv."""
    planes = 2 if family == "gaussian-diagonal" else 1
    rows = []
    for normalize, params, a, table, bias, label, *results in _lines(f"class_{family}"):
        value, da, dtable, dbias = map(_numbers, results)
        latents, messages = _numbers(a), _numbers(table)
        shape = (planes, latents.numel() // planes) if planes > 1 else (latents.numel(),)
        rows.append(
            ClassRow(
                family,
                normalize == "1",
                _tau(params),
                latents.reshape(shape),
                messages.reshape(-1, *shape),
                _numbers(bias),
                int(label),
                value[0],
                da.reshape(shape),
                dtable.reshape(-1, *shape),
                dbias,
            )
        )
    return rows
