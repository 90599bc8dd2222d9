"""A small transformer encoder with a local loss after every second layer."""

import torch
from torch import Tensor, nn

import bll


class Classifier(nn.Module):
    def __init__(self, symbols: int, width: int, layers: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
            for _ in range(layers)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x.mean(1))


def batch(size: int) -> tuple[Tensor, Tensor]:
    """Sequences over 0..7, labelled with their most frequent symbol among 0..3."""
    tokens = torch.randint(0, 8, (size, 24))
    counts = torch.stack([(tokens == symbol).sum(1) for symbol in range(4)], 1)
    return tokens, counts.argmax(1)


torch.manual_seed(0)
model = Classifier(symbols=8, width=64, layers=4, classes=4)
model = bll.wrap(model, blocks=["layers.1"], num_classes=4, example=batch(2)[0])
print(model.bll.summary())

optimizer = torch.optim.Adam(bll.param_groups(model, lr=1e-3))
for _ in range(150):
    tokens, labels = batch(64)
    out = model(tokens, y=labels)
    out.loss.backward()
    optimizer.step()
    optimizer.zero_grad()

tokens, labels = batch(1000)
accuracy = (bll.unwrap(model).eval()(tokens).argmax(1) == labels).float().mean()
print(f"test accuracy {100 * accuracy:.1f} %")
