"""The units of a network scored: its images looked at, its tasks done, its tables published."""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from shapray.cluster.pool import Counts
from shapray.driver import prices as pricing
from shapray.driver import summary
from shapray.driver.crew import Crew
from shapray.driver.failures import stop_if_failed
from shapray.driver.group_table import groups_table
from shapray.driver.inspecting import inspected_further
from shapray.driver.kept import made_of, table_if_sound, with_kept_criteria
from shapray.driver.plan import Plan
from shapray.driver.prices import GroupPrice, rounded, target_error
from shapray.driver.progress import Meter
from shapray.driver.record import Record
from shapray.driver.resume import missing_tasks
from shapray.driver.tables import ScoreTables
from shapray.driver.tasks import score_tasks
from shapray.shapley.game import NonFiniteValue
from shapray.storage import names
from shapray.storage.certainty import Certainty, percent
from shapray.storage.schemas import CLASS_SCORES, GROUPS
from shapray.storage.shards import publish_columns
from shapray.worker.tasks import Receipt, ScoreTask

GROWTH = 4  # with images to spare: how much a step may add


@dataclass(frozen=True)
class Scored:
    """What scoring a network came to.

    Attributes:
        certainties: of every group's scores.
    """

    totals: summary.Totals
    prices: dict[str, GroupPrice]
    certainties: dict[str, Certainty]

    @property
    def n_images(self) -> int:
        """Calibration images that any group was scored on."""
        return max(found.n_images for found in self.prices.values())


def scored(
    crew: Crew, planned: Plan, n_active: np.ndarray | None, precision: str, record: Record
) -> Scored:
    """All shards and tables of a network's scores; what is there already stays.

    Args:
        n_active: see `score_tasks`.
        record: of the folder that they go to, with the fingerprint in it.
    Raises:
        TasksFailed: some tasks were set aside.
    """
    store = planned.setup.store
    with record.stage("plan"):
        table = groups_table(planned.groups, planned.tail_macs)
        store.publish_table(names.GROUPS, [table], GROUPS)
        publish_columns(store, [group.name for group in planned.setup.groups])
    with record.stage("score") as entry:
        prices = _priced(crew, planned, precision, record)
        tables = ScoreTables(planned)
        done = _score(crew, planned, n_active, prices, precision, tables, record, entry)
    certainties = _aggregate(planned, done, tables, record)
    _say_of_target(crew, planned, prices, certainties)
    return Scored(tables.totals, prices, certainties)


def _priced(crew: Crew, planned: Plan, precision: str, record: Record) -> dict[str, GroupPrice]:
    """Every group's price: an earlier run's, or what a pilot tells, or what the job says."""
    setup, fingerprint = planned.setup, record.content["fingerprint"]
    score, n_images = setup.job.score, len(setup.calibration)
    to_spare = setup.job.data.calibration.limit == "auto"
    known = pricing.read_prices(setup.store, fingerprint)
    missing = [group for group in setup.groups if group.name not in known]
    if not missing:
        return {group.name: known[group.name] for group in setup.groups}
    n_first = pricing.taken_at_first(setup.job, n_images)
    found, failures = pricing.chosen(
        missing,
        planned.tail_macs,
        pricing.pilot_images(setup.calibration.labels, n_images, n_first),
        n_images,
        score,
        precision,
        functools.partial(crew.do, "pilot"),
        to_spare=to_spare,
    )
    no_numbers = [one for one in failures if NonFiniteValue.__name__ in one.traceback]
    stop_if_failed("pilot", [one for one in failures if one not in no_numbers], record)
    for failure in no_numbers:  # the group's own tasks will fail of it, too, and no others
        crew.console.print(
            f"{failure.task} is the usual one, {pricing.USUAL.permutations} permutations: "
            f"{failure.message}"
        )
    found = {name: replace(one, n_images=n_first) for name, one in found.items()}
    prices = {group.name: (known | found)[group.name] for group in setup.groups}
    pricing.publish_prices(setup.store, prices, fingerprint, setup.calibration)
    return prices


def _score(
    crew: Crew,
    planned: Plan,
    n_active: np.ndarray | None,
    prices: dict[str, GroupPrice],
    precision: str,
    tables: ScoreTables,
    record: Record,
    entry: dict[str, Any],
) -> dict[str, list[ScoreTask]]:
    """Group -> its tasks, done, in image order; with images to spare, as many as the target error
    takes: `prices` has their numbers then.

    Args:
        entry: of the stage, to which facts are added.
    """
    fingerprint = record.content["fingerprint"]
    to_spare = planned.setup.job.data.calibration.limit == "auto"
    entry |= {
        "tasks": 0,
        "tasks_found_done": 0,
        "tasks_done": 0,
        "tasks_failed": 0,
        "tasks_retried": 0,
        "worker_seconds": 0.0,
        "worker_seconds_evaluating": 0.0,
        "evaluations": 0,
        "shard_bytes": 0,
    }
    done = set[ScoreTask]()
    while True:
        tasks = score_tasks(planned, n_active, prices, precision, fingerprint)
        _do(crew, planned, [task for task in tasks if task not in done], record, entry)
        done |= set(tasks)
        by_group: dict[str, list[ScoreTask]] = {}
        for task in tasks:
            by_group.setdefault(task.group, []).append(task)
        grown = _grown(planned, by_group, tables, prices) if to_spare else prices
        if grown == prices:
            return by_group
        before, last = (max(one.n_images for one in of.values()) for of in (prices, grown))
        if last > before:  # sound before anyone relies on them
            more = inspected_further(crew, planned, before, last)
            n_active = None if n_active is None else np.concatenate([n_active, more])
        prices |= grown
        pricing.publish_prices(planned.setup.store, prices, fingerprint, planned.setup.calibration)


def _do(
    crew: Crew, planned: Plan, tasks: list[ScoreTask], record: Record, entry: dict[str, Any]
) -> None:
    """Do what is not there yet."""
    missing = missing_tasks(planned, tasks, crew.console)
    entry["tasks"] += len(tasks)
    entry["tasks_found_done"] += len(tasks) - len(missing)
    before = {key: entry[key] for key in ("tasks_done", "tasks_retried")}

    def receive(receipt: Receipt) -> None:
        record.claim.check()
        entry["worker_seconds"] += receipt.seconds
        entry["worker_seconds_evaluating"] += receipt.seconds_evaluating
        entry["evaluations"] += receipt.n_evaluations
        entry["shard_bytes"] += receipt.n_bytes
        if crew.metrics is not None:
            crew.metrics.shard(
                receipt.task.group,
                receipt.n_evaluations,
                receipt.seconds_evaluating,
                receipt.n_bytes,
            )

    def change(shown: Meter, counts: Counts) -> None:
        entry.update(
            tasks_done=before["tasks_done"] + counts.n_done,
            tasks_failed=counts.n_failed,
            tasks_retried=before["tasks_retried"] + counts.n_retried,
            tasks_per_second=shown.tasks_per_second,
            seconds_left=shown.seconds_left,
            workers=counts.n_workers,
        )
        record.keep_current()

    failures = crew.do("score", missing, receive, change)
    stop_if_failed("score", failures, record)


def _grown(
    planned: Plan,
    tasks: dict[str, list[ScoreTask]],
    tables: ScoreTables,
    prices: dict[str, GroupPrice],
) -> dict[str, GroupPrice]:
    """The same prices with more images for the groups whose error is above the target."""
    setup = planned.setup
    target = target_error(setup.job)
    assert target is not None, "with images to spare there is one"
    n_all, step = len(setup.calibration), setup.job.cluster.images_per_task
    grown = {}
    for name, of_group in tasks.items():
        found = prices[name]
        missing = (tables.certainty(of_group).total / target) ** 2  # times the images there are
        if missing > 1:
            wanted = found.n_images * min(missing, GROWTH)
            found = replace(found, n_images=min(n_all, rounded(wanted, step)))
        grown[name] = found
    return grown


def _say_of_target(
    crew: Crew, planned: Plan, prices: dict[str, GroupPrice], found: dict[str, Certainty]
) -> None:
    """Which groups miss the target error, and what would meet it."""
    job, n_images = planned.setup.job, len(planned.setup.calibration)
    target = target_error(job)
    if target is None:
        return
    missed = {name: one for name, one in found.items() if one.total > target}
    if not missed:
        return
    worst = max(missed, key=lambda name: missed[name].total)
    needed = prices[worst].n_images * (missed[worst].total / target) ** 2
    about = f"about {needed:,.0f} images" if math.isfinite(needed) else "nobody knows how many"
    crew.console.print(
        f"score.target_error: {target:g} is met by {len(found) - len(missed)} of {len(found)} "
        f"groups with the {n_images:,} calibration images there are; {worst} is at "
        f"{percent(missed[worst].total)} of the spread of its scores; to meet it takes {about}"
    )


def _aggregate(
    planned: Plan, tasks: dict[str, list[ScoreTask]], tables: ScoreTables, record: Record
) -> dict[str, Certainty]:
    """The score tables, and what they are worth."""
    n_images = max(of[-1].last for of in tasks.values())
    with record.stage("aggregate"):
        scores, classes = zip(*(tables.taken(of) for of in tasks.values()), strict=True)
        store = planned.setup.store
        kept = with_kept_criteria(
            pa.concat_tables(scores),
            table_if_sound(store, names.SCORES),
            made_of(record.content["fingerprint"], planned.setup.job.cluster, n_images),
        )
        store.publish_table(names.SCORES, [kept], kept.schema)
        if planned.setup.calibration.labels is not None:
            store.publish_table(names.CLASS_SCORES, classes, CLASS_SCORES)
    return dict(zip(tasks, map(Certainty.of, scores), strict=True))
