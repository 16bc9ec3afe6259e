"""Who does a run's tasks, and who is told how far they are."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console

from shapray.cluster.metrics import Metrics
from shapray.cluster.pool import Counts, Failure, Pool
from shapray.cluster.start import open_pool
from shapray.driver.plan import Plan
from shapray.driver.progress import Meter, meter
from shapray.worker.worker import Worker


@dataclass(frozen=True)
class Crew:
    """Workers, and the two places where their progress shows.

    Attributes:
        metrics: for dashboards; None where there is no Ray to export them.
    """

    pool: Pool
    console: Console
    metrics: Metrics | None

    def do(
        self,
        stage: str,
        tasks: Sequence[Any],
        on_receipt: Callable[[Any], None],
        on_change: Callable[[Meter, Counts], None] = lambda shown, counts: None,
    ) -> list[Failure]:
        """Tasks on the workers, with the meter running; the workers' method is named as the stage.

        Returns:
            the tasks that were set aside.
        """
        if not tasks:
            return []
        if self.metrics is not None:
            self.metrics.start(stage, len(tasks))
        with meter(self.console, stage, len(tasks), sum(task.cost for task in tasks)) as shown:

            def receive(receipt: Any) -> None:
                on_receipt(receipt)
                shown.advance(receipt.task.cost)

            def change(counts: Counts) -> None:
                shown.show(counts)
                if self.metrics is not None:
                    self.metrics.count(stage, counts)
                on_change(shown, counts)

            return self.pool.run(stage, tasks, receive, change)

    def end(self) -> None:
        """No worker is left."""
        if self.metrics is not None:
            self.metrics.end()


class Crews:
    """The workers of a run, of one network at a time: a worker is given its network once.

    Args:
        console: where they say what they are.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._open = contextlib.ExitStack()
        self._of: tuple[Plan, Crew] | None = None
        self._said = set[str]()

    def of(self, planned: Plan) -> Crew:
        """Workers with a plan's network; those of another one end.

        Raises:
            JobError, ClusterError: there can be none.
        """
        if self._of is None or self._of[0] is not planned:
            self.end()
            make, setup = functools.partial(Worker, planned.setup), planned.setup
            pool = self._open.enter_context(
                open_pool(make, setup.job.cluster, in_process=not setup.store.shared)
            )
            if pool.description not in self._said:
                self.console.print(pool.description)
                self._said.add(pool.description)
            metrics = Metrics() if pool.on_ray else None
            self._of = planned, Crew(pool, self.console, metrics)
        return self._of[1]

    def end(self) -> None:
        """No worker is left."""
        if self._of is not None:
            self._of[1].end()
            self._of = None
        self._open.close()

    def __enter__(self) -> "Crews":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.end()
        else:
            self._open.__exit__(kind, error, traceback)
