"""This rank's part of a wrapped model, and its steps."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage

from bll.distributed import checkpoint
from bll.distributed.assign import assign_blocks
from bll.distributed.contents import block_tensors
from bll.distributed.exchange import broadcast_tensors, gather_values
from bll.distributed.faults import FaultBoard
from bll.distributed.groups import Layout, make_groups
from bll.distributed.options import StageOptions, StageResult
from bll.distributed.recipe import agree, describe, describe_optimizer
from bll.distributed.relay import Relay
from bll.distributed.replicas import ReplicatedBlock
from bll.distributed.schedule import LocalSchedule, Outbox, Traffic
from bll.distributed.shapes import borders
from bll.distributed.watch import watched
from bll.distributed.work import StageWork
from bll.executor import wrapped_blocks
from bll_kernels.pipeline.certificate import refuse_what_cannot_run
from bll_kernels.pipeline.executor import OptimizerFactory
from bll_kernels.pipeline.step import AutogradStep, LocalStep, Updater
from bll_kernels.pipeline.traced import make_step


class Stage:
    """The blocks of one rank; made by `stage`.

    Attributes:
        names: Names of this rank's blocks.
        batches_done: Batches of the run so far; the random numbers of a step depend on it.
        traffic: Bytes sent and seconds waited so far.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer_factory: OptimizerFactory,
        sample: Tensor,
        layout: Layout,
        options: StageOptions,
    ) -> None:
        self.blocks = wrapped_blocks(model)
        refuse_what_cannot_run(self.blocks, layout.stages)
        self.handle = self.blocks[0].handle
        self.layout = layout
        self.options = options
        self.micro_batches = options.micro_batches
        costs = [block.activation_bytes for block in self.handle.blocks]
        self.assignment = assign_blocks(costs, layout.stages, options.blocks_per_rank)
        self.device = next(model.parameters()).device
        self.sample = sample
        self.groups = make_groups(layout, options.timeout)
        first, last = self.assignment[layout.stage]
        self.own = self.blocks[first:last]
        self.names = [block.name for block in self.own]
        self.optimizers = [optimizer_factory(block.parameters()) for block in self.own]
        self.running = [ReplicatedBlock(block, self.groups.replicas) for block in self.own]
        self.steps: list[LocalStep] = [
            self._local_step(block, optimizer)
            for block, optimizer in zip(self.running, self.optimizers, strict=True)
        ]
        self.batches_done = 0
        self.traffic = Traffic()
        self.outbox = Outbox(options.slots, self.layout.stage + 1, self.traffic)
        self._relay = Relay(self.groups.pipeline, self.device, self.traffic)
        self.board = FaultBoard(
            self.groups.pipeline.get_group_store(),
            self.layout.row,
            [[block.name for block in self.blocks[a:b]] for a, b in self.assignment],
            self.layout.stage,
            options.timeout,
        )
        self._schedules: dict[int, LocalSchedule] = {}
        self._broken: str | None = None

    def _local_step(self, block: ReplicatedBlock, optimizer: Updater) -> LocalStep:
        """As the executor runs it; gradients of replicas travel in autograd's backward."""
        if block.group is not None:
            return AutogradStep(block, optimizer, self.micro_batches)
        return make_step(block.block, optimizer, self.micro_batches, self.options.local_step)

    @property
    def is_first(self) -> bool:
        """Whether this rank reads the input."""
        return self.layout.stage == 0

    @property
    def is_last(self) -> bool:
        """Whether this rank has the output."""
        return self.layout.stage == self.layout.stages - 1

    def compare(self, recipe: Mapping[str, Any]) -> None:
        """Refuse ranks that differ from rank 0; every rank calls it.

        Raises:
            RecipeMismatch: As in `stage`.
        """
        options = {
            **{k: v for k, v in asdict(self.options).items() if k != "blocks_per_rank"},
            "blocks_per_rank": [b - a for a, b in self.assignment],
            "optimizer": [describe_optimizer(optimizer) for optimizer in self.optimizers[:1]],
            "sample": [str(self.sample.dtype), list(self.sample.shape), str(self.device.type)],
            "recipe": dict(recipe),
        }
        with self.watched():
            agree(describe(self.handle, self.blocks, options), self.groups.everyone, self.device)
            words = gather_values(uuid.uuid4().hex, self.groups.pipeline, self.device)
            self.board.begin(words[0])

    def step(self, x: Tensor | None, labels: Tensor) -> StageResult:
        """One batch; returns when this rank is done with it, whatever the others are at.

        Args:
            x: [batch, ...], read by the first rank of a pipeline; the others may give None.
            labels: [batch], on every rank.

        Raises:
            ValueError: The batch does not divide into the micro-batches, is empty, or differs
                from the example in shape or dtype. Nothing was computed; the size is checked on
                every rank alike.
            RankFailure: Another rank raised, died or hung; the message names it and its blocks.
            RuntimeError: An earlier step failed.
            Exception: What a block of this rank raised, with block and micro-batch in a note.
        """
        self._check_usable()
        size = self._check_batch(x, labels)
        labels = labels.to(self.device, non_blocking=True)
        with self._computing():
            schedule = self._schedule(size // self.micro_batches)
            parts = labels.chunk(self.micro_batches)
            schedule.work.begin(self.batches_done * self.micro_batches, parts)
            args = (x,) if self.is_first else ()
            output = schedule.step(*args, target=labels)
        self.batches_done += 1
        losses = {
            name: torch.stack(parts).mean()
            for name, parts in zip(self.names, schedule.work.losses, strict=True)
        }
        return StageResult(losses, output if self.is_last else None)

    def _check_batch(self, x: Tensor | None, labels: Tensor) -> int:
        size, count = len(labels), self.micro_batches
        if size == 0 or size % count:
            raise ValueError(
                f"labels: expected a batch that divides into {count} micro-batches, got {size}; "
                "leave a short last batch out (drop_last=True)"
            )
        if self.is_first:
            if x is None:
                raise ValueError("x: expected the input on the first rank, got None")
            expected = (size, *self.sample.shape[1:])
            if tuple(x.shape) != expected or x.dtype != self.sample.dtype:
                raise ValueError(
                    f"x: expected {self.sample.dtype} {list(expected)}, as the labels and the "
                    f"example say, got {x.dtype} {list(x.shape)}"
                )
        return size

    def _schedule(self, size: int) -> LocalSchedule:
        """The schedule for micro-batches of this size; every rank makes it at the same step."""
        if size not in self._schedules:
            sample = self.sample.to("meta")
            shapes = borders(self.blocks, sample.expand(size, *sample.shape[1:]).clone())
            first, last = self.assignment[self.layout.stage]
            work = StageWork(
                self.running,
                self.steps,
                first=first,
                total=len(self.blocks),
                inputs=shapes[first],
                output=shapes[last],
                seed=self.options.seed * self.layout.replicas + self.layout.replica,
                device=self.device,
            )
            engine = PipelineStage(
                work,
                self.layout.stage,
                self.layout.stages,
                self.device,
                input_args=work.wire_input(shapes[first]),
                output_args=work.wire_output(shapes[last]),
                group=self.groups.pipeline,
            )
            self._schedules[size] = LocalSchedule(engine, work, self.micro_batches, self.outbox)
        return self._schedules[size]

    def gather(self) -> None:
        """Bring every block's parameters and buffers, and messages, to every rank's model.

        Every rank calls it; it waits for all of them.
        """
        with self.watched():
            self.outbox.drain()
            for member, (first, last) in enumerate(self.assignment):
                for block in self.blocks[first:last]:
                    own = block_tensors(self.handle, block)
                    new = broadcast_tensors(own, member, self.groups.pipeline, self.device)
                    if member != self.layout.stage:
                        for name, tensor in own.items():
                            tensor.copy_(new[name])

    def agree(self, flag: bool) -> bool:
        """Return the first rank's flag, on every rank; each calls it at the same point.

        It travels up behind the activations, so that no rank waits for a later one: between two
        steps this tells whether to go on without emptying the pipeline.
        """
        self._check_usable()
        with self.watched():
            return self._relay.pass_on(flag)

    def save(
        self, directory: str | Path, extra: Mapping[str, Any] | None = None, *, keep: int = 2
    ) -> Path:
        """Write a checkpoint, each rank its blocks; every rank calls it.

        Parameters, buffers, messages, optimiser states and `batches_done` are saved. The new one
        appears by one rename when all its files are on the disk.

        Args:
            directory: Of the checkpoints, shared by all hosts.
            extra: The caller's own state, such as the sampler's, as values JSON can hold.
            keep: Newest checkpoints that stay.

        Raises:
            CheckpointError: The disk refused on some rank; earlier checkpoints are untouched.
        """
        self._check_usable()
        with self.watched():
            self.outbox.drain()
            return checkpoint.save(self, Path(directory), extra or {}, keep)

    def load(self, directory: str | Path) -> dict[str, Any] | None:
        """Continue from the newest checkpoint, written by any number of ranks.

        Nothing in it is executed, and nothing is changed unless all of it fits. Every rank calls
        it.

        Returns:
            What was given as `extra`, or None where there is no checkpoint yet.

        Raises:
            CheckpointError: It is damaged, of another network, or not seen by all ranks.
        """
        self._check_usable()
        with self.watched():
            return checkpoint.load(self, Path(directory))

    def close(self) -> None:
        """Wait until every rank has taken what this one sent; call it before a rank ends."""
        self._check_usable()
        with self.watched():
            self.outbox.drain()
            dist.barrier(group=self.groups.everyone)

    def _check_usable(self) -> None:
        if self._broken is not None:
            raise RuntimeError(f"stage: an earlier failure ended it ({self._broken})")

    def schedules(self) -> list[LocalSchedule]:
        """The schedules made so far, one per micro-batch size."""
        return list(self._schedules.values())

    @contextmanager
    def _computing(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(self.options.threads)
        try:
            with self.watched():
                yield
        finally:
            torch.set_num_threads(before)

    def watched(self) -> AbstractContextManager[None]:
        """Turn failures of ranks into errors that name them, and end this stage."""
        return watched(self)

    def end(self, error: BaseException) -> None:
        """Refuse all further use: the ranks are no longer at the same step."""
        self._broken = f"{type(error).__name__}: {error}"
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
