"""cut_tensors: what goes round a border carries values and no gradient."""

import pytest
import torch
from torch import nn
from wrap_nets import Checkpointed, Tied, UNet, hook_count, same, seeded, snapshot

import bll

X = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 2, 1, 0])


class Mixed(nn.Module):
    """The skip ends in an operation beside what the later block itself computed."""

    def __init__(self, broken=False):
        super().__init__()
        self.first = nn.Linear(16, 8)
        self.border = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)
        self.broken = broken

    def forward(self, x):
        early = torch.relu(self.first(x))
        late = self.second(self.border(early))
        if self.broken:
            raise ArithmeticError("broken")
        return self.head(torch.stack([late, early], dim=0).sum(dim=0))


def touched(model, block):
    loss = model(X, y=Y).block_losses[block]
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {n for n, p in model.named_parameters() if p.grad is not None and n[:4] != "bll."}


@pytest.mark.parametrize("example", [X, None], ids=["example", "first pass"])
@pytest.mark.parametrize(("make", "cut"), [(UNet, "mid"), (Mixed, "border")])
def test_the_skip_is_cut_and_nothing_else(make, cut, example):
    model = bll.wrap(seeded(make), [cut], num_classes=3, example=example, cut_tensors=True)
    first, last = touched(model, cut), touched(model, "output")
    assert not first & last
    assert first | last == {n for n, _ in model.named_parameters() if n[:4] != "bll."}
    assert last == set(model.bll.blocks[1].parameters)


def test_the_values_are_those_of_the_plain_model():
    plain, model = seeded(Mixed), seeded(Mixed)
    bll.wrap(model, ["border"], num_classes=3, example=X, cut_tensors=True)
    assert torch.equal(model(X, y=Y).logits, plain(X))
    assert torch.equal(model.eval()(X), plain.eval()(X))
    bll.unwrap(model)
    assert same(snapshot(model), snapshot(plain)) and hook_count(model) == 0


def test_operations_are_watched_only_during_the_forward_pass():
    model = bll.wrap(seeded(Mixed), ["border"], num_classes=3, example=X, cut_tensors=True)
    model(X, y=Y).loss.backward()
    assert torch.overrides._get_current_function_mode() is None
    model.broken = True
    with pytest.raises(ArithmeticError):
        model(X, y=Y)
    assert torch.overrides._get_current_function_mode() is None
    model.broken = False
    assert touched(model, "output") == set(model.bll.blocks[1].parameters)


def test_tied_weights_stay_refused_and_rules_without_cuts_are_not_watched():
    with pytest.raises(bll.LocalityError, match="tied weights"):
        bll.wrap(seeded(Tied), ["middle"], num_classes=16, example=X, cut_tensors=True)
    model = bll.wrap(
        seeded(UNet), ["mid"], rule="bp-deepsup", num_classes=3, example=X, cut_tensors=True
    )
    assert "enc.weight" in touched(model, "output")


def test_checkpointing_inside_a_block():
    options = {"num_classes": 3, "example": X, "cut_tensors": True}
    model = bll.wrap(seeded(Checkpointed), ["second"], **options)
    plain = bll.wrap(seeded(lambda: Checkpointed("none")), ["second"], **options)
    for wrapped in (model, plain):
        wrapped(X, Y).loss.backward()
    assert torch.equal(model.first[0].weight.grad, plain.first[0].weight.grad)
