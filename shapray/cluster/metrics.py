"""What a dashboard shows of a run: metrics in Ray's registry, which every node's agent exports.

Recorded by the driver, who says what came back. Prometheus sees them with the prefix ``ray_``, and
counters with the suffix ``_total``.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from ray.util.metrics import Counter, Gauge

from shapray.cluster.pool import Counts

KEPT = 0.9  # of the older tasks' weight when a newer one of the same group comes

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

logger = logging.getLogger(__name__)


class Metrics:
    """The metrics of one driver; needs a connection to Ray. What cannot be recorded is said once
    and ends no run."""

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
        self._complained = False

    def start(self, stage: str, n_tasks: int) -> None:
        """A stage begins."""
        self._record(lambda: self._total.set(n_tasks, {"stage": stage}))
        self._seen = Counts()

    def count(self, stage: str, counts: Counts) -> None:
        """How far the stage is now."""
        for name, counter in self._counters.items():
            if more := getattr(counts, name) - getattr(self._seen, name):
                self._record(partial(counter.inc, more, {"stage": stage}))
        self._record(lambda: self._workers.set(counts.n_workers))
        self._seen = replace(counts)

    def shard(self, group: str, n_evaluations: int, seconds: float, n_bytes: int) -> None:
        """A shard was published: coalitions evaluated for it, in how long, and its size."""
        n, before = self._recent.get(group, (0.0, 0.0))
        n, total = KEPT * n + n_evaluations, KEPT * before + seconds
        self._recent[group] = n, total
        if total:
            self._record(lambda: self._rate.set(n / total, {"group": _as_tag(group)}))
        self._record(lambda: self._evaluations.inc(n_evaluations))
        self._record(lambda: self._bytes.inc(n_bytes))

    def end(self) -> None:
        self._record(lambda: self._workers.set(0))

    def _record(self, record: Callable[[], None]) -> None:
        try:
            record()
        except Exception as error:  # Ray's registry is not worth a run
            if not self._complained:
                logger.warning("metrics: not recorded (%s: %s)", type(error).__name__, error)
            self._complained = True


def _as_tag(name: str) -> str:
    """Ray's tag values are ASCII: other letters are written as their code points."""
    return name.encode("ascii", "backslashreplace").decode()
