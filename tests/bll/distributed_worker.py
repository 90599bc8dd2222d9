"""One of two Gloo ranks: trains a wrapped model under DDP or FSDP2 and writes what it ends with.

python distributed_worker.py KIND RANK RENDEZVOUS OUT
"""

import sys
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import bll

STEPS = 3


class Net(nn.Module):
    """Three stages without statistics over the batch."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8))
        self.second = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x)))


def wrapped_net():
    torch.manual_seed(0)
    return bll.wrap(Net(), ["first", "second"], num_classes=3, example=torch.zeros(1, 6))


def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator))
        for _ in range(STEPS)
    ]


def train(model, rank, ranks):
    """Momentum SGD on this rank's rows."""
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for x, y in batches():
        out = model(x[rank::ranks], y=y[rank::ranks])
        out.loss.backward()
        optimiser.step()
        optimiser.zero_grad()


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def main():
    kind, rank, rendezvous, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2,
        timeout=timedelta(seconds=120),
    )  # fmt: skip
    net = wrapped_net()
    if kind == "ddp":
        model = nn.parallel.DistributedDataParallel(net)
    else:
        for part in (net.first, net.second, net):
            fully_shard(part)
        model = net
    train(model, rank, 2)
    values = {name: whole(p.detach()) for name, p in net.named_parameters()}
    if rank == 0:
        torch.save(values, out)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
