"""From whatever a step raised to an error that names the rank and block at fault."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from bll.distributed.recipe import RecipeMismatch
from bll.distributed.schedule import LostPeer
from bll.errors import CheckpointError, RankFailure

if TYPE_CHECKING:
    from bll.distributed.stage import Stage


@contextmanager
def watched(stage: Stage) -> Iterator[None]:
    """Turn failures of ranks into errors that name them, and end this stage."""
    try:
        yield
    except (CheckpointError, RecipeMismatch):
        # Raised on every rank alike: nobody waits.
        raise
    except LostPeer as lost:
        cause = lost.__cause__ or lost
        failure = stage.board.explain(cause, lost.member)
        stage.end(failure)
        raise failure from cause
    except Exception as error:
        work = next((s.work for s in stage.schedules() if s.work.error), None)
        if work is not None and work.error is not None:
            stage.end(work.error)
            stage.board.report_error(work.error, work.where)
            _note(work.error, work.where)
            raise work.error from None
        stage.end(error)
        if isinstance(error, RuntimeError) and not isinstance(error, RankFailure):
            failure = stage.board.explain(error, None)
            raise failure from error
        stage.board.report_error(error, "")
        raise


def _note(error: BaseException, text: str) -> None:
    notes = getattr(error, "__notes__", None)
    if notes is None:
        # What BaseException.add_note does from Python 3.11 on.
        error.__notes__ = [text]  # type: ignore[attr-defined]
    else:
        notes.append(text)
