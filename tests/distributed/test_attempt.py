"""Each attempt of a job has a store of its own, whatever the attempt before left behind."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from torch.distributed import HashStore

from bll.distributed.attempt import fresh_store


def attempt(store: HashStore, world: int, order: list[int], timeout: float = 20.0) -> list[str]:
    """Start the ranks one after the other in an order, and return what each finds under a key."""
    # Else a rank would wait five minutes for the address of one that has given up.
    store.set_timeout(timedelta(seconds=timeout))
    found: dict[int, str] = {}
    errors: dict[int, Exception] = {}

    def rank_main(rank: int) -> None:
        try:
            own = fresh_store(store, rank, world, timeout)
            own.set(f"address/{rank}", f"{order}")
            found[rank] = "".join(own.get(f"address/{r}").decode() for r in range(world))
        except Exception as error:
            errors[rank] = error

    threads = [threading.Thread(target=rank_main, args=(rank,)) for rank in order]
    for thread in threads:
        thread.start()
        thread.join(0.05)
    for thread in threads:
        thread.join()
    if errors:
        raise errors[min(errors)]
    return [found[rank] for rank in range(world)]


def test_attempts_do_not_see_each_other() -> None:
    store = HashStore()
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2], [0, 2, 1]):
        assert attempt(store, 3, order) == [f"{order}" * 3] * 3


def test_a_missing_rank_is_named() -> None:
    store = HashStore()
    attempt(store, 3, [0, 1, 2])
    store.set_timeout(timedelta(seconds=1))  # of rank 2, which asks for the address of rank 1
    with pytest.raises(RuntimeError, match=r"ranks \[1\] did not come|rank 0 did not come"):
        attempt(store, 3, [0, 2], timeout=0.5)
