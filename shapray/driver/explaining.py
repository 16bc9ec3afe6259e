"""How the scores come about: the tables of ``explain/``, made when everything is measured."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shapray.config import Prune
from shapray.driver.crew import Crew
from shapray.driver.explanations import Explanations, forget
from shapray.driver.failures import stop_if_failed
from shapray.driver.plan import Plan
from shapray.driver.record import Record
from shapray.driver.tasks import slices
from shapray.explain.activations import Activations
from shapray.explain.cards import that_fit
from shapray.explain.correlations import OTHERS, SCORES, correlations
from shapray.explain.games import Asked
from shapray.explain.units import ClassMeans, unit_rows
from shapray.inputs.digest import digest
from shapray.network.group import Group
from shapray.pruning.doubt import all_misplaced
from shapray.pruning.ranking import Ranking
from shapray.pruning.repair.curves import shuffled
from shapray.storage import names
from shapray.worker.tasks import (
    Activated,
    ActivationTask,
    ClassRemoved,
    ClassTask,
    CriterionScores,
    CriterionTask,
    Explained,
    ExplainTask,
)

MOST_IMAGES = 256  # calibration images that criteria and activations are taken on
COLUMNS = {name: name for name in ("l1_norm", "taylor", "leave_one_out")} | {"obs": "unrepaired"}
CLASSES = "class_removal"
MAP_PASSES = 1000  # of the whole network, about, that the maps of a group's cards take


@dataclass(frozen=True)
class Explaining:
    """The stage that explains a run's scores.

    Attributes:
        planned: the plan, with the calibration images that the scores are of.
        record: of the run, with its fingerprint in it.
        precision: of the scoring.
        ranking: the job's own.
        removed: group -> the units that its cut removes.
    """

    crew: Crew
    planned: Plan
    record: Record
    precision: str
    ranking: Ranking
    removed: Mapping[str, Sequence[int]]

    def explain(self) -> None:
        """Fill what is missing; nothing stays that is of another cut.

        Raises:
            TasksFailed: some tasks were set aside.
            StorageError: a table cannot be read or written.
        """
        setup = self.planned.setup
        if not setup.job.explain.images:
            forget(setup.store)
            return
        scores = setup.store.read_table(names.SCORES)
        there = Explanations(setup.store, self._keys())
        missing = [group for group in setup.groups if group.name in there.missing]
        with self.record.stage("explain") as entry:
            entry |= {
                "groups": len(setup.groups),
                "groups_found_done": len(setup.groups) - len(missing),
            }
            try:
                if missing:
                    self._groups(missing, scores, there)
            finally:
                there.publish()
            self._classes(there)

    @property
    def fingerprint(self) -> str:
        found: str = self.record.content["fingerprint"]
        return found

    def _keys(self) -> dict[str, str]:
        setup = self.planned.setup
        job, orders = setup.job, self.ranking.orders
        return {
            group.name: digest(
                [
                    self.fingerprint,
                    len(setup.calibration),
                    setup.evaluation.digest(),
                    job.explain.model_dump(),
                    job.prune.rank_by,
                    orders[group.name],
                    sorted(self.removed[group.name]),
                ]
            )
            for group in setup.groups
        }

    def _groups(self, missing: Sequence[Group], scores: pa.Table, there: Explanations) -> None:
        activations, criteria = self._activations(), self._criteria(missing, scores)
        by_name = {group.name: group for group in missing}

        def receive(found: Explained) -> None:
            group = by_name[found.task.group]
            rows = _rows(scores, group.name)
            units = unit_rows(
                group.name,
                found.extremes,
                activations[group.name],
                criteria[group.name],
                self._class_means(group),
                self.removed[group.name],
                self._misplaced(group, rows),
            )
            numbers = {
                name: (rows if name in rows.column_names else units)[name]
                .to_numpy(zero_copy_only=False)
                .astype(float)
                for name in (*SCORES, *OTHERS)
            }
            tables = {
                "units": units,
                "correlations": correlations(group.name, numbers),
                "extremes": found.extremes.table,
            }
            there.add(group.name, {**found.tables, **tables})

        tasks = [self._task(group, _rows(scores, group.name)) for group in missing]
        stop_if_failed("explain", self.crew.do("explain", tasks, receive), self.record)

    @property
    def _prune(self) -> Prune:
        return self.planned.chooser.prune

    def _misplaced(self, group: Group, scores: pa.Table) -> np.ndarray:
        chooser = self.planned.chooser
        cost = {group.name: chooser.sizes.macs_of_a_unit(group.name, chooser.gone)}
        found = all_misplaced(scores, chooser.prune, cost, self.removed, chooser.blocks)
        return found[group.name]

    def _task(self, group: Group, scores: pa.Table) -> ExplainTask:
        setup = self.planned.setup
        n_scored, n_images = scores["n_images"][0].as_py(), setup.job.explain.images
        asked = Asked(
            value=setup.job.score.value,
            seed=setup.job.score.seed,
            order=self.ranking.orders[group.name],
            n_cut=len(self.removed[group.name]) or group.n_units // 2,
            rank_by="mean" if self._prune.rank_by == ("mean",) else "mean_abs",
            exact_max_players=setup.job.score.exact_max_players,
            n_evaluations=0,
        )
        return ExplainTask(
            group.name,
            tuple(slices(n_scored, setup.job.cluster.images_per_task)),
            self.fingerprint,
            self.precision,
            asked,
            tuple(shuffled(n_scored)[:n_images].tolist()),
            that_fit(len(setup.groups)),
            scores,
            float(
                self.planned.tail_macs[group.name] * group.n_units * n_images
                + self.planned.chooser.sizes.all_macs * MAP_PASSES
            ),
        )

    def _activations(self) -> Mapping[str, Activations]:
        """Of every group."""
        found = list[Activated]()
        n_images = min(len(self.planned.setup.calibration), MOST_IMAGES)
        tasks = [ActivationTask(n_images, float(n_images))]
        stop_if_failed("activations", self.crew.do("activations", tasks, found.append), self.record)
        return found[0].found

    def _criteria(
        self, groups: Sequence[Group], scores: pa.Table
    ) -> dict[str, dict[str, np.ndarray]]:
        """Group -> column of ``explain/units.parquet`` -> (n_units,); one that says nothing of the
        network is left out."""
        found: dict[str, dict[str, np.ndarray]] = {group.name: {} for group in groups}
        missing = [name for name in COLUMNS if name not in scores.column_names]
        for name in COLUMNS.keys() - set(missing):
            for group in groups:
                found[group.name][COLUMNS[name]] = _rows(scores, group.name)[name].to_numpy()

        def receive(result: CriterionScores) -> None:
            for note in result.notes:
                self.crew.console.print(note)
            for group in groups:
                found[group.name][COLUMNS[result.task.criterion]] = result.scores[group.name]

        tasks = [CriterionTask(name, {}, 1.0, MOST_IMAGES) for name in missing]
        for failure in self.crew.do("criterion", tasks, receive):
            self.crew.console.print(f"explain: {failure.task} is left out: {failure.message}")
        return found

    def _class_means(self, group: Group) -> ClassMeans | None:
        """A group's at a time: of a thousand classes all of them would not fit."""
        setup = self.planned.setup
        if setup.calibration.labels is None:
            return None
        own = pc.field("group") == group.name
        columns = ["label", "unit", "mean", "mean_abs"]
        table = setup.store.read_table(names.CLASS_SCORES, columns, own)
        return ClassMeans.of(table, group.n_units)

    def _classes(self, there: Explanations) -> None:
        """What becomes of each class without some units."""
        setup = self.planned.setup
        groups = [group.name for group in setup.groups]
        key = digest([self.fingerprint, len(setup.calibration), setup.evaluation.digest(), groups])
        if setup.calibration.labels is None or there.whole(CLASSES, key):
            return
        found = list[ClassRemoved]()
        tasks = [ClassTask()]
        stop_if_failed(CLASSES, self.crew.do("remove_classes", tasks, found.append), self.record)
        there.publish_whole(CLASSES, key, [found[0].table])


def _rows(table: pa.Table, group: str) -> pa.Table:
    return table.filter(pc.equal(table["group"], group))
