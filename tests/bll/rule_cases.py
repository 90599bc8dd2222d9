"""One row per learning rule: its float64 formula, and what it must reach on digits.

A formula gets the feature in float64 ([B, D], or a map), the labels and the block's message, and
returns a 0-dim tensor whose gradients, by autograd, are those the rule must give. It knows nothing
of the kernels: pooling, Gram matrices and prototypes are written out.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from bll.rules import Rule, get_rule


@dataclass(frozen=True)
class Row:
    """A rule, the formula of its loss up to a constant, and its bar on digits in percent."""

    rule: Rule
    formula: Callable | None
    accuracy: float

    @property
    def label(self):
        """Name for the test's id."""
        default = type(self.rule)()
        options = [
            f"{option.name}={getattr(self.rule, option.name)!s:.20}"
            for option in dataclasses.fields(self.rule)
            if option.init and getattr(self.rule, option.name) != getattr(default, option.name)
        ]
        return " ".join([self.rule.name, *options])


def pooled(h, kind="mean", grid=4):
    """Cells of a map, flattened; vectors as they are."""
    if h.dim() == 2:
        return h
    pool = functional.adaptive_avg_pool2d if kind == "mean" else functional.adaptive_max_pool2d
    return pool(h, min(grid, *h.shape[2:])).flatten(1)


def unit_rows(x):
    """Rows centred over their features, of length 1."""
    x = x - x.mean(1, keepdim=True)
    return x / x.norm(dim=1, keepdim=True)


def standardized(h, over, grid):
    """Pooled cells of mean 0 and variance 1: each row's, or each channel's over rows and cells."""
    x = pooled(h, grid=grid)
    cells = x.reshape(len(x), h.shape[1], -1)
    dims = (1, 2) if over == "sample" else (0, 2)
    centred = cells - cells.mean(dims, keepdim=True)
    variance = centred.square().mean(dims, keepdim=True)
    return (centred / (variance + 1e-5).sqrt()).reshape(x.shape)


def bll(h, y, message, over="channels"):
    """Scores are logs of N(a; b, 2): messages are densities N(b, 1), features means of N(a, 1)."""
    left = over == "none" or (over == "channels" and h.dim() == 2)
    a = pooled(h, grid=14) if left else standardized(h, over, 14)
    b = message.rows()
    scores = -(a[:, None] - b).square().sum(2) / 4
    return functional.cross_entropy(scores + message.bias, y)


def bll_gaussian(h, y, message):
    a, b = pooled(h), message.rows()
    scores = ((a[:, None] + b).square() - a[:, None].square()).sum(2) / 2
    return functional.cross_entropy(scores + message.bias, y)


def bll_kl(h, y, message):
    a = pooled(h)
    rho = torch.sigmoid(a.detach() + message.table[y])
    # E_rho[log rho / alpha] with rho constant: only alpha's logits learn.
    cross = -(rho * functional.logsigmoid(a) + (1 - rho) * functional.logsigmoid(-a))
    return cross.sum(1).mean()


def bll_kl_standardized(h, y, message):
    return bll_kl(standardized(h, "sample", 4), y, message)


def pred(h, y, message):
    return functional.cross_entropy(pooled(h) @ message.table.T + message.bias, y)


def pred_standardized(h, y, message):
    return pred(standardized(h, "batch", 4), y, message)


def mono_forward(h, y, message):
    return functional.cross_entropy(h.flatten(1) @ message.table.T, y)


def cafo(h, y, message):
    scores = h.detach().flatten(1) @ message.table.T + message.bias
    return functional.cross_entropy(scores, y) + 0.0 * h.sum()


def ff(h, y, message):
    goodness = h.flatten(1).square().mean(1)
    right, wrong = goodness[0::3] - 1, goodness[1::3] - 1
    return torch.stack([torch.log1p(torch.exp(-right)), torch.log1p(torch.exp(wrong))]).mean()


def sim(h, y, message):
    if message.kind != "none":
        by = functional.conv2d if h.dim() == 4 else functional.linear
        h = by(h, message.weight, **({"padding": 1} if h.dim() == 4 else {}))
    x = h.std(dim=(2, 3)) if h.dim() == 4 else h
    one_hot = torch.eye(message.num_classes, dtype=x.dtype)[y]
    s, t = (unit_rows(rows) @ unit_rows(rows).T for rows in (x, one_hot))
    return (s - t).square().mean()


def pred_sim(h, y, message):
    return 0.01 * pred(h, y, message.read_out) + 0.99 * sim(h, y, message.similarity)


def bll_proto(sign=-1, released=False, keep=True):
    def formula(h, y, message):
        x, table = unit_rows(pooled(h, "max", 1)), message.prototypes.table
        batch = len(y)
        decorrelation = sum(
            (x[i] @ x[j]) ** 2 for i in range(batch) for j in range(batch) if i != j
        )
        aligned = sum(table[c].detach() @ x[i] for i, c in enumerate(y.tolist())) / batch
        gap = 0
        for c in range(len(table)):
            own = x[y == c].detach()
            if len(own) or not keep:
                prototype = own.mean(0) if len(own) else torch.zeros_like(table[c])
                gap = gap + (table[c] - prototype).square().sum() / 2
        read_out = pred(h, y, message.read_out)
        scale = 1 / batch if released else 1
        return 0.7 * decorrelation / batch**2 + 0.25 * sign * scale * aligned + read_out / 2 + gap

    return formula


def drtp(h, y, message):
    return -(pooled(h) * message.table[y]).sum(1).mean()


def tpsgd(h, y, message):
    return (pooled(h) - message.table[y]).square().sum(1).mean() / 4


def sll(h, y, message):
    """Of the first block; the distance to the block before has a test of its own."""
    return functional.cross_entropy(pooled(h) @ message.table.T, y)


def ccl(h, y, message):
    b = unit_rows(message.rows())
    s, own = unit_rows(pooled(h)) @ b.T, torch.eye(len(b), dtype=h.dtype)
    return (s - own[y]).square().mean() + 0.5 * (b @ b.T - own).square().mean()


def dgl(h, y, message):
    for part in message.network:
        if isinstance(part, nn.Conv2d):
            h = torch.einsum("bchw,dc->bdhw", h, part.weight[:, :, 0, 0])
        elif isinstance(part, nn.Linear):
            h = h @ part.weight.T
        elif isinstance(part, (nn.BatchNorm1d, nn.BatchNorm2d)):
            over = [0, *range(2, h.dim())]
            h = h - h.mean(over, keepdim=True)
            scale = part.weight / (h.square().mean(over) + part.eps).sqrt()
            shape = (1, -1, *[1] * (h.dim() - 2))
            h = h * scale.view(shape) + part.bias.view(shape)
        elif isinstance(part, nn.ReLU):
            h = h * (h > 0)
        else:
            h = part(h)
    return functional.cross_entropy(h @ message.head.weight.T + message.head.bias, y)


def dgl_augmented(h, y, message):
    """A linear map where shapes differ, two copied layers, the mean over space."""
    for part in message.network:
        layers = list(part) if isinstance(part, nn.Sequential) else [part]
        for layer in layers:
            layer = getattr(layer, "module", layer)
            if isinstance(layer, nn.Conv2d):
                h = functional.conv2d(h, layer.weight, layer.bias, padding=layer.padding)
            elif isinstance(layer, nn.Linear):
                h = functional.linear(h, layer.weight, layer.bias)
            else:
                h = layer(h)
    return functional.cross_entropy(h @ message.head.weight.T + message.head.bias, y)


def dgl_momentum(h, y, message):
    """What the average gives, written out: it is one layer in these tests."""
    linear = h.dim() == 2
    by = functional.linear if linear else functional.conv2d
    layer, mixed = message.average.module, message.shortcut if linear else message.shortcut[1]
    ahead = by(h, layer.weight, layer.bias, **({} if linear else {"padding": 1}))
    return dgl(ahead + by(h, mixed.weight), y, message)


def two_convolutions(feature):
    """An auxiliary network of one's own; it also serves vectors."""
    if len(feature.sample_shape) < 3:
        return nn.Sequential(nn.Linear(feature.width, 12, bias=False), nn.ReLU())
    channels = feature.sample_shape[0]
    return nn.Sequential(nn.Conv2d(channels, 5, 1, bias=False), nn.ReLU(), nn.Flatten())


#: Rules that leave the blocks before the last as they are.
STILL = ("cafo", "frozen")


def frozen(h, y, message):
    return 0.0 * h.sum()


#: Every rule, and the options that change a formula. Accuracy: see `narrow` in the learning test.
ROWS = [
    Row(get_rule("bll"), bll, 92),
    Row(get_rule("bll", family="gaussian", pool=("mean", 4), standardize="none"), bll_gaussian, 92),
    Row(get_rule("bll", feedback="chained"), bll, 90),
    Row(get_rule("bll", standardize="none"), functools.partial(bll, over="none"), 92),
    Row(get_rule("bll", standardize="batch"), functools.partial(bll, over="batch"), 92),
    Row(get_rule("bll", standardize="sample"), functools.partial(bll, over="sample"), 92),
    Row(get_rule("bll-kl"), bll_kl, 75),
    Row(get_rule("bll-kl", standardize="sample"), bll_kl_standardized, 75),
    Row(get_rule("bll-proto"), bll_proto(), 90),
    Row(get_rule("bll-proto", sign=1), bll_proto(sign=1), 90),
    Row(get_rule("bll-proto", scale="released"), bll_proto(released=True), 90),
    Row(get_rule("bll-proto", absent="zero", read_out="fixed"), bll_proto(keep=False), 80),
    Row(get_rule("pred"), pred, 92),
    Row(get_rule("pred", read_out="fixed"), pred, 80),
    Row(get_rule("pred", standardize="batch"), pred_standardized, 92),
    Row(get_rule("sim"), sim, 90),
    Row(get_rule("sim", projection="fixed"), sim, 80),
    Row(get_rule("sim", projection="none"), sim, 80),
    Row(get_rule("pred-sim"), pred_sim, 90),
    Row(get_rule("mono-forward"), mono_forward, 92),
    Row(get_rule("drtp"), drtp, 75),
    Row(get_rule("tpsgd"), tpsgd, 65),
    Row(get_rule("ff"), ff, 80),
    Row(get_rule("cafo"), cafo, 55),
    Row(get_rule("sll"), sll, 80),
    Row(get_rule("ccl"), ccl, 85),
    Row(get_rule("dgl"), dgl, 90),
    Row(get_rule("dgl", aux=two_convolutions), dgl, 90),
    Row(get_rule("dgl", aux="momentum"), dgl_momentum, 90),
    Row(get_rule("dgl", aux="augmented"), dgl_augmented, 88),
    Row(get_rule("dfa"), None, 85),
    Row(get_rule("fa"), None, 75),
    Row(get_rule("bp"), None, 93),
    Row(get_rule("bp-deepsup"), bll, 93),
    Row(get_rule("frozen"), frozen, 25),
]
