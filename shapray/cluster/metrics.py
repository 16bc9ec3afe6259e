"""What a dashboard shows of a run: metrics in Ray's registry, which every node's agent exports.

Recorded by the driver, from counts and receipts. Prometheus sees them with the prefix ``ray_``,
and counters with the suffix ``_total``.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from ray.util.metrics import Counter, Gauge

from shapray.cluster.pool import Counts
from shapray.worker.tasks import Receipt

KEPT = 0.9  # of the older receipts' weight when a newer one of the same group comes

NAMES = (
    "shapray_tasks_total",
    "shapray_tasks_done",
    "shapray_tasks_failed",
    "shapray_tasks_retried",
    "shapray_workers",
    "shapray_evaluations",
    "shapray_shard_bytes",
    "shapray_coalitions_per_second",
)


class Metrics:
    """The metrics of one driver; needs a connection to Ray."""

    def __init__(self) -> None:
        by_stage = ("stage",)
        self._total = Gauge("shapray_tasks_total", "Tasks of the stage in this run.", by_stage)
        self._counters = {
            "n_done": Counter("shapray_tasks_done", "Tasks done.", by_stage),
            "n_failed": Counter("shapray_tasks_failed", "Tasks set aside for good.", by_stage),
            "n_retried": Counter("shapray_tasks_retried", "Tasks tried again.", by_stage),
        }
        self._workers = Gauge("shapray_workers", "Workers that are set up.")
        self._evaluations = Counter("shapray_evaluations", "Coalitions evaluated, over images.")
        self._bytes = Counter("shapray_shard_bytes", "Bytes of the shards published.")
        self._rate = Gauge(
            "shapray_coalitions_per_second", "Of one worker, in recent tasks.", ("group",)
        )
        self._seen = Counts()
        self._recent: dict[str, tuple[float, float]] = {}  # group -> evaluations, seconds

    def start(self, stage: str, n_tasks: int) -> None:
        """A stage begins."""
        self._total.set(n_tasks, {"stage": stage})
        self._seen = Counts()

    def count(self, stage: str, counts: Counts) -> None:
        """How far the stage is now."""
        for name, counter in self._counters.items():
            if more := getattr(counts, name) - getattr(self._seen, name):
                counter.inc(more, {"stage": stage})
        self._workers.set(counts.n_workers)
        self._seen = replace(counts)

    def receive(self, results: Iterable[Any]) -> None:
        """What came back in one batch; only receipts for shards say more than that it did."""
        receipts = [result for result in results if isinstance(result, Receipt)]
        for receipt in receipts:
            n, seconds = self._recent.get(receipt.task.group, (0.0, 0.0))
            n = KEPT * n + receipt.n_evaluations
            seconds = KEPT * seconds + receipt.seconds_evaluating
            self._recent[receipt.task.group] = n, seconds
        for group in {receipt.task.group for receipt in receipts}:
            n, seconds = self._recent[group]
            if seconds:
                self._rate.set(n / seconds, {"group": group})
        if receipts:
            self._evaluations.inc(int(sum(receipt.n_evaluations for receipt in receipts)))
            self._bytes.inc(int(sum(receipt.n_bytes for receipt in receipts)))

    def end(self) -> None:
        self._workers.set(0)
