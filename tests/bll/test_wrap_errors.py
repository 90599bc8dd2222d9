"""Every refusal of wrap, unwrap and a wrapped call: its type, what it names, nothing changed."""

import pytest
import torch
from torch import nn
from wrap_nets import ResNet, Tokens, hook_count, mlp, same, seeded, snapshot

import bll
from bll.rules import BllRule

X = torch.zeros(2, 1, 4, 4)
Y = torch.tensor([0, 2])

BAD_ARGUMENTS = [
    ({"rule": "bpp"}, ValueError, "rule: expected one of bll, bll-kl, .*, got 'bpp'"),
    ({"rule": 3}, TypeError, "rule: expected a name or a Rule, got int"),
    ({"rule": BllRule(), "family": "bernoulli"}, ValueError, "family: give it to the rule object"),
    ({"rule": "bp", "family": "gaussian"}, ValueError, "family: rule 'bp' has no such option"),
    ({"family": "gauss"}, ValueError, "family: expected one of"),
    ({"family": "gaussian-diagonal"}, ValueError, "family: .*two parameters"),
    ({"feedback": "random"}, ValueError, "feedback: expected one of 'learned', 'fixed', 'c"),
    ({"rule": "bll-kl", "feedback": "learned"}, ValueError, "feedback: expected 'fixed'"),
    ({"pool": ("sum", 4)}, ValueError, "pool: expected"),
    ({"pool": ("mean", 0)}, ValueError, "pool: expected"),
    ({"pool": 4}, ValueError, "pool: expected"),
    ({"tilt": 0.0}, ValueError, "tilt: "),
    ({"num_classes": 0}, ValueError, "num_classes: expected at least 1, got 0"),
    ({"num_classes": 2.0}, TypeError, "num_classes: expected an int, got float"),
    ({"label_smoothing": 1.5}, ValueError, "label_smoothing: "),
    ({"seed": -1}, ValueError, "seed: "),
    ({"seed": "a"}, TypeError, "seed: "),
    ({"example": 3}, TypeError, "example: expected a tensor"),
    ({"blocks": "1"}, TypeError, "blocks: expected a list of names"),
    ({"blocks": [1]}, TypeError, "blocks: expected module names, got 1"),
    ({"blocks": True}, TypeError, "blocks: expected a list of names"),
    ({"blocks": 2.5}, TypeError, "blocks: expected a list of names"),
    ({"blocks": ["1", "1"]}, ValueError, "blocks: '1' is named 2 times"),
    ({"blocks": ["7"]}, ValueError, "blocks: the model has no module '7'"),
    ({"blocks": [""]}, ValueError, "blocks: the model has no module ''"),
    ({"blocks": 4}, ValueError, "blocks: expected a count from 1 to 3"),
    ({"blocks": 0}, ValueError, "blocks: expected a count from 1 to 3"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_ARGUMENTS)
def test_bad_arguments(options, error, message):
    model = seeded(mlp)
    before = snapshot(model)
    with pytest.raises(error, match=message):
        bll.wrap(model, **{"num_classes": 3, "example": X, **options})
    assert same(snapshot(model), before) and hook_count(model) == 0
    assert not hasattr(model, "bll")


def test_wrapping_twice():
    model = bll.wrap(seeded(mlp), num_classes=3, example=X)
    before, hooks = snapshot(model), hook_count(model)
    with pytest.raises(ValueError, match="already wrapped"):
        bll.wrap(model, num_classes=3)
    with pytest.raises(ValueError, match="holds a wrapped model"):
        bll.wrap(nn.Sequential(model, nn.Linear(3, 3)), num_classes=3)
    assert same(snapshot(model), before) and hook_count(model) == hooks


def named_bll():
    model = mlp()
    model.bll = 3
    return model


def compiled_inside():
    model = ResNet()
    model.layer1.compile()
    return model


def lazy():
    return nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 3))


UNSUITABLE = [
    (lambda: nn.DataParallel(mlp()), "DistributedDataParallel"),
    (lambda: torch.compile(mlp()), "wrap first, then compile"),
    (compiled_inside, "'layer1' is compiled"),
    (lambda: torch.jit.trace(mlp().eval(), X), "scripted"),
    (named_bll, "attribute 'bll'"),
    (lazy, "'0.weight' has no shape yet"),
    (lambda: nn.Linear(4, 3), "no nn.Sequential or nn.ModuleList"),
]


@pytest.mark.parametrize(("make", "message"), UNSUITABLE)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_unsuitable_models(make, message):
    model = seeded(make)
    hooks = hook_count(model)
    with pytest.raises(ValueError, match=message):
        bll.wrap(model, num_classes=3)
    assert hook_count(model) == hooks


def test_not_a_module():
    with pytest.raises(TypeError, match=r"model: expected an nn\.Module, got function"):
        bll.wrap(lambda x: x, num_classes=3)


def test_unwrap_of_a_plain_model():
    with pytest.raises(ValueError, match="expected a wrapped model, got a plain Sequential"):
        bll.unwrap(mlp())


BAD_LABELS = [
    ([0, 1], TypeError, "labels: expected a tensor, got list"),
    (torch.zeros(2), ValueError, "labels: expected integer class labels, got dtype torch.float32"),
    (torch.zeros(2, dtype=torch.bool), ValueError, "got dtype torch.bool"),
    (torch.zeros(2, 3, dtype=torch.long), ValueError, "labels: expected one class per sample"),
    (torch.tensor(1), ValueError, "labels: expected one class per sample"),
    (torch.tensor([0, 1, 2]), ValueError, "labels"),
]


@pytest.mark.parametrize(("labels", "error", "message"), BAD_LABELS)
def test_bad_labels(labels, error, message):
    model = bll.wrap(seeded(mlp), num_classes=3, example=X).eval()
    with pytest.raises(error, match=message):
        model(X, y=labels)
    assert isinstance(model(X), torch.Tensor)
    assert isinstance(model(X, y=Y), bll.LocalOutput)


def test_labels_missing_in_training():
    model = bll.wrap(seeded(mlp), num_classes=3, example=X)
    with pytest.raises(ValueError, match=r"labels: expected y= or labels= or target="):
        model(X)
    with pytest.raises(ValueError, match="labels: "):
        model(X, y=None)


def test_labels_given_twice():
    model = bll.wrap(seeded(mlp), num_classes=3, example=X)
    with pytest.raises(TypeError, match="labels: given more than once, as y and labels"):
        model(X, y=Y, labels=Y)
    with pytest.raises(TypeError, match="given more than once"):
        model(X, Y, target=Y)


def test_every_label_keyword():
    model = bll.wrap(seeded(mlp), num_classes=3, example=X).eval()
    outs = [model(X, **{name: Y}) for name in ("y", "labels", "target")]
    outs += [model(X, Y), model(X, Y.int())]
    assert len({out.loss.item() for out in outs}) == 1


class TwoInputs(nn.Module):
    """A model with an input of its own called `y`."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))

    def forward(self, x, y):
        return self.layers(x + y)


def test_an_input_called_y_stays_an_input():
    x = torch.ones(2, 4)
    model = bll.wrap(seeded(TwoInputs), num_classes=3, example=(x, x))
    assert model(x, y=x, labels=Y).logits.shape == (2, 3)
    with pytest.raises(TypeError, match="labels= or target="):
        model(x, x)
    assert torch.equal(model.eval()(x, y=x), seeded(TwoInputs)(x, x))


def test_a_forward_pass_that_takes_another_way():
    model = bll.wrap(seeded(Tokens), num_classes=3, example=torch.zeros(2, 3, dtype=torch.long))
    model.layers = nn.ModuleList([model.layers[1], model.layers[0], model.layers[2]])
    with pytest.raises(RuntimeError, match=r"block 'layers.1' ended out of order"):
        model(torch.zeros(2, 3, dtype=torch.long), labels=Y)


def test_wrong_number_of_classes():
    model = bll.wrap(seeded(mlp), num_classes=5, example=X)
    with pytest.raises(ValueError, match=r"num_classes\] = \[2, 5\], got \[2, 3\]"):
        model(X, Y)


def test_nothing_to_cut_after() -> None:
    with pytest.raises(ValueError, match="no child modules with weights to cut after, got 3"):
        bll.wrap(torch.nn.Linear(3, 3), blocks=3, num_classes=3)
