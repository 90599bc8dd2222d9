"""The options of a training run, checked once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bll.data import DATASET_NAMES
from bll.models import MODEL_NAMES
from bll.rules.base import Rule
from bll.training.optimizers import OPTIMIZERS
from bll.training.rule_options import plain_options, rule_with_options
from bll.training.schedule import SCHEDULES
from bll_kernels.pipeline.block import LOCAL_READS
from bll_kernels.pipeline.certificate import TOO_LATE

EXECUTORS = ("sequential", "pipelined", "graphed", "auto", "distributed")
DTYPES = ("float32", "float64", "bfloat16")


def default_batch_size(model: str) -> int:
    """Images per batch when none is asked for: 200 for ``mlp``, 100 for the others."""
    return 200 if model == "mlp" else 100


@dataclass(frozen=True)
class TrainConfig:
    """Options of a training run.

    Attributes:
        dataset: Name of the image set.
        data_dirs: Directories searched for its files, in order.
        model: Name of the reference network.
        blocks: Number of blocks, or names of the modules that end all but the last one.
        rule: Learning rule.
        family: Exponential family of the rule's messages; ``None`` for the rule's default.
        rule_options: Other options of the rule, as text or values (`plain_options`); held as
            values JSON can hold. Absent ones take the rule's defaults.
        width: Width of the network; ``None`` for its default.
        executor: How the blocks of a step are run: ``sequential`` (one ordinary loop), or
            ``pipelined`` (`bll.executor`: several blocks at once), or ``graphed`` (on a GPU, the
            whole step as one CUDA graph), or ``auto`` (the fastest mode of `bll.executor`,
            measured while it trains), or ``distributed`` (`bll.distributed`: blocks over the ranks
            that torchrun started).
        depth: Blocks in flight of ``pipelined``; ``None`` for all.
        micro_batches: Equal parts that executors and ``distributed`` cut a batch into.
        batched_blocks: Whether ``pipelined`` runs equal blocks that are in flight together as one
            batched step (`bll.executor`), within rounding of the others.
        epochs: Passes over the training images.
        stop_at: Test accuracy in percent that ends training after the first epoch that reaches it;
            ``None`` to train every epoch. For comparing time and energy to an accuracy: the
            accuracy of a run that stops by it is no unbiased estimate.
        batch_size: Images per step.
        lr: Peak learning rate of the schedule.
        schedule: ``one-cycle``, ``cosine`` or ``constant`` (`bll.training.schedule`).
        optimizer: ``adam``, ``adamw`` or ``sgd``; one group per block.
        momentum: Of ``sgd``, in Nesterov's form; 0 with the others.
        weight_decay: Of weights; norms, biases and the rule's own tensors do not decay.
        label_smoothing: Of the last block's cross-entropy.
        crop: Pixels of the black border that training images are cropped from at random; 0: none.
        flip: Whether every second training image, on average, is mirrored left to right.
        seed: Seed of initialisation, data order and dropout.
        device: ``cpu``, ``cuda`` or ``cuda:N``.
        dtype: ``float32``, ``float64``, or ``bfloat16`` (float32 parameters under autocast).
        threads: Threads of one operation on the CPU; 0 keeps torch's own choice.
    """

    dataset: str
    data_dirs: tuple[str, ...] = ()
    model: str = "mlp"
    blocks: int | tuple[str, ...] = 4
    rule: str = "bll"
    family: str | None = None
    rule_options: dict[str, Any] = field(default_factory=dict)
    width: int | None = None
    executor: str = "sequential"
    depth: int | None = None
    micro_batches: int = 1
    batched_blocks: bool = False
    epochs: int = 5
    stop_at: float | None = None
    batch_size: int = 200
    lr: float = 2e-3
    schedule: str = "one-cycle"
    optimizer: str = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    crop: int = 0
    flip: bool = False
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    threads: int = 1

    def __post_init__(self) -> None:
        """Refuse options outside their range with a ``ValueError`` that names the option."""
        object.__setattr__(self, "rule_options", plain_options(self.rule, self.rule_options))
        _one_of("dataset", self.dataset, DATASET_NAMES)
        _one_of("model", self.model, MODEL_NAMES)
        _one_of("executor", self.executor, EXECUTORS)
        _one_of("dtype", self.dtype, DTYPES)
        self._check_blocks()
        _at_least("epochs", self.epochs, 1)
        if self.stop_at is not None and not 0 < self.stop_at <= 100:
            raise ValueError(f"stop-at: expected a percentage in (0, 100], got {self.stop_at:g}")
        _at_least("batch-size", self.batch_size, 1)
        _at_least("threads", self.threads, 0)
        _at_least("crop", self.crop, 0)
        if self.width is not None:
            _at_least("width", self.width, 1)
        self._check_executor()
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed: expected 0 to 2^63 - 1, got {self.seed}")
        if not (self.lr > 0 and math.isfinite(self.lr)):
            raise ValueError(f"lr: expected a positive number, got {self.lr:g}")
        self._check_optimizer()

    def _check_blocks(self) -> None:
        if isinstance(self.blocks, int):
            _at_least("blocks", self.blocks, 1)
            return
        object.__setattr__(self, "blocks", tuple(self.blocks))
        names = all(isinstance(name, str) and name for name in self.blocks)
        if not names or len(set(self.blocks)) != len(self.blocks) or not self.blocks:
            raise ValueError(
                f"blocks: expected a number or different names of modules, got {list(self.blocks)}"
            )
        if self.model == "mlp":
            raise ValueError(f"blocks: mlp expects a number of blocks, got {list(self.blocks)}")

    @property
    def block_count(self) -> int:
        """Number of blocks."""
        return self.blocks if isinstance(self.blocks, int) else len(self.blocks) + 1

    def _check_optimizer(self) -> None:
        _one_of("schedule", self.schedule, tuple(SCHEDULES))
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected a number in [0, 1), got {self.momentum:g}")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError(f"momentum: needs --optimizer sgd, got {self.optimizer!r}")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"weight-decay: expected 0 or more, got {self.weight_decay:g}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(
                f"label-smoothing: expected a number in [0, 1), got {self.label_smoothing:g}"
            )

    def make_rule(self) -> Rule:
        """The learning rule with its options."""
        return rule_with_options(self.rule, self.family, self.rule_options)

    def _check_executor(self) -> None:
        rule = self.make_rule()
        _at_least("micro-batches", self.micro_batches, 1)
        if self.batched_blocks and (self.executor != "pipelined" or self.micro_batches == 1):
            raise ValueError(
                "batched-blocks: needs --executor pipelined and 2 or more --micro-batches: in a "
                f"step of one no two blocks are in flight; got {self.executor}, "
                f"{self.micro_batches}"
            )
        if self.executor == "sequential":
            if self.depth not in (None, 1) or self.micro_batches != 1:
                raise ValueError(
                    "depth, micro-batches: need --executor pipelined, graphed or auto, or "
                    "--distributed"
                )
            return
        if self.depth is not None and self.executor == "distributed":
            raise ValueError("depth: with --distributed it is the number of ranks")
        if self.depth is not None:
            _at_least("depth", self.depth, 1)
            if self.depth > self.block_count:
                raise ValueError(
                    f"depth: expected at most {self.block_count} blocks, got {self.depth}"
                )
        if self.batch_size % self.micro_batches:
            raise ValueError(
                f"micro-batches: expected a divisor of the batch size {self.batch_size}, "
                f"got {self.micro_batches}"
            )
        if "downstream" in rule.reads:
            raise ValueError(f"executor: rule {self.rule!r} needs gradients of later blocks")
        foreign = rule.reads - LOCAL_READS
        if self.executor == "pipelined" and not self.batched_blocks:
            # Chained feedback has a lane of its own there.
            foreign -= {"next-feedback"}
        if foreign & TOO_LATE or (foreign and self.depth != 1):
            way = "--executor sequential" if foreign & TOO_LATE else "--depth 1"
            raise ValueError(
                f"executor: rule {self.rule!r} reads {', '.join(sorted(foreign))}, which other "
                f"blocks change; {way} runs it"
            )
        if self.dtype == "bfloat16" and self.executor == "distributed":
            raise ValueError("dtype: --distributed runs in float32 or float64, got bfloat16")
        if self.executor == "graphed" and not self.device.startswith("cuda"):
            raise ValueError(f"executor: graphed needs --device cuda, got {self.device!r}")

    def to_record(self) -> dict[str, Any]:
        """The options as values JSON can hold."""
        return {**dataclasses.asdict(self), "data_dirs": list(self.data_dirs)}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> TrainConfig:
        """Inverse of ``to_record``.

        Raises:
            ValueError: A name is unknown or missing, or a value is out of range.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if set(record) != known:
            odd = ", ".join(sorted(set(record) ^ known))
            raise ValueError(f"options: expected exactly the known names, these differ: {odd}")
        return cls(**{**record, "data_dirs": tuple(record["data_dirs"])})


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name}: expected at least {least}, got {value}")
