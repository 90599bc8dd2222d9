"""The gradients of every rule against formulas in float64 that know nothing of its kernels."""

import copy
import functools

import pytest
import torch
from rule_cases import ROWS, STILL
from torch import nn
from torch.nn import functional
from wrap_nets import Checkpointed, ResNet, mlp, seeded

import bll
from bll.feedback import Later
from bll.rules import get_rule, rule_names

WITH_FORMULA = [row for row in ROWS if row.formula is not None]


def test_every_rule_has_a_row():
    assert {row.rule.name for row in ROWS} == set(rule_names())


def conv(inputs, outputs, padding):
    return nn.Conv2d(inputs, outputs, 3, padding=padding)


def materialised(rule, feature, classes):
    """The message of one block with learned tensors away from zero, and how its feature is read."""
    spec = rule.feature_spec(feature)
    message = rule.make_message(classes, 3, None)
    if message is None:
        return None, spec
    if rule.describe().get("aux") in ("momentum", "augmented"):
        width, more = feature.shape[1], feature.new_empty(2, 6, *feature.shape[2:])
        make = nn.Linear if feature.dim() == 2 else functools.partial(conv, padding=1)
        behind = rule.feature_spec(more)
        message.watch(
            [
                Later((make(width, 7).double(),), spec),
                Later((make(6, 5).double(),), behind),
                Later((make(5, 5).double(),), behind),
            ]
        )
    if rule.reads >= {"next-feedback"}:
        above = rule.make_message(classes, 4, None)
        message.follow(above)
        above.materialize(spec)
    message.materialize(spec)
    generator = torch.Generator().manual_seed(5)
    for parameter in message.parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        parameter.data += 0.1 * noise
    return message, spec


@pytest.mark.parametrize("row", WITH_FORMULA, ids=lambda row: row.label)
@pytest.mark.parametrize("shape", [(9, 6), (9, 4, 5, 5), (9, 6, 1, 1)], ids=str)
def test_gradients_against_the_formula(row, shape):
    generator = torch.Generator().manual_seed(1)
    feature = torch.randn(shape, generator=generator, dtype=torch.float64)
    # Class 1 is absent, class 0 has one sample.
    labels = torch.tensor([0, 2, 3, 3, 2, 4, 4, 4, 2])
    if row.rule.contrasts:
        labels = torch.tensor([-100, -100, 2]).repeat(3)
    message, spec = materialised(row.rule, feature, 5)
    wanted = [feature.requires_grad_(), *(message.parameters() if message else ())]
    value = row.rule.loss(feature, labels, message, spec.pool)
    assert value.dim() == 0 and value.dtype == torch.float64
    given = torch.autograd.grad(value, wanted, allow_unused=True)
    if len(shape) == 4 and shape[2] == 1 and row.rule.name.endswith("sim"):
        feature_1 = feature.flatten(1) if row.rule.name == "sim" else feature
        expected_value = one_pixel(row, feature_1, labels, message)
    else:
        expected_value = row.formula(feature, labels, message)
    expected = torch.autograd.grad(expected_value, wanted, allow_unused=True)
    assert given[0].abs().sum() > 0 or row.rule.name in STILL
    for own, other in zip(given, expected, strict=True):
        if other is None:
            assert own is None
        else:
            torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-11)


def one_pixel(row, feature, labels, message):
    """The formula where a map of one pixel is a vector, seen by the middle of a 3x3 kernel."""
    similarity = message if row.rule.name == "sim" else message.similarity
    rows = feature.flatten(1)
    if similarity.kind != "none":
        rows = rows @ similarity.weight[:, :, 1, 1].T
    one_hot = torch.eye(5, dtype=rows.dtype)[labels]
    grams = []
    for x in (rows, one_hot):
        x = x - x.mean(1, keepdim=True)
        x = x / x.norm(dim=1, keepdim=True)
        grams.append(x @ x.T)
    sim = (grams[0] - grams[1]).square().mean()
    if row.rule.name == "sim":
        return sim
    read_out = functional.linear(feature.flatten(1), message.read_out.table, message.read_out.bias)
    return 0.01 * functional.cross_entropy(read_out, labels) + 0.99 * sim


def data(classes=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, classes, (12,), generator=generator)


def test_dfa_gives_every_block_the_projected_error():
    x, y = data()
    model = bll.wrap(
        seeded(ResNet).double(), ["layer1", "layer2"], num_classes=3, rule="dfa", example=x
    )
    kept = {}
    for name in ("layer1", "layer2"):
        # Before the cut, which detaches: pre-pended, so that it sees what the block returned.
        model.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: kept.update({name: out}), prepend=True
        )
    out = model(
        x,
        y=y,
    )
    error = (out.logits.softmax(1) - functional.one_hot(y, 3)) / len(y)
    for index, name in enumerate(("layer1", "layer2")):
        table = model.bll.messages[index].table
        (given,) = torch.autograd.grad(out.loss, kept[name], retain_graph=True)
        torch.testing.assert_close(given.flatten(1), error @ table, rtol=1e-9, atol=1e-12)
        assert out.block_losses[name].item() == 0.0
    torch.testing.assert_close(out.loss, functional.cross_entropy(out.logits, y))
    assert list(out.block_losses) == ["layer1", "layer2", "output"]


def test_the_error_of_dfa_knows_label_smoothing():
    x, y = data()
    model = bll.wrap(
        seeded(mlp).double().eval(), ["1"], num_classes=3, rule="dfa", label_smoothing=0.3,
        example=(x := x[:, :, :4, :4]),
    )  # fmt: skip
    kept = []
    model[1].register_forward_hook(lambda _, __, out: kept.append(out), prepend=True)
    out = model(x, y=y)
    target = 0.7 * functional.one_hot(y, 3).double() + 0.1
    (given,) = torch.autograd.grad(out.loss, kept[0])
    error = (out.logits.softmax(1) - target) / len(y)
    torch.testing.assert_close(given, error @ model.bll.messages[0].table, rtol=1e-9, atol=1e-12)


class Small(nn.Module):
    """Convolution with stride and padding, an activation in place, two linear layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(1, 3, 3, padding=1)
        self.second = nn.Conv2d(3, 4, 3, stride=2, padding="valid", dilation=1)
        self.third = nn.Linear(36, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = torch.tanh(self.second(functional.relu(self.first(x), inplace=True)))
        return self.head(torch.tanh(self.third(x.flatten(1))))


def feedback_alignment_by_hand(model, path, x, y):
    """Gradients of `Small` with B in place of W, one layer at a time."""
    b = {name: path.weight(name) for name in ("second", "third", "head")}
    h1 = torch.relu(model.first(x))
    h2 = torch.tanh(model.second(h1))
    h3 = torch.tanh(model.third(h2.flatten(1)))
    logits = model.head(h3)
    delta = (logits.softmax(1) - functional.one_hot(y, 3)) / len(y)
    found = {"head.weight": delta.T @ h3, "head.bias": delta.sum(0)}
    delta = (delta @ b["head"]) * (1 - h3.square())
    found |= {"third.weight": delta.T @ h2.flatten(1), "third.bias": delta.sum(0)}
    delta = (delta @ b["third"]).view_as(h2) * (1 - h2.square())
    found["second.weight"] = torch.nn.grad.conv2d_weight(h1, model.second.weight.shape, delta, 2)
    found["second.bias"] = delta.sum((0, 2, 3))
    # The adjoint of the convolution with B, from its definition.
    probe = torch.zeros_like(h1, requires_grad=True)
    with torch.enable_grad():
        through = functional.conv2d(probe, b["second"], stride=2)
    (back,) = torch.autograd.grad(through, probe, delta)
    delta = back * (h1 > 0)
    found["first.weight"] = torch.nn.grad.conv2d_weight(
        x, model.first.weight.shape, delta, padding=1
    )
    found["first.bias"] = delta.sum((0, 2, 3))
    return found


def test_fa_goes_back_through_the_random_weights():
    x, y = data()
    model = bll.wrap(seeded(Small).double(), num_classes=3, rule="fa", example=x)
    with torch.no_grad():
        expected = feedback_alignment_by_hand(
            bll.unwrap(copy.deepcopy(model)), model.bll.backward_path, x, y
        )
    model(x, y=y).loss.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-9, atol=1e-12)


def test_fa_through_checkpointed_layers():
    x = torch.randn(6, 16, generator=torch.Generator().manual_seed(1))
    y = torch.arange(6) % 3
    gradients = []
    for region in ("none", "second"):
        model = bll.wrap(seeded(lambda r=region: Checkpointed(r)), num_classes=3, rule="fa")
        model(x, y=y).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.equal(plain, recomputed)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.Softmax(1)), "expected linear layers or conv"),
        (lambda: nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4)), "'1' .LSTM. cannot take"),
        (
            lambda: nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular")),
            "'0' pads with 'circular'",
        ),
        (lambda: nn.Sequential(nn.Conv2d(1, 1, 2, padding="same")), "'0' pads its two sides"),
    ],
)
def test_fa_refuses_what_it_cannot_serve(make, match):
    with pytest.raises(ValueError, match=match):
        bll.wrap(make(), [], num_classes=3, rule=get_rule("fa"))


def test_outside_a_step_fa_is_the_plain_network():
    x, _ = data()
    model, plain = (
        bll.wrap(seeded(Small).double(), num_classes=3, rule="fa"),
        seeded(Small).double(),
    )
    for net in (model.eval(), plain.eval()):
        net(x).sum().backward()
    for name, parameter in plain.named_parameters():
        assert torch.equal(parameter.grad, model.get_parameter(name).grad)
