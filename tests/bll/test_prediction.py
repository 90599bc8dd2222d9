"""What a wrapped model predicts: its own logits, or the mean vote of its blocks."""

import pytest
import torch
from torch import nn
from wrap_nets import ResNet, hook_count, seeded

import bll
from bll.rules import get_rule


def image_net(rule):
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model = seeded(ResNet).double()
    return bll.wrap(model, ["layer1", "layer2"], num_classes=3, rule=rule, example=x).eval(), x


def test_most_rules_predict_by_the_output():
    model, x = image_net("bll")
    assert torch.equal(bll.predict(model, x), model(x))


def test_a_vote_is_the_mean_of_the_softmaxes():
    model, x = image_net("cafo")
    for message in model.bll.messages:
        nn.init.normal_(message.bias)
    hooks = hook_count(model)
    with torch.no_grad():
        features = [model.layer1(torch.relu(model.stem(x)))]
        features.append(model.layer2(features[0]))
        scores = [
            h.flatten(1) @ message.table.T + message.bias
            for h, message in zip(features, model.bll.messages, strict=True)
        ]
        expected = torch.stack([s.softmax(1) for s in (*scores, model(x))]).mean(0)
        given = bll.predict(model, x)
    torch.testing.assert_close(given.exp(), expected, rtol=1e-12, atol=1e-14)
    assert not torch.equal(given.argmax(1), model(x).argmax(1))
    assert hook_count(model) == hooks


def test_a_vote_is_of_what_the_block_returned():
    """The next block writes in place."""
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    net = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3)))
    model = bll.wrap(net, ["0"], num_classes=3, rule="cafo", example=x).eval()
    message = model.bll.messages[0]
    with torch.no_grad():
        first = (net[0](x) @ message.table.T + message.bias).softmax(1)
        expected = (first + model(x).softmax(1)) / 2
        torch.testing.assert_close(bll.predict(model, x).exp(), expected)


def test_votes_of_tokens():
    layers = [nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, 3)]
    ids = torch.arange(12).reshape(3, 4) % 7
    model = bll.wrap(nn.Sequential(*layers), ["1"], num_classes=3, rule="cafo", example=ids).eval()
    message = model.bll.messages[0]
    hidden = layers[1](layers[0](ids))
    first = (hidden @ message.table.T + message.bias).softmax(2)
    expected = (first + layers[2](hidden).softmax(2)) / 2
    torch.testing.assert_close(bll.predict(model, ids).exp(), expected)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda m: bll.unwrap(m), "expected a wrapped model, got a plain ResNet"),
        (lambda m: m.train(), "expected evaluation mode, got training mode"),
    ],
)
def test_refusals(make, match):
    model, x = image_net("cafo")
    with pytest.raises(ValueError, match=match):
        bll.predict(make(model), x)


def test_a_vote_needs_known_blocks():
    model = bll.wrap(seeded(ResNet), ["layer1"], num_classes=3, rule=get_rule("cafo")).eval()
    with pytest.raises(ValueError, match="its blocks are not known yet"):
        bll.predict(model, torch.zeros(2, 1, 8, 8))
