"""An nn.Sequential with several blocks in flight on worker threads."""

import torch
from torch import nn

import bll

torch.manual_seed(0)
x = torch.randn(256, 64)
labels = x[:, :10].argmax(1)
layers = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(3)]
model = bll.wrap(nn.Sequential(*layers, nn.Linear(64, 10)), num_classes=10, example=x[:2])
run = bll.executor(model, mode="pipelined", micro_batches=2)
for _ in range(200):
    result = run.step(x, labels)
print(f"accuracy {100 * (result.output.argmax(1) == labels).float().mean():.0f} %")
