"""What a pipeline over many ranks costs: links, stragglers and failures. Pure event simulation.

`simulate` knows blocks on workers of one machine; here every border is a link with a latency and a
bandwidth, ranks may be slow or unsteady, and a run may lose work to failures. All times in seconds.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from bll_kernels.pipeline.links import IDEAL, Link

SCHEDULES: Final = ("local", "gpipe", "1f1b", "zero-bubble")


@dataclass(frozen=True)
class StageTimes:
    """One rank's work on one micro-batch, in seconds.

    Attributes:
        forward: Forward.
        loss: Local loss and its gradient; in backpropagation only the last rank has one.
        backward_input: Gradients towards the input.
        backward_weight: Gradients of the weights.
        update: Once per batch.
        skipped: Share of `backward_input` a local block leaves out, since nothing is below its
            first layer: 1 / layers.
    """

    forward: float
    loss: float = 0.0
    backward_input: float = 0.0
    backward_weight: float = 0.0
    update: float = 0.0
    skipped: float = 0.0

    @property
    def backward(self) -> float:
        """The whole backward of backpropagation."""
        return self.backward_input + self.backward_weight

    @property
    def local_backward(self) -> float:
        """The backward inside a local block."""
        return self.backward_input * (1.0 - self.skipped) + self.backward_weight


@dataclass(frozen=True)
class Conditions:
    """What ranks and links are like.

    Attributes:
        link: Between neighbours.
        border_bytes: An output of a rank for one micro-batch.
        slow: By rank, the factor its work takes longer.
        jitter: Standard deviation of every duration, relative to it.
        slots: Outputs of a local rank that may be on their way.
        handling: Seconds of its own processor that a rank spends on a tensor it sends or receives,
            beside the time the link is kept. Zero where hardware copies by itself.
        seed: Of the jitter.
    """

    link: Link = IDEAL
    border_bytes: float = 0.0
    slow: Mapping[int, float] = field(default_factory=dict)
    jitter: float = 0.0
    slots: int = 2
    seed: int = 0
    handling: float = 0.0

    def __post_init__(self) -> None:
        if self.handling < 0:
            raise ValueError(f"handling: expected at least 0 seconds, got {self.handling}")

    def handled(self, rank: int, ranks: int) -> float:
        """Seconds a rank spends on what crosses its borders in one direction, per micro-batch."""
        return self.handling * ((rank > 0) + (rank + 1 < ranks))

    @property
    def occupied(self) -> float:
        """Seconds a transfer keeps its link."""
        return self.border_bytes / self.link.bandwidth


@dataclass(frozen=True)
class Estimate:
    """What a run costs.

    Attributes:
        seconds: From the first start to the last end.
        step_seconds: Per batch; for `local`, in the steady state, since its filling is paid once.
        utilisation: Share of the ranks' time in which they work, 0 to 1, over the whole run.
        bytes_per_step: Sent by all ranks for one batch.
    """

    seconds: float
    step_seconds: float
    utilisation: float
    bytes_per_step: float


class _Clock:
    """Durations with slow ranks and jitter."""

    def __init__(self, conditions: Conditions) -> None:
        self.slow = conditions.slow
        self.jitter = conditions.jitter
        self.random = random.Random(conditions.seed)
        self.busy = 0.0

    def take(self, rank: int, seconds: float) -> float:
        seconds *= self.slow.get(rank, 1.0)
        if self.jitter:
            seconds *= max(0.0, self.random.gauss(1.0, self.jitter))
        self.busy += seconds
        return seconds


def run_cluster(
    schedule: str,
    times: Sequence[StageTimes],
    conditions: Conditions | None = None,
    *,
    micro_batches: int,
    batches: int = 4,
) -> Estimate:
    """Simulate batches over ranks, one per entry of `times`.

    Args:
        schedule: "local"; or of backpropagation "gpipe", "1f1b" or "zero-bubble" (greedy, with
            the weights' gradients in what would be waits and the in-flight bound of 1F1B, as
            ZB-H1 of Qi et al., arXiv 2401.10241).
        times: Per rank.
        conditions: Links and unsteadiness; None: ideal links.
        micro_batches: Of a batch.
        batches: To simulate; backpropagation starts each when the one before is done everywhere.

    Raises:
        ValueError: An unknown schedule, or a count below 1.
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, got {schedule!r}")
    if min(len(times), micro_batches, batches) < 1:
        raise ValueError(
            f"times, micro_batches, batches: expected at least 1 of each, got {len(times)}, "
            f"{micro_batches}, {batches}"
        )
    conditions = Conditions() if conditions is None else conditions
    clock = _Clock(conditions)
    borders = len(times) - 1
    if schedule == "local":
        seconds, step = _local(times, conditions, clock, micro_batches, batches)
        sent = borders * micro_batches * conditions.border_bytes
    else:
        seconds = sum(
            _Backprop(schedule, times, conditions, clock, micro_batches).run()
            for _ in range(batches)
        )
        step = seconds / batches
        sent = 2 * borders * micro_batches * conditions.border_bytes
    return Estimate(seconds, step, clock.busy / (seconds * len(times)), sent)


def _local(
    times: Sequence[StageTimes],
    conditions: Conditions,
    clock: _Clock,
    micro_batches: int,
    batches: int,
) -> tuple[float, float]:
    """Forward, send, learn: no rank waits for a later one but for room on the link."""
    ranks, total = len(times), micro_batches * batches
    began = [0.0] * ranks  # of the micro-batch before: from then on the next one is asked for
    ended = [0.0] * ranks
    link_free = [0.0] * ranks
    taken: list[list[float]] = [[] for _ in range(ranks)]
    ends = []
    for index in range(total):
        arrived = 0.0
        asked = began[:]
        for rank, work in enumerate(times):
            start = max(ended[rank], arrived)
            if rank + 1 < ranks and index >= conditions.slots:
                start = max(start, taken[rank][index - conditions.slots])
            began[rank] = start
            sent = start + clock.take(rank, work.forward + conditions.handled(rank, ranks))
            if rank + 1 < ranks:
                going = max(sent, link_free[rank], asked[rank + 1])
                link_free[rank] = going + conditions.occupied
                arrived = link_free[rank] + conditions.link.latency
                taken[rank].append(arrived)
            rest = work.loss + work.local_backward
            if (index + 1) % micro_batches == 0:
                rest += work.update
            ended[rank] = sent + clock.take(rank, rest)
        if (index + 1) % micro_batches == 0:
            ends.append(ended[-1])
    half = len(ends) // 2
    return max(ended), (ends[-1] - ends[half - 1]) / (len(ends) - half) if half else ends[-1]


class _Backprop:
    """One batch of a schedule in which gradients cross the borders."""

    def __init__(
        self,
        schedule: str,
        times: Sequence[StageTimes],
        conditions: Conditions,
        clock: _Clock,
        micro_batches: int,
    ) -> None:
        self.schedule = schedule
        self.times = times
        self.conditions = conditions
        self.clock = clock
        self.count = micro_batches
        ranks = len(times)
        self.handled = [conditions.handled(rank, ranks) for rank in range(ranks)]
        self.inputs: list[list[float]] = [[] for _ in range(ranks)]
        self.inputs[0] = [0.0] * micro_batches
        self.gradients: list[list[float]] = [[] for _ in range(ranks)]
        self.done = [[0, 0, 0] for _ in range(ranks)]  # forwards, backwards, weights' gradients
        self.free = [0.0] * ranks
        self.links: dict[tuple[int, int], float] = {}
        self.wakes: list[tuple[float, int]] = [(0.0, rank) for rank in range(ranks)]

    def run(self) -> float:
        """Seconds until every rank has updated."""
        while self.wakes:
            now, rank = heapq.heappop(self.wakes)
            if now >= self.free[rank]:
                self._next(rank, now)
        last = enumerate(self.times)
        return max(self.free[rank] + self.clock.take(rank, work.update) for rank, work in last)

    def _next(self, rank: int, now: float) -> None:
        """Start what the schedule wants of what has arrived: backwards first."""
        forwards, backwards, weights = self.done[rank]
        after = len(self.times) - 1 - rank
        bound = self.count if self.schedule == "gpipe" else after + 1
        ready = self.gradients[rank]
        may_go_back = forwards == self.count or self.schedule != "gpipe"
        if may_go_back and backwards < len(ready) and ready[backwards] <= now:
            self._backward(rank, now)
        elif (
            forwards < min(self.count, backwards + bound)
            and forwards < len(self.inputs[rank])
            and self.inputs[rank][forwards] <= now
        ):
            work = self.times[rank]
            loss = 0.0 if after else work.loss
            end = now + self.clock.take(rank, work.forward + loss + self.handled[rank])
            self.done[rank][0] += 1
            self._busy_until(rank, end)
            if after:
                self._send(rank, rank + 1, end, self.inputs[rank + 1])
            else:
                ready.append(end)
        elif self.schedule == "zero-bubble" and weights < backwards:
            self.done[rank][2] += 1
            self._busy_until(rank, now + self.clock.take(rank, self.times[rank].backward_weight))

    def _backward(self, rank: int, now: float) -> None:
        work = self.times[rank]
        split = self.schedule == "zero-bubble"
        own = work.backward_input if split else work.backward
        end = now + self.clock.take(rank, own + self.handled[rank])
        self.done[rank][1] += 1
        self.done[rank][2] += 0 if split else 1
        self._busy_until(rank, end)
        if rank > 0:
            self._send(rank, rank - 1, end, self.gradients[rank - 1])

    def _busy_until(self, rank: int, end: float) -> None:
        self.free[rank] = end
        heapq.heappush(self.wakes, (end, rank))

    def _send(self, source: int, target: int, now: float, arrivals: list[float]) -> None:
        going = max(now, self.links.get((source, target), 0.0))
        self.links[source, target] = going + self.conditions.occupied
        arrived = going + self.conditions.occupied + self.conditions.link.latency
        arrivals.append(arrived)
        heapq.heappush(self.wakes, (arrived, target))
