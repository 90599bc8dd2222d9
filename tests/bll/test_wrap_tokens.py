"""Labels per token and messages per position, against loops over the positions that count."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from wrap_nets import Layer, seeded

import bll
from bll.rules import BllRule

CLASSES = 5


class Tagger(nn.Module):
    """Logits for every token."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(Layer(8) for _ in range(2))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, ids):
        tokens = self.embed(ids)
        for layer in self.layers:
            tokens, _ = layer(tokens)
        return self.head(tokens)


IDS = torch.arange(12).reshape(3, 4) % 11
LABELS = torch.tensor([[0, 4, -100, 2], [-100, -100, 1, 1], [3, -100, 0, 2]])


def tagger(rule="bll", **options):
    return bll.wrap(seeded(Tagger).double(), num_classes=CLASSES, rule=rule, **options)


def one_by_one(model, labels, ignore=-100):
    """The mean of the losses of the positions that count, each taken by itself."""
    with torch.no_grad():
        feature = model.layers[0](model.embed(IDS))[0]
        rows = [
            model.bll.rule.loss(
                feature[b, t][None], labels[b, t][None], model.bll.messages[0], None
            )
            for b in range(3)
            for t in range(4)
            if labels[b, t] != ignore
        ]
    return torch.stack(rows).mean()


@pytest.mark.parametrize("rule", ["bll", "bll-kl", "bp-deepsup"])
@pytest.mark.parametrize("example", [True, False])
def test_the_loss_is_the_mean_over_the_tokens_that_count(rule, example):
    model = tagger(rule, example=IDS if example else None)
    out = model(IDS, y=LABELS)
    assert out.logits.shape == (3, 4, CLASSES)
    torch.testing.assert_close(out.block_losses["layers.0"], one_by_one(model, LABELS))
    expected = functional.cross_entropy(out.logits.flatten(0, 1), LABELS.flatten())
    torch.testing.assert_close(out.block_losses["output"], expected)


def test_what_is_ignored_gets_no_gradient_and_changes_nothing():
    model = tagger(example=IDS)
    features = []
    model.layers[0].register_forward_hook(lambda m, a, out: features.append(out[0]))
    loss = model(IDS, y=LABELS).block_losses["layers.0"]
    gradient, table = torch.autograd.grad(loss, [features[0], model.bll.messages[0].table])
    assert torch.equal(gradient.abs().sum(dim=2) > 0, LABELS != -100)
    ids = torch.where(LABELS == -100, 9, IDS)  # other tokens where nothing counts
    again = model(ids, y=LABELS).block_losses["layers.0"]
    torch.testing.assert_close(again, loss)
    other = torch.autograd.grad(again, model.bll.messages[0].table)[0]
    torch.testing.assert_close(other, table)


def test_nothing_counts():
    model = tagger(example=IDS)
    out = model(IDS, y=torch.full_like(LABELS, -100))
    assert out.loss.item() == 0.0
    out.loss.backward()
    assert all(torch.isfinite(p.grad).all() and not p.grad.any() for p in model.parameters())


def test_other_ignore_indices():
    labels = LABELS.masked_fill(LABELS == -100, 4)
    out = tagger(example=IDS, ignore_index=4)(IDS, y=labels)
    want = tagger(example=IDS)(IDS, y=labels.masked_fill(labels == 4, -100))
    assert torch.equal(out.loss, want.loss)
    every = tagger(example=IDS, ignore_index=None)
    torch.testing.assert_close(
        every(IDS, y=labels).block_losses["layers.0"], one_by_one(every, labels, ignore=None)
    )
    with pytest.raises((ValueError, IndexError)):
        every(IDS, y=LABELS)


def test_a_message_for_every_position():
    y = torch.tensor([0, 3, 2])

    class Pooled(Tagger):
        def forward(self, ids):
            return super().forward(ids).mean(dim=1)

    def wrapped(tokens):
        return bll.wrap(seeded(Pooled).double(), num_classes=CLASSES, example=IDS, tokens=tokens)

    model = wrapped("position")
    loss = model(IDS, y=y).block_losses["layers.0"]
    torch.testing.assert_close(loss, one_by_one(model, y[:, None].expand(3, 4)))
    assert not torch.isclose(loss, wrapped("pooled")(IDS, y=y).block_losses["layers.0"])


def test_shifted_labels_are_those_of_the_next_token():
    shifted = torch.cat([LABELS[:, 1:], torch.full((3, 1), -100)], dim=1)
    want = tagger(example=IDS)(IDS, y=shifted)
    assert torch.equal(tagger(example=IDS, shift_labels=True)(IDS, y=LABELS).loss, want.loss)
    with pytest.raises(ValueError, match="shift_labels expects labels per token"):
        tagger(example=IDS, shift_labels=True)(IDS, y=torch.tensor([0, 1, 2]))


def test_causal_language_models_ask_for_an_answer():
    model = seeded(Tagger)
    model.loss_type = "ForCausalLM"
    with pytest.raises(ValueError, match="shift_labels: Tagger predicts the next token"):
        bll.wrap(model, num_classes=CLASSES)
    bll.wrap(model, num_classes=CLASSES, shift_labels=False)


def test_a_count_over_several_batches():
    model = tagger(example=IDS)
    plain = model(IDS, labels=LABELS)
    scaled = model(IDS, labels=LABELS, num_items_in_batch=torch.tensor(16))
    torch.testing.assert_close(scaled.loss, plain.loss * 8 / 16)
    torch.testing.assert_close(scaled.block_losses["output"], plain.block_losses["output"] / 2)


class Comparing(BllRule):
    """A rule whose rows depend on each other."""

    def loss(self, feature, labels, message, pool):
        import bll_kernels

        return bll_kernels.gram_loss(feature, labels, num_classes=CLASSES)


class Own(BllRule):
    """A rule that takes no loss of ours."""

    def loss(self, feature, labels, message, pool):
        return (feature @ message.table.T).mean()


def over_the_batch():
    return BllRule(standardize="batch")


@pytest.mark.parametrize("rule", [Comparing, Own, over_the_batch])
def test_rules_that_cannot_leave_rows_out_say_so(rule):
    model = tagger(rule(), example=IDS)
    with pytest.raises(ValueError, match=r"weight: .* compares its rows|ignore_index: rule"):
        model(IDS, y=LABELS)
    whole = tagger(rule(), example=IDS, ignore_index=None)
    assert whole(IDS, y=LABELS.clamp(min=0)).loss.requires_grad


@pytest.mark.parametrize("labels", [LABELS[:, :3], torch.zeros(3, 5, dtype=torch.long)])
def test_labels_that_do_not_fit_the_tokens(labels):
    with pytest.raises(ValueError, match="labels: expected one class per sample"):
        tagger(example=IDS)(IDS, y=labels)


def test_several_labels_per_sample_and_regression_are_refused():
    x = torch.randn(4, 6)
    model = bll.wrap(nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 3)), num_classes=3, example=x)
    with pytest.raises(ValueError, match="several labels per sample are not supported"):
        model(x, y=torch.ones(4, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="regression, soft and multi-label targets"):
        model(x, y=torch.randn(4, 3))
    assert model.bll.metrics() == {}
