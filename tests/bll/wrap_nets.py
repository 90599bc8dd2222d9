"""Small models that the wrapping tests cut; module-level classes, so that they pickle."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make()


def mlp():
    """Three blocks of an nn.Sequential: two hidden, one head; dropout and BatchNorm inside."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2)),
        nn.Sequential(nn.Linear(12, 8), nn.ReLU()),
        nn.Linear(8, 3),
    )


class Residual(nn.Module):
    """A convolution with a skip inside, as in a ResNet."""

    def __init__(self, channels, out):
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self.short = nn.Conv2d(channels, out, 1, stride=2)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)) + self.short(x))


class ResNet(nn.Module):
    """A stem, three residual stages, a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.layer1 = nn.Sequential(Residual(4, 4))
        self.layer2 = nn.Sequential(Residual(4, 6))
        self.layer3 = nn.Sequential(Residual(6, 8))
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(torch.relu(self.stem(x)))))
        return self.fc(x.mean(dim=(2, 3)))


class UNet(nn.Module):
    """An encoder output that also goes round the middle."""

    def __init__(self, functional_end=False):
        super().__init__()
        self.enc = nn.Linear(16, 8)
        self.mid = nn.Linear(8, 8)
        self.dec = nn.Linear(16, 3)
        self.functional_end = functional_end

    def forward(self, x):
        h = torch.relu(self.enc(x))
        both = torch.cat([self.mid(h), h], dim=1)
        return functional.linear(both, self.dec.weight) if self.functional_end else self.dec(both)


class Tied(nn.Module):
    """Two modules that share one weight."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 16, bias=False)
        self.middle = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.middle(self.first(x)))


class Recurrent(nn.Module):
    """One module called several times."""

    def __init__(self, cells=("cell", "cell")):
        super().__init__()
        self.cells = cells
        self.cell = nn.Linear(16, 16)
        self.other = nn.Linear(16, 16)
        self.idle = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        for name in self.cells:
            x = torch.relu(getattr(self, name)(x))
        return self.head(x)


class Layer(nn.Module):
    """A transformer-like layer that takes a mask by keyword and returns a tuple."""

    def __init__(self, width):
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, tokens, mask=None):
        scores = self.mix(tokens)
        if mask is not None:
            scores = scores * mask[..., None]
        return tokens + torch.relu(scores), None


class Tokens(nn.Module):
    """A list container, several inputs, keyword inputs, a dict as output."""

    def __init__(self, depth=3):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(Layer(8) for _ in range(depth))
        self.head = nn.Linear(8, 3)

    def forward(self, ids, mask=None, labels=None):
        if labels is not None:
            raise AssertionError("labels must not reach the model")
        tokens = self.embed(ids)
        for layer in self.layers:
            tokens, _ = layer(tokens, mask=mask)
        return {"hidden": tokens, "logits": self.head(tokens.mean(dim=1))}


class Branching(nn.Module):
    """Control flow that reads values: nothing that works on shapes alone can run it."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 8)
        self.second = nn.Linear(8, 3)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x):
        self.steps += 1
        h = torch.dropout(self.first(x), 0.5, self.training)
        return self.second(h if x.sum().item() > 0 else -h)


class InPlace(nn.Module):
    """The second block writes into what the first handed on."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 8)
        self.second = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 3))

    def forward(self, x):
        return self.second(self.first(x))


class Checkpointed(nn.Module):
    """Recomputes its first module in the backward pass, or the one after it."""

    def __init__(self, region="first", reentrant=False):
        super().__init__()
        self.region = region
        self.reentrant = reentrant
        self.first = nn.Sequential(nn.Linear(16, 16), nn.ReLU())
        self.second = nn.Linear(16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        for name in ("first", "second", "head"):
            module = getattr(self, name)
            if name == self.region:
                x = checkpoint(module, x, use_reentrant=self.reentrant)
            else:
                x = module(x)
        return x


def snapshot(model):
    """Every name with a copy of its values."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(left, right):
    """Whether two snapshots have the same names and bits."""
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


def hook_count(model):
    """Number of forward hooks and pre-hooks anywhere in the model."""
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())
