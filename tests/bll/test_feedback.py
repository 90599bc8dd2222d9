"""Class tables, feature shapes, and how blocks are found."""

import copy
import itertools
import pickle

import pytest
import torch
from torch import nn
from wrap_nets import ResNet, Tokens, mlp

from bll.blocks import find_cuts
from bll.features import FeatureSpec, feature_spec, latents, select_feature, select_logits
from bll.feedback import ClassTable


def table(learned=True, **options):
    return ClassTable(5, **{"learned": learned, "std": None, "bias": True, "seed": 3, **options})


def vector(width, dtype=torch.float32):
    return FeatureSpec((width,), None, width, dtype)


def test_values_depend_on_the_seed_alone():
    drawn = []
    for noise in (0, 1):
        torch.manual_seed(noise)
        module = table()
        module.materialize(vector(400))
        drawn.append(module.table.detach())
    assert torch.equal(*drawn)
    other = table(seed=4)
    other.materialize(vector(400))
    assert not torch.equal(drawn[0], other.table)
    assert drawn[0].std() == pytest.approx(1 / 20, rel=0.1)
    wide = table(std=1.0)
    wide.materialize(vector(400))
    assert wide.table.detach().std() == pytest.approx(1.0, rel=0.1)
    assert torch.equal(wide.bias, torch.zeros(5))


@pytest.mark.parametrize("learned", [True, False])
def test_an_optimiser_may_hold_a_table_without_shape(learned):
    module = table(learned)
    assert not module.ready
    optimiser = torch.optim.Adam(module.parameters(), lr=0.1)
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    module.materialize(vector(7))
    assert module.ready and module.table.shape == (5, 7)
    assert held == {id(p) for p in module.parameters()}
    assert len(held) == (2 if learned else 1)
    module.table.sum().backward() if learned else module.bias.sum().backward()
    optimiser.step()


def test_materialise_under_inference_mode_gives_trainable_parameters():
    module = table()
    with torch.inference_mode():
        module.materialize(vector(7))
    module.table.sum().backward()
    assert module.table.grad is not None


@pytest.mark.parametrize("learned", [True, False])
def test_a_table_without_shape_loads_and_copies(learned):
    full = table(learned)
    full.materialize(vector(7, torch.float64))
    empty = copy.deepcopy(table(learned))
    empty.load_state_dict(full.state_dict())
    assert torch.equal(empty.table, full.table) and empty.table.dtype == torch.float64
    assert torch.equal(pickle.loads(pickle.dumps(full)).table, full.table)


@pytest.mark.parametrize(
    ("shape", "pool", "width"),
    [
        ((2, 9), None, 9),
        ((2, 4, 9), None, 9),
        ((2, 8, 14, 14), ("mean", 4), 128),
        ((2, 8, 2, 2), ("mean", 2), 32),
        ((2, 8, 3, 5), ("mean", 3), 72),
        ((2, 8, 1, 1), ("mean", 1), 8),
        ((2, 256, 8, 8), ("mean", 4), 4096),
        ((2, 512, 8, 8), ("mean", 2), 2048),
        ((2, 5000, 8, 8), ("mean", 1), 5000),
    ],
)
def test_feature_shapes(shape, pool, width):
    spec = feature_spec(torch.empty(shape, device="meta"), ("mean", 4), 4096)
    assert (spec.pool, spec.width, spec.dtype) == (pool, width, torch.float32)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4, 5, 6), (2, 0), (2, 3, 0, 4)])
def test_shapes_that_are_no_feature(shape):
    with pytest.raises(ValueError, match="expected a feature of shape"):
        feature_spec(torch.empty(shape), ("mean", 4), 4096)


def test_the_feature_of_nested_outputs():
    main, other = torch.zeros(2, 3), torch.ones(2, 3)
    ids = torch.zeros(2, 3, dtype=torch.long)
    assert select_feature(main) is main
    assert select_feature((None, ids, main, other)) is main
    assert select_feature({"a": other, "last_hidden_state": main}) is main
    assert select_feature({"a": [main], "b": other}) is main
    assert select_logits({"hidden": other, "logits": main}) is main
    with pytest.raises(ValueError, match=r"got a tensor of shape \[2, 3\] and dtype torch.int64"):
        select_feature(ids)
    with pytest.raises(ValueError, match="got NoneType"):
        select_feature(None)


def test_tokens_keep_their_positions_and_other_ranks_are_refused():
    spec = feature_spec(torch.empty(2, 4, 3), ("mean", 4), 4096)
    tokens = torch.randn(2, 4, 3)
    assert torch.equal(latents((tokens, None), spec), tokens)
    with pytest.raises(ValueError, match=r"shape \[B, 4, 3\] as in the example, got \[2, 3\]"):
        latents(tokens[:, 0], spec)


class Norms(nn.Sequential):
    """Children with and without weights, as written by hand."""

    def __init__(self):
        layers = [nn.Flatten()]
        for _ in range(3):
            layers += [nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Dropout()]
        super().__init__(*layers)


def test_automatic_blocks():
    assert find_cuts(mlp(), None) == ("1", "2")
    assert find_cuts(Norms(), None) == ("4", "8")
    assert find_cuts(Tokens(depth=4), None) == ("layers.0", "layers.1", "layers.2")
    assert find_cuts(nn.Sequential(nn.Linear(2, 2)), None) == ()
    assert find_cuts(mlp(), []) == ()


def test_a_count_balances_its_cost():
    assert find_cuts(mlp(), 3) == ("1", "2")
    assert find_cuts(mlp(), 2) == ("1",)
    assert find_cuts(mlp(), 1) == ()
    assert find_cuts(ResNet(), 5) == ("stem", "layer1.0", "layer2.0", "layer3.0")
    even = nn.Sequential(*(nn.Linear(4, 4) for _ in range(12)))
    assert find_cuts(even, 4) == ("2", "5", "8")
    assert find_cuts(even, 12) == tuple(str(i) for i in range(11))
    costly_start = {"0": 10}
    cuts = find_cuts(even, 2, lambda unit: costly_start.get(unit.members[0], 1))
    assert cuts == ("0",)


def brute_force_peak(costs, count):
    if count == 1:
        return sum(costs)
    return min(
        max(sum(costs[:i]), brute_force_peak(costs[i:], count - 1))
        for i in range(1, len(costs) - count + 2)
    )


def test_counts_are_the_best_possible():
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        size = int(torch.randint(1, 8, (), generator=generator))
        costs = torch.randint(0, 9, (size,), generator=generator).tolist()
        count = int(torch.randint(1, size + 1, (), generator=generator))
        model = nn.Sequential(*(nn.Linear(1, 1) for _ in costs))
        cuts = find_cuts(model, count, lambda unit, costs=costs: costs[int(unit.members[0])])
        ends = [int(name) + 1 for name in cuts]
        borders = [0, *ends, size]
        runs = [costs[a:b] for a, b in itertools.pairwise(borders)]
        assert len(runs) == count and all(runs)
        assert max(map(sum, runs)) == brute_force_peak(costs, count)
