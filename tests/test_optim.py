"""BlockAdam and BlockSGD against torch.optim, to the last bit, and what they add."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from tolerance import assert_same_bits
from torch import Tensor, nn

from bll_kernels.optim import BlockAdam, BlockSGD

Factory = Callable[[list[dict[str, object]]], torch.optim.Optimizer]
ADAM = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.9)}
SGD = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9}
PAIRS: dict[str, tuple[Factory, Factory]] = {
    "adam": (
        lambda g: BlockAdam(g, **ADAM),
        lambda g: torch.optim.Adam(g, fused=True, **ADAM),
    ),
    "adamw": (
        lambda g: BlockAdam(g, decoupled_weight_decay=True, **ADAM),
        lambda g: torch.optim.AdamW(g, fused=True, **ADAM),
    ),
    "sgd": (
        lambda g: BlockSGD(g, **SGD),
        lambda g: torch.optim.SGD(g, fused=True, **SGD),
    ),
    "nesterov": (
        lambda g: BlockSGD(g, nesterov=True, **SGD),
        lambda g: torch.optim.SGD(g, nesterov=True, fused=True, **SGD),
    ),
    "plain": (
        lambda g: BlockSGD(g, lr=0.1),
        lambda g: torch.optim.SGD(g, lr=0.1, fused=True),
    ),
}
every_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


def model() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Linear(7, 2))


def groups(net: nn.Sequential) -> list[dict[str, object]]:
    return [{"params": list(block.parameters())} for block in net]


def backward(net: nn.Sequential, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    net.zero_grad()
    net(torch.randn(6, 5, generator=generator)).square().sum().backward()


def assert_same_weights(left: nn.Module, right: nn.Module) -> None:
    for a, b in zip(left.parameters(), right.parameters(), strict=True):
        assert_same_bits(a.detach(), b.detach())


@every_pair
def test_same_bits_as_torch(pair: tuple[Factory, Factory]) -> None:
    nets = [model(), model()]
    optimizers = [make(groups(net)) for make, net in zip(pair, nets, strict=True)]
    schedules = [torch.optim.lr_scheduler.ExponentialLR(o, 0.9) for o in optimizers]
    start = [p.detach().clone() for p in nets[0].parameters()]
    for seed in range(6):
        for net, optimizer, schedule in zip(nets, optimizers, schedules, strict=True):
            backward(net, seed)
            optimizer.step()
            schedule.step()
        assert_same_weights(*nets)
    assert all((p != q).any() for p, q in zip(start, nets[0].parameters(), strict=True))


@every_pair
def test_a_block_alone(pair: tuple[Factory, Factory]) -> None:
    nets = [model(), model()]
    ours, theirs = (make(groups(net)) for make, net in zip(pair, nets, strict=True))
    for seed in range(3):
        for net in nets:
            backward(net, seed)
        for index in (2, 0, 1):
            ours.step_block(index)
        theirs.step()
        assert_same_weights(*nets)


@every_pair
def test_states_are_exchanged(pair: tuple[Factory, Factory]) -> None:
    nets = [model(), model()]
    ours, theirs = (make(groups(net)) for make, net in zip(pair, nets, strict=True))
    for seed in range(2):
        backward(nets[1], seed)
        theirs.step()
    nets[0].load_state_dict(nets[1].state_dict())
    known = ours.state_dict()["param_groups"]
    state = copy.deepcopy(theirs.state_dict())
    ours.load_state_dict({"state": state["state"], "param_groups": known})
    for seed in range(2, 4):
        for net, optimizer in zip(nets, (ours, theirs), strict=True):
            backward(net, seed)
            optimizer.step()
    assert_same_weights(*nets)


@pytest.mark.parametrize("make", [lambda net: net, copy.deepcopy], ids=["pickle", "deepcopy"])
@every_pair
def test_copies_go_on_alike(pair: tuple[Factory, Factory], make: Callable[..., object]) -> None:
    net = model()
    optimizer = pair[0](groups(net))
    backward(net, 0)
    optimizer.step()
    if make is copy.deepcopy:
        other, twin = copy.deepcopy((net, optimizer))
    else:
        other, twin = pickle.loads(pickle.dumps((net, optimizer)))
    for each, stepped in ((net, optimizer), (other, twin)):
        backward(each, 1)
        stepped.step()
    assert_same_weights(net, other)


@every_pair
def test_scaled_gradients_and_overflow(pair: tuple[Factory, Factory]) -> None:
    nets = [model(), model()]
    ours, theirs = (make(groups(net)) for make, net in zip(pair, nets, strict=True))
    found = torch.zeros(1)
    inverse = torch.tensor(1 / 1024)

    def scaled(seed: int) -> None:
        backward(nets[0], seed)
        for p in nets[0].parameters():
            assert p.grad is not None
            p.grad.mul_(1024)

    for seed in (0, 1):
        scaled(seed)
        backward(nets[1], seed)
        for index in range(3):
            ours.step_block(index, inverse_scale=inverse, found_inf=found)
        theirs.step()
        assert_same_weights(*nets)
        assert found.item() == 0

    scaled(2)
    first = next(nets[0].parameters())
    assert first.grad is not None
    first.grad[0, 0] = float("inf")
    for index in range(3):
        ours.step_block(index, inverse_scale=inverse, found_inf=found)
    assert found.item() == 1
    assert_same_weights(*nets)

    found.zero_()
    scaled(3)
    backward(nets[1], 3)
    for index in range(3):
        ours.step_block(index, inverse_scale=inverse, found_inf=found)
    theirs.step()
    assert_same_weights(*nets)  # the skipped step was not counted


@every_pair
def test_parameters_without_gradients_stay(pair: tuple[Factory, Factory]) -> None:
    nets = [model(), model()]
    ours, theirs = (make(groups(net)) for make, net in zip(pair, nets, strict=True))
    for seed, frozen in enumerate((False, True, False, True)):
        for net in nets:
            backward(net, seed)
            if frozen:
                net[1].weight.grad = None
                for p in net[2].parameters():
                    p.grad = None
        before = nets[0][2].weight.detach().clone()
        ours.step()
        theirs.step()
        if frozen:
            assert_same_bits(nets[0][2].weight.detach(), before)
        assert_same_weights(*nets)


@every_pair
def test_what_a_kernel_takes_is_gathered_once(pair: tuple[Factory, Factory]) -> None:
    """A captured graph would repeat the gathering, and count from the same number again."""
    net = model()
    optimizer = pair[0](groups(net))
    assert isinstance(optimizer, BlockAdam | BlockSGD)
    for frozen in (False, True):
        for parameter in net[0].parameters():
            parameter.requires_grad_(not frozen or parameter.dim() == 2)
        held = []
        for seed in range(3):
            backward(net, seed)
            optimizer.step()
            held.append([optimizer._lists[index] for index in range(3)])
        assert held[0] == held[1] == held[2]
    assert optimizer._lists[0].missing == (1,) and optimizer._lists[2].missing == ()


def test_counters_that_are_loaded_follow_their_parameters() -> None:
    net = model()
    theirs = torch.optim.Adam(net.parameters(), **ADAM)
    for seed in range(3):
        backward(net, seed)
        theirs.step()
    state = theirs.state_dict()
    state["state"][0]["step"] = 3  # as torch saved it once
    elsewhere = [torch.empty_like(p, device="meta").requires_grad_() for p in net.parameters()]
    ours = BlockAdam(elsewhere, **ADAM)
    ours.load_state_dict(state)
    lists, _ = ours._gather(0, [torch.empty_like(p) for p in elsewhere])
    assert lists is not None
    assert {x.device.type for x in (lists.counters, *lists.first, *lists.second)} == {"meta"}
    assert {ours.state[p]["step"].device.type for p in elsewhere} == {"meta"}
    here = BlockAdam(net.parameters(), **ADAM)
    here.load_state_dict(state)
    backward(net, 3)
    here.step()
    assert [here.state[p]["step"].item() for p in net.parameters()] == [4.0] * len(elsewhere)


def test_closure_and_learning_rate_tensor() -> None:
    net = model()
    optimizer = BlockAdam(net.parameters(), lr=torch.tensor(0.01))

    def closure() -> Tensor:
        backward(net, 0)
        return torch.tensor(2.0)

    before = net[0].weight.detach().clone()
    assert optimizer.step(closure) == 2.0
    assert (net[0].weight != before).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: BlockAdam(p, lr=-1.0), r"lr: expected a number of at least 0, got -1.0"),
        (lambda p: BlockAdam(p, eps=float("nan")), r"eps: expected"),
        (lambda p: BlockAdam(p, betas=(0.9, 1.0)), r"betas: expected numbers in \[0, 1\)"),
        (lambda p: BlockSGD(p, momentum=1.0), r"momentum: expected a number in \[0, 1\)"),
        (lambda p: BlockSGD(p, nesterov=True), r"nesterov: needs a momentum"),
        (lambda p: BlockSGD(p, weight_decay=-0.1), r"weight_decay: expected"),
    ],
)
def test_bad_options(make: Callable[..., object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make([nn.Parameter(torch.zeros(2))])


def test_bad_gradients() -> None:
    embedding = nn.Embedding(4, 2, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    before = embedding.weight.detach().clone()
    optimizer = BlockAdam(embedding.parameters())
    with pytest.raises(TypeError, match="gradient: expected a dense tensor"):
        optimizer.step()
    assert_same_bits(embedding.weight.detach(), before)
    with pytest.raises(ValueError, match="inverse_scale, found_inf: expected both or neither"):
        optimizer.step_block(0, found_inf=torch.zeros(1))


@every_pair
def test_gradients_at_hand_are_those_of_the_parameters(pair: tuple[Factory, Factory]) -> None:
    nets = [model(), model()]
    ours, theirs = (make(groups(net)) for make, net in zip(pair, nets, strict=True))
    for seed in range(3):
        for net in nets:
            backward(net, seed)
        given = [[p.grad for p in group["params"]] for group in ours.param_groups]
        for p in nets[0].parameters():
            p.grad = None
        for index in (2, 0, 1):
            ours.step_with(given[index], index)
        theirs.step()
        assert_same_weights(*nets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda given: given[:-1], "gradients: expected 2, one for each .* got 1"),
        (
            lambda given: [*given, given[0]],
            "gradients: expected 2, one for each .* got 3",
        ),
        (
            lambda given: [given[0][:1], given[1]],
            "expected number 0 to be torch.float32",
        ),
        (lambda given: [given[0].double(), given[1]], "got torch.float64"),
        (lambda given: [given[0].t().contiguous().t(), given[1]], "with strides"),
    ],
)
def test_gradients_unlike_their_parameters(
    change: Callable[[list[torch.Tensor]], list[torch.Tensor]], message: str
) -> None:
    weight, bias = torch.nn.Parameter(torch.zeros(3, 4)), torch.nn.Parameter(torch.zeros(3))
    optimizer = BlockAdam([weight, bias])
    with pytest.raises(ValueError, match=message):
        optimizer.step_with(change([torch.ones(3, 4), torch.ones(3)]))
    assert not weight.any() and not optimizer.state
