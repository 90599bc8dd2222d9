"""The reference networks: shapes, sizes, cuts."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from bll.balance import balanced_ends
from bll.models import MODEL_NAMES, build_network
from bll.models.cost import multiply_adds

IMAGE = (1, 28, 28)
VGG_FEATURES = 9 * (128 * 256 + 256 * 256 + 256 * 512 + 2 * 512 * 512) + 2 * (
    128 + 256 + 256 + 512 + 512 + 512
)


@pytest.mark.parametrize(("name", "width"), [("mlp", 256), ("resnet10", 16), ("vgg8b", 4)])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_logits_and_gradients(name, width, shape):
    network = build_network(name, shape, 7, width=width)
    logits = network.model(torch.randn(4, *shape))
    assert logits.shape == (4, 7)
    logits.sum().backward()
    assert all(p.grad is not None for p in network.model.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        # Counted by hand from the layer shapes: 784*256 + 6*256^2 + 7*512 + 2570 for the MLP.
        ("mlp", (1, 28, 28), 784 * 256 + 6 * 256**2 + 7 * 512 + 256 * 10 + 10),
        # The known sizes of the CIFAR forms with ten classes.
        ("resnet18", (3, 32, 32), 11_173_962),
        ("resnet50", (3, 32, 32), 23_520_842),
        # Convolutions, their norms, 2048 (one pixel: 512) hidden inputs, head.
        ("vgg8b", (3, 32, 32), VGG_FEATURES + 27 * 128 + 2048 * 1024 + 2048 + 10250),
        ("vgg8b", (1, 28, 28), VGG_FEATURES + 9 * 128 + 512 * 1024 + 2048 + 10250),
    ],
)
def test_parameter_counts(name, shape, parameters):
    with torch.device("meta"):
        model = build_network(name, shape, 10).model
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "millions"), [("mlp", 0.6), ("resnet18", 456), ("resnet50", 1047)]
)
def test_multiply_adds(name, millions):
    with torch.device("meta"):
        model = build_network(name, IMAGE, 10).model
    assert sum(multiply_adds(model, IMAGE).values()) == pytest.approx(millions * 1e6, rel=0.01)


def test_resnet10_maps_shrink_as_documented():
    network = build_network("resnet10", IMAGE, 10)
    shapes = {}
    for name in ("stage1", "stage2", "stage3", "stage4"):
        module = network.model.get_submodule(name)
        module.register_forward_hook(
            lambda _, __, out, name=name: shapes.update({name: tuple(out.shape[1:])})
        )
    network.model(torch.zeros(2, *IMAGE))
    assert list(shapes.values()) == [(16, 14, 14), (32, 7, 7), (64, 4, 4), (128, 2, 2)]


def test_features_at_the_cuts_are_not_negative():
    for name in ("mlp", "resnet10"):
        network = build_network(name, IMAGE, 10)
        seen = []
        for cut in network.cuts:
            network.model.get_submodule(cut).register_forward_hook(
                lambda _, __, out, seen=seen: seen.append(out.min().item())
            )
        network.model(torch.randn(4, *IMAGE))
        assert len(seen) == 3 and min(seen) >= 0.0


@pytest.mark.parametrize("name", MODEL_NAMES)
@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_cuts_name_modules_in_execution_order(name, blocks):
    with torch.device("meta"):
        network = build_network(name, IMAGE, 10, blocks=blocks)
    assert len(network.cuts) == blocks - 1
    order = [module for module, _ in network.model.named_modules()]
    positions = [order.index(cut) for cut in network.cuts]
    assert positions == sorted(positions)


def test_four_blocks_of_a_residual_network_are_its_stages():
    for name in ("resnet10", "resnet18", "resnet50"):
        with torch.device("meta"):
            assert build_network(name, IMAGE, 10).cuts == ("stage1", "stage2", "stage3")


def test_blocks_may_end_where_modules_are_named():
    ends = ("stem", "stage1", "stage2.0", "stage3")
    network = build_network("resnet18", IMAGE, 10, blocks=ends, width=2)
    assert network.cuts == ends
    assert build_network("vgg8b", IMAGE, 10, blocks=["conv2"], width=2).cuts == ("conv2",)


def test_mlp_has_two_linear_layers_per_block():
    model = build_network("mlp", IMAGE, 10, blocks=3, width=32).model
    for block in model.children():
        assert sum(isinstance(layer, nn.Linear) for layer in block) == 2


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg", {}, "model: expected one of mlp, resnet10, resnet18, resnet50, vgg8b, got 'vgg'"),
        ("mlp", {"blocks": 0}, "blocks: expected at least 1, got 0"),
        ("mlp", {"width": 0}, "width: expected at least 1, got 0"),
        ("resnet10", {"blocks": 5}, "blocks: expected 1 to 4 .*, got 5"),
        ("resnet10", {"blocks": 0}, "blocks: expected 1 to 4 .*, got 0"),
        ("resnet10", {"width": -1}, "width: expected at least 1, got -1"),
        ("resnet10", {"blocks": ["stem", "stage9"]}, "such as stem, stage1, .*, got 'stage9'"),
        ("mlp", {"blocks": ["block1"]}, "mlp expects a number of blocks, got .'block1'."),
        ("vgg8b", {"blocks": 9}, "blocks: expected 1 to 8 .the layers., got 9"),
        ("vgg8b", {"width": 0}, "width: expected at least 1, got 0"),
    ],
)
def test_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_network(name, IMAGE, 10, **options)


@pytest.mark.parametrize("parts", [1, 2, 3, 6])
def test_balanced_ends_is_the_best_of_all_cuts(parts):
    costs = [5, 1, 7, 2, 2, 9]

    def dearest(ends):
        bounds = [0, *(end + 1 for end in ends), len(costs)]
        return max(sum(costs[a:b]) for a, b in itertools.pairwise(bounds))

    best = min(dearest(ends) for ends in itertools.combinations(range(5), parts - 1))
    ends = balanced_ends(costs, parts)
    assert len(ends) == parts - 1 and dearest(ends) == best


@pytest.mark.parametrize("parts", [0, 4])
def test_balanced_ends_refuses(parts):
    with pytest.raises(ValueError, match=f"parts: expected 1 to 3, got {parts}"):
        balanced_ends([1, 2, 3], parts)
