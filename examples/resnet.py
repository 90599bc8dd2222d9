"""A ResNet made block-local: it is cut after its stages. Forty steps on random images."""

import torch

import bll
from bll.models import build_network

torch.manual_seed(0)
images, labels = torch.randn(64, 3, 16, 16), torch.arange(64) % 10
model = bll.wrap(build_network("resnet10", (3, 16, 16), 10).model, num_classes=10, example=images)
optimizer = torch.optim.Adam(bll.param_groups(model, lr=2e-3))
for _ in range(40):
    out = model(images, y=labels)
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()
print(f"{model.bll.summary()}\naccuracy {100 * (out.logits.argmax(1) == labels).sum() / 64:.0f} %")
