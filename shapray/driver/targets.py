"""Sizes that only measurements tell: of a latency asked for, and of what a network keeps."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from shapray.cluster.pool import Failure
from shapray.config import Prune
from shapray.driver.crew import Crew
from shapray.driver.plan import Plan
from shapray.errors import JobError
from shapray.pruning.allocate import Size
from shapray.pruning.chooser import Chooser, Losses
from shapray.pruning.cuts import WHOLE, Cut
from shapray.pruning.latency import Latency
from shapray.pruning.ranking import Ranking
from shapray.worker.tasks import EvaluateTask, Evaluation, Latencies, LatencyTask

LATENCY_BATCHES = (1, 64)
LATENCY_STEPS = 4  # of the search for a share that gives the latency asked for
NEAR_ENOUGH = 0.02  # of it
STEPS = 8  # of the search for the smallest network that keeps what was asked


@dataclass(frozen=True)
class Targets:
    """A job's target, measured on the workers.

    Attributes:
        stop: called with a stage's name and the tasks that failed for good.
    """

    crew: Crew
    planned: Plan
    chooser: Chooser
    stop: Callable[[str, list[Failure]], None]

    @property
    def prune(self) -> Prune:
        return self.chooser.prune

    def check(self) -> None:
        """Measure what a target asks for that scores do not change; to be called before they are
        made, as it may stop the job.

        Raises:
            JobError: the whole network is not as accurate as asked, or no cut is as fast.
        """
        key, value = self.prune.target
        if key == "min_accuracy":
            [whole] = self._on_held_back([WHOLE])
            if whole.tally.top1 < value:
                raise JobError(
                    f"prune.min_accuracy: {value}; the whole network has {whole.tally.top1:.4g} "
                    f"on the {whole.tally.n} calibration images that are held back"
                )
        if key == "latency":
            smallest = {
                group: self.chooser.first(group, at[-1])
                for group, at in self.chooser.choices.items()
            }
            least = self._latency_share(smallest)
            if least > value * (1 + NEAR_ENOUGH):
                raise JobError(
                    f"prune.latency: {value} cannot be met: with all units gone that may go, a "
                    f"pass of {LATENCY_BATCHES[-1]} images takes {least:.2f} of the whole network's"
                )
            self.chooser.latency = self._latency_by_groups()
            try:
                self.chooser.check()
            except ValueError as error:
                raise JobError(f"prune.{error}") from error

    def _latency_by_groups(self) -> Size:
        """Share of the whole network's latency, from that of every group cut alone to some widths,
        whichever units go; what groups save adds up."""
        tasks = [
            LatencyTask(
                group,
                {
                    str(n): {group: self.chooser.first(group, n)}
                    for n in self.chooser.points(group)
                    if 0 < n <= choices[-1]
                },
                (LATENCY_BATCHES[-1],),
            )
            for group, choices in self.chooser.choices.items()
            if len(choices) > 1
        ]
        curves: dict[str, tuple[list[int], list[float]]] = {}

        def receive(result: Latencies) -> None:
            (whole,) = result.found["whole"]
            at = [int(name) for name in result.task.removed]
            shares = [result.found[str(n)][0].median / whole.median for n in at]
            # a network is not slower with fewer units; where it was, the clock was unsteady
            falling = np.minimum.accumulate([1.0, *shares])
            curves[result.task.name] = [0, *at], falling.tolist()

        for task in tasks:  # one after the other: workers on one machine are in each other's way
            self.stop("latency", self.crew.do("latency", [task], receive))

        def share(removed: Mapping[str, int]) -> float:
            return 1 - sum(
                1 - float(np.interp(removed.get(group, 0), *curve))
                for group, curve in curves.items()
            )

        return share

    def latency_that_gives(self, own: Ranking, losses: Losses, asked: float) -> float:
        """The share to plan with so that the network cut by it has about the latency asked for."""
        share, best, distance = asked, asked, math.inf
        least = self.chooser.least_share("latency")
        for _ in range(LATENCY_STEPS):
            removed = self.chooser.choose(own, losses, "latency", share)
            real = self._latency_share(removed)
            self.crew.console.print(f"latency: {real:.3f} of the whole network's")
            if abs(real - asked) < distance:
                best, distance = share, abs(real - asked)
            if distance <= NEAR_ENOUGH * asked:
                return best
            # what all groups save together is some part of what they save one by one
            saved = (1 - share) * (1 - asked) / max(1 - real, NEAR_ENOUGH)
            share = max(least, 1 - saved)
        self.crew.console.print(
            f"prune.latency: {asked} is met within {distance / asked:.0%}, no nearer, in "
            f"{LATENCY_STEPS} tries"
        )
        return best

    def _latency_share(self, removed: Mapping[str, Sequence[int]]) -> float:
        """Of a cut network, in the whole one's."""
        found = self.timed({"cut": removed}, LATENCY_BATCHES[-1:])
        return found["cut"][0].median / found["whole"][0].median

    def timed(
        self, removed: Mapping[str, Mapping[str, Sequence[int]]], batches: tuple[int, ...]
    ) -> Mapping[str, tuple[Latency, ...]]:
        """The whole network and cut ones, while no other worker has a task of this run."""
        found: list[Latencies] = []
        task = LatencyTask(", ".join(removed), removed, batches)
        self.stop("latency", self.crew.do("latency", [task], found.append))
        return found[0].found

    def evaluated(self, tasks: Sequence[EvaluateTask]) -> list[Evaluation]:
        found: list[Evaluation] = []
        self.stop("evaluate", self.crew.do("evaluate", tasks, found.append))
        return found

    def smallest(self, own: Ranking, losses: Losses) -> float:
        """The least share of the multiply-adds that keeps what the job asks for, measured on the
        images that are held back."""
        key, value = self.prune.target
        allowed = -math.inf
        if key == "max_loss_increase":
            [whole] = self._on_held_back([WHOLE])
            allowed = whole.tally.loss + value
        least = self.chooser.least_share("macs")
        low, high = least, 1.0  # high is kept, low is not known
        for step in range(STEPS):
            share = low if step == 0 else (low + high) / 2
            removed = self.chooser.choose(own, losses, "macs", share)
            [found] = self._on_held_back(
                [
                    Cut(
                        f"search-{share}",
                        own.criterion,
                        own.seed,
                        share,
                        removed,
                        self.prune.repair,
                    )
                ]
            )
            keeps = (
                found.tally.top1 >= value if key == "min_accuracy" else found.tally.loss <= allowed
            )
            if keeps:
                high = share
                if step == 0:
                    break
            else:
                low = share
        self.crew.console.print(
            f"prune.{key}: {value} takes {high:.1%} of the multiply-adds, measured on "
            f"{self._n_held_back:,} calibration images that take no part in the repair"
        )
        return high

    def _on_held_back(self, cuts: Sequence[Cut]) -> list[Evaluation]:
        n = self._n_held_back
        return self.evaluated(
            [EvaluateTask(cut, 0, n, float(n), images="held_back") for cut in cuts]
        )

    @property
    def _n_held_back(self) -> int:
        assert self.planned.setup.held_back is not None, self.prune.target
        return len(self.planned.setup.held_back)
