"""Certificates: which parameter version a read sees, as tables, and against real runs."""

from __future__ import annotations

import pytest
import torch
from local_blocks import LocalBlock, adam, data, network
from torch import Tensor

from bll_kernels.pipeline.certificate import certify, staleness, versions
from bll_kernels.pipeline.executor import Executor
from bll_kernels.pipeline.schedule import pipelined, sequential


def test_versions_in_sequence() -> None:
    # At the loss of batch n, blocks before have made n + 1 updates, the others n.
    ops = sequential(3, batches=3)
    assert [[versions(ops, 1, owner) for owner in range(3)]] == [
        [[1, 2, 3], [0, 1, 2], [0, 1, 2]],
    ]
    # With two micro-batches an update follows every second loss.
    ops = sequential(2, micro_batches=2, batches=2)
    assert versions(ops, 0, 0) == [0, 0, 1, 1]
    assert versions(ops, 1, 0) == [0, 1, 1, 2]
    assert versions(ops, 0, 1) == [0, 0, 1, 1]


def test_versions_with_all_blocks_in_flight() -> None:
    ops = pipelined(3, depth=3, batches=4)
    # Block 0 is a batch ahead of block 1 and two ahead of block 2.
    assert versions(ops, 0, 0) == [0, 1, 2, 3]
    assert versions(ops, 0, 1) == [0, 0, 1, 2]
    assert versions(ops, 0, 2) == [0, 0, 0, 1]
    assert versions(ops, 2, 0) == [2, 3, 4, 4]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_staleness_as_a_table(depth: int) -> None:
    """Rows read, columns are read; four blocks, two slots."""
    table = [
        [staleness(reader, owner, blocks=4, depth=depth) for owner in range(4)]
        for reader in range(4)
    ]
    assert (
        table
        == {
            1: [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
            2: [[0, 1, 1, 1], [0, 0, 1, 1], [-1, 0, 0, 1], [-1, -1, 0, 0]],
            # A block that is d behind is d updates older; one that is d ahead is d - 1 newer.
            4: [[0, 1, 2, 3], [0, 0, 1, 2], [-1, 0, 0, 1], [-2, -1, 0, 0]],
        }[depth]
    )


def test_certificates_name_what_they_rest_on() -> None:
    blocks = network(0, 3, 6)
    assert [str(line) for line in certify(blocks, depth=3)] == [
        f"b{k}: exact (reads its own input, parameters and label, output)" for k in range(3)
    ]
    blocks[0].reads = frozenset({"output", "label", "next"})
    blocks[1].reads = frozenset({"output", "block:b0"})
    blocks[2].reads = frozenset({"output", "previous", "next"})
    assert [str(line) for line in certify(blocks, depth=3)] == [
        "b0: stale by 1 (reads its own input, parameters and label, output; next: b1, 1 older)",
        "b1: exact (reads its own input, parameters and output; block:b0: b0, the same)",
        "b2: exact (reads its own input, parameters and output; previous: b1, the same)",
    ]
    blocks[0].reads = frozenset({"input", "output"})
    assert certify(blocks, depth=3)[0].why == "reads its own input, parameters and output"
    blocks[0].reads = frozenset({"output", "downstream"})
    assert [line.stale_by for line in certify(blocks, depth=3)] == [2, 0, 0]
    assert [line.stale_by for line in certify(blocks, depth=1)] == [0, 0, 0]
    blocks[0].reads = frozenset({"output", "next-feedback"})
    assert certify(blocks, depth=3)[0].why.endswith(
        "next-feedback: b1, 1 older; next-feedback: b2, 2 older"
    )
    blocks[0].reads = frozenset({"weather"})
    with pytest.raises(ValueError, match="'b0' reads 'weather'; expected input, output, label"):
        certify(blocks, depth=1)


def test_only_what_cannot_run_is_refused() -> None:
    blocks = network(0, 3, 6)
    blocks[1].reads = frozenset({"output", "label", "next"})
    Executor(blocks, adam)
    Executor(blocks, adam, mode="pipelined", depth=1)
    with pytest.raises(ValueError, match=r"'b1' reads next, .* expected depth 1, got 3"):
        Executor(blocks, adam, mode="pipelined")
    blocks[1].reads = frozenset({"output", "downstream"})
    with pytest.raises(ValueError, match="'b1' reads downstream: gradients from behind it"):
        Executor(blocks, adam)


def test_a_real_read_sees_the_certified_version() -> None:
    """A loss that reads its neighbour, run in sequence, sees as many updates as the table says."""

    class Reading(LocalBlock):
        neighbours: tuple[LocalBlock, ...] = ()

        def loss_and_grad(self, output: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            seen.append([made[block.name] for block in self.neighbours])
            return super().loss_and_grad(output, labels)

    seen: list[list[int]] = []
    blocks = [Reading(f"b{i}", torch.nn.Linear(6, 6), 6) for i in range(3)]
    blocks[1].neighbours = (blocks[0], blocks[2])
    blocks[1].reads = frozenset({"output", "label", "previous", "next"})
    made = {block.name: 0 for block in blocks}

    def counting(index: int):
        optimizer = adam(blocks[index].parameters())
        step = optimizer.step

        def count() -> None:
            made[f"b{index}"] += 1
            step()

        optimizer.step = count
        return optimizer

    indices = iter(range(3))
    executor = Executor(blocks, lambda p: counting(next(indices)), micro_batches=2)
    executor.run(data(0, 4, 6, 3))
    ops = sequential(3, micro_batches=2, batches=3)
    want = zip(versions(ops, 1, 0), versions(ops, 1, 2), strict=True)
    assert [found for found in seen if found] == [list(pair) for pair in want]
