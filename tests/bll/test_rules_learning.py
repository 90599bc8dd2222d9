"""What every rule must do in a model: keep to its block, learn, save, copy, run apart."""

import copy
import functools
import itertools
import pickle

import pytest
import torch
from rule_cases import ROWS, STILL
from sklearn.datasets import load_digits
from torch import nn
from wrap_nets import ResNet, Tokens, hook_count, same, seeded, snapshot

import bll
from bll.rules import get_rule
from bll_kernels.optim import BlockAdam
from bll_kernels.pipeline.block import LOCAL_READS

IDS = [row.label for row in ROWS]
every_rule = pytest.mark.parametrize("row", ROWS, ids=IDS)
cutting = pytest.mark.parametrize(
    "row", [row for row in ROWS if row.rule.cuts], ids=[r.label for r in ROWS if r.rule.cuts]
)
strictly_local = pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.rule.reads <= LOCAL_READS],
    ids=[row.label for row in ROWS if row.rule.reads <= LOCAL_READS],
)
BLOCKS = ["layer1", "layer2"]


def batch(seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 1, 8, 8, generator=generator)
    return x, torch.randint(0, 3, (12,), generator=generator)


def wrapped(row, example=True, seed=0):
    x, _ = batch()
    return bll.wrap(
        seeded(ResNet, seed), BLOCKS, rule=row.rule, num_classes=3, seed=seed,
        example=x if example or row.rule.needs_example else None,
    )  # fmt: skip


@cutting
def test_no_gradient_crosses_a_border(row):
    model = wrapped(row)
    x, y = bll.contrast(model, *batch())
    out = model(x, y=y)
    message = [f"bll.messages.{index}." for index in (0, 1)]
    own = {
        "layer1": ("stem.", "layer1.", message[0]),
        "layer2": ("layer2.", message[1]),
        "output": ("layer3.", "fc."),
    }
    parameters = dict(model.named_parameters())
    for name, prefixes in own.items():
        grads = torch.autograd.grad(
            out.block_losses[name], list(parameters.values()), retain_graph=True, allow_unused=True
        )
        reached = {n for n, g in zip(parameters, grads, strict=True) if g is not None}
        assert reached == {n for n in parameters if n.startswith(prefixes)}


@functools.cache
def digits():
    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    return torch.tensor(x, dtype=torch.float32)[order] / 16, torch.tensor(y)[order]


def narrow(width=16):
    """Five layers, so narrow that random hidden layers lose the classes."""
    widths = [64, width, width, width, width]
    layers = [
        nn.Sequential(nn.Linear(i, o, bias=False), nn.BatchNorm1d(o), nn.ReLU())
        for i, o in itertools.pairwise(widths)
    ]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def train(model, optimizer, epochs):
    x, y = digits()
    for _ in range(epochs):
        for chosen in torch.randperm(1400).split(50):
            inputs, labels = bll.contrast(model, x[chosen], y[chosen])
            out = model(inputs, y=labels)
            optimizer.zero_grad()
            out.loss.backward()
            optimizer.step()
    accuracy = (bll.predict(model.eval(), x[1400:]).argmax(1) == y[1400:]).float().mean()
    return 100 * accuracy.item()


@pytest.mark.slow
@every_rule
def test_learns_digits(row):
    model = seeded(narrow, 1)
    bll.wrap(model, rule=row.rule, num_classes=10, example=digits()[0][:2], seed=1)
    accuracy = train(model, BlockAdam(bll.param_groups(model, lr=5e-3)), epochs=6)
    assert accuracy > row.accuracy


def test_frozen_layers_reach_no_other_rules_bar():
    model = bll.wrap(seeded(narrow, 1), rule="frozen", num_classes=10, example=digits()[0][:2])
    before = snapshot(model)
    accuracy = train(model, torch.optim.Adam(model.parameters(), lr=5e-3), epochs=6)
    after = snapshot(model)
    still = [
        name for name in before if ".0.weight" in name and torch.equal(before[name], after[name])
    ]
    assert len(still) == 4
    assert accuracy < min(row.accuracy for row in ROWS if row.rule.name != "frozen") - 10


def one_step(model):
    torch.manual_seed(3)
    x, y = bll.contrast(model, *batch(2))
    model.train()
    out = model(x, y=y)
    out.loss.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad
                parameter.grad = None
    return out.loss.detach()


@every_rule
def test_eval_and_unwrap_give_the_plain_network(row):
    x, _ = batch()
    plain, model = seeded(ResNet).eval(), wrapped(row).eval()
    assert torch.equal(plain(x), model(x))
    one_step(model)
    kept = {n: v for n, v in snapshot(model).items() if not n.startswith("bll.")}
    assert kept.keys() == plain.state_dict().keys()
    assert same(kept, snapshot(bll.unwrap(model)))
    assert hook_count(model) == 0


@every_rule
@pytest.mark.parametrize("example", [True, False], ids=["example", "no example"])
def test_state_is_saved_and_loaded(row, example, tmp_path):
    model, other = wrapped(row), wrapped(row, example, seed=1)
    one_step(model)
    bll.save(model, tmp_path / "m")
    bll.load(other, tmp_path / "m")
    assert same(snapshot(model), snapshot(other))
    assert torch.equal(one_step(model), one_step(other))
    assert same(snapshot(model), snapshot(other))


@every_rule
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_learn_on_their_own(row, copied):
    model = wrapped(row)
    one_step(model)
    twin = copied(model)
    before = snapshot(model)
    one_step(twin)
    assert same(before, snapshot(model))
    one_step(model)
    assert same(snapshot(twin), snapshot(model))


@every_rule
def test_every_parameter_is_in_one_group(row):
    model = wrapped(row)
    groups = bll.param_groups(model, lr=0.1)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in model.parameters())


@every_rule
def test_an_optimiser_made_before_shapes_trains_everything(row):
    model = wrapped(row, example=False)
    x, y = bll.contrast(model, *batch())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(x, y=y).loss.backward()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert all(p.grad is not None for p in model.parameters())


@every_rule
def test_half_precision_by_autocast(row):
    model = wrapped(row)
    x, y = bll.contrast(model, *batch())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x, y=y)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    exact = wrapped(row)(x, y=y)
    for name, loss in exact.block_losses.items():
        torch.testing.assert_close(out.block_losses[name], loss, rtol=0.1, atol=0.1)


@every_rule
def test_a_step_on_tokens(row):
    ids, y = torch.arange(24).reshape(4, 6) % 11, torch.tensor([0, 1, 2, 1])
    model = seeded(Tokens)
    bll.wrap(model, ["layers.0", "layers.1"], rule=row.rule, num_classes=3, example=ids)
    if row.rule.contrasts:
        with pytest.raises(TypeError, match="inputs: expected floating-point inputs"):
            bll.contrast(model, ids, y)
        return
    out = model(ids, labels=y)
    out.loss.backward()
    assert torch.isfinite(out.loss)
    hidden = [model.get_parameter(f"layers.{index}.mix.weight").grad for index in (0, 1)]
    assert all((grad.abs().sum() > 0) == (row.rule.name not in STILL) for grad in hidden)


@pytest.mark.slow
@strictly_local
def test_the_executor_gives_the_same_bits_in_every_mode(row):
    x, y = digits()
    states = []
    for mode, micro_batches in (("sequential", 2), ("pipelined", 2)):
        model = seeded(narrow, 1)
        bll.wrap(model, rule=row.rule, num_classes=10, example=x[:2], seed=1)
        run = bll.executor(
            model, lambda p: BlockAdam(p, lr=2e-3), mode=mode, micro_batches=micro_batches
        )
        assert all(line.stale_by == 0 for line in run.certificate)
        torch.manual_seed(4)
        batches = [(x[i : i + 40], y[i : i + 40]) for i in range(0, 200, 40)]
        run.run([bll.contrast(model, *each) for each in batches])
        states.append(snapshot(model))
    assert same(*states)


@pytest.mark.parametrize("options", [{}, {"aux": "momentum"}], ids=str)
def test_traced_steps_leave_the_buffers_of_messages_as_autograd_does(options):
    """Batch statistics and moving averages: a trace is tried out on the first micro-batch."""
    x, y = digits()
    states = []
    for local_step in ("autograd", "traced"):
        model = seeded(narrow, 1)
        rule = get_rule("dgl", **options)
        bll.wrap(model, rule=rule, num_classes=10, example=x[:2], seed=1)
        run = bll.executor(model, lambda p: torch.optim.SGD(p, lr=0.01), local_step=local_step)
        run.run([(x[i : i + 40], y[i : i + 40]) for i in range(0, 120, 40)])
        states.append(snapshot(model))
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.rule.reads - LOCAL_READS - {"next-feedback"}],
    ids=lambda row: row.label,
)
def test_the_executor_refuses_what_reads_other_blocks(row):
    model = seeded(narrow, 1)
    blocks = ["0", "1", "2", "3"]
    bll.wrap(model, blocks, rule=row.rule, num_classes=10, example=digits()[0][:2])
    foreign = sorted(row.rule.reads - LOCAL_READS)
    with pytest.raises(ValueError, match=f"reads {', '.join(foreign)}"):
        bll.executor(model, mode="pipelined")


@pytest.mark.parametrize(
    "row",
    [row for row in ROWS if row.rule.reads & {"next", "next-feedback"}],
    ids=lambda row: row.label,
)
def test_one_block_at_a_time_reads_what_the_ordinary_loop_reads(row):
    """Messages of later blocks have the same version: their updates come after every loss."""
    x, y = digits()
    executed, ordinary = (seeded(narrow, 1) for _ in range(2))
    for model in (executed, ordinary):
        bll.wrap(model, ["0", "1", "2", "3"], rule=row.rule, num_classes=10, example=x[:2])
    run = bll.executor(executed, lambda p: torch.optim.SGD(p, lr=0.05), local_step="autograd")
    optimizer = torch.optim.SGD(ordinary.parameters(), lr=0.05)
    for i in range(0, 200, 40):
        run.step(x[i : i + 40], y[i : i + 40])
        ordinary(x[i : i + 40], y=y[i : i + 40]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(line.stale_by == 0 for line in run.certificate)
    for left, right in zip(executed.parameters(), ordinary.parameters(), strict=True):
        torch.testing.assert_close(left, right)
