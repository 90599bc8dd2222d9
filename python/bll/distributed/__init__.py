"""Blocks over ranks: the same wrapped model, trained by many processes.

    dist.init_process_group("gloo")                  # under torchrun
    stage = bll.distributed.stage(model, optimizer_factory, example=x[:1], micro_batches=8)
    for x, labels in batches:
        stage.step(x, labels)                        # x is read by the first rank only
    stage.gather()                                   # the whole model, on every rank

Activations travel up on `torch.distributed.pipelining`; loss, backward and update of a block stay
on its rank.
"""

from bll.distributed.build import stage
from bll.distributed.groups import start
from bll.distributed.options import StageResult
from bll.distributed.recipe import RecipeMismatch
from bll.distributed.stage import Stage
from bll.errors import RankFailure

__all__ = ["RankFailure", "RecipeMismatch", "Stage", "StageResult", "stage", "start"]
