"""Ranks compute what one process computes, to the last bit."""

from __future__ import annotations

import jobs
import pytest
import torch
from launch import run_ranks, values

import bll


def one_process(mode: str, steps: int, size: int, micro_batches: int, **net):
    model = jobs.network(**net)
    run = bll.executor(model, jobs.adam, mode=mode, micro_batches=micro_batches, seed=5)
    results = [run.step(x, labels) for x, labels in jobs.batches(steps, size)]
    return jobs.outcome(model, run.optimizers), results


def compare(ranks, want, results) -> None:
    """Every rank has the whole model after `gather`; states and losses are where the blocks are."""
    for rank in ranks:
        assert rank["model"] == want["model"]
        assert rank["untouched"], "the caller's random state"
    states = [state for rank in ranks for state in rank["optimizers"]]
    assert states == want["optimizers"]
    outputs = [jobs.plain(result.output) for result in results]
    assert ranks[-1]["extra"]["outputs"] == outputs
    for step, result in enumerate(results):
        losses = {}
        for rank in ranks:
            losses.update(rank["extra"]["losses"][step])
        assert losses == jobs.plain(result.losses)


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_equal_one_process(world: int) -> None:
    """30 steps of 8 micro-batches with batch norm and dropout."""
    ranks = values(run_ranks(jobs.train, world))
    for mode in ("sequential", "pipelined"):
        want, results = one_process(mode, 30, 32, 8)
        compare(ranks, want, results)
    assert [name for rank in ranks for name in rank["names"]] == ["0", "1", "2", "output"]


def test_the_seed_matters() -> None:
    """The comparison above would notice other random numbers."""
    ranks = values(run_ranks(jobs.train, 2, steps=2, seed=6))
    want, _ = one_process("sequential", 2, 32, 8)
    assert ranks[0]["model"] != want["model"]


@pytest.mark.parametrize("rule", ["bll-kl", "sll"])
def test_fewer_micro_batches_than_ranks_and_uneven_blocks(rule: str) -> None:
    """Nothing is flushed, so one micro-batch per batch keeps every rank busy and hangs none."""
    options = {"blocks_per_rank": [1, 1, 3], "slots": 1}
    net = {"blocks": 5, "rule": rule}
    ranks = values(run_ranks(jobs.train, 3, steps=6, micro_batches=1, net=net, options=options))
    want, results = one_process("sequential", 6, 32, 1, **net)
    compare(ranks, want, results)
    assert ranks[2]["names"] == ["2", "3", "output"]


def test_maps_in_channels_last_keep_their_layout() -> None:
    ranks = values(run_ranks(jobs.train_maps, 2))
    model, x, labels = jobs.maps()
    run = bll.executor(model, jobs.adam, micro_batches=2)
    for _ in range(3):
        run.step(x, labels)
    assert ranks[0] == ranks[1] == jobs.plain(model.state_dict())
    assert x.is_contiguous(memory_format=torch.channels_last)
