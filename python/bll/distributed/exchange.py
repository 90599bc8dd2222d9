"""Plain data and named tensors from rank to rank, without pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def to_bytes(value: Any, device: torch.device) -> Tensor:
    """Return JSON of a value as uint8; equal values give equal bytes."""
    text = json.dumps(value, sort_keys=True).encode()
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).to(device)


def from_bytes(data: Tensor) -> Any:
    """Inverse of `to_bytes`."""
    return json.loads(bytes(data.cpu().tolist()))


def gather_values(value: Any, group: ProcessGroup, device: torch.device) -> list[Any]:
    """Return the value of every rank of the group, in its order; values are what JSON can hold."""
    own = to_bytes(value, device)
    world = dist.get_world_size(group)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(world)]
    dist.all_gather(sizes, torch.tensor([own.numel()], device=device), group=group)
    longest = max(int(size) for size in sizes)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: own.numel()] = own
    parts = [torch.zeros_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded, group=group)
    return [from_bytes(part[: int(size)]) for part, size in zip(parts, sizes, strict=True)]


def broadcast_value(value: Any, source: int, group: ProcessGroup, device: torch.device) -> Any:
    """Return the value that the group's rank `source` gave; the other ranks' is not read."""
    own = to_bytes(value, device)
    size = torch.tensor([own.numel()], device=device)
    dist.broadcast(size, group=group, group_src=source)
    data = own if dist.get_rank(group) == source else own.new_zeros(int(size))
    dist.broadcast(data, group=group, group_src=source)
    return from_bytes(data)


def broadcast_tensors(
    tensors: Mapping[str, Tensor], source: int, group: ProcessGroup, device: torch.device
) -> dict[str, Tensor]:
    """Return the tensors that the group's rank `source` gave, contiguous and detached.

    Args:
        tensors: By name; read on the source only.
        source: Rank in the group.
        group: Who takes part.
        device: Where the others get them.
    """
    is_source = dist.get_rank(group) == source
    own = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    form = {name: (str(x.dtype).removeprefix("torch."), list(x.shape)) for name, x in own.items()}
    form = broadcast_value(form if is_source else None, source, group, device)
    found: dict[str, Tensor] = {}
    for name, (dtype, shape) in form.items():
        if is_source:
            found[name] = own[name]
        else:
            found[name] = torch.empty(shape, dtype=getattr(torch, dtype), device=device)
        # Flags travel as bytes: not every backend has booleans.
        wire = found[name].view(torch.uint8) if dtype == "bool" else found[name]
        dist.broadcast(wire, group=group, group_src=source)
    return found
