"""What `--plan` prints and what `--budget` chooses, before anything is scored or written."""

import re

from rich import box
from rich.console import Console
from rich.table import Table

from shapray.config import Job
from shapray.driver.forecast import (
    Forecast,
    Prediction,
    fewest_permutations,
    fitting,
    make_forecast,
)
from shapray.driver.record import earlier_run
from shapray.errors import JobError
from shapray.storage.run_directory import RunDirectory
from shapray.text import duration, size
from shapray.worker.costs import MAX_PERMUTATIONS

WORKERS = (1, 2, 4, 8, 16, 64, 256)
TIMED_PERMUTATIONS = (2, 4, 8, 16, 64, 256)  # for a budget; the others are interpolated
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def preview(job: Job, budget: str | None, show: bool, console: Console) -> Job:
    """Look ahead at a job.

    Args:
        budget: time that the run may take, or None; the permutations are chosen to fit.
        show: print the plan, too.
    Returns:
        the job, with the permutations that were chosen.
    Raises:
        JobError: the job or an input is wrong, or the budget is too short.
        ClusterError: see `make_forecast`.
    """
    seconds = None if budget is None else parse_time(budget)
    if seconds is not None and job.score.estimator == "exact":
        raise JobError("--budget chooses score.permutations; score.estimator: exact draws none")
    if seconds is not None and not show:
        begun = _begun_with(job)
        if begun is not None:
            console.print(
                f"--budget: the run in {job.output} was begun with {begun} permutations per image, "
                "and goes on with them"
            )
            return _with_permutations(job, begun)
    timed = [job.score.permutations]
    if seconds is not None:
        timed = [n for n in TIMED_PERMUTATIONS if n >= fewest_permutations(job.score)]
    forecast = make_forecast(job, timed)
    prediction = forecast.at(job.score.permutations)
    if seconds is not None:
        prediction = fitting(forecast, seconds)
        n, n_workers = prediction.permutations, forecast.n_workers
        more = "no job is given more"
        if n < MAX_PERMUTATIONS:
            more = f"{n + 2} would take {duration(forecast.at(n + 2).seconds(n_workers))}"
        console.print(
            f"--budget {budget}: {n} permutations per image, predicted to take "
            f"{duration(prediction.seconds(n_workers))} with {n_workers} "
            f"worker{'s' * (n_workers > 1)} on {forecast.where} ({more})"
        )
    if show:
        _show(forecast, prediction, console)
    return _with_permutations(job, prediction.permutations)


def parse_time(text: str) -> float:
    """``90s``, ``30min``, ``2h``, ``1.5d`` -> seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h|d)", text.strip())
    if not match or not float(match[1]):
        raise JobError(f"--budget: '{text}' is not a time; write for example 90s, 30min, 2h or 1d")
    return float(match[1]) * _SECONDS[match[2]]


def _begun_with(job: Job) -> int | None:
    """Permutations of the run that the directory holds: another number would be another job."""
    found = earlier_run(RunDirectory(job.output))
    permutations = None if found is None else found.parts.get("score.permutations")
    return permutations if isinstance(permutations, int) else None


def _with_permutations(job: Job, permutations: int) -> Job:
    score = job.score.model_copy(update={"permutations": permutations})
    return job.model_copy(update={"score": score})


def _show(forecast: Forecast, prediction: Prediction, console: Console) -> None:
    planned, survey = forecast.planned, forecast.survey
    job, n_images = planned.setup.job, len(planned.setup.calibration)
    console.print(
        f"{job.name}: a plan; nothing is scored, nothing is written. {n_images:,} calibration and "
        f"{len(planned.setup.evaluation):,} evaluation images; a sampled image costs as much as "
        f"{prediction.permutations} permutations of its active units would; {survey.precision}",
    )
    console.print(_groups(prediction))
    excluded = [group for group in planned.groups if group.reason is not None]
    if excluded:
        console.print("not scored:")
        for group in excluded:
            console.print(f"  {group.name} ({group.n_units} units): {group.reason}")
    console.print(_stages(prediction))
    console.print(_times(forecast, prediction))
    n_bytes = sum(group.table_bytes for group in prediction.groups)
    console.print(
        f"tables: about {size(n_bytes)} in {forecast.n_tasks:,} shards and the score tables"
    )
    n_rounds = job.prune.rounds
    if n_rounds > 1:
        console.print(
            f"prune.rounds: {n_rounds}: what is left after a round is scored again, {n_rounds} "
            f"times in all; that costs at most {n_rounds} times the scoring, in time and tables, "
            "as each network is smaller than the one before. The rows of rounds have the most it "
            "can be"
        )
    at_most = ""
    if job.score.target_standard_error is not None:
        at_most = ", and with all permutations where the target standard error may need fewer"
    console.print(
        f"This is a prediction{at_most}. Active units were counted on {len(survey.images):,} of "
        f"{n_images:,} calibration images; times were measured on {forecast.where} with "
        f"{job.cluster.cpus_per_worker} thread{'s' * (job.cluster.cpus_per_worker > 1)} per "
        "worker, on a few coalitions of a few images of each group. Waiting for storage, other "
        "work on the machine and workers that share its memory are not in it.",
    )


def _groups(prediction: Prediction) -> Table:
    """A row per group; `exact` is the share of images, in the last row the share of values."""
    table = Table(box=box.SIMPLE, padding=(0, 1), collapse_padding=True)
    table.add_column("group", overflow="fold")
    for name in ("units", "active", "exact", "evaluations", "multiply-\nadds", "one worker"):
        table.add_column(name, justify="right", no_wrap=True)
    groups = prediction.groups
    for group in groups:
        table.add_row(
            group.name,
            f"{group.n_units:,}",
            f"{group.n_active:.1f}",
            f"{group.exact:.1%}",
            f"{group.n_evaluations:,}",
            f"{group.multiply_adds:.3g}",
            duration(group.prepare + float(group.tasks.sum())),
        )
    n_units = sum(group.n_units for group in groups)
    table.add_section()
    table.add_row(
        "all",
        f"{n_units:,}",
        f"{sum(group.n_active for group in groups):.1f}",
        f"{sum(group.exact * group.n_units for group in groups) / n_units:.1%}",
        f"{sum(group.n_evaluations for group in groups):,}",
        f"{sum(group.multiply_adds for group in groups):.3g}",
        duration(prediction.worker_seconds("score")),
    )
    return table


def _stages(prediction: Prediction) -> Table:
    """Where the time of the run goes, on this machine."""
    table = Table(box=box.SIMPLE)
    table.add_column("stage")
    table.add_column("tasks", justify="right")
    table.add_column("longest task", justify="right")
    table.add_column("one worker", justify="right")
    for name, parts in prediction.work.items():
        tasks = [seconds for _, seconds in parts]
        if not tasks:  # nothing of the kind is asked for
            continue
        table.add_row(
            name,
            f"{sum(map(len, tasks)):,}",
            duration(max(float(seconds.max()) for seconds in tasks)),
            duration(prediction.worker_seconds(name)),
        )
    for name, seconds in prediction.driver.items():
        table.add_row(f"{name} (driver)", "", "", duration(seconds))
    return table


def _times(forecast: Forecast, prediction: Prediction) -> Table:
    """The whole run on this machine and on more and fewer workers."""
    table = Table(box=box.SIMPLE)
    table.add_column("workers", justify="right")
    table.add_column("whole run", justify="right")
    for n in sorted({*WORKERS, forecast.n_workers}):
        here = "here " if n == forecast.n_workers else ""
        table.add_row(f"{here}{n}", duration(prediction.seconds(n)))
    return table
