"""The units of a network scored: its images looked at, its tasks done, its tables published."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from shapray.cluster.pool import Counts, Failure
from shapray.driver import summary
from shapray.driver.crew import Crew
from shapray.driver.kept import made_of, table_if_sound, with_kept_criteria
from shapray.driver.plan import Plan, check_exact, groups_table
from shapray.driver.progress import Meter
from shapray.driver.record import Record
from shapray.driver.resume import missing_tasks, shard_reader
from shapray.driver.tasks import inspect_tasks, score_tasks
from shapray.errors import JobError, StorageError, TasksFailed
from shapray.storage import names
from shapray.storage.aggregate import aggregate_group
from shapray.storage.schemas import CLASS_SCORES, GROUPS
from shapray.storage.shards import UnsoundShard, publish_columns
from shapray.worker.tasks import Receipt, ScoreTask

PIECEMEAL = ("score", "criterion", "losses")  # whose tasks' results are kept, each for itself


def scored(
    crew: Crew, planned: Plan, n_active: np.ndarray | None, precision: str, record: Record
) -> summary.Totals:
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
    tasks = score_tasks(planned, n_active, precision, record.content["fingerprint"])
    _score(crew, planned, tasks, record)
    return _aggregate(planned, tasks, record)


def inspected(
    crew: Crew, planned: Plan, sets: Sequence[str] = ("calibration", "evaluation")
) -> np.ndarray:
    """Every image of the sets read once; returns the active units of the calibration images,
    (n_images, n_groups).

    Raises:
        JobError: one cannot be read, or values that are to be exact cannot be.
    """
    n_active = np.zeros((len(planned.setup.calibration), len(planned.setup.groups)), np.int32)

    tasks = [task for task in inspect_tasks(planned) if task.images in sets]

    def receive(inspection: Any) -> None:
        task = inspection.task
        if task.images == "calibration":
            n_active[task.first : task.last] = inspection.n_active

    failures = crew.do("inspect", tasks, receive)
    nothing_failed("inspect", failures)
    check_exact(planned, n_active)
    return n_active


def nothing_failed(stage: str, failures: Sequence[Failure]) -> None:
    for failure in sorted(failures, key=lambda failure: not failure.is_job_error):
        if failure.is_job_error:
            raise JobError(failure.message)
        raise TasksFailed(f"{stage}: {failure.message}\n{failure.traceback}")


def _score(crew: Crew, planned: Plan, tasks: list[ScoreTask], record: Record) -> None:
    with record.stage("score") as entry:
        missing = missing_tasks(planned, tasks, crew.console)
        entry |= {
            "tasks": len(tasks),
            "tasks_found_done": len(tasks) - len(missing),
            "tasks_done": 0,
            "tasks_failed": 0,
            "worker_seconds": 0.0,
            "worker_seconds_evaluating": 0.0,
            "evaluations": 0,
            "shard_bytes": 0,
        }

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
                tasks_done=counts.n_done,
                tasks_failed=counts.n_failed,
                tasks_retried=counts.n_retried,
                tasks_per_second=shown.tasks_per_second,
                seconds_left=shown.seconds_left,
                workers=counts.n_workers,
            )
            record.keep_current()

        failures = crew.do("score", missing, receive, change)
        stop_if_failed("score", failures, record)


def stop_if_failed(stage: str, failures: list[Failure], record: Record) -> None:
    if failures:
        record.set_aside(stage, failures)
        shown = sorted(failures, key=lambda failure: str(failure.task))[:20]
        lines = [f"  {failure.task}: {failure.message}" for failure in shown]
        if len(failures) > len(shown):
            lines.append(f"  and {len(failures) - len(shown)} more")
        again = "what was done is kept, and the same command does only the rest"
        if stage not in PIECEMEAL:
            again = (
                "scores, criteria and losses of groups are kept, and the same command does this "
                "stage anew"
            )
        raise TasksFailed(
            f"stage {stage}: {len(failures)} task{'s' * (len(failures) > 1)} failed (tracebacks "
            f"in {record.store.shown}/run.json); {again}:\n" + "\n".join(lines)
        )


def _aggregate(planned: Plan, tasks: list[ScoreTask], record: Record) -> summary.Totals:
    """The score tables; a group's shards are read in image order, one at a time."""
    totals = summary.Totals()
    read = shard_reader(planned)
    by_group: dict[str, list[ScoreTask]] = {}
    for task in tasks:
        by_group.setdefault(task.group, []).append(task)

    def shards(group: str) -> Iterable[pa.Table]:
        for task in by_group[group]:
            shard = read(task)
            totals.add(shard)
            yield shard

    with record.stage("aggregate"):
        try:
            tables = [
                aggregate_group(group.name, group.n_units, shards(group.name))
                for group in planned.setup.groups
            ]
        except UnsoundShard as error:
            raise StorageError(
                f"a shard changed while the run was going: {error}; the same command computes it "
                "again"
            ) from error
        store = planned.setup.store
        scores = with_kept_criteria(
            pa.concat_tables([scores for scores, _ in tables]),
            table_if_sound(store, names.SCORES),
            made_of(record.content["fingerprint"], planned.setup.job.cluster),
        )
        store.publish_table(names.SCORES, [scores], scores.schema)
        if planned.setup.calibration.labels is not None:
            classes = [by_class for _, by_class in tables]
            store.publish_table(names.CLASS_SCORES, classes, CLASS_SCORES)
    return totals
