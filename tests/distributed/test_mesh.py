"""Messages down and activations up at once; data parallelism inside a block."""

from __future__ import annotations

import inspect

import jobs
import mesh_jobs
import pytest
import torch
import torch.distributed as dist
from launch import run_ranks, values

import bll
from bll.distributed.groups import Layout


@pytest.mark.parametrize("world", [2, 4])
def test_messages_travel_down_while_activations_travel_up(world: int) -> None:
    steps, micro_batches = 6, 4
    ranks = values(run_ranks(mesh_jobs.chained, world, steps=steps, micro_batches=micro_batches))
    mixings = mesh_jobs.mixings(world)
    for number, (_, labels) in enumerate(jobs.batches(steps, 32)):
        for part, chunk in enumerate(labels.chunk(micro_batches)):
            message = torch.nn.functional.one_hot(chunk, jobs.CLASSES).float()
            for rank in reversed(range(world)):
                message = message @ mixings[rank]
                assert ranks[rank]["extra"][number][part] == jobs.plain(message)
    model = jobs.network()
    run = bll.executor(model, jobs.adam, micro_batches=micro_batches, seed=5)
    for x, labels in jobs.batches(steps, 32):
        run.step(x, labels)
    want = jobs.outcome(model, run.optimizers)
    assert all(rank["model"] == want["model"] and rank["bytes"] for rank in ranks)
    assert ranks[-1]["up"] == 0 and ranks[0]["up"] == steps * 32 * 16 * 4


@pytest.mark.parametrize("rule", ["bll", "sll"])
def test_two_replicas_equal_the_whole_batch(rule: str) -> None:
    """Means over 2 x 2 ranks are those of one process with the whole batch, up to rounding."""
    steps = 10
    ranks = values(run_ranks(mesh_jobs.two_by_two, 4, steps=steps, rule=rule))
    assert ranks[0]["names"] == ranks[2]["names"] != ranks[1]["names"]
    model = jobs.network(norm=False, dropout=0.0, rule=rule)
    run = bll.executor(model, jobs.adam)
    start = {name: x.clone() for name, x in model.state_dict().items()}
    for x, labels in jobs.batches(steps, 32):
        run.step(x, labels)
    trained = {name for name, _ in model.named_parameters()}
    for name, want in model.state_dict().items():
        for rank in ranks:
            got = torch.tensor(rank["model"][name])
            assert rank["model"][name] == ranks[0]["model"][name], "replicas are equal"
            # Adam divides by the root of the gradient's square: small ones round visibly.
            torch.testing.assert_close(got, want, rtol=1e-3, atol=2e-5)
        assert name not in trained or not torch.equal(want, start[name])


def test_a_mesh_in_another_order_is_followed_or_refused() -> None:
    """Torch 2.11 sorts the ranks of every group; bits are those of one process elsewhere."""
    ended = run_ranks(mesh_jobs.backwards, 2, steps=4)
    if "sort_ranks" not in inspect.signature(dist.new_group).parameters:
        for rank in ended:
            assert rank.error is not None
            name, message, _ = rank.error
            assert name == "ValueError" and "mesh: expected ranks that ascend" in message
            assert "got [[1, 0]]" in message
        return
    ranks = values(ended)
    assert [rank["stage"] for rank in ranks] == [1, 0]
    model = jobs.network()
    run = bll.executor(model, jobs.adam, micro_batches=4, seed=5)
    for x, labels in jobs.batches(4, 32):
        run.step(x, labels)
    assert all(rank["model"] == jobs.outcome(model, run.optimizers)["model"] for rank in ranks)


def test_layout() -> None:
    layout = Layout(((0, 1, 2), (3, 4, 5)), replica=1, stage=2)
    assert (layout.stages, layout.replicas, layout.row) == (3, 2, (3, 4, 5))
