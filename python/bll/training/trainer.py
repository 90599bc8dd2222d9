"""The training loop: steps, epochs, and a state from which it continues bit by bit."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from bll import LocalOutput, contrast, wrap
from bll.data import Augmentation, BatchSampler, ImageData, channel_statistics, to_splits
from bll.executor import executor
from bll.models import build_network
from bll.training.config import TrainConfig
from bll.training.evaluation import evaluate
from bll.training.history import EpochRecord
from bll.training.meters import LossMeter, StepTimer
from bll.training.optimizers import make_optimizer
from bll.training.schedule import SCHEDULES
from bll.training.updates import GroupUpdates
from bll_kernels.pipeline.executor import Executor

if TYPE_CHECKING:
    from bll.training.ranks import Ranks


class TrainingError(RuntimeError):
    """Training cannot go on."""


class Observer(Protocol):
    """Told of a run's progress; it may read the trainer but not change it."""

    def on_step(self, trainer: Trainer) -> None:
        """A step was made."""

    def on_epoch(self, trainer: Trainer) -> None:
        """An epoch was trained and evaluated."""


def select_device(name: str) -> torch.device:
    """Device ``name``, ready for use.

    Raises:
        ValueError: The name is not a device, or the device is not there.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device: expected cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: {name} is not there; torch sees {torch.cuda.device_count()}")
    return device


def _join_ranks(device: str) -> int:
    # Imported only here, so that training needs no torch.distributed otherwise.
    from bll.training.ranks import join

    rank: int = join(device)
    return rank


class Trainer:
    """One run of one network on one image set.

    Building it seeds torch's global random state and sets its number of threads.

    Args:
        config: The options.
        data: The image set.

    Raises:
        ValueError: An option does not fit the data, the network or this machine.
    """

    def __init__(self, config: TrainConfig, data: ImageData) -> None:
        self.config = config
        self.rank = _join_ranks(config.device) if config.executor == "distributed" else 0
        self.device = select_device(config.device)
        if self.device.index is not None:
            # Timers, generators and libraries that are told no device use the current one.
            torch.cuda.set_device(self.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.threads = torch.get_num_threads()
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        self.autocast = torch.bfloat16 if config.dtype == "bfloat16" else None
        dtype = torch.float64 if config.dtype == "float64" else torch.float32
        channels_last = config.model != "mlp"
        self.sampler = BatchSampler(len(data.train_labels), config.batch_size, config.seed)
        self.train, self.test = to_splits(
            data, dtype=dtype, device=self.device, channels_last=channels_last
        )
        mean, std = channel_statistics(data.train_images)
        black = torch.from_numpy(-mean / std).to(self.device, dtype)
        self.augment = Augmentation(config.crop, config.flip, black, config.seed)
        torch.manual_seed(config.seed)
        network = build_network(
            config.model,
            data.image_shape,
            data.num_classes,
            blocks=config.blocks,
            width=config.width,
        )
        self.cuts = network.cuts
        layout = torch.channels_last if channels_last else torch.preserve_format
        model = network.model.to(self.device, dtype=dtype)
        model = model.to(memory_format=layout)  # type: ignore[call-overload]
        self.model = wrap(
            model,
            blocks=list(network.cuts),
            rule=config.make_rule(),
            num_classes=data.num_classes,
            example=self.train.images[:2],
            label_smoothing=config.label_smoothing,
            seed=config.seed,
        )
        self.optimizer = make_optimizer(self.model, config)
        self.ranks = self._make_ranks() if config.executor == "distributed" else None
        runs_here = config.executor in ("pipelined", "graphed", "auto")
        self.executor = self._make_executor() if runs_here else None
        self.rate: Tensor | None = None
        self.history: list[EpochRecord] = []
        self.losses = LossMeter(self.device)
        self.timer = StepTimer(self.device)
        self.epoch_seconds = 0.0

    def _make_executor(self) -> Executor:
        return executor(
            self.model,
            lambda parameters: GroupUpdates(self.optimizer, parameters),
            mode=self.config.executor,
            depth=self.config.depth,
            micro_batches=self.config.micro_batches,
            threads=self.threads,
            seed=self.config.seed,
            batched_blocks=self.config.batched_blocks,
            autocast=self.autocast,
        )

    def _make_ranks(self) -> Ranks:
        from bll.training.ranks import Ranks as Made

        return Made(self.model, self.optimizer, self.config, self.train.images[:1], self.threads)

    @property
    def depth(self) -> int:
        """Blocks in flight; ranks of a distributed run."""
        if self.ranks is not None:
            return self.ranks.count
        return 1 if self.executor is None else self.executor.depth

    @property
    def steps_per_epoch(self) -> int:
        """Training steps of an epoch."""
        return self.sampler.batches_per_epoch

    @property
    def steps_done(self) -> int:
        """Training steps made so far."""
        return len(self.history) * self.steps_per_epoch + self.sampler.position

    @property
    def family(self) -> str | None:
        """Exponential family of the rule's messages, or ``None`` where it has none."""
        family = self.config.make_rule().describe()["family"]
        return None if family is None else str(family)

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype the blocks compute in."""
        return self.train.images.dtype if self.autocast is None else self.autocast

    @property
    def is_finished(self) -> bool:
        """Whether every epoch is trained and evaluated, or an accuracy reached that ends a run."""
        return len(self.history) == self.config.epochs or bool(self.has_reached)

    @property
    def has_reached(self) -> bool | None:
        """Whether the last epoch reached the accuracy to stop at; ``None`` where none is given."""
        if self.config.stop_at is None:
            return None
        return bool(self.history) and self.history[-1].test_accuracy >= self.config.stop_at

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def run(self, observer: Observer, should_stop: Callable[[], bool]) -> bool:
        """Train until the last epoch is over or ``should_stop`` says so.

        It is asked after every step and every test batch, so a stopped run stands between two
        steps and ``bll.training.snapshot`` can save it.

        Returns:
            Whether the run is finished.

        Raises:
            TrainingError: The loss is no longer a finite number.
        """
        self.model.train()
        if self.ranks is not None:
            should_stop = self.ranks.agreed(should_stop)
        while not self.is_finished:
            is_over = self._train_epoch(observer, should_stop)
            if self.ranks is not None:
                self.ranks.collect(self.losses)
            if not is_over:
                return False
            started = time.perf_counter()
            accuracy = evaluate(
                self.model, self.test, autocast=self.autocast, should_stop=should_stop
            )
            if accuracy is None:
                return False
            self._close_epoch(accuracy, time.perf_counter() - started)
            observer.on_epoch(self)
        return True

    def _train_epoch(self, observer: Observer, should_stop: Callable[[], bool]) -> bool:
        before = self.epoch_seconds
        started = time.perf_counter()
        while not self.sampler.epoch_is_over:
            if should_stop():
                return False
            self._step()
            observer.on_step(self)
            self.epoch_seconds = before + time.perf_counter() - started
        self.timer.milliseconds()
        self.epoch_seconds = before + time.perf_counter() - started
        return True

    def _step(self) -> None:
        config, step = self.config, self.steps_done
        rate = SCHEDULES[config.schedule](step, config.epochs * self.steps_per_epoch, config.lr)
        indices = self.sampler.next_batch().to(self.device, non_blocking=True)
        self.timer.start()
        images = self.augment(self.train.images[indices], step)
        images, labels = contrast(self.model, images, self.train.labels[indices])
        self._set_rate(rate)
        if self.ranks is not None:
            self.ranks.step(images, labels, self.steps_done - 1)
            self.timer.stop()
            return
        if self.executor is not None:
            # Random numbers depend on the step, so that a resumed run draws the same ones.
            self.executor.batches_done = self.steps_done - 1
            losses = self.executor.step(images, labels).losses
            loss = torch.stack(list(losses.values())).sum()
        else:
            with torch.autocast(
                self.device.type, dtype=self.autocast, enabled=self.autocast is not None
            ):
                out = self.model(images, y=labels)
            self.optimizer.zero_grad(set_to_none=True)
            self._backward(out)
            self.optimizer.step()
            loss, losses = out.loss, out.block_losses
        self.timer.stop()
        self.losses.add(loss, losses)

    def _backward(self, out: LocalOutput) -> None:
        out.loss.backward()

    def _set_rate(self, rate: float) -> None:
        """The learning rate of the next step.

        A captured graph reads it from memory: as a number it would need a graph for every step. All
        groups have the same tensor: blocks that are stepped together must have equal options.
        """
        held: float | Tensor = rate
        if self.executor is not None and self.device.type == "cuda":
            if self.rate is None:
                self.rate = torch.tensor(rate, dtype=torch.float32, device=self.device)
            held = self.rate.fill_(rate)
        for group in self.optimizer.param_groups:
            group["lr"] = held

    def _close_epoch(self, accuracy: float, test_seconds: float) -> None:
        loss, block_losses = self.losses.means()
        epoch = len(self.history) + 1
        if not torch.isfinite(self.losses.sums).all():
            raise TrainingError(
                f"the loss of epoch {epoch} is {loss}: training diverged; try a smaller --lr"
            )
        self.history.append(
            EpochRecord(epoch, loss, accuracy, self.epoch_seconds, test_seconds, block_losses)
        )
        self.losses.reset()
        self.epoch_seconds = 0.0
        self.sampler.next_epoch()
