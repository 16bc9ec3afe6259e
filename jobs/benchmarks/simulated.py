"""Many simulated workers, handed tasks by the pool's own backlog under the pool's own rule."""

import heapq
import itertools
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from shapray.cluster.backlog import Backlog, Entry
from shapray.engine.score import N_SPLITS
from shapray.worker.tasks import ScoreTask

REPLACED_AFTER = 60.0  # seconds from a worker's death


class _Worker:
    """What it was given, and the groups that it is prepared for."""

    def __init__(self, number: int, death: float) -> None:
        self.number, self.death = number, death
        self.batches: list[list[Entry]] = []  # the first is being done
        self.prepared: OrderedDict[str, None] = OrderedDict()

    def prepare(self, group: str) -> bool:
        """Whether it had to be prepared for a group."""
        new = group not in self.prepared
        if new and len(self.prepared) >= N_SPLITS:
            self.prepared.popitem(last=False)
        self.prepared[group] = None
        self.prepared.move_to_end(group)
        return new


class Simulation:
    """A score stage.

    Args:
        seconds: of each task, in the planner's order.
        prepare: seconds to prepare a worker for a group.
        n_workers: all there from the start.
        failing: share of them that dies at some moment and loses what it was doing.
    """

    def __init__(
        self,
        seconds: Mapping[ScoreTask, float],
        prepare: Mapping[str, float],
        n_workers: int,
        failing: float,
    ) -> None:
        self.seconds, self.prepare, self.n_workers = seconds, prepare, n_workers
        self.backlog = Backlog(seconds)
        self.useful = sum(seconds.values())
        self.preparing = self.finished = 0.0
        random = np.random.default_rng(1)
        deaths = np.full(n_workers, np.inf)
        dying = random.choice(n_workers, round(failing * n_workers), replace=False)
        deaths[dying] = random.uniform(0, self.useful / n_workers, len(dying))
        self.staff = [_Worker(number, death) for number, death in enumerate(deaths.tolist())]
        self.numbers, self.order = itertools.count(n_workers), itertools.count()
        self.events: list[tuple[float, int, Callable[[float], None]]] = []

    def run(self) -> float:
        """Share of the workers' time that is not the useful work of tasks that were finished."""
        self._hand_out(0.0)
        while self.events:
            now, _, happens = heapq.heappop(self.events)
            happens(now)
        assert len(self.backlog) == 0
        return 1 - self.useful / (self.n_workers * self.finished)

    def _at(self, moment: float, happens: Callable[[float], None]) -> None:
        heapq.heappush(self.events, (moment, next(self.order), happens))

    def _hand_out(self, now: float, to: Sequence[_Worker] = ()) -> None:
        """One batch for everybody, then one more as long as more tasks wait than workers."""
        for depth in (1, 2):
            for worker in to or self.staff:
                if len(worker.batches) >= depth:
                    continue
                if depth == 2 and len(self.backlog) <= len(self.staff):
                    return
                if batch := self.backlog.take(worker.number, len(self.staff), len(self.staff)):
                    worker.batches.append(batch)
                    if depth == 1:
                        self._begin(worker, now)

    def _begin(self, worker: _Worker, now: float) -> None:
        start = now
        for entry in worker.batches[0]:
            if worker.prepare(entry.task.group):
                now += self.prepare[entry.task.group]
                self.preparing += self.prepare[entry.task.group]
            now += self.seconds[entry.task]
        if worker.death < now:
            self._at(max(start, worker.death), lambda then: self._die(worker, then))
        else:
            self._at(now, lambda then: self._end(worker, then, then - start))

    def _end(self, worker: _Worker, now: float, spent: float) -> None:
        self.finished = now
        self.backlog.learn(len(worker.batches.pop(0)), spent, len(self.staff))
        if worker.batches:
            self._begin(worker, now)
        self._hand_out(now, [worker])

    def _die(self, worker: _Worker, now: float) -> None:
        self.staff.remove(worker)
        for entry in worker.batches[0]:
            entry.deaths += 1
        self.backlog.put_back(itertools.chain(*worker.batches))
        self._hand_out(now)
        self._at(now + REPLACED_AFTER, self._join)

    def _join(self, now: float) -> None:
        self.staff.append(_Worker(next(self.numbers), np.inf))
        self._hand_out(now, self.staff[-1:])
