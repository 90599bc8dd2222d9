"""Optimisers, schedules, label smoothing and augmentation of a run, against torch's own."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from image_files import image_data
from torch.nn import functional

from bll.training.config import TrainConfig
from bll.training.optimizers import make_optimizer
from bll.training.schedule import SCHEDULES
from bll.training.trainer import Trainer

BASE = TrainConfig(dataset="digits", width=8, blocks=3, epochs=2, batch_size=16, lr=0.01)
KINDS = {
    "adam": {"optimizer": "adam", "weight_decay": 0.1},
    "adamw": {"optimizer": "adamw", "weight_decay": 0.1},
    "sgd": {"optimizer": "sgd", "weight_decay": 0.1},
    "nesterov": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1},
    "no decay": {"optimizer": "sgd", "momentum": 0.9},
}


class Silent:
    def on_step(self, trainer):
        pass

    def on_epoch(self, trainer):
        pass


def never():
    return False


def torch_optimizer(config, parameters):
    """What `config` asks for, made of torch's own optimisers; `parameters` by name."""
    decaying = [p for n, p in parameters.items() if p.dim() > 1 and not n.startswith("bll.")]
    others = [p for n, p in parameters.items() if p.dim() <= 1 or n.startswith("bll.")]
    groups = [
        {"params": decaying, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if config.optimizer == "sgd":
        momentum = config.momentum
        return torch.optim.SGD(groups, lr=1.0, momentum=momentum, nesterov=momentum > 0)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, lr=1.0)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_updates_are_those_of_torch(kind):
    config = dataclasses.replace(BASE, dtype="float64", schedule="cosine", **kind)
    trainer, other = (Trainer(config, image_data()) for _ in range(2))
    named = dict(other.model.named_parameters())
    assert len({p.dim() for p in named.values()}) > 1, "norms and weights are both there"
    optimizer = torch_optimizer(config, named)
    total = config.epochs * trainer.steps_per_epoch
    for step in range(trainer.steps_per_epoch):
        trainer._step()
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1 + math.cos(math.pi * step / total)) / 2
        indices = other.sampler.next_batch()
        optimizer.zero_grad()
        other.model(other.train.images[indices], y=other.train.labels[indices]).loss.backward()
        optimizer.step()
    for name, parameter in trainer.model.named_parameters():
        torch.testing.assert_close(parameter, named[name], rtol=1e-9, atol=1e-12)


def test_every_parameter_is_in_one_group_and_messages_do_not_decay():
    trainer = Trainer(BASE, image_data())
    config = dataclasses.replace(BASE, weight_decay=0.1, optimizer="sgd")
    groups = make_optimizer(trainer.model, config).param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in trainer.model.parameters())
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    decaying = {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
    weights = {n for n, p in trainer.model.named_parameters() if p.dim() > 1}
    assert decaying == {name for name in weights if not name.startswith("bll.")} != weights


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_positive_up_to_the_last_step(name):
    rates = [SCHEDULES[name](step, 50, 0.3) for step in range(50)]
    assert max(rates) == pytest.approx(0.3) and min(rates) > 0
    with pytest.raises(ValueError, match="step: expected 0 to 49, got 50"):
        SCHEDULES[name](50, 50, 0.3)


def test_cosine_is_that_of_torch():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50)
    for step in range(50):
        assert SCHEDULES["cosine"](step, 50, 0.3) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


def test_label_smoothing_is_of_the_last_block():
    trainer = Trainer(dataclasses.replace(BASE, label_smoothing=0.2), image_data())
    images, labels = trainer.train.images[:16], trainer.train.labels[:16]
    out = trainer.model(images, y=labels)
    expected = functional.cross_entropy(out.logits, labels, label_smoothing=0.2)
    last = list(out.block_losses.values())[-1]
    torch.testing.assert_close(last, expected)
    assert not torch.isclose(last, functional.cross_entropy(out.logits, labels))


@pytest.mark.parametrize("model", ["mlp", "resnet10"])
def test_training_sees_changed_images_and_the_test_does_not(model):
    config = dataclasses.replace(BASE, model=model, crop=1, flip=True, blocks=2)
    trainer = Trainer(config, image_data())
    seen = []
    trainer.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    order = Trainer(config, image_data()).sampler
    trainer._step()
    trainer._step()
    black = -image_data().train_images.mean() / image_data().train_images.std()
    for step, images in enumerate(seen):
        plain = trainer.train.images[order.next_batch()]
        assert not torch.equal(images, plain)
        assert torch.equal(images, trainer.augment(plain, step))
    assert any(torch.isclose(images, torch.tensor(black).float()).any() for images in seen)
    before = trainer.test.images.clone()
    trainer.model.eval()
    assert trainer.model(trainer.test.images).shape == (40, 3)
    assert torch.equal(seen[-1], before)


def test_a_run_with_everything_learns():
    config = dataclasses.replace(
        BASE, optimizer="sgd", momentum=0.9, weight_decay=5e-4, label_smoothing=0.1, crop=1,
        schedule="one-cycle", lr=0.1, epochs=15,
    )  # fmt: skip
    trainer = Trainer(config, image_data())
    assert trainer.run(Silent(), never)
    assert trainer.history[-1].test_accuracy > 90.0


@pytest.mark.parametrize("how", [{"executor": "pipelined", "depth": 2}, {"executor": "auto"}])
def test_executors_take_the_same_optimisers(how):
    """The groups of norms belong to their block, so pipelined blocks step them too."""
    config = dataclasses.replace(
        BASE, optimizer="sgd", momentum=0.9, weight_decay=0.1, label_smoothing=0.1, crop=1,
        dtype="float64", **how,
    )  # fmt: skip
    apart = Trainer(config, image_data())
    alone = Trainer(dataclasses.replace(config, executor="sequential", depth=None), image_data())
    before = {name: p.detach().clone() for name, p in apart.model.named_parameters()}
    for trainer in (apart, alone):
        trainer.run(Silent(), never)
    changed = {n: p for n, p in apart.model.named_parameters() if not torch.equal(p, before[n])}
    assert changed.keys() == before.keys()
    for name, parameter in alone.model.named_parameters():
        torch.testing.assert_close(changed[name], parameter, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "lion"}, "optimizer: expected one of adam, adamw, sgd, got 'lion'"),
        ({"schedule": "steps"}, "schedule: expected one of one-cycle, cosine, constant"),
        ({"optimizer": "sgd", "momentum": 1.0}, r"momentum: expected a number in \[0, 1\), got 1"),
        ({"momentum": 0.9}, "momentum: needs --optimizer sgd, got 'adam'"),
        ({"weight_decay": -1.0}, "weight-decay: expected 0 or more, got -1"),
        ({"weight_decay": math.nan}, "weight-decay: expected 0 or more, got nan"),
        ({"label_smoothing": 1.0}, r"label-smoothing: expected a number in \[0, 1\), got 1"),
        ({"crop": -1}, "crop: expected at least 0, got -1"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(BASE, **change)
