"""Steps that fail on request, for the tests of faults."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bll_kernels.pipeline.executor import Executor
from bll_kernels.pipeline.schedule import Kind
from bll_kernels.pipeline.step import LocalStep


class Fault:
    """One fault, planted in a part of one block's step on one micro-batch.

    Args:
        executor: Whose step is replaced.
        block: Number of the block.
        kind: The part that fails.
        micro_batch: Counted from 0 through the run.
        error: What is raised.
        late: Whether the part's work is done before it fails.
    """

    def __init__(
        self,
        executor: Executor,
        block: int,
        kind: Kind,
        micro_batch: int,
        error: BaseException,
        *,
        late: bool = False,
    ) -> None:
        self.executor, self.block, self.kind = executor, block, kind
        self.micro_batch, self.error, self.late = micro_batch, error, late
        self.whole = executor.steps[block]
        self.raised = 0

    def __enter__(self) -> Fault:
        self.executor.steps[self.block] = _FaultyStep(self.whole, self)
        return self

    def __exit__(self, *exception: object) -> None:
        self.executor.steps[self.block] = self.whole

    @property
    def note(self) -> str:
        """The note the error must carry."""
        name = self.executor.blocks[self.block].name
        return f"in block {name!r}, {self.kind.value} of micro-batch {self.micro_batch}"


class _FaultyStep:
    def __init__(self, step: LocalStep, fault: Fault) -> None:
        self.step, self.fault = step, fault
        self.seen = -1

    def _run(self, kind: Kind, work: Any, *arguments: Any) -> Any:
        fault = self.fault
        here = kind is fault.kind and self.seen == fault.micro_batch
        if here and not fault.late:
            fault.raised += 1
            raise fault.error
        found = work(*arguments)
        if here:
            fault.raised += 1
            raise fault.error
        return found

    @property
    def path(self) -> str:
        return self.step.path

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Any]:
        self.seen += 1
        return self._run(Kind.FORWARD, self.step.forward, x, labels)

    def loss(self, saved: Any) -> tuple[Tensor, Any]:
        return self._run(Kind.LOSS, self.step.loss, saved)

    def backward(self, saved: Any) -> None:
        self._run(Kind.BACKWARD, self.step.backward, saved)

    def update(self) -> None:
        self._run(Kind.UPDATE, self.step.update)

    def drop(self) -> None:
        self.step.drop()
