"""DDP and FSDP2 on two Gloo ranks: the parameters of one process that sees the whole batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_worker import Net, train, wrapped_net
from torch import nn

import bll

WORKER = Path(__file__).with_name("distributed_worker.py")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_ranks_train_as_one(kind, tmp_path):
    out = tmp_path / "parameters"
    ranks = [
        subprocess.Popen(
            [sys.executable, str(WORKER), kind, str(rank), str(tmp_path / "meet"), str(out)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    alone = wrapped_net()
    train(alone, 0, 1)
    found = torch.load(out, weights_only=True)
    assert list(found) == [name for name, _ in alone.named_parameters()]
    start = dict(wrapped_net().named_parameters())
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach(), msg=name)
        assert not torch.equal(found[name], start[name]), name


def test_wrapping_comes_before_data_parallelism():
    with pytest.raises(ValueError, match="use DistributedDataParallel"):
        bll.wrap(nn.DataParallel(Net()), ["first"], num_classes=3)
