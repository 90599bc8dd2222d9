"""Whole training steps: rules, backpropagation in its forms, and local learning in plain PyTorch.

Every form trains a copy of one network on one batch and ends with an optimiser step. What the
network is, is in the case's configuration; the optimiser is fused Adam everywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import bll
import bll_kernels as bk
from bll.bench.cases import Missing
from bll.models import build_network
from bll.models.cost import multiply_adds
from bll_kernels.optim import BlockAdam

CLASSES, RATE = 10, 1e-4
Step = Callable[[], object]


@dataclass(frozen=True)
class StepCase:
    """A network, a batch, and what trains it.

    Attributes:
        model: Name of a reference network.
        image: Channels, height and width.
        batch: Images.
        blocks: Blocks it is cut into.
        width: As in `bll.models.build_network`.
        device: Where it trains.
    """

    model: str
    image: tuple[int, int, int]
    batch: int
    blocks: int
    width: int | None
    device: str

    @property
    def name(self) -> str:
        """Unique among the cases."""
        width = "" if self.width is None else f" width {self.width}"
        size = "x".join(map(str, self.image))
        return f"step {self.model}{width}, {self.blocks} blocks, batch {self.batch} of {size}"

    def network(self) -> tuple[nn.Module, tuple[str, ...]]:
        """A fresh copy of the network, the same weights every time, and its cuts."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            made = build_network(
                self.model, self.image, CLASSES, blocks=self.blocks, width=self.width
            )
        return made.model.to(self.device), made.cuts

    def data(self) -> tuple[Tensor, Tensor]:
        """Random images and labels, the same every time."""
        generator = torch.Generator().manual_seed(1)
        images = torch.randn((self.batch, *self.image), generator=generator)
        labels = torch.randint(CLASSES, (self.batch,), generator=generator)
        return images.to(self.device), labels.to(self.device)


def _wrapped(case: StepCase, rule: str) -> tuple[nn.Module, Tensor, Tensor]:
    model, cuts = case.network()
    x, labels = case.data()
    wrapped = bll.wrap(model, list(cuts), rule=rule, num_classes=CLASSES, example=x[:2], seed=0)
    return wrapped.train(), x, labels


def rule_step(case: StepCase, rule: str) -> Step:
    """A wrapped model in an ordinary loop."""
    model, x, labels = _wrapped(case, rule)
    optimizer = BlockAdam(bll.param_groups(model, lr=RATE))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(x, y=labels).loss.backward()
        optimizer.step()

    return step


def executor_step(case: StepCase, rule: str, mode: str, depth: int | None, parts: int) -> Step:
    """A wrapped model on the executor.

    Raises:
        Missing: The executor does not serve this network or device.
    """
    model, x, labels = _wrapped(case, rule)
    try:
        run = bll.executor(
            model, partial(BlockAdam, lr=RATE), mode=mode, depth=depth, micro_batches=parts
        )
    except (TypeError, ValueError) as error:
        raise Missing(f"executor: {error}") from error
    return partial(run.step, x, labels)


def _adam(*modules: nn.Module) -> torch.optim.Adam:
    return torch.optim.Adam([p for m in modules for p in m.parameters()], lr=RATE, fused=True)


def backprop_step(case: StepCase, form: str) -> Step:
    """End-to-end backpropagation in plain PyTorch.

    Args:
        case: The case.
        form: "eager", "compiled", "checkpointed" (blocks recomputed in the backward pass) or
            "accumulated" (four parts of the batch, one update).
    """
    model, cuts = case.network()
    x, labels = case.data()
    optimizer = _adam(model.train())
    forward: Callable[[Tensor], Tensor] = model
    if form == "compiled":
        forward = torch.compile(model, dynamic=False)
    elif form == "checkpointed":
        forward = _checkpointed(split(model, cuts))
    parts = 4 if form == "accumulated" else 1

    def step() -> None:
        for images, wanted in zip(x.chunk(parts), labels.chunk(parts), strict=True):
            (F.cross_entropy(forward(images), wanted) / parts).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _checkpointed(blocks: list[nn.Module]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        for block in blocks[:-1]:
            x = checkpoint(block, x, use_reentrant=False)
        return blocks[-1](x)  # type: ignore[no-any-return]

    return forward


def split(model: nn.Module, cuts: tuple[str, ...]) -> list[nn.Module]:
    """The top-level children of a network, grouped into its blocks.

    Raises:
        Missing: A cut lies inside a child.
    """
    groups: list[list[nn.Module]] = [[]]
    open_cuts = list(cuts)
    for name, child in model.named_children():
        groups[-1].append(child)
        if open_cuts and name == open_cuts[0]:
            open_cuts.pop(0)
            groups.append([])
    if open_cuts:
        raise Missing(f"the cut {open_cuts[0]!r} is not between the children of the model")
    if not isinstance(model, nn.Sequential):
        raise Missing(f"a {type(model).__name__} cannot be run child by child")
    return [nn.Sequential(*group) for group in groups]


def plain_local_step(case: StepCase) -> Step:
    """What a user writes without this package: detached blocks, linear heads, cross-entropy."""
    model, cuts = case.network()
    blocks = split(model.train(), cuts)
    x, labels = case.data()
    heads = nn.ModuleList()
    with torch.no_grad():
        feature = x
        for block in copy.deepcopy(blocks[:-1]):
            feature = block(feature)
            heads.append(nn.Linear(feature.flatten(1).shape[1], CLASSES).to(case.device))
    optimizer = _adam(model, heads)

    def step() -> None:
        feature, loss = x, torch.zeros((), device=case.device)
        for block, head in zip(blocks[:-1], heads, strict=True):
            feature = block(feature)
            loss = loss + F.cross_entropy(head(feature.flatten(1)), labels)
            feature = feature.detach()
        loss = loss + F.cross_entropy(blocks[-1](feature), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


@dataclass(frozen=True)
class GateErrors:
    """Largest relative L2 errors of a parameter's gradient, against float64.

    Attributes:
        ours: In float32, on the backend that serves.
        plain: In float32, on the reference backend: plain PyTorch. Above rounding where an
            activation next to zero falls on the other side of a ReLU than in float64.
    """

    ours: float
    plain: float


def gate_errors(case: StepCase, rule: str = "bll") -> GateErrors:
    """Errors of one step, against float64 on the reference backend."""
    true = _gradients(case, rule, torch.float64, "reference")
    largest = max(float(t.norm()) for t in true)

    def error(found: list[Tensor]) -> float:
        # A gradient that is zero in exact arithmetic has no relative error.
        return max(
            float((f - t).norm()) / max(float(t.norm()), 1e-6 * largest)
            for f, t in zip(found, true, strict=True)
        )

    return GateErrors(
        error(_gradients(case, rule, torch.float32, None)),
        error(_gradients(case, rule, torch.float32, "reference")),
    )


def _gradients(case: StepCase, rule: str, dtype: torch.dtype, backend: str | None) -> list[Tensor]:
    model, x, labels = _wrapped(case, rule)
    model, x = model.to(dtype), x.to(dtype)
    with nullcontext() if backend is None else bk.use_backend(backend):
        model(x, y=labels).loss.backward()
    return [p.grad.double() for p in model.parameters() if p.grad is not None]


def peers_of(case: StepCase, *, compile_peers: bool, quick: bool) -> dict[str, Callable[[], Step]]:
    """Makers of the steps that the rule `bll` is compared with, by name."""
    found: dict[str, Callable[[], Step]] = {
        "backpropagation": partial(backprop_step, case, "eager"),
        "backpropagation, deep supervision": partial(rule_step, case, "bp-deepsup"),
        "local learning in plain PyTorch": partial(plain_local_step, case),
    }
    if not quick:
        found |= {
            f"backpropagation, {form}": partial(backprop_step, case, form)
            for form in ("checkpointed", "accumulated")
        }
        found |= {f"rule {rule}": partial(rule_step, case, rule) for rule in ("bll-kl", "bp")}
        found["executor sequential"] = partial(executor_step, case, "bll", "sequential", None, 1)
    if compile_peers:
        found["backpropagation, compiled"] = partial(backprop_step, case, "compiled")
    return found


def matmul_flops(case: StepCase) -> int:
    """Operations of the products of a local step that no form can leave out.

    Forward passes and gradients of the weights; gradients of the inputs, which the first layers of
    the blocks do not need, are not counted.
    """
    model, _ = case.network()
    return 2 * 2 * case.batch * sum(multiply_adds(model, case.image).values())


def config(case: StepCase) -> dict[str, Any]:
    """The case as plain data."""
    return {
        "model": case.model,
        "image": list(case.image),
        "batch": case.batch,
        "blocks": case.blocks,
        "width": case.width,
        "rule": "bll",
    }
