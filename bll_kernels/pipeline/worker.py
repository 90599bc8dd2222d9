"""A thread that can be waited for after Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable

#: Seconds an interrupted start is given to show that it took place.
START_LIMIT = 1.0


class Worker(threading.Thread):
    """Does one thing and says when it is done.

    An interrupt inside `Thread.start` or `Thread.join` may leave a running thread that calls itself
    stopped (Python 3.11), so the end is an event of our own.

    Args:
        work: What is done; it must not raise.
        name: Name of the thread.
    """

    def __init__(self, work: Callable[[], None], name: str) -> None:
        super().__init__(name=name)
        self.work = work
        self.asked = False
        self.begun = threading.Event()
        self.ended = threading.Event()

    def start(self) -> None:
        """Start the thread."""
        self.asked = True
        super().start()

    def run(self) -> None:
        """Called in the thread."""
        self.begun.set()
        try:
            self.work()
        finally:
            del self.work  # it holds the run, and the run this
            self.ended.set()

    def wait_after_interrupt(self) -> None:
        """Wait for the end, wherever an exception broke `start`."""
        if self.asked and self.begun.wait(START_LIMIT):
            self.ended.wait()
