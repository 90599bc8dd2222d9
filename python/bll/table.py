"""The table of a wrapped model's blocks, as plain data and as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bll.blocks import Block
from bll.feedback import Message
from bll.rules.base import Rule

# The columns of the text; the data also holds every module and parameter by name.
_COLUMNS = ("block", "modules", "parameters", "output_shape", "bytes", "MFLOP", "message", "tier")


def block_records(
    blocks: Sequence[Block],
    messages: Sequence[Message | None],
    rule: Rule,
    why_in_place: str | None,
) -> list[dict[str, Any]]:
    """Return one record of plain data per block.

    Args:
        blocks: The blocks.
        messages: The message of each, if it has one.
        rule: The rule.
        why_in_place: Why the executor may not run the blocks apart; None: it may.
    """
    rows = []
    for block, message in zip(blocks, messages, strict=True):
        loss = "cross-entropy" if block.cut is None else (rule.name if rule.local else "none")
        known = message is not None and message.ready
        rows.append(
            {
                "block": block.name,
                "modules": list(block.modules),
                "layers": block.layers,
                "parameters": block.parameter_count,
                "parameter_names": list(block.parameters),
                "output_shape": list(block.output_shape),
                "activation_bytes": block.activation_bytes,
                "flops": block.flops,
                "pool": list(block.feature.pool or ()) if block.feature else [],
                "message_shape": list(message.shape) if message is not None and known else [],
                "hands_on": "copy" if block.hands_on_copy else "output",
                "loss": loss,
                "tier": "in place" if why_in_place else "apart",
                "why": why_in_place or "",
            }
        )
    return rows


def block_text(rows: Sequence[dict[str, Any]]) -> str:
    """Return the records as aligned text, with the reason of the tier below."""
    cells = [_COLUMNS] + [
        (
            row["block"],
            _range(row["modules"]),
            f"{row['parameters']:,}",
            str(row["output_shape"]),
            f"{row['activation_bytes']:,}",
            f"{row['flops'] / 1e6:,.3g}",
            str(row["message_shape"] or "-"),
            row["tier"],
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in cells) for i in range(len(_COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    ]
    why = rows[0]["why"]
    return "\n".join([*lines, f"in place: {why}"] if why else lines)


def _range(names: Sequence[str]) -> str:
    if len(names) < 2:
        return "".join(names) or "-"
    return f"{names[0]} .. {names[-1]}"
