"""The stages of a job, one after the other."""

import time
from dataclasses import replace
from typing import Any

from rich.console import Console

from shapray.cluster.pool import Failure, Pool
from shapray.config import Job
from shapray.driver import summary
from shapray.driver.crew import Crew, Crews
from shapray.driver.cutting import Cutting
from shapray.driver.explaining import Explaining
from shapray.driver.failures import nothing_failed, stop_if_failed
from shapray.driver.fingerprint import check_same_job, fingerprint_parts
from shapray.driver.inputs import Inputs, open_inputs
from shapray.driver.inspecting import inspected
from shapray.driver.plan import Plan, plan
from shapray.driver.prices import check_taken
from shapray.driver.progress import group_meter
from shapray.driver.record import Earlier, Record, earlier_run, now
from shapray.driver.reporting import show_report
from shapray.driver.rounds import Rounds
from shapray.driver.scoring import scored
from shapray.driver.targets import Targets
from shapray.errors import JobError, StorageError, TasksFailed
from shapray.pruning.cuts import Compared
from shapray.pruning.ranking import Ranking
from shapray.storage import names
from shapray.storage.claim import Claim, claimed
from shapray.storage.run_directory import RunDirectory
from shapray.worker.tasks import PrecisionTask


def run(job: Job, console: Console) -> None:
    """All stages of a job, in order.

    Raises:
        JobError: the job or an input is wrong; nothing has been written then, unless a further
            round of `prune.rounds` cannot be: then what was scored is kept.
        TasksFailed: some tasks were set aside.
        StorageError, ClusterError, ClaimLost: see there.
    """
    started, start = now(), time.monotonic()
    store = RunDirectory(job.output)
    inputs = open_inputs(job, store)
    opening = time.monotonic() - start
    with claimed(store) as claim:
        _stages(inputs, claim, started, opening, console)


def _stages(inputs: Inputs, claim: Claim, started: str, opening: float, console: Console) -> None:
    """opening: seconds that the inputs took."""
    job, store = inputs.job, inputs.store
    earlier = _earlier(inputs)
    start = time.monotonic()
    with group_meter(console, len(inputs.groups)) as progress:
        planned = plan(inputs, progress)
    planning = opening + time.monotonic() - start
    console.print(
        f"{job.name}: {len(planned.setup.groups)} of {len(planned.groups)} groups, "
        f"{len(inputs.calibration)} calibration and {len(inputs.evaluation)} evaluation images"
    )
    for note in inputs.notes:
        console.print(f"model: {note}")
    record = Record(store, job, claim, started)
    record.planned_in(planning)
    with Crews(console) as crews:
        crew = crews.of(planned)
        n_active = None
        same_images = earlier and earlier.evaluation == inputs.evaluation.digest()
        if not same_images or job.score.estimator == "exact":  # other groups may be asked for now
            n_active = inspected(crew, planned)
        precision = _precision(crew.pool, job, earlier)
        record.describe(planned, inputs.notes, precision, fingerprint_parts(inputs, precision))
        Targets(crew, planned, planned.chooser, nothing_failed).check()
        if earlier is None:
            _first_write(record)
        found = scored(crew, planned, n_active, precision, record)
        if found.n_images < len(inputs.calibration):  # the others take part in nothing
            inputs = replace(inputs, calibration=inputs.calibration.first(found.n_images))
            planned = planned.on(inputs.calibration)
        compared, metrics, ranking = _cut(Rounds(inputs, planned, record, crews, precision))
        explaining = Explaining(
            crews.of(planned), planned, record, precision, ranking, compared.kept.removed
        )
        failed = None
        try:
            explaining.explain()
        except TasksFailed as error:  # the cut is made and measured all the same
            failed = error
    summary.show(console, planned, found.totals, list(found.certainties.values()), metrics)
    show_report(store, console)
    if failed is not None:
        raise failed


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
        check_taken(inputs.job, inputs.store, inputs.calibration, inputs.evaluation)
    return found


def _first_write(record: Record) -> None:
    try:
        record.publish()
    except StorageError as error:
        raise JobError(f"output: {error}") from error


def _precision(pool: Pool, job: Job, earlier: Earlier | None) -> str:
    """The precision of the scoring; measured once in a run's life, so that it never changes."""
    if job.score.precision != "auto":
        return job.score.precision
    if earlier is not None:
        return earlier.precision
    found: list[str] = []
    nothing_failed("precision", pool.run("choose_precision", [PrecisionTask()], found.append))
    return found[0]


def _cutting(crew: Crew, planned: Plan, record: Record) -> Cutting:
    def stop(stage: str, failures: list[Failure]) -> None:
        stop_if_failed(stage, failures, record)

    return Cutting(crew, planned, planned.chooser, names.CUTS, stop, record.content["fingerprint"])


def _cut(rounds: Rounds) -> tuple[Compared, dict[str, Any], Ranking]:
    """The smaller network and its rivals; returns what was compared, the content of
    ``prune/metrics.json`` and the job's own ranking."""
    planned, record, crews = rounds.planned, rounds.record, rounds.crews

    def cutting() -> Cutting:
        return _cutting(crews.of(planned), planned, record)

    with record.stage("prune"):
        ranked, losses = cutting().ranked_anew()
        several = planned.chooser.prune.rounds > 1
        removed = rounds.cut(ranked[0], losses) if several else None
        compared = cutting().cuts(ranked, losses, removed)
    with record.stage("evaluate") as entry:
        metrics = cutting().measured(compared, entry)
    return compared, metrics, ranked[0]
