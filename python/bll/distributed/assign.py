"""Which rank holds which blocks."""

from __future__ import annotations

from collections.abc import Sequence

from bll.balance import balanced_ends


def assign_blocks(
    costs: Sequence[int], ranks: int, blocks_per_rank: Sequence[int] | None
) -> list[tuple[int, int]]:
    """Return the first block of each rank and the one after its last.

    Args:
        costs: Of the blocks, in order.
        ranks: Ranks of a pipeline.
        blocks_per_rank: Neighbouring blocks of each rank; None: the costliest rank has as little
            as possible.

    Raises:
        ValueError: A rank would have no block, or the counts do not add up.
    """
    count = len(costs)
    if ranks > count:
        raise ValueError(
            f"ranks: expected at most {count}, one per block, got {ranks}; start fewer processes "
            "or cut the model into more blocks"
        )
    if blocks_per_rank is None:
        ends = [end + 1 for end in balanced_ends(costs, ranks)]
    else:
        given = list(blocks_per_rank)
        if len(given) != ranks or min(given) < 1 or sum(given) != count:
            raise ValueError(
                f"blocks_per_rank: expected {ranks} counts of at least 1 with sum {count}, "
                f"got {given}"
            )
        ends = [sum(given[: rank + 1]) for rank in range(ranks - 1)]
    return list(zip([0, *ends], [*ends, count], strict=True))
