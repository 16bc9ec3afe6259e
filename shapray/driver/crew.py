"""Who does a run's tasks, and who is told how far they are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from shapray.cluster.metrics import Metrics
from shapray.cluster.pool import Counts, Failure, Pool
from shapray.driver.progress import Meter, meter


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
