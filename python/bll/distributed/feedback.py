"""Messages from the last rank down to the first, on a group of their own.

A rule whose message to a block is computed from the next block's message needs a way down: this
one. It depends on labels and messages only, never on activations, so both directions are under way
at once, each on its own process group.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from bll.distributed.schedule import LostPeer, Traffic, wait


class FeedbackChain:
    """One rank's link of a chain of messages.

    Args:
        group: The ranks, first block first (`Groups.feedback`).
        like: A message in shape and dtype of what this rank gets from the rank above, on the
            blocks' device; None on the last block's rank, which gets none.
        step: Computes this rank's message, which goes on down, from the labels and the message
            from above: `step(labels, None)` on the last block's rank.
        slots: Messages that may be on their way down.
        traffic: Where bytes and waits are counted.
    """

    def __init__(
        self,
        group: ProcessGroup,
        like: Tensor | None,
        step: Callable[[Tensor, Tensor | None], Tensor],
        *,
        slots: int = 2,
        traffic: Traffic | None = None,
    ) -> None:
        self.group = group
        self.like = like
        self.step = step
        self.slots = slots
        self.traffic = Traffic() if traffic is None else traffic
        self.stage = dist.get_rank(group)
        if (like is None) != (self.stage == dist.get_world_size(group) - 1):
            raise ValueError("like: expected a tensor on every rank but the last block's")
        self._coming: deque[tuple[dist.Work | None, Tensor]] = deque()
        self._sent: deque[tuple[dist.Work, Tensor]] = deque()

    def ask(self) -> None:
        """Ask for the next message from above, so that it travels while this rank computes."""
        if self.like is None:
            return
        buffer = self.like.new_empty(self.like.shape)
        try:
            work = dist.irecv(buffer, group=self.group, group_src=self.stage + 1)
        except RuntimeError as error:
            raise LostPeer(self.stage + 1) from error
        self._coming.append((work, buffer))

    def pass_on(self, labels: Tensor) -> Tensor:
        """Return this rank's message for a micro-batch, and send it on down.

        Messages come in the order in which they were asked for; one that was not is asked for now.

        Args:
            labels: [micro-batch size].

        Raises:
            LostPeer: A neighbour did not answer.
        """
        above = None
        if self.like is not None:
            if not self._coming:
                self.ask()
            work, above = self._coming.popleft()
            if work is not None:
                wait(work, self.stage + 1, self.traffic)
        message = self.step(labels, above).detach().contiguous()
        if self.stage > 0:
            while len(self._sent) >= self.slots:
                self._wait()
            try:
                work = dist.isend(message, group=self.group, group_dst=self.stage - 1)
            except RuntimeError as error:
                raise LostPeer(self.stage - 1) from error
            if work is not None:
                self._sent.append((work, message))
            self.traffic.bytes_sent += message.numel() * message.element_size()
        return message

    def drain(self) -> None:
        """Wait until everything sent has been taken."""
        while self._sent:
            self._wait()

    def _wait(self) -> None:
        work, _ = self._sent.popleft()
        wait(work, self.stage - 1, self.traffic)
