"""What would go wrong without a word on other pipelines."""

from __future__ import annotations

import guard_jobs
import jobs
import pytest
import torch
from launch import run_ranks, values

import bll
import bll.distributed
from bll.distributed.assign import assign_blocks
from bll.distributed.shapes import borders
from bll.executor import wrapped_blocks


def test_batches_that_do_not_fit_are_refused_on_every_rank() -> None:
    found = values(run_ranks(guard_jobs.odd_batches, 2))
    for rank in found:
        for name in ("short", "empty"):
            kind, text = rank[name]
            assert kind == "ValueError", text
            assert "divides into 8 micro-batches" in text and "drop_last=True" in text
    assert found[0]["no input"][1] == "x: expected the input on the first rank, got None"
    assert "expected torch.float32 [32, 12]" in found[0]["width"][1]
    assert "got torch.float64 [32, 12]" in found[0]["dtype"][1]
    model = jobs.network()
    run = bll.executor(model, jobs.adam, micro_batches=8, seed=5)
    x, labels = jobs.batches(1, 32)[0]
    for size in (32, 16, 32):
        run.step(x[:size], labels[:size])
    assert found[0]["model"] == found[1]["model"] == jobs.outcome(model, [])["model"]


def test_no_block_runs_before_its_first_input() -> None:
    """Static shapes: the engine would otherwise run the blocks on memory nobody has written."""
    for rank in values(run_ranks(guard_jobs.first_step, 2)):
        assert set(rank["before"]) == {0}
        assert set(rank["own"]) == {4}, "one per micro-batch"
        assert rank["finite"] and rank["random"]


def test_shapes_come_from_tensors_without_data() -> None:
    model = jobs.network(dropout=0.5)
    before = jobs.plain(model.state_dict())
    state = torch.get_rng_state()
    found = borders(wrapped_blocks(model), torch.zeros(6, jobs.FEATURES))
    assert [list(x.shape) for x in found] == [[6, 12], [6, 16], [6, 16], [6, 16], [6, 5]]
    assert all(x.is_meta for x in found)
    assert jobs.plain(model.state_dict()) == before
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("what", "key"),
    [
        ("micro_batches", "micro_batches"),
        ("width", "parameters"),
        ("recipe", "recipe"),
        ("version", "versions"),
        ("table", "code"),
    ],
)
def test_ranks_that_differ_are_refused(what: str, key: str) -> None:
    for kind, text in values(run_ranks(guard_jobs.mismatch, 2, what=what)):
        assert kind == "RecipeMismatch", text
        assert f"ranks: rank 1 differs in {key!r}: expected that of rank 0" in text


def test_blocks_over_ranks() -> None:
    assert assign_blocks([1, 1, 1, 1], 2, None) == [(0, 2), (2, 4)]
    assert assign_blocks([9, 1, 1], 2, None) == [(0, 1), (1, 3)]
    assert assign_blocks([1, 1, 1], 2, [2, 1]) == [(0, 2), (2, 3)]
    with pytest.raises(ValueError, match="ranks: expected at most 2"):
        assign_blocks([1, 1], 3, None)
    for wrong in ([3, 0], [1, 1], [1, 1, 1]):
        with pytest.raises(ValueError, match="blocks_per_rank: expected 2 counts"):
            assign_blocks([1, 1, 1], 2, wrong)


def test_options_out_of_range() -> None:
    model, example = jobs.network(), torch.zeros(1, jobs.FEATURES)
    for options, text in (
        ({"micro_batches": 0}, "micro_batches: expected an int of at least 1, got 0"),
        ({"slots": 1.5}, "slots: expected an int"),
        ({"timeout": 0.0}, "timeout: expected a positive number"),
        ({"seed": -1}, "seed: expected an int of at least 0"),
    ):
        with pytest.raises(ValueError, match=text):
            bll.distributed.stage(model, example=example, **options)
    with pytest.raises(TypeError, match="example: expected a tensor of samples"):
        bll.distributed.stage(model, example=None)
    with pytest.raises(RuntimeError, match="no process group"):
        bll.distributed.stage(model, example=example)
    with pytest.raises(RuntimeError, match="start the ranks with torchrun"):
        bll.distributed.start()
