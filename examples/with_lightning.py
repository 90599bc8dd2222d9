"""A network under Lightning's Trainer: one added line."""

import pytorch_lightning as lightning
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import bll

lightning.seed_everything(0, verbose=False)
images, labels = (torch.from_numpy(x) for x in load_digits(return_X_y=True))
images = images.float() / 16


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU()) for _ in range(3)]
        self.model = nn.Sequential(*layers, nn.Linear(64, 10))
        bll.wrap(self.model, num_classes=10, example=images[:2])  # the added line

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        loss: Tensor = self.model(batch[0], y=batch[1]).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=5e-3)


module = Digits()
quiet = {"logger": False, "enable_checkpointing": False}
trainer = lightning.Trainer(max_epochs=10, accelerator="cpu", **quiet)
trainer.fit(module, DataLoader(TensorDataset(images[:1500], labels[:1500]), 100, shuffle=True))
accuracy = (module.model.eval()(images[1500:]).argmax(1) == labels[1500:]).float().mean()
print(f"test accuracy {100 * accuracy:.1f} %")
