"""From scores to a smaller network and what it is worth, beside its rivals at the same size."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shapray.cluster.pool import Failure
from shapray.config import Prune
from shapray.driver.crew import Crew
from shapray.driver.kept import KeptLosses, has_criterion, made_of, with_criterion
from shapray.driver.plan import Plan
from shapray.driver.tasks import evaluate_tasks, measured
from shapray.errors import JobError
from shapray.inputs.digest import digest
from shapray.pruning.allocate import Size, UnreachableError
from shapray.pruning.curve import curve_table, measurements_json
from shapray.pruning.cuts import (
    HELD_BACK,
    SEARCHED,
    WHOLE,
    Chooser,
    Compared,
    Cut,
    Losses,
    compared_cuts,
)
from shapray.pruning.latency import Latency
from shapray.pruning.ranking import Ranking, needed_criteria, rankings
from shapray.pruning.repair.curves import counts
from shapray.storage import names
from shapray.storage.schemas import CURVE
from shapray.worker.tasks import (
    CriterionTask,
    EvaluateTask,
    Evaluation,
    Latencies,
    LatencyTask,
    LossTask,
)

LATENCY_BATCHES = (1, 64)
LATENCY_STEPS = 4  # of the search for a share that gives the latency asked for
NEAR_ENOUGH = 0.02  # of it
STEPS = 8  # of the search for the smallest network that keeps what was asked


@dataclass(frozen=True)
class Cutting:
    """The stages behind the scores; needs workers, and no scoring.

    Attributes:
        folder: of the run directory that the files go to, ``prune`` or one in it.
        stop: called with a stage's name and the tasks that failed for good.
        fingerprint: of the run whose scores are cut.
    """

    crew: Crew
    planned: Plan
    chooser: Chooser
    folder: str
    stop: Callable[[str, list[Failure]], None]
    fingerprint: str

    @property
    def prune(self) -> Prune:
        return self.chooser.prune

    def ranked_anew(self) -> tuple[list[Ranking], Losses]:
        """The rankings, the job's own first, and their losses, after ``scores.parquet`` has been
        given the columns that they read."""
        store = self.planned.setup.store

        def publish(scores: pa.Table) -> None:
            store.publish_table(names.SCORES, [scores], scores.schema)

        scores = self.with_criteria(store.read_table(names.SCORES), publish)
        publish(scores)
        ranked = self.ranked(scores)
        return ranked, self.losses(ranked)

    @property
    def made_of(self) -> str:
        return made_of(self.fingerprint, self.planned.setup.job.cluster)

    def check_target(self) -> None:
        """Measure what a target asks for that scores do not change; to be called before they are
        made, as it may stop the job.

        Raises:
            JobError: the whole network is not as accurate as asked, or no cut is as fast.
        """
        key, value = self.prune.target
        if key == "min_accuracy":
            [whole] = self._held_back([WHOLE])
            if whole.tally.top1 < value:
                raise JobError(
                    f"prune.min_accuracy: {value}; the whole network has {whole.tally.top1:.4g} "
                    f"on the {whole.tally.n} calibration images that are held back"
                )
        if key == "latency":
            smallest = {group: range(at[-1]) for group, at in self.chooser.choices.items()}
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

    def with_criteria(
        self, scores: pa.Table, on_column: Callable[[pa.Table], None] = lambda table: None
    ) -> pa.Table:
        """``scores.parquet`` with a column for every other criterion that the job names.

        Args:
            on_column: called with the table whenever it has one more.
        """
        planned = pa.array(list(self.chooser.n_units))  # others may have been scored before
        scores = scores.filter(pc.is_in(scores["group"], planned))
        groups = list(dict.fromkeys(scores["group"].to_pylist()))
        asked = needed_criteria(self.prune)
        missing = [name for name in asked if not has_criterion(scores, name, self.made_of)]
        scores = scores.select([name for name in scores.column_names if name not in missing])

        def receive(result: Any) -> None:
            nonlocal scores
            for note in result.notes:
                self.crew.console.print(note)
            values = np.concatenate([result.scores[group] for group in groups])
            scores = with_criterion(scores, result.task.criterion, values, self.made_of)
            on_column(scores)

        tasks = [CriterionTask(name, 1.0) for name in missing]
        failures = self.crew.do("criterion", tasks, receive)
        for failure in failures:
            if failure.is_job_error and failure.task.criterion not in self.prune.rank_by:
                self.crew.console.print(f"left out: {failure.message}")
        self.stop(
            "criterion",
            [
                failure
                for failure in failures
                if not failure.is_job_error or failure.task.criterion in self.prune.rank_by
            ],
        )
        others = [name for name in scores.column_names if name not in asked]
        there = [name for name in asked if name in scores.column_names]
        return scores.select([*others, *there])  # whoever was first

    def ranked(self, scores: pa.Table) -> list[Ranking]:
        """The job's own ranking first."""
        sizes = self.chooser.sizes
        gone = self.chooser.gone
        per_unit = {group: sizes.macs_of_a_unit(group, gone) for group in self.chooser.n_units}
        try:
            return rankings(scores, self.prune, per_unit)
        except ValueError as error:
            raise JobError(f"prune.rank_by: {error}") from error

    def losses(self, ranked: Sequence[Ranking]) -> Losses:
        """What cutting each group alone costs: ranking -> group -> a loss per point."""
        if self.prune.allocation != "measured":
            return {}
        repaired = "least_squares" in self.prune.repair
        kept = KeptLosses(self.planned.setup.store, digest([self.made_of, repaired]))
        found = kept.of(ranked)
        missing = {
            group.name: {
                ranking.name: ranking.orders[group.name]
                for ranking in ranked
                if group.name not in found[ranking.name]
            }
            for group in self.planned.setup.groups
        }
        tasks = [
            LossTask(group, orders, float(max(1, self.planned.tail_macs[group])) * len(orders))
            for group, orders in missing.items()
            if orders
        ]

        def receive(result: Any) -> None:
            for name, losses in result.losses.items():
                found[name][result.task.group] = losses
            kept.publish(self.folder, ranked, found)

        kept.publish(self.folder, ranked, found)
        self.stop("losses", self.crew.do("losses", tasks, receive))
        return found

    def cuts(
        self,
        ranked: Sequence[Ranking],
        losses: Losses,
        in_rounds: Mapping[str, Sequence[int]] | None = None,
    ) -> Compared:
        """All networks to measure.

        Args:
            in_rounds: the units that go by the job's own ranking, if it took several rounds.
        """
        key, share = self.prune.target
        if key in SEARCHED:
            key, share = "macs", self._smallest(ranked[0], losses)
        planned = None
        if key == "latency":
            planned = self._latency_that_gives(ranked[0], losses, share)
        try:
            return compared_cuts(ranked, losses, self.chooser, key, share, planned, in_rounds)
        except UnreachableError as error:
            raise JobError(f"prune.{key}: a size cannot be met: {error}") from error

    def measured(self, compared: Compared, entry: dict[str, Any]) -> dict[str, Any]:
        """All networks on the evaluation images, the kept one's files published.

        Args:
            entry: of the stage, to which facts are added.
        Returns:
            the content of ``metrics.json``.
        """
        store = self.planned.setup.store
        n_images = len(self.planned.setup.evaluation)
        tasks = evaluate_tasks(compared, n_images, self.folder)
        entry |= {"networks": len(compared.all), "tasks": len(tasks), "tasks_failed": 0}
        evaluations = self._evaluated(tasks)
        for note in dict.fromkeys(note for found in evaluations for note in found.notes):
            self.crew.console.print(note)
        measurements = measured(compared.all, evaluations)
        timed = self._timed({"after": compared.kept.removed}, LATENCY_BATCHES)
        metrics = measurements_json(measurements, compared, self.prune, timed)
        n_units = sum(self.chooser.n_units.values())
        store.publish_table(
            f"{self.folder}/{names.CURVE}",
            [curve_table(measurements, n_units, self.prune.target[0])],
            CURVE,
        )
        store.publish_json(f"{self.folder}/{names.METRICS}", metrics)
        return metrics

    def _latency_by_groups(self) -> Size:
        """Share of the whole network's latency, from that of every group cut alone to some widths,
        whichever units go; what groups save adds up."""
        tasks = [
            LatencyTask(
                group,
                {str(n): {group: range(n)} for n in counts(n_units) if n},
                (LATENCY_BATCHES[-1],),
            )
            for group, n_units in self.chooser.n_units.items()
            if len(self.chooser.choices[group]) > 1
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

    def _latency_that_gives(self, own: Ranking, losses: Losses, asked: float) -> float:
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
        found = self._timed({"cut": removed}, LATENCY_BATCHES[-1:])
        return found["cut"][0].median / found["whole"][0].median

    def _timed(
        self, removed: Mapping[str, Mapping[str, Sequence[int]]], batches: tuple[int, ...]
    ) -> Mapping[str, tuple[Latency, ...]]:
        """The whole network and cut ones, while no other worker has a task of this run."""
        found: list[Latencies] = []
        task = LatencyTask(", ".join(removed), removed, batches)
        self.stop("latency", self.crew.do("latency", [task], found.append))
        return found[0].found

    def _evaluated(self, tasks: Sequence[EvaluateTask]) -> list[Evaluation]:
        found: list[Evaluation] = []
        self.stop("evaluate", self.crew.do("evaluate", tasks, found.append))
        return found

    def _smallest(self, own: Ranking, losses: Losses) -> float:
        """The least share of the multiply-adds that keeps what the job asks for, on a fifth of the
        calibration images that takes no part in the repair."""
        key, value = self.prune.target
        allowed = -math.inf
        if key == "max_loss_increase":
            [whole] = self._held_back([WHOLE])
            allowed = whole.tally.loss + value
        least = self.chooser.least_share("macs")
        low, high = least, 1.0  # high is kept, low is not known
        for step in range(STEPS):
            share = low if step == 0 else (low + high) / 2
            removed = self.chooser.choose(own, losses, "macs", share)
            [found] = self._held_back(
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
        return high

    def _held_back(self, cuts: Sequence[Cut]) -> list[Evaluation]:
        n = len(self.planned.setup.calibration)
        first = n - n // HELD_BACK
        return self._evaluated(
            [EvaluateTask(cut, first, n, float(n), images="calibration") for cut in cuts]
        )
