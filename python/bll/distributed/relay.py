"""A flag from the first rank to all others, along the pipeline."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from bll.distributed.schedule import LostPeer, Traffic, wait


class Relay:
    """Passes flags up; a rank waits for the one before it, never for the one behind.

    Args:
        group: The pipeline.
        device: Device of the blocks.
        traffic: Where waits are counted.
    """

    def __init__(self, group: ProcessGroup, device: torch.device, traffic: Traffic) -> None:
        self.group = group
        self.device = device
        self.traffic = traffic
        self.member = dist.get_rank(group)
        self.members = dist.get_world_size(group)
        self._sent: tuple[dist.Work, Tensor] | None = None

    def pass_on(self, flag: bool) -> bool:
        """Return the first rank's flag.

        Raises:
            LostPeer: A neighbour did not answer.
        """
        data = torch.tensor([int(flag)], dtype=torch.uint8, device=self.device)
        before, behind = self.member - 1, self.member + 1
        if self.member > 0:
            try:
                coming = dist.irecv(data, group=self.group, group_src=before)
            except RuntimeError as error:
                raise LostPeer(before) from error
            if coming is not None:
                wait(coming, before, self.traffic)
        if behind < self.members:
            if self._sent is not None:
                wait(self._sent[0], behind, self.traffic)
            try:
                going = dist.isend(data, group=self.group, group_dst=behind)
            except RuntimeError as error:
                raise LostPeer(behind) from error
            self._sent = None if going is None else (going, data)
        return bool(data.item())
