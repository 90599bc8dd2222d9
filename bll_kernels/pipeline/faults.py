"""Errors of blocks, and where they came from."""

from __future__ import annotations

from bll_kernels.pipeline.schedule import Kind


def note(error: BaseException, block: str, kind: Kind, micro_batch: int) -> None:
    """Adds a note that says in which block, operation and micro-batch an error was raised."""
    _add(error, f"in block {block!r}, {kind.value} of micro-batch {micro_batch}")


def note_step(error: BaseException, block: str, micro_batch: int) -> None:
    """As `note`, where a block's whole step is one operation."""
    _add(error, f"in block {block!r}, the step in one call of micro-batch {micro_batch}")


def note_feedback(error: BaseException, batch: int) -> None:
    """Adds a note that says that an error was raised in the feedback lane."""
    _add(error, f"in the feedback lane, at batch {batch}")


def _add(error: BaseException, text: str) -> None:
    notes = getattr(error, "__notes__", None)
    if notes is None:
        # What BaseException.add_note does from Python 3.11 on.
        error.__notes__ = [text]  # type: ignore[attr-defined]
    else:
        notes.append(text)
