"""From scores to a smaller network and what it is worth, beside its rivals at the same size."""

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
from shapray.driver.prices import read_prices, usual_price
from shapray.driver.targets import LATENCY_BATCHES, Targets
from shapray.driver.tasks import evaluate_tasks, measured
from shapray.errors import JobError
from shapray.inputs.digest import digest
from shapray.pruning.allocate import UnreachableError
from shapray.pruning.chooser import SEARCHED, Chooser, Losses
from shapray.pruning.curve import curve_table, measurements_json
from shapray.pruning.cuts import Compared, compared_cuts
from shapray.pruning.ranking import Ranking, needed_criteria, rankings
from shapray.pruning.repair.curves import counts
from shapray.shapley.pilot import Price
from shapray.storage import names
from shapray.storage.schemas import CURVE
from shapray.worker.tasks import (
    CriterionTask,
    LossTask,
)


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

    @property
    def targets(self) -> Targets:
        return Targets(self.crew, self.planned, self.chooser, self.stop)

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
        setup = self.planned.setup
        return made_of(self.fingerprint, setup.job.cluster, len(setup.calibration))

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

        prices = self._prices()
        tasks = [CriterionTask(name, prices, 1.0) for name in missing]
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

    def _prices(self) -> dict[str, Price]:
        """Of the groups' Shapley values."""
        setup = self.planned.setup
        known, usual = read_prices(setup.store), usual_price(setup.job.score)
        return {
            group.name: known[group.name].price if group.name in known else usual
            for group in setup.groups
        }

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

        groups = self.planned.setup.groups
        points = {group.name: counts(group.n_units, group.step) for group in groups}

        def receive(result: Any) -> None:
            for name, losses in result.losses.items():
                found[name][result.task.group] = losses
            kept.publish(self.folder, ranked, found, points)

        kept.publish(self.folder, ranked, found, points)
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
            key, share = "macs", self.targets.smallest(ranked[0], losses)
        planned = None
        if key == "latency":
            planned = self.targets.latency_that_gives(ranked[0], losses, share)
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
        evaluations = self.targets.evaluated(tasks)
        for note in dict.fromkeys(note for found in evaluations for note in found.notes):
            self.crew.console.print(note)
        measurements = measured(compared.all, evaluations)
        timed = self.targets.timed({"after": compared.kept.removed}, LATENCY_BATCHES)
        metrics = measurements_json(measurements, compared, self.prune, timed)
        n_units = sum(self.chooser.n_units.values())
        store.publish_table(
            f"{self.folder}/{names.CURVE}",
            [curve_table(measurements, n_units, self.prune.target[0])],
            CURVE,
        )
        store.publish_json(f"{self.folder}/{names.METRICS}", metrics)
        return metrics
