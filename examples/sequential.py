"""An nn.Sequential made block-local, trained with an ordinary loop, and given back."""

import torch
from sklearn.datasets import load_digits
from torch import nn

import bll

torch.manual_seed(0)
images, labels = (torch.from_numpy(x) for x in load_digits(return_X_y=True))
images = (images.float() - images.mean()) / images.std()


def layer(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width_out), nn.BatchNorm1d(width_out), nn.ReLU())


model = nn.Sequential(layer(64, 128), layer(128, 128), layer(128, 128), nn.Linear(128, 10))
model = bll.wrap(model, blocks=["0", "1", "2"], num_classes=10, example=images[:2])
print(model.bll.summary())

optimizer = torch.optim.Adam(bll.param_groups(model, lr=2e-3))
for _ in range(20):
    for batch in torch.randperm(1500).split(100):
        out = model(images[batch], y=labels[batch])
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()

model = bll.unwrap(model).eval()
accuracy = (model(images[1500:]).argmax(1) == labels[1500:]).float().mean()
print(f"test accuracy {100 * accuracy:.1f} %")
