"""The rules: their formulas against hand-written steps, their options, their registry."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from wrap_nets import ResNet, hook_count, mlp, seeded

import bll
import bll_kernels
from bll.rules import BllKlRule, BllRule, BpRule, DeepSupervisionRule, get_rule, rule_names
from bll_kernels.families import Family


def data(shape=(12, 16), seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator), torch.randint(
        0, 3, shape[:1], generator=generator
    )


def two_blocks():
    return nn.Sequential(
        nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU()), nn.Linear(8, 3)
    )


@pytest.mark.parametrize("rule", ["bll", "bll-kl"])
def test_a_wrapped_step_equals_the_step_written_by_hand_bit_for_bit(rule):
    x, y = data()
    wrapped = bll.wrap(seeded(two_blocks), num_classes=3, rule=rule, example=x)
    first, second = seeded(two_blocks)
    table = wrapped.bll.messages[0].table.detach().clone().requires_grad_(rule == "bll")
    bias = torch.zeros(3, requires_grad=True)
    by_hand = [*first.parameters(), *second.parameters()]
    by_hand += [table, bias] if rule == "bll" else []
    optimisers = [torch.optim.Adam(p, lr=1e-2) for p in (by_hand, wrapped.parameters())]
    for _ in range(4):
        feature = first(x)
        if rule == "bll":
            local = bll_kernels.class_evidence_loss(
                feature, table, y, "gaussian-precision", bias=bias
            )
        else:
            local = bll_kernels.posterior_kl(feature, table, "bernoulli", labels=y)
        (local + functional.cross_entropy(second(feature.detach()), y)).backward()
        out = wrapped(x, y)
        assert torch.equal(out.block_losses["0"], local)
        out.loss.backward()
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad()
    for own, other in zip(by_hand, wrapped.parameters(), strict=True):
        assert torch.equal(own, other)


def oracle_rows(rule, feature, table, bias, y):
    """The losses from the log-partitions alone, in float64."""
    a, b = feature.double(), table.double()
    if rule == "bernoulli":
        a = 4.0 * a
        scores = (functional.softplus(a[:, None] + b) - functional.softplus(a)[:, None]).sum(2)
    elif rule == "gaussian":
        scores = (((a[:, None] + b) ** 2 - a[:, None] ** 2) / 2).sum(2)
    elif rule == "gaussian-precision":
        # log of the mean of N(z; b, 1) over N(z; a, 1), which is N(a; b, 2).
        scores = -((a[:, None] - b) ** 2 / 4).sum(2)
    else:
        message = b[y]
        r = a + message
        gap = functional.softplus(r) - functional.softplus(a)
        return (message * torch.sigmoid(r) - gap).sum(1).mean()
    return functional.cross_entropy(scores + bias.double(), y)


#: Scores are slope * a . b_c + curvature * |b_c|^2, up to what all classes share.
CLASSIFIERS = [("gaussian", 1.0, 0.5), ("gaussian-precision", 0.5, -0.25)]
CASES = [
    ("gaussian-precision", BllRule()),
    ("gaussian", BllRule(family="gaussian")),
    ("bernoulli", BllRule(family="bernoulli")),
    ("gaussian-precision", DeepSupervisionRule()),
    ("kl", BllKlRule()),
]


@pytest.mark.parametrize(("formula", "rule"), CASES)
@pytest.mark.parametrize("shape", [(12, 10), (12, 5, 9, 9)])
def test_losses_against_the_log_partition(formula, rule, shape):
    feature, y = data(shape)
    feature = torch.relu(feature)
    spec = rule.feature_spec(feature)
    message = rule.make_message(3, 0, None)
    message.materialize(spec)
    if message.bias is not None:
        message.bias.data += torch.tensor([0.3, -0.2, 0.1])
    value = rule.loss(feature, y, message, spec.pool)
    rows = feature.double()
    if spec.pool:
        rows = functional.adaptive_avg_pool2d(rows, spec.pool[1])
        if rule.standardize == "channels":
            rows = rows - rows.mean((0, 2, 3), keepdim=True)
            rows = rows / (rows.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
        rows = rows.flatten(1)
    bias = torch.zeros(3) if message.bias is None else message.bias
    expected = oracle_rows(formula, rows, message.table, bias, y)
    assert value.shape == ()
    assert torch.isclose(value.double(), expected, rtol=2e-5)


@pytest.mark.parametrize("rule", [BllRule(), BllRule(family="bernoulli"), BllKlRule()])
def test_the_feature_gets_a_gradient(rule):
    feature, y = data((12, 5, 9, 9))
    feature.requires_grad_()
    spec = rule.feature_spec(feature)
    message = rule.make_message(3, 0, None)
    message.materialize(spec)
    rule.loss(feature, y, message, spec.pool).backward()
    assert feature.grad.abs().sum() > 0
    if rule.name == "bll":
        assert message.table.grad.abs().sum() > 0 and message.bias.grad.abs().sum() > 0
    else:
        assert not message.table.requires_grad


@pytest.mark.parametrize(("family", "slope", "curvature"), CLASSIFIERS)
def test_gaussian_bll_is_a_local_linear_classifier(family, slope, curvature):
    feature, y = data((12, 10))
    rule = BllRule(family=family)
    message = rule.make_message(3, 0, None)
    message.materialize(rule.feature_spec(feature))
    table = message.table.detach()
    message.bias.data -= curvature * table.pow(2).sum(1)
    expected = functional.cross_entropy(slope * feature @ table.T, y)
    assert torch.isclose(rule.loss(feature, y, message, None), expected, rtol=1e-5)


def test_registry():
    assert {"bll", "bll-kl", "bll-proto", "pred", "sim", "pred-sim", "bp", "fa"} < set(rule_names())
    assert [get_rule(name).name for name in rule_names()] == list(rule_names())
    assert get_rule("bll", family="bernoulli", feedback=None) == BllRule(family="bernoulli")
    assert hash(get_rule("bll")) == hash(BllRule())


def test_what_a_rule_reads_and_cuts():
    for rule in (BllRule(), BllKlRule()):
        assert rule.cuts and rule.local and rule.reads == {"output", "label", "feedback"}
    assert "downstream" in BpRule().reads and not BpRule().local and not BpRule().cuts
    assert "downstream" in DeepSupervisionRule().reads and not DeepSupervisionRule().cuts


def test_rules_say_their_name_and_family():
    assert BllRule().describe()["family"] == "gaussian-precision"
    assert BllRule().describe()["pool"] == ["mean", 14]
    assert BllKlRule().describe() == {
        "rule": "bll-kl",
        "family": "bernoulli",
        "feedback": "fixed",
        "pool": ["mean", 4],
        "standardize": "none",
        "tilt": 1.0,
        "gain": 1.0,
    }
    assert BpRule().describe() == {"rule": "bp", "family": None}
    assert BllRule(family=Family("gaussian-precision", tau=2.0)).describe()["tau"] == 2.0
    assert BllRule(family="bernoulli", gain=1.5).describe()["gain"] == 1.5


@pytest.mark.parametrize(
    "options",
    [
        {"family": "bernoulli"},
        {"family": Family("categorical", group=2)},
        {"family": Family("gaussian-precision", tau=0.5)},
        {"feedback": "fixed"},
        {"pool": ("max", 2)},
        {"pool": ("std", 2)},
        {"tilt": 0.5},
        {"rule": BllRule(gain=2.0, pool=("max", 2))},
    ],
)
def test_options_train(options):
    x, y = data((24, 1, 8, 8))
    model = bll.wrap(seeded(ResNet), ["layer1"], num_classes=3, example=x, **options)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        out = model(x, y=y)
        losses.append(out.block_losses["layer1"].item())
        optimiser.zero_grad()
        out.loss.backward()
        optimiser.step()
    assert losses[-1] < 0.9 * losses[0]


def test_label_smoothing_is_the_last_blocks():
    x, y = data((6, 1, 4, 4))
    losses = []
    for smoothing in (0.0, 0.2):
        model = bll.wrap(seeded(mlp), num_classes=3, example=x, label_smoothing=smoothing).eval()
        losses.append(model(x, y))
    expected = functional.cross_entropy(losses[1].logits, y, label_smoothing=0.2)
    assert torch.equal(losses[1].block_losses["output"], expected)
    assert torch.equal(losses[0].block_losses["1"], losses[1].block_losses["1"])


class Offset(bll.Message):
    """One learned number per class."""

    def __init__(self, num_classes):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(num_classes))
        self.width = None

    @property
    def ready(self):
        return self.width is not None

    @property
    def shape(self):
        return tuple(self.offset.shape)

    def materialize(self, feature, *, device=None):
        self.width = feature.width


def flattened(feature):
    return nn.Identity()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"example": None}, "example: rule 'dgl' makes its networks from it; got None"),
        (
            {"rule": get_rule("dgl", aux=flattened)},
            r"aux: .* rows \[2, D\], got \[2, 4, 4",
        ),
    ],
)
def test_dgl_refuses(options, match):
    model = seeded(ResNet)
    x, _ = data((6, 1, 8, 8))
    with pytest.raises(ValueError, match=match):
        bll.wrap(model, ["layer1"], num_classes=3, **{"rule": "dgl", "example": x, **options})
    assert not hasattr(model, "bll") and hook_count(model) == 0


BAD_OPTIONS = [
    ("pred", {"read_out": "best"}, "read_out: expected one of 'trained', 'fixed', got 'best'"),
    ("pred", {"std": -1.0}, "std: expected a finite number of 0 or more, got -1.0"),
    ("pred", {"std": 0.0, "read_out": "fixed"}, "std: expected more than 0 for a fixed read-out"),
    ("pred", {"pool": ("median", 2)}, "pool: expected .kind, grid."),
    ("pred", {"max_width": 0}, "max_width: expected an int of 1 or more, got 0"),
    ("pred", {"beta": 0.5}, "beta: rule 'pred' has no such option"),
    ("sim", {"projection": "linear"}, "projection: expected one of 'trained', 'fixed', 'none'"),
    ("pred-sim", {"beta": 1.5}, r"beta: expected a number in \[0, 1\], got 1.5"),
    ("bll-proto", {"sign": 0}, "sign: expected one of -1, 1, got 0"),
    ("bll-proto", {"scale": "sum"}, "scale: expected one of 'mean', 'released', got 'sum'"),
    ("bll-proto", {"absent": "drop"}, "absent: expected one of 'keep', 'zero', got 'drop'"),
    ("bll-proto", {"decorrelation": -0.1}, "decorrelation: expected a finite number of 0 or more"),
    ("bll-proto", {"alignment": "1"}, "alignment: expected a finite number of 0 or more, got '1'"),
    ("bll-proto", {"prediction": float("nan")}, "prediction: expected a finite number of 0 or"),
    ("mono-forward", {"std": "wide"}, "std: expected a finite number of 0 or more, got 'wide'"),
    ("drtp", {"std": 0}, "std: expected a positive finite number, got 0"),
    ("tpsgd", {"pool": ("mean", 0)}, "pool: expected .kind, grid."),
    ("dfa", {"std": True}, "std: expected a positive finite number, got True"),
    ("fa", {"std": 1.0}, "std: rule 'fa' has no such option"),
    ("ccl", {"feedback_width": 0}, "feedback_width: expected an int of 1 or more, got 0"),
    ("ccl", {"decorrelation": -1}, "decorrelation: expected a finite number of 0 or more, got -1"),
    ("dgl", {"aux": 3}, "aux: expected 'momentum', 'augmented', a callable or None, got 3"),
    ("dgl", {"aux": "ema"}, "aux: expected 'momentum', 'augmented', .* got 'ema'"),
    ("dgl", {"decay": 1.5}, r"decay: expected a number in \[0, 1\], got 1.5"),
    ("dgl", {"layers": 0}, "layers: expected an int of 1 or more, got 0"),
    ("dgl", {"units": 1.5}, "units: expected an int of 1 or more, got 1.5"),
    ("bll", {"feedback_width": True}, "feedback_width: expected an int of 1 or more, got True"),
    ("bll-kl", {"feedback": "chained"}, "feedback: expected 'fixed' for rule 'bll-kl'"),
]


@pytest.mark.parametrize(("name", "options", "match"), BAD_OPTIONS)
def test_bad_options_are_named(name, options, match):
    with pytest.raises(ValueError, match=match):
        get_rule(name, **options)


def test_a_rule_of_ones_own():
    class Sum(bll.Rule):
        name = "sum"
        reads = frozenset({"output", "label", "feedback"})
        cuts = True
        local = True

        def describe(self):
            return {"rule": self.name, "family": None}

        def feature_spec(self, feature):
            return BllRule().feature_spec(feature)

        def make_message(self, num_classes, seed, device):
            return Offset(num_classes)

        def loss(self, feature, labels, message, pool):
            return (feature.sum(dim=1) - message.offset[labels]).square().mean()

    x, y = data()
    model = bll.wrap(seeded(two_blocks), num_classes=3, rule=Sum(), example=x)
    out = model(x, y)
    out.loss.backward()
    assert model[0][0].weight.grad is not None
    assert model.bll.messages[0].offset.grad is not None
    assert model.bll.messages[0].width == 8
    assert model.bll.table()[0]["message_shape"] == [3]
