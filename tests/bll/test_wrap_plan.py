"""Where automatic and counted cuts fall, what the table says, what is warned of."""

import warnings

import pytest
import torch
from torch import nn
from wrap_nets import Residual, ResNet, Tokens, mlp, seeded

import bll

X = torch.zeros(2, 1, 8, 8)


class Staged(nn.Module):
    """A stem and containers beside each other; the forward is its own."""

    def __init__(self, skip=False):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.idle = nn.Linear(3, 3)
        self.layer1 = nn.Sequential(Residual(4, 4), Residual(4, 4))
        self.layer2 = nn.Sequential(Residual(4, 6))
        self.layer3 = nn.Sequential(Residual(6, 8))
        self.fc = nn.Linear(8, 3)
        self.skip = skip

    def forward(self, x):
        first = torch.relu(self.stem(x))
        x = self.layer1(first)
        x = self.layer3(self.layer2(x + first.mean() if self.skip else x))
        return self.fc(x.mean(dim=(2, 3)))


class Featured(Staged):
    """With a table as timm's models have: its first entry is the stem alone."""

    def __init__(self):
        super().__init__()
        self.feature_info = [
            {"num_chs": 4, "module": "stem"},
            {"num_chs": 4, "module": "layer1.0"},
            {"num_chs": 6, "module": "layer2"},
            {"num_chs": 8, "module": "layer3"},
        ]


def cuts(model):
    return [block.cut for block in model.bll.blocks[:-1]]


def test_stages_beside_each_other():
    assert cuts(bll.wrap(Staged(), num_classes=3, example=X)) == ["layer1", "layer2"]
    assert cuts(bll.wrap(Staged(), num_classes=3)) == ["layer1", "layer2"]


def test_feature_info_comes_first_and_a_stem_alone_is_joined():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = bll.wrap(Featured(), num_classes=3, example=X)
    assert cuts(model) == ["layer1.0", "layer2"]
    assert cuts(bll.wrap(Featured(), num_classes=3)) == ["stem", "layer1.0", "layer2"]


def test_blocks_between_which_a_gradient_leaks_are_joined():
    model = Staged(skip=True)
    with pytest.raises(bll.LocalityError, match=r"'stem'.*'layer2.0.conv' \(a skip") as caught:
        bll.wrap(model, ["layer1", "layer2"], num_classes=3, example=X)
    assert caught.value.cuts == ("layer1",)
    assert cuts(bll.wrap(model, num_classes=3, example=X)) == ["layer2"]


def test_what_no_joining_repairs_is_refused_with_the_reason():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            self.layers[2].weight = self.layers[0].weight

        def forward(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    with pytest.raises(bll.LocalityError, match=r"'layers.0' and 'layers.2' share it"):
        bll.wrap(Tied(), num_classes=4, example=torch.zeros(2, 4))


class Uneven(nn.Module):
    """Little memory and many operations in `wide`; defined out of execution order."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 3)
        self.grow = nn.Linear(2, 512)
        self.wide = nn.Linear(512, 512)
        self.shrink = nn.Linear(512, 2)

    def forward(self, x):
        return self.head(self.shrink(self.wide(self.grow(x))))


def test_a_count_balances_what_is_asked_for():
    x = torch.zeros(4, 2)

    def first_cut(**options):
        return cuts(bll.wrap(Uneven(), blocks=2, num_classes=3, **options))[0]

    # Outputs: grow 512, wide 512, shrink 2, head 3 numbers per sample, in that order.
    assert first_cut(example=x) == first_cut(example=x, balance="bytes") == "grow"
    # Multiply-adds: grow 1,024, wide 262,144, shrink 1,024, head 6.
    three = bll.wrap(Uneven(), blocks=3, num_classes=3, example=x, balance="flops")
    assert [block.flops for block in three.bll.blocks] == [
        2 * 4 * 1024, 2 * 4 * 262144, 2 * 4 * 1030,
    ]  # fmt: skip


def test_measured_time_decides():
    class Slow(nn.Module):
        def forward(self, x):
            for _ in range(300):
                x = x * 1.0
            return x

    def part(slow):
        return nn.Sequential(nn.Linear(4, 4), Slow() if slow else nn.Identity())

    model = nn.Sequential(*[part(index == 2) for index in range(3)], nn.Linear(4, 3))
    random_state = torch.get_rng_state()
    bll.wrap(model, blocks=3, num_classes=3, example=torch.ones(2, 4), balance="time")
    assert cuts(model) in (["1", "2"], ["0", "2"])
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"balance": "size", "blocks": 2, "example": X}, "balance: expected one of"),
        ({"balance": "flops", "example": X}, "balance: 'flops' balances a count"),
        ({"balance": "time", "blocks": 2}, "balance: 'time' needs an example"),
        ({"verbose": True}, "verbose: .* needs an example"),
        ({"tokens": "all"}, "tokens: expected 'pooled' or 'position'"),
        ({"shift_labels": True, "ignore_index": None}, "shift_labels: "),
    ],
)
def test_options_refused(options, message):
    with pytest.raises(ValueError, match=message):
        bll.wrap(seeded(ResNet), num_classes=3, **options)


def test_the_table_as_data_and_text(capsys):
    model = bll.wrap(seeded(ResNet), ["layer1", "layer2"], num_classes=3, example=X, verbose=True)
    printed = capsys.readouterr().out
    assert printed == model.bll.summary() + "\n" and "stem .. layer1" in printed
    first, second, last = model.bll.table()
    assert first["modules"] == ["stem", "layer1"] and last["modules"] == ["layer3", "fc"]
    assert first["parameters"] == 4 * 9 + 4 + 4 * 4 * 9 + 2 * 4 + 4 * 4 + 4
    assert sum(row["parameters"] for row in (first, second, last)) == sum(
        p.numel() for n, p in model.named_parameters() if not n.startswith("bll.")
    )
    assert (first["output_shape"], first["message_shape"]) == ([2, 4, 4, 4], [3, 64])
    assert first["layers"] == 3 and first["tier"] == "in place" and "ResNet" in first["why"]
    assert first["flops"] == 2 * 2 * (64 * 4 * 9 + 16 * 4 * 4 * 9 + 16 * 4 * 4)
    chain = bll.wrap(seeded(mlp), num_classes=3, example=torch.zeros(2, 16))
    assert {(row["tier"], row["why"]) for row in chain.bll.table()} == {("apart", "")}
    kept = bll.wrap(seeded(mlp), rule="bp-deepsup", num_classes=3, example=torch.zeros(2, 16))
    assert "gradients of later blocks" in kept.bll.table()[0]["why"]


def test_a_block_that_is_only_the_stem_is_warned_of():
    with pytest.warns(bll.ShallowBlockWarning, match=r"block 'stem' holds 1 weighted layer"):
        bll.wrap(Staged(), ["stem", "layer1"], num_classes=3, example=X)
    late = bll.wrap(Staged(), ["stem", "layer1"], num_classes=3)
    with pytest.warns(bll.ShallowBlockWarning):
        late(X, y=torch.tensor([0, 1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bll.wrap(Staged(), ["layer1", "layer2"], num_classes=3, example=X)
        bll.wrap(seeded(mlp), num_classes=3, example=torch.zeros(2, 16))
        bll.wrap(Staged(), ["stem"], num_classes=3, example=X, rule="bp-deepsup")


def test_channels_last_maps_are_read_with_their_channels():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5))
            self.head = nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.layers(x).mean(dim=(1, 2)))

    x, y = torch.randn(4, 4, 4, 5), torch.tensor([0, 2, 1, 2])
    model = bll.wrap(Last(), num_classes=3, example=x, pool=("mean", 1))
    assert model.bll.table()[0]["message_shape"] == [3, 5]
    loss = model(x, y=y).block_losses["layers.0"]
    table = model.bll.messages[0].table
    cells = model.layers[0](x).mean(dim=(1, 2))
    cells = (cells - cells.mean(0)) / (cells.var(0, correction=0) + 1e-5).sqrt()
    scores = 0.5 * cells @ table.T - 0.25 * table.pow(2).sum(dim=1)
    expected = nn.functional.cross_entropy(scores, y)
    assert torch.isclose(loss, expected)


def test_counts_reach_into_modules_that_hold_a_container():
    class Headed(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Tokens(depth=4)

        def forward(self, ids):
            return self.body(ids)["logits"]

    model = bll.wrap(Headed(), 3, num_classes=3, example=torch.zeros(2, 4, dtype=torch.long))
    assert len(model.bll.blocks) == 3


def test_an_output_that_has_other_rows_than_the_batch_is_refused():
    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            for layer in self.layers:
                x = layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            return self.head(x.mean(dim=1))

    with pytest.raises(bll.LocalityError, match=r"'layers.0': .* \[2, 3\]; got \[10, 4\]"):
        bll.wrap(Patches(), num_classes=3, example=torch.zeros(2, 5, 4))
