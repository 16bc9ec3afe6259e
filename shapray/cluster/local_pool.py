"""The simplest pool: one worker in this process."""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from shapray.cluster.attempt import Trouble, attempt
from shapray.cluster.needs import worker_needs
from shapray.cluster.pool import Counts, Failure, Task, costly_first, ignore, set_aside
from shapray.config import Cluster
from shapray.errors import JobError, StorageError


class LocalPool:
    """One worker in this process: for what no other process can see, and for few tasks.

    Args:
        make: device -> worker.
        cluster: which device; the rest is for more than one worker.
    Raises:
        JobError: a GPU was asked for and there is none.
        JobError, StorageError, ClusterError: the worker cannot be made.
    """

    on_ray = False

    def __init__(self, make: Callable[[str], Any], cluster: Cluster) -> None:
        self.device, _ = worker_needs(cluster, torch.cuda.is_available(), "this machine")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise JobError(
                f"cluster.gpus_per_worker: {cluster.gpus_per_worker}, and this machine has no GPU "
                "that PyTorch can use; use 0 or auto"
            )
        made = attempt(make, self.device)
        if isinstance(made, Trouble):
            raise made.not_set_up()
        self.worker = made

    @property
    def description(self) -> str:
        return f"1 worker in this process, {self.device}"

    def run(
        self,
        method: str,
        tasks: Iterable[Task],
        on_receipt: Callable[[Any], None],
        on_change: Callable[[Counts], None] = ignore,
    ) -> list[Failure]:
        failures: list[Failure] = []
        counts = Counts(n_workers=1)

        def hear(text: str) -> None:
            counts.said = text
            on_change(counts)

        self.worker.say = hear
        for task in costly_first(tasks):
            result = attempt(getattr(self.worker, method), task)
            counts.said = ""
            if not isinstance(result, Trouble):
                on_receipt(result)
                counts.n_done += 1
            elif result.kind == "storage":
                raise StorageError(result.message)
            else:
                failures.append(set_aside(method, task, result))
                counts.n_failed += 1
            on_change(counts)
        return failures

    def close(self) -> None:
        """Nothing to stop."""
