"""The reversal task: steps until 99 % of unseen permutations are reversed without an error.

Kappel et al. (arXiv 2305.14974) train a transformer of 20 layers of one head with a local loss
after each. One layer can solve the task, so the final accuracy tells no rules apart; the steps do.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

import bll
from bll.data.reversal import reversal_batch
from bll.models.transformer import reversal_encoder
from bll.training.rule_options import plain_options, rule_with_options
from bll_kernels.optim import BlockAdam
from tools.experiments.first_defaults import rule_options

KEY: Final = ("rule", "rule_options", "blocks", "depth", "width", "lr", "seed")
COLUMNS: Final = (
    *KEY,
    "heads",
    "batch_size",
    "warm_up",
    "max_steps",
    "steps_to_99",
    "steps",
    "sequence_accuracy",
    "token_accuracy",
    "params",
)
#: Options of every run that are not in the key.
FIXED: Final = {"heads": 1, "batch_size": 64, "warm_up": 100, "max_steps": 1000}
CHECK_EVERY: Final = 25
TEST_SIZE: Final = 1000
GOAL: Final = 0.99


class Diverged(Exception):
    """The loss is no longer a finite number."""


def train(run: Mapping[str, Any]) -> dict[str, Any]:
    """Train until two checks in a row are at the goal, or to the last step.

    Args:
        run: The columns of the key, and `FIXED`.

    Returns:
        The row: the run and its results. ``steps_to_99`` is the first of the two checks, or empty.

    Raises:
        Diverged: The loss is not finite at a check.
    """
    seed = int(run["seed"])
    test = reversal_batch(TEST_SIZE, generator=torch.Generator().manual_seed(2**32))
    model = _model(run, test[0][:2])
    optimizer = BlockAdam(bll.param_groups(model, lr=run["lr"]))
    batches = _batches(run["batch_size"], seed)
    reached = None
    for step in range(run["max_steps"]):
        for group in optimizer.param_groups:
            group["lr"] = run["lr"] * min(1.0, (step + 1) / run["warm_up"])
        inputs, targets = next(batches)
        out = model(inputs, y=targets)
        optimizer.zero_grad(set_to_none=True)
        out.loss.backward()
        optimizer.step()
        if (step + 1) % CHECK_EVERY:
            continue
        if not torch.isfinite(out.loss):
            raise Diverged(f"loss {out.loss.item()} after {step + 1} steps")
        tokens, sequences = _accuracy(model, *test)
        at_goal = sequences >= GOAL
        if at_goal and reached is not None:
            break
        reached = step + 1 if at_goal else None
    return {
        **run,
        "steps_to_99": "" if reached is None else reached,
        "steps": step + 1,
        "token_accuracy": round(100 * tokens, 2),
        "sequence_accuracy": round(100 * sequences, 2),
        "params": sum(p.numel() for n, p in model.named_parameters() if not n.startswith("bll.")),
    }


def _model(run: Mapping[str, Any], example: Tensor) -> nn.Module:
    torch.manual_seed(int(run["seed"]))
    network = reversal_encoder(
        depth=run["depth"],
        width=run["width"],
        heads=run["heads"],
        hidden=4 * run["width"],
        blocks=run["blocks"],
    )
    rule = rule_with_options(run["rule"], None, plain_options(run["rule"], rule_options(run)))
    cuts = list(network.cuts)
    return bll.wrap(
        network.model, cuts, rule=rule, num_classes=10, example=example, seed=int(run["seed"])
    )


def _batches(size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield reversal_batch(size, generator=generator)


@torch.no_grad()
def _accuracy(model: nn.Module, inputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """Share of symbols, and of whole sequences, that are right."""
    model.eval()
    right = model(inputs).argmax(-1) == targets
    model.train()
    return right.float().mean().item(), right.all(1).float().mean().item()
