"""Who failed: ranks tell each other through the store, so that each names the rank at fault.

A rank that raises reports it. A rank whose wait fails (time limit, closed connection) reports whom
it waited for, gives the others a moment to do the same, and follows these reports: from the rank
it waited for to the one that rank waited for, up to one that reports an error or nothing at all.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any, Final

from torch.distributed.distributed_c10d import PrefixStore, Store

from bll.errors import RankFailure

#: Seconds the other ranks get to report their side: after a time limit, which they reach one
#: after the other, and after a closed connection, which a rank that reports leaves behind it.
GRACE_HUNG: Final = 2.0
GRACE_GONE: Final = 1.0


class FaultBoard:
    """Reports of the ranks of one pipeline.

    Args:
        store: Which all of them reach.
        ranks: Their global ranks.
        blocks: Names of the blocks of each.
        own: This rank's place among them.
        timeout: Seconds after which a wait fails, for messages.
    """

    def __init__(
        self,
        store: Store,
        ranks: Sequence[int],
        blocks: Sequence[Sequence[str]],
        own: int,
        timeout: float,
    ) -> None:
        self.base = store
        self.store: Store | None = None
        self.ranks = list(ranks)
        self.blocks = [list(names) for names in blocks]
        self.own = own
        self.timeout = timeout

    def begin(self, word: str) -> None:
        """Use reports under this word from now on; those of an earlier attempt stay behind.

        Args:
            word: The same on every rank, and never used before.
        """
        self.store = PrefixStore(f"bll/faults/{word}", self.base)

    def name(self, member: int) -> str:
        """A rank with its blocks, for messages."""
        names = ", ".join(repr(name) for name in self.blocks[member])
        plural = "s" if len(self.blocks[member]) > 1 else ""
        return f"rank {self.ranks[member]} (block{plural} {names})"

    def report_error(self, error: BaseException, where: str) -> None:
        """Say that this rank raised; without a store the others only see it leave."""
        text = f"raised {type(error).__name__}: {error} {where}".strip()
        self._put({"error": text})

    def explain(self, error: BaseException, waited_for: int | None) -> RankFailure:
        """Report a failed wait and find the rank behind it.

        Args:
            error: What the wait raised.
            waited_for: Place of the other rank; None for a call all take part in.
        """
        hung = "imed out" in str(error)
        self._put({"waited_for": waited_for, "hung": hung})
        until = time.monotonic() + (GRACE_HUNG if hung else GRACE_GONE)
        seen: dict[int, dict[str, Any]] = {}
        while time.monotonic() < until:
            seen = self._reports()
            if any("error" in report for report in seen.values()):
                break
            time.sleep(0.05)
        guilty = self._follow(seen, waited_for)
        texts = [self._verdict(member, seen, hung) for member in guilty]
        message = f"{'; '.join(texts)}; seen by {self.name(self.own)}: {error}"
        return RankFailure(message, [self.ranks[member] for member in guilty])

    def _follow(self, seen: dict[int, dict[str, Any]], waited_for: int | None) -> list[int]:
        raised = [member for member, report in seen.items() if "error" in report]
        if raised:
            return raised
        silent = [member for member in range(len(self.ranks)) if member not in seen]
        passed = {self.own}
        while waited_for is not None and waited_for not in passed:
            if waited_for not in seen:
                return [waited_for]
            passed.add(waited_for)
            waited_for = seen[waited_for]["waited_for"]
        # A circle, or a call of all: at fault is who says nothing.
        return [member for member in silent if member != self.own] or sorted(passed - {self.own})

    def _verdict(self, member: int, seen: dict[int, dict[str, Any]], hung: bool) -> str:
        report = seen.get(member, {})
        if "error" in report:
            return f"{self.name(member)} {report['error']}"
        if member in seen:
            return f"{self.name(member)} lost contact"
        # Who waited for that very rank knows best; further on, only silence or a break is seen.
        direct = [other for other in seen.values() if other.get("waited_for") == member]
        if any(other["hung"] for other in direct) or (not direct and hung):
            return f"{self.name(member)} did not answer within {self.timeout:g} s"
        return f"{self.name(member)} is gone"

    def _put(self, report: dict[str, Any]) -> None:
        if self.store is None:
            return
        try:
            if not self.store.check([str(self.own)]):
                self.store.set(str(self.own), json.dumps(report))
        except RuntimeError:
            # The store went with the rank that held it; neighbours still know whom they waited for.
            return

    def _reports(self) -> dict[int, dict[str, Any]]:
        found: dict[int, dict[str, Any]] = {}
        if self.store is None:
            return found
        try:
            for member in range(len(self.ranks)):
                if self.store.check([str(member)]):
                    found[member] = json.loads(self.store.get(str(member)))
        except RuntimeError:
            return found
        return found
