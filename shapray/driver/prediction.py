"""What a forecast says of a job at certain prices: its work, group by group, and its stages."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shapray.driver.prices import GroupPrice


@dataclass(frozen=True)
class GroupForecast:
    """What one group will take.

    Attributes:
        name, n_units: of the group.
        price: of its images, how many they are, and how sure the scores will be.
        n_active: active units, mean over the images counted.
        exact: share of these images whose values are exact.
        n_evaluations: coalitions, over all these images.
        multiply_adds: of the network's tail, for all of them.
        prepare: seconds, once per worker.
        tasks: (n_tasks,) seconds each.
        exact_seconds: the part of them that goes into exact images.
        table_bytes: shards and rows of the score tables.
    """

    name: str
    n_units: int
    price: GroupPrice
    n_active: float
    exact: float
    n_evaluations: int
    multiply_adds: int
    prepare: float
    tasks: np.ndarray
    exact_seconds: float
    table_bytes: int


@dataclass(frozen=True)
class Prediction:
    """A job at certain prices.

    Attributes:
        groups: those to score.
        driver: stages of the driver, name -> seconds.
        work: stages of the workers, name -> its parts, each as `makespan` takes it: (seconds of
            preparation, once per worker, and (n_tasks,) seconds of each task).
    """

    groups: tuple[GroupForecast, ...]
    driver: dict[str, float]
    work: dict[str, list[tuple[float, np.ndarray]]]

    @property
    def n_images(self) -> int:
        """Calibration images that any group is scored on."""
        return max(group.price.n_images for group in self.groups)

    @property
    def n_tasks(self) -> int:
        return sum(len(group.tasks) for group in self.groups)

    def seconds(self, n_workers: int) -> float:
        """From the command to its end, on so many workers like the one that was timed."""
        stages = (makespan(parts, n_workers) for parts in self.work.values())
        return sum(stages) + sum(self.driver.values())

    def worker_seconds(self, stage: str) -> float:
        """On one worker."""
        return sum(prepare + float(tasks.sum()) for prepare, tasks in self.work[stage])


def makespan(parts: Sequence[tuple[float, np.ndarray]], n_workers: int) -> float:
    """Time of a stage: the longest tasks first, each to the worker that is free first.

    Args:
        parts: (preparation, seconds of each task); every worker that does tasks of a part
            prepares itself once.
    """
    if not parts:
        return 0.0
    tasks: list[np.ndarray] = []
    for prepare, seconds in parts:
        tasks.append(seconds.astype(float))
        tasks[-1][:n_workers] += prepare
    free = [0.0] * n_workers
    for seconds in np.sort(np.concatenate(tasks))[::-1].tolist():
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)
