"""`bll.distributed.stage`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from bll.distributed.groups import DEFAULT_TIMEOUT, find_layout
from bll.distributed.options import StageOptions
from bll.distributed.stage import Stage
from bll_kernels.optim import BlockAdam
from bll_kernels.pipeline.executor import OptimizerFactory


def stage(
    model: nn.Module,
    optimizer_factory: OptimizerFactory = BlockAdam,
    *,
    example: Tensor,
    micro_batches: int = 1,
    slots: int = 2,
    threads: int = 1,
    seed: int = 0,
    blocks_per_rank: Sequence[int] | None = None,
    mesh: DeviceMesh | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    recipe: Mapping[str, Any] | None = None,
    local_step: str = "auto",
) -> Stage:
    """Return this rank's part of a wrapped `nn.Sequential`; every rank calls it alike.

    Parameters, buffers and optimiser states after a step are the bits of `bll.executor` with the
    same micro-batches and seed. The model is trained in place: on each rank its own blocks.

    Args:
        model: A wrapped `nn.Sequential` with known shapes, the same on every rank.
        optimizer_factory: Makes the optimiser of one block from its parameters.
        example: Samples [n, ...] in shape, dtype and memory format of those to come.
        micro_batches: Equal parts of a batch; fewer than ranks are allowed.
        slots: Outputs that may be on their way to the next rank.
        threads: Intra-op threads of a block.
        seed: Of the random numbers drawn in forward passes.
        blocks_per_rank: Number of neighbouring blocks on each rank of a pipeline; by default the
            costliest rank has as little as possible (bytes of activations).
        mesh: 2-D device mesh (replicas, pipeline ranks): each replica takes its own batches, and
            gradients are means over the replicas.
        timeout: Seconds a rank waits for another one.
        recipe: Options of the caller that must be equal on all ranks, as values JSON can hold.
        local_step: As in `bll.executor`. Replicas of a block go by autograd, whose backward
            carries their gradients.

    Raises:
        RuntimeError: There is no process group.
        RecipeMismatch: Ranks differ in code, versions, tuning tables, backends or options.
        RankFailure: A rank did not come.
        ValueError: The model is not wrapped or not ready, its rule reads what other blocks change,
            or an option is out of range.
        TypeError: The model is no `nn.Sequential`, or is cut inside a module that is none.
    """
    options = StageOptions(
        micro_batches, slots, threads, seed, blocks_per_rank, timeout, local_step
    )
    if not isinstance(example, Tensor) or example.dim() < 1 or len(example) < 1:
        raise TypeError(f"example: expected a tensor of samples [n, ...], got {example!r:.80}")
    found = Stage(model, optimizer_factory, example[:1].detach(), find_layout(mesh), options)
    found.compare(recipe or {})
    return found
