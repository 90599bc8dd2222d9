"""A transformer over ranks: which symbol stands at a given place of the reversed sequence?

torchrun --nproc-per-node 4 examples/reversal_ranks.py        (one process works as well)
"""

import os

import torch
from torch import Tensor, nn

import bll
import bll.distributed
from bll_kernels.optim import BlockAdam

SYMBOLS, LENGTH, WIDTH = 4, 4, 32


class Embed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.symbols = nn.Embedding(SYMBOLS + LENGTH, WIDTH)
        self.places = nn.Parameter(0.1 * torch.randn(LENGTH + 1, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.symbols(tokens) + self.places


class LastToken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1]


def layer() -> nn.Module:
    return nn.TransformerEncoderLayer(
        WIDTH, 4, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
    )


def batch(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences with a question at the end: the place asked for, as a token of its own."""
    sequence = torch.randint(0, SYMBOLS, (size, LENGTH), generator=generator)
    asked = torch.randint(0, LENGTH, (size, 1), generator=generator)
    labels = sequence.flip(1).gather(1, asked).squeeze(1)
    return torch.cat([sequence, SYMBOLS + asked], 1), labels


if "RANK" not in os.environ:
    os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
rank = bll.distributed.start()
torch.manual_seed(0)
generator = torch.Generator().manual_seed(1)
model = nn.Sequential(
    nn.Sequential(Embed(), layer()),
    layer(),
    layer(),
    nn.Sequential(layer(), LastToken(), nn.Linear(WIDTH, SYMBOLS)),
)
tokens, labels = batch(2, generator)
model = bll.wrap(model, ["0", "1", "2"], num_classes=SYMBOLS, example=tokens)
stage = bll.distributed.stage(
    model, lambda p: BlockAdam(p, lr=3e-3), example=tokens, micro_batches=2
)
for _ in range(300):
    stage.step(*batch(64, generator))
stage.gather()

if rank == 0:
    tokens, labels = batch(1000, generator)
    with torch.no_grad():
        accuracy = (bll.unwrap(model).eval()(tokens).argmax(1) == labels).float().mean()
    print(f"test accuracy {100 * accuracy:.1f} % (chance {100 / SYMBOLS:.1f} %)")
