"""wrap and unwrap: what the wrapped model computes, and that the model comes back unchanged."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional
from wrap_nets import (
    Branching,
    InPlace,
    ResNet,
    Tokens,
    hook_count,
    mlp,
    same,
    seeded,
    snapshot,
)

import bll

RULES = ["bll", "bll-kl", "bp", "bp-deepsup"]
CUTTING = ["bll", "bll-kl"]


def batch(kind="image", rows=6, seed=1):
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (rows,), generator=generator)
    shape = (rows, 16) if kind == "flat" else (rows, 1, 8, 8)
    if kind == "small":
        shape = (rows, 1, 4, 4)
    return torch.randn(shape, generator=generator), y


def wrapped_resnet(rule="bll", example=True, **options):
    x, _ = batch()
    model = seeded(ResNet)
    names = ["layer1", "layer2"]
    return bll.wrap(
        model, names, rule=rule, num_classes=3, example=x if example else None, **options
    )


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_output_holds_losses_and_logits(rule, example):
    model = wrapped_resnet(rule, example)
    x, y = batch()
    out = model(x, y=y)
    names = ["output"] if rule == "bp" else ["layer1", "layer2", "output"]
    assert list(out.block_losses) == names
    assert out.loss.shape == () and all(loss.shape == () for loss in out.block_losses.values())
    assert torch.isclose(out.loss, sum(out.block_losses.values()))
    assert torch.equal(out.block_losses["output"], functional.cross_entropy(out.logits, y))
    assert out.logits.shape == (6, 3) and out[0] is out.loss
    out.loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    again = pickle.loads(pickle.dumps(bll.LocalOutput(*map(detached, out))))
    assert torch.equal(again.loss, out.loss)


def detached(value):
    if isinstance(value, dict):
        return {name: loss.detach() for name, loss in value.items()}
    return value.detach()


@pytest.mark.parametrize("rule", CUTTING)
def test_no_gradient_crosses_a_border(rule):
    model = wrapped_resnet(rule)
    x, y = batch()
    for block in model.bll.blocks:
        loss = model(x, y=y).block_losses[block.name]
        model.zero_grad(set_to_none=True)
        loss.backward()
        touched = {name for name, p in model.named_parameters() if p.grad is not None}
        own = {name for name in touched if not name.startswith("bll.")}
        assert own == set(block.parameters)


@pytest.mark.parametrize("rule", CUTTING)
def test_a_later_loss_does_not_move_earlier_gradients(rule):
    """Finite form of the same: scaling the later losses leaves the earlier block's gradient."""
    x, y = batch()
    gradients = []
    for factor in (1.0, 7.0):
        model = wrapped_resnet(rule)
        losses = list(model(x, y=y).block_losses.values())
        (losses[0] + factor * sum(losses[1:])).backward()
        gradients.append(model.stem.weight.grad)
    assert torch.equal(*gradients)
    assert gradients[0].abs().sum() > 0


def test_without_a_cut_later_losses_reach_earlier_blocks():
    model = wrapped_resnet("bp-deepsup")
    x, y = batch()
    model(x, y=y).block_losses["output"].backward()
    assert model.stem.weight.grad.abs().sum() > 0


def test_bp_is_the_plain_network_with_cross_entropy():
    x, y = batch()
    plain, wrapped = seeded(ResNet), wrapped_resnet("bp")
    functional.cross_entropy(plain(x), y).backward()
    wrapped(x, y=y).loss.backward()
    for (name, own), (_, other) in zip(
        plain.named_parameters(), wrapped.named_parameters(), strict=True
    ):
        assert torch.equal(own.grad, other.grad), name
    assert not list(wrapped.bll.parameters())


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("make", [mlp, ResNet])
def test_eval_and_unwrap_are_bitwise(make, example):
    x, y = batch("small" if make is mlp else "image")
    model, twin = seeded(make), seeded(make)
    keys = list(model.state_dict())
    blocks = None if make is mlp else ["layer1", "layer2"]
    wrapped = bll.wrap(model, blocks, num_classes=3, example=x if example else None)
    assert wrapped is model
    assert torch.equal(model.eval()(x), twin.eval()(x))
    if example:
        plain = [name for name in model.state_dict() if not name.startswith("bll.")]
        assert plain == keys
        assert "bll.messages.0.table" in model.state_dict()
    assert isinstance(model(x, y=y), bll.LocalOutput)
    assert bll.unwrap(model) is model
    assert same(snapshot(model), snapshot(twin))
    assert list(model.state_dict()) == keys
    assert hook_count(model) == 0 and not hasattr(model, "bll")
    assert torch.equal(model.eval()(x), twin.eval()(x))


def test_unwrap_after_training_keeps_the_trained_values():
    model = wrapped_resnet()
    x, y = batch()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    before = snapshot(model)
    model(x, y=y).loss.backward()
    optimiser.step()
    trained = {n: v for n, v in snapshot(model).items() if not n.startswith("bll.")}
    bll.unwrap(model)
    assert same(snapshot(model), trained)
    assert not torch.equal(trained["stem.weight"], before["stem.weight"])
    assert torch.isfinite(model(x)).all()


def test_other_instances_are_untouched():
    other = seeded(ResNet)
    wrapped_resnet()
    x, _ = batch()
    assert hook_count(other) == 0
    assert isinstance(other.train()(x), torch.Tensor)


def test_copies_carry_their_own_state():
    model = wrapped_resnet()
    x, y = batch()
    model(x, y=y)
    twin = copy.deepcopy(model)
    revived = pickle.loads(pickle.dumps(model))
    expected = model(x, y=y)
    for clone in (twin, revived):
        out = clone(x, y=y)
        assert torch.equal(out.loss, expected.loss)
        out.loss.backward()
        assert clone.bll.messages[0].table.grad is not None
        bll.unwrap(clone)
        assert hook_count(clone) == 0
    assert model.stem.weight.grad is None
    assert hook_count(model) == 4


def test_state_dict_survives_a_file():
    model, other = wrapped_resnet(), wrapped_resnet(seed=5)
    assert not torch.equal(model.bll.messages[0].table, other.bll.messages[0].table)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert same(snapshot(model), snapshot(other))


def test_functional_call_reaches_the_local_losses():
    model = wrapped_resnet()
    x, y = batch()
    zeros = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    out = torch.func.functional_call(model, zeros, (x,), {"y": y})
    assert torch.allclose(out.block_losses["layer1"], torch.tensor(3.0).log())
    assert not torch.allclose(model(x, y=y).block_losses["layer1"], torch.tensor(3.0).log())


def test_keyword_model_with_dict_output():
    model = seeded(Tokens)
    ids = torch.arange(12).reshape(3, 4) % 11
    mask = torch.ones(3, 4)
    y = torch.tensor([0, 2, 1])
    bll.wrap(model, num_classes=3, example={"ids": ids, "mask": mask, "labels": y})
    assert [block.name for block in model.bll.blocks] == ["layers.0", "layers.1", "output"]
    out = model(ids, mask=mask, labels=y)
    out.loss.backward()
    assert model.embed.weight.grad is not None
    assert out.logits.shape == (3, 3)
    with pytest.raises(TypeError, match=r"labels: .*by keyword"):
        model(ids, y)
    plain = model.eval()(ids, mask=mask)
    assert set(plain) == {"hidden", "logits"}


def test_dropout_uses_the_same_random_numbers_as_the_plain_model():
    x, y = batch("small")
    plain, model = seeded(mlp), bll.wrap(seeded(mlp), num_classes=3, example=batch("small")[0])
    torch.manual_seed(7)
    expected = plain(x)
    torch.manual_seed(7)
    assert torch.equal(model(x, y).logits, expected)


def test_wrapping_draws_no_random_numbers():
    torch.manual_seed(3)
    expected = torch.rand(4)
    model = seeded(ResNet)
    torch.manual_seed(3)
    x = torch.zeros(2, 1, 8, 8)
    bll.wrap(model, ["layer1"], num_classes=3, example=x)
    assert torch.equal(torch.rand(4), expected)


def test_autocast_bfloat16():
    model = wrapped_resnet()
    x, y = batch()
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x, y=y)
    assert out.loss.dtype == torch.float32
    out.loss.backward()
    exact = wrapped_resnet()(x, y=y)
    assert torch.isclose(out.loss, exact.loss, rtol=0.05)
    assert model.bll.messages[0].table.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_model_dtypes(dtype):
    x, y = batch()
    model = seeded(ResNet).to(dtype)
    bll.wrap(model, ["layer1"], num_classes=3, example=x.to(dtype))
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert model.bll.messages[0].table.dtype == expected
    model(x.to(dtype), y=y).loss.backward()
    assert model.stem.weight.grad.dtype == dtype


@pytest.mark.parametrize("rule", ["bll", "bp-deepsup"])
def test_a_next_block_that_writes_in_place_gets_a_copy(rule):
    x, y = batch("flat")
    model = bll.wrap(seeded(InPlace), ["first"], rule=rule, num_classes=3, example=x)
    assert model.bll.blocks[0].hands_on_copy
    assert not wrapped_resnet().bll.blocks[0].hands_on_copy
    out = model(x, y)
    out.loss.backward()
    feature = functional.linear(x, model.first.weight, model.first.bias)
    table = model.bll.messages[0].table
    logits = 0.5 * feature @ table.T - 0.25 * table.pow(2).sum(dim=1)
    assert torch.isclose(out.block_losses["first"], functional.cross_entropy(logits, y))


def test_a_model_that_reads_values_is_checked_on_a_copy():
    x, y = batch("flat")
    torch.manual_seed(3)
    expected = torch.rand(4)
    model = seeded(Branching)
    torch.manual_seed(3)
    bll.wrap(model, ["first"], num_classes=3, example=x)
    assert torch.equal(torch.rand(4), expected)
    assert model.steps == 0
    assert model(x, y).loss.requires_grad


def test_hooks_registered_later_see_the_output_before_the_cut():
    """As FSDP's must, which act when that output's gradient arrives."""
    model = wrapped_resnet()
    seen = []
    model.layer1.register_forward_hook(lambda m, a, out: seen.append(out.requires_grad))
    x, y = batch()
    for _ in range(2):
        model(x, y=y).loss.backward()
    assert seen == [True, True]


def test_channels_last_features():
    model = wrapped_resnet().to(memory_format=torch.channels_last)
    x, y = batch()
    out = model(x.to(memory_format=torch.channels_last), y=y)
    assert torch.isclose(out.loss, wrapped_resnet()(x, y=y).loss, rtol=1e-5)


@pytest.mark.parametrize("how", ["module", "sequential"])
def test_training_lowers_every_block_loss(how):
    x, y = batch("image" if how == "module" else "small", rows=24)
    model = wrapped_resnet() if how == "module" else bll.wrap(seeded(mlp), num_classes=3)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    first = None
    for _ in range(40):
        out = model(x, y=y)
        first = first or {name: float(loss.detach()) for name, loss in out.block_losses.items()}
        optimiser.zero_grad()
        out.loss.backward()
        optimiser.step()
    last = model.bll.metrics()
    assert all(last[f"block/{name}/loss"] < 0.7 * value for name, value in first.items())


def test_metrics_and_table():
    model = wrapped_resnet()
    assert model.bll.metrics() == {}
    x, y = batch()
    out = model(x, y=y)
    metrics = model.bll.metrics()
    assert metrics["loss"] == pytest.approx(float(out.loss.detach()), rel=1e-6)
    assert set(metrics) == {"loss", *(f"block/{n}/loss" for n in out.block_losses)}
    rows = model.bll.table()
    assert [row["block"] for row in rows] == ["layer1", "layer2", "output"]
    assert rows[0]["message_shape"] == [3, 4 * 4 * 4]
    assert rows[1]["pool"] == ["mean", 2]
    lines = model.bll.summary().splitlines()
    assert [line.split()[0] for line in lines[:-1]] == ["block", "layer1", "layer2", "output"]
    assert lines[-1] == "in place: no nn.Sequential: the forward of ResNet calls the blocks"
    assert model.bll.describe()["rule"] == "bll"
    assert model.bll.describe()["family"] == "gaussian-precision"
    assert isinstance(repr(model), str)


def test_sequential_keeps_working_as_a_container():
    x, y = batch("small")
    model = bll.wrap(seeded(mlp), num_classes=3, example=x)
    assert list(model(x, y).block_losses) == ["1", "2", "output"]
    bll.unwrap(model)
    assert len(model) == 4 and isinstance(model[-1], nn.Linear)
