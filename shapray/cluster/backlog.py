"""What is left of a stage: second attempts first, then the costly tasks; short ones in batches."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from shapray.cluster.pool import Task, costly_first

BATCH_SECONDS = 0.1  # of a batch; what a driver spends on one is a hundredth of that
BATCH_SECONDS_PER_WORKER = 0.002  # so that many workers do not keep one driver busy all the time
MAX_BATCH = 100
BATCHES_LEFT = 4  # per worker, at least: a batch is no larger than leaves as many for everybody


@dataclass(eq=False, slots=True)
class Entry:
    """A task on its way."""

    task: Any
    attempts: int = 0
    deaths: int = 0
    avoid: int | None = None  # number of the worker it failed on


class Backlog:
    """Tasks in the order in which workers get them; a task costs the same time however many.

    Batches grow while tasks are seen to be short, so that the driver's time per task shrinks, and
    shrink towards the end, so that no worker waits for another's batch.
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._fresh = costly_first(tasks)
        self._fresh.reverse()  # taken from its end
        self._again: deque[Entry] = deque()
        self._batch = 1

    def __len__(self) -> int:
        return len(self._fresh) + len(self._again)

    def take(self, worker: int, n_ready: int, n_workers: int) -> list[Entry]:
        """The next tasks for a worker; none if there is none it should do.

        A task that has failed, or may have killed its worker, comes alone, and to another worker
        than the one it failed on unless that is the only one.

        Args:
            worker: its number.
            n_ready: workers that take tasks now.
            n_workers: these and those that are being set up.
        """
        if self._again and (n_ready == 1 or self._again[0].avoid != worker):
            return [self._again.popleft()]
        fair = -(-len(self._fresh) // (BATCHES_LEFT * n_workers))
        return [Entry(self._fresh.pop()) for _ in range(min(self._batch, fair))]

    def put_back(self, entries: Iterable[Entry]) -> None:
        """To the front, in their order."""
        for entry in reversed(list(entries)):
            if entry.attempts or entry.deaths:
                self._again.appendleft(entry)
            else:
                self._fresh.append(entry.task)

    def learn(self, n_tasks: int, seconds: float, n_workers: int) -> None:
        """A batch was done; sets how many tasks go into the next."""
        wanted = BATCH_SECONDS + BATCH_SECONDS_PER_WORKER * n_workers
        fitting = int(min(MAX_BATCH, n_tasks * wanted / max(seconds, 1e-9)))
        if fitting < self._batch:
            self._batch = max(1, fitting)
        elif n_tasks >= self._batch:
            self._batch = min(2 * self._batch, fitting)
