"""A store of its own for every attempt of a job.

torchrun restarts ranks with the store of the attempt before, and what stands in it: a rank that
starts faster than another would read the address the other one had before it died. Restart counts
do not help, since they differ between hosts.
"""

from __future__ import annotations

import time
import uuid

from torch.distributed.distributed_c10d import PrefixStore, Store


def fresh_store(store: Store, rank: int, world: int, timeout: float) -> Store:
    """Return a part of the store that only this attempt's ranks use; every rank calls it.

    Rank 0 invents a name, and answers each rank's own random word with it; a rank takes an answer
    to its own word only, and says so under the new name.

    Raises:
        RuntimeError: Some rank did not come within `timeout` seconds.
    """
    until = time.monotonic() + timeout
    name = _gather_ranks(store, world, until) if rank == 0 else _find_name(store, rank, until)
    return PrefixStore(f"bll/{name}", store)


def _gather_ranks(store: Store, world: int, until: float) -> str:
    name = uuid.uuid4().hex
    missing = set(range(1, world))
    while missing:
        for rank in sorted(missing):
            if store.check([f"bll/come/{rank}"]):
                word = store.get(f"bll/come/{rank}").decode()
                store.set(f"bll/answer/{rank}", f"{word} {name}")
            if store.check([f"bll/{name}/here/{rank}"]):
                missing.discard(rank)
        if time.monotonic() > until:
            raise RuntimeError(f"distributed: ranks {sorted(missing)} did not come in time")
        time.sleep(0.01)
    return name


def _find_name(store: Store, rank: int, until: float) -> str:
    own = uuid.uuid4().hex
    store.set(f"bll/come/{rank}", own)
    while time.monotonic() < until:
        if store.check([f"bll/answer/{rank}"]):
            word, name = store.get(f"bll/answer/{rank}").decode().split(" ")
            if word == own:
                store.set(f"bll/{name}/here/{rank}", "")
                return name
        time.sleep(0.01)
    raise RuntimeError("distributed: rank 0 did not come in time")
