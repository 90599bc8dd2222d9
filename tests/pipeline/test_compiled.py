"""Local steps compiled by TorchInductor: the same learning, in every mode."""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_same_bits
from torch._inductor import compile_fx
from wrapped_nets import adam, batches, wrapped

import bll


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mlp", "convolutional"])
def test_compiled_it_learns_the_same_in_every_mode(name: str) -> None:
    feed = batches(name, torch.float32)
    # A bias in front of standardised latents gets no gradient but rounding, which Adam turns into
    # steps as large as any, and here the third block ends with one.
    rule = bll.get_rule("bll", standardize="none")
    models = [wrapped(name, torch.float32, rule) for _ in range(3)]
    start = {key: value.clone() for key, value in models[0].state_dict().items()}
    ways = [("sequential", "autograd"), ("sequential", "compiled"), ("pipelined", "compiled")]
    runs = [
        bll.executor(model, adam, mode=mode, micro_batches=2, local_step=way)
        for model, (mode, way) in zip(models, ways, strict=True)
    ]
    results = [run.run(feed) for run in runs]
    assert set(runs[1].paths.values()) == set(runs[2].paths.values()) == {"compiled"}
    for left, right in zip(*results[:2], strict=True):
        torch.testing.assert_close(left.output, right.output, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(left.losses, right.losses, rtol=1e-3, atol=1e-4)
    states = [model.state_dict() for model in models]
    assert any((states[1][key] != value).any() for key, value in start.items())
    for key, value in states[1].items():
        assert_same_bits(value, states[2][key])


def test_what_inductor_cannot_compile_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = wrapped("mlp", torch.float32)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    def no_compiler(*_: object, **__: object) -> None:
        raise OSError("no C++ compiler found")

    monkeypatch.setattr(compile_fx, "compile_fx_inner", no_compiler)
    run = bll.executor(model, adam, local_step="compiled")
    with pytest.raises(RuntimeError, match=r"'0' cannot be compiled: .*OSError: no C\+\+ compiler"):
        run.step(*batches("mlp", torch.float32)[0])
    for key, value in model.named_parameters():
        assert_same_bits(value.detach(), before[key])
