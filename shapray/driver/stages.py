"""The stages of a job, one after the other."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from shapray.cluster.metrics import Metrics
from shapray.cluster.pool import Counts, Failure, Pool
from shapray.cluster.start import open_pool
from shapray.config import Job
from shapray.driver import summary
from shapray.driver.crew import Crew
from shapray.driver.cutting import Cutting
from shapray.driver.fingerprint import check_same_job, fingerprint_parts
from shapray.driver.inputs import Inputs, open_inputs
from shapray.driver.kept import table_if_sound, with_kept_criteria
from shapray.driver.plan import Plan, check_exact, groups_table, plan
from shapray.driver.progress import Meter
from shapray.driver.record import Earlier, Record, earlier_run, now
from shapray.driver.resume import missing_tasks, shard_reader
from shapray.driver.tasks import inspect_tasks, score_tasks
from shapray.errors import JobError, StorageError, TasksFailed
from shapray.storage import names
from shapray.storage.aggregate import aggregate_group
from shapray.storage.claim import Claim, claimed
from shapray.storage.run_directory import RunDirectory
from shapray.storage.schemas import CLASS_SCORES, GROUPS
from shapray.storage.shards import UnsoundShard, publish_columns
from shapray.worker.tasks import PrecisionTask, Receipt, ScoreTask
from shapray.worker.worker import Worker

PIECEMEAL = ("score", "criterion", "losses")  # whose tasks' results are kept, each for itself


def run(job: Job, console: Console) -> None:
    """All stages of a job, in order.

    Raises:
        JobError: the job or an input is wrong; nothing has been written then.
        TasksFailed: some tasks were set aside.
        StorageError, ClusterError, ClaimLost: see there.
    """
    started = now()
    store = RunDirectory(job.output)
    inputs = open_inputs(job, store)
    with claimed(store) as claim:
        _stages(inputs, claim, started, console)


def _stages(inputs: Inputs, claim: Claim, started: str, console: Console) -> None:
    job, store = inputs.job, inputs.store
    earlier = _earlier(inputs)
    planned = plan(inputs)
    console.print(
        f"{job.name}: {len(planned.setup.groups)} of {len(planned.groups)} groups, "
        f"{len(inputs.calibration)} calibration and {len(inputs.evaluation)} evaluation images"
    )
    record = Record(store, job, claim, started)
    make = functools.partial(Worker, planned.setup)
    with open_pool(make, job.cluster, in_process=not store.shared) as pool:
        console.print(pool.description)
        crew = Crew(pool, console, Metrics() if pool.on_ray else None)
        n_active = None
        same_images = earlier and earlier.evaluation == inputs.evaluation.digest()
        if not same_images or job.score.estimator == "exact":  # other groups may be asked for now
            n_active = _inspect(crew, planned)
        precision = _precision(pool, job, earlier)
        parts = fingerprint_parts(inputs, precision)
        fingerprint = record.describe(planned, precision, parts)
        cutting = _cutting(crew, planned, record, fingerprint)
        replace(cutting, stop=_nothing_failed).check_target()
        if earlier is None:
            _first_write(record)
        with record.stage("plan"):
            store.publish_table(
                names.GROUPS, [groups_table(planned.groups, planned.tail_macs)], GROUPS
            )
            publish_columns(store, [group.name for group in planned.setup.groups])
        tasks = score_tasks(planned, n_active, precision, fingerprint)
        _score(crew, planned, tasks, record)
        totals = _aggregate(planned, tasks, record, cutting.made_of)
        metrics = _cut(cutting, record)
        crew.end()
    summary.show(console, planned, totals, metrics)


def _earlier(inputs: Inputs) -> Earlier | None:
    """What an earlier run of the same job left, None if there was none.

    Raises:
        JobError: the directory belongs to another job.
    """
    found = earlier_run(inputs.store)
    if found is not None:
        asked = inputs.job.score.precision
        precision = found.precision if asked == "auto" else asked
        check_same_job(found.parts, fingerprint_parts(inputs, precision), inputs.store.shown)
    return found


def _first_write(record: Record) -> None:
    try:
        record.publish()
    except StorageError as error:
        raise JobError(f"output: {error}") from error


def _inspect(crew: Crew, planned: Plan) -> np.ndarray:
    """Every image read once; returns the active units, (n_images, n_groups)."""
    n_active = np.zeros((len(planned.setup.calibration), len(planned.setup.groups)), np.int32)

    def receive(inspection: Any) -> None:
        task = inspection.task
        if task.images == "calibration":
            n_active[task.first : task.last] = inspection.n_active

    failures = crew.do("inspect", inspect_tasks(planned), receive)
    _nothing_failed("inspect", failures)
    check_exact(planned, n_active)
    return n_active


def _precision(pool: Pool, job: Job, earlier: Earlier | None) -> str:
    """The precision of the scoring; measured once in a run's life, so that it never changes."""
    if job.score.precision != "auto":
        return job.score.precision
    if earlier is not None:
        return earlier.precision
    found: list[str] = []
    _nothing_failed("precision", pool.run("choose_precision", [PrecisionTask()], found.append))
    return found[0]


def _nothing_failed(stage: str, failures: Sequence[Failure]) -> None:
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
        _stop_if_failed("score", failures, record)


def _stop_if_failed(stage: str, failures: list[Failure], record: Record) -> None:
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


def _aggregate(
    planned: Plan, tasks: list[ScoreTask], record: Record, made_of: str
) -> summary.Totals:
    """The score tables; a group's shards are read in image order, one at a time.

    Args:
        made_of: what criteria that an earlier run has found must be made of, to be kept.
    """
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
            made_of,
        )
        store.publish_table(names.SCORES, [scores], scores.schema)
        if planned.setup.calibration.labels is not None:
            classes = [by_class for _, by_class in tables]
            store.publish_table(names.CLASS_SCORES, classes, CLASS_SCORES)
    return totals


def _cutting(crew: Crew, planned: Plan, record: Record, fingerprint: str) -> Cutting:
    def stop(stage: str, failures: list[Failure]) -> None:
        _stop_if_failed(stage, failures, record)

    return Cutting(crew, planned, planned.chooser, names.CUTS, stop, fingerprint)


def _cut(cutting: Cutting, record: Record) -> dict[str, Any]:
    """The smaller network and its rivals; returns the content of ``prune/metrics.json``."""
    store = record.store

    def publish(scores: pa.Table) -> None:
        store.publish_table(names.SCORES, [scores], scores.schema)

    with record.stage("prune"):
        scores = cutting.with_criteria(store.read_table(names.SCORES), publish)
        publish(scores)
        ranked = cutting.ranked(scores)
        compared = cutting.cuts(ranked, cutting.losses(ranked))
    with record.stage("evaluate") as entry:
        return cutting.measured(compared, entry)
