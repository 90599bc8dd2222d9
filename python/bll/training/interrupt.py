"""Ctrl-C and SIGTERM as a question the loop asks between two steps."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Inside ``with``, the first SIGINT or SIGTERM is remembered instead of ending the process.

    A second one has its usual effect at once. Call it to learn whether a signal came.
    """

    def __init__(self) -> None:
        self._requested = False
        self._previous: dict[signal.Signals, signal._HANDLER] = {}

    def __call__(self) -> bool:
        """Whether a stop was asked for."""
        return self._requested

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._put_back()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._requested = True
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
