"""Bytes of activations that a run keeps: the law, and a meter that counts them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bll_kernels.pipeline.block import Block
from bll_kernels.pipeline.schedule import Kind, Op
from bll_kernels.pipeline.step import LocalStep


def activation_bytes(
    ops: Sequence[Op],
    private_bytes: Sequence[int],
    output_bytes: Sequence[int],
    *,
    depth: int,
    slots: int = 2,
) -> int:
    """Most bytes of activations that workers following a schedule can keep at once.

    Workers take local steps in the order of the schedule and may end them in any other. When the
    first n steps are taken, at most `depth` blocks are in flight, and border k holds the outputs
    that wait to be taken, the one block k is working behind and the one block k + 1 is working on,
    never more than `slots`. So, with S the blocks in flight::

        peak <= max over n and S of  sum over k in S of private_k
                + sum over borders k of output_k * min(slots, waiting_k(n) + [k in S] + [k+1 in S])
                + output_K * (outputs of the last block so far)

    The input of the first block is the caller's and not counted; gradients are not activations.

    Args:
        ops: The schedule, of local learning.
        private_bytes: What block k saves for its backward of one micro-batch, beside its input
            and output.
        output_bytes: Output of block k for one micro-batch.
        depth: Blocks in flight.
        slots: Buffers between two blocks.

    Returns:
        Bytes.

    Raises:
        ValueError: the blocks of `ops` and the lengths differ.
    """
    blocks = 1 + max((op.block for op in ops), default=-1)
    if not blocks == len(private_bytes) == len(output_bytes):
        raise ValueError(
            f"private_bytes, output_bytes: expected {blocks} blocks, got {len(private_bytes)} "
            f"and {len(output_bytes)}"
        )
    waiting = [0] * blocks
    most = 0
    for op in ops:
        if op.kind is not Kind.FORWARD:
            continue
        if op.block > 0:
            waiting[op.block - 1] -= 1
        if depth == 1:
            # What is in flight is known, and its output is not waiting yet.
            kept = private_bytes[op.block] + sum(
                count * size for count, size in zip(waiting, output_bytes, strict=True)
            )
            kept += output_bytes[op.block] + (output_bytes[op.block - 1] if op.block else 0)
            most = max(most, kept)
        waiting[op.block] += 1
        if depth > 1:
            most = max(most, _worst(private_bytes, output_bytes, waiting, depth, slots))
    return most


def _worst(
    private: Sequence[int], output: Sequence[int], waiting: Sequence[int], depth: int, slots: int
) -> int:
    """The sum of the law for given waiting outputs, in the worst choice of blocks in flight."""
    best = {(0, False): 0}  # by blocks in flight so far, and whether the last of them is
    for block, size in enumerate(private):
        longer: dict[tuple[int, bool], int] = {}
        for (count, before), total in best.items():
            for now in (False, True) if count < depth else (False,):
                kept = total + size * now
                if block:
                    held = min(slots, waiting[block - 1] + before + now)
                    kept += held * output[block - 1]
                key = (count + now, now)
                longer[key] = max(kept, longer.get(key, 0))
        best = longer
    return max(best.values()) + waiting[-1] * output[-1]


class ActivationMeter:
    """Counts the bytes of activations alive in the runs it watches (`Executor.watched`).

    Counted are the storages that autograd, or the saved state of a step, keeps between a forward
    and its backward, and the outputs of blocks; each once, without parameters and the run's input.

    Attributes:
        live: Bytes now.
        peak: Most bytes at once.
        private: By block, most bytes its forward saved beside its input and output.
        outputs: By block, most bytes of its output.
    """

    def __init__(self) -> None:
        self.live = 0
        self.peak = 0
        self.private: dict[int, int] = {}
        self.outputs: dict[int, int] = {}
        self._holders: dict[int, int] = {}
        # Finalizers run wherever memory is freed, also while this thread counts.
        self._lock = threading.RLock()

    def watch(self, blocks: Sequence[Block], steps: Sequence[LocalStep]) -> list[LocalStep]:
        """The same steps, counted."""
        owned = {_storage(p)[0] for block in blocks for p in block.parameters()}
        return [_MeteredStep(self, index, owned, step) for index, step in enumerate(steps)]

    def hold(self, tensor: Tensor) -> tuple[int, int]:
        """Counts the tensor's storage until `drop`."""
        address, size = _storage(tensor)
        with self._lock:
            count = self._holders.get(address, 0)
            self._holders[address] = count + 1
            if not count:
                self.live += size
                self.peak = max(self.peak, self.live)
        return address, size

    def drop(self, address: int, size: int) -> None:
        """Undoes one `hold`."""
        with self._lock:
            self._holders[address] -= 1
            if not self._holders[address]:
                del self._holders[address]
                self.live -= size


def _storage(tensor: Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


class _Held:
    """A saved tensor; counted as long as this lives."""

    def __init__(self, meter: ActivationMeter, tensor: Tensor) -> None:
        # A saved output knows its graph, which knows this: a cycle no collector finds.
        self.tensor = tensor.detach()
        self.meter = meter
        self.key = meter.hold(tensor)

    def __del__(self) -> None:
        self.meter.drop(*self.key)


class _MeteredStep:
    """A local step whose saved tensors and output are counted."""

    def __init__(
        self, meter: ActivationMeter, index: int, owned: set[int], step: LocalStep
    ) -> None:
        self.meter = meter
        self.index = index
        self.owned = owned
        self.step = step

    @property
    def path(self) -> str:
        return self.step.path

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Any]:
        given = _storage(x)[0]
        foreign = {*self.owned, _storage(labels)[0]}
        if self.index == 0:
            foreign.add(given)
        saved_here: dict[int, int] = {}

        def pack(tensor: Tensor) -> Any:
            address, size = _storage(tensor)
            if address in foreign:
                return tensor
            saved_here[address] = size
            return _Held(self.meter, tensor)

        def unpack(kept: Any) -> Tensor:
            return kept.tensor if isinstance(kept, _Held) else kept

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            output, saved = self.step.forward(x, labels)
        weakref.finalize(output, self.meter.drop, *self.meter.hold(output))
        held = []
        for leaf in tree_leaves(saved):
            # A step without autograd hands on what it saved.
            if isinstance(leaf, Tensor) and _storage(leaf)[0] not in foreign:
                held.append(_Held(self.meter, leaf))
                saved_here[_storage(leaf)[0]] = _storage(leaf)[1]
        address, size = _storage(output)
        private = sum(n for at, n in saved_here.items() if at not in (address, given))
        self.meter.private[self.index] = max(private, self.meter.private.get(self.index, 0))
        self.meter.outputs[self.index] = max(size, self.meter.outputs.get(self.index, 0))
        return output, (saved, held)

    def loss(self, saved: Any) -> tuple[Tensor, Any]:
        loss, following = self.step.loss(saved[0])
        # Kept to the backward: the gradient's own graph or tensors are not activations.
        return loss, (following, saved[1])

    def backward(self, saved: Any) -> None:
        self.step.backward(saved[0])
        saved[1].clear()

    def update(self) -> None:
        self.step.update()

    def drop(self) -> None:
        self.step.drop()
