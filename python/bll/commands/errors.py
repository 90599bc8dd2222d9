"""How a command says that it cannot do what was asked."""

from __future__ import annotations

BAD_INPUT = 2
INTERRUPTED = 130


class CommandError(Exception):
    """Ends the command with one line on standard error and an exit code.

    Args:
        message: What was expected and what came.
        exit_code: 2 for bad options or inputs, 1 for a failure on the way, 130 for a signal.
    """

    def __init__(self, message: str, exit_code: int = BAD_INPUT) -> None:
        super().__init__(message)
        self.exit_code = exit_code
