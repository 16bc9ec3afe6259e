"""What `--plan` prints and what `--budget` chooses, before anything is scored or written."""

import math
import re
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from shapray.config import Job
from shapray.driver.budget import Choice, fitting
from shapray.driver.forecast import Forecast, make_forecast, pilots_on
from shapray.driver.prediction import Prediction
from shapray.driver.record import earlier_run
from shapray.errors import JobError
from shapray.storage.certainty import in_words, median, percent
from shapray.storage.run_directory import RunDirectory
from shapray.text import duration, size

MUCH = 0.5  # of the scoring in exact images: then it is said how to have fewer of them
WORKERS = (1, 2, 4, 8, 16, 64, 256)
TIMED_FOR_AUTO = (2, 4, 8)
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
    if seconds is not None and job.score.target_error is not None:
        raise JobError(
            f"--budget {budget} and score.target_error: {job.score.target_error:g} both say when "
            "it is enough; give one of them"
        )
    if seconds is not None and not show:
        begun = _begun_with(job)
        if begun is not None:
            console.print(
                f"--budget: the run in {job.output} was begun with {begun.score.permutations} "
                f"permutations per image, and goes on with them"
            )
            return begun
    asked = job.score.permutations
    timed: Sequence[int] = TIMED_FOR_AUTO if asked == "auto" else [asked]
    forecast = make_forecast(job, timed if seconds is None else TIMED_PERMUTATIONS, console)
    prediction = forecast.at(asked)
    if seconds is not None:
        chosen, prediction, dearer = fitting(forecast, seconds)
        n_workers = forecast.n_workers
        more = "no job is given more"
        if dearer is not None:
            takes = forecast.at(dearer.permutations, dearer.n_images).seconds(n_workers)
            more = f"{_in_words(dearer)} would take {duration(takes)}"
        console.print(
            f"--budget {budget}: {_in_words(chosen)}, predicted to take "
            f"{duration(prediction.seconds(n_workers))} with {n_workers} "
            f"worker{'s' * (n_workers > 1)} on {forecast.where} ({more})"
        )
        job = _with(job, chosen.permutations, chosen.n_images)
    if show:
        _show(forecast, prediction, console)
    return job


def _in_words(choice: Choice) -> str:
    return f"{choice.permutations} permutations per image of {choice.n_images:,} images"


def parse_time(text: str) -> float:
    """``90s``, ``30min``, ``2h``, ``1.5d`` -> seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|h|d)", text.strip())
    if not match or not float(match[1]):
        raise JobError(f"--budget: '{text}' is not a time; write for example 90s, 30min, 2h or 1d")
    return float(match[1]) * _SECONDS[match[2]]


def _begun_with(job: Job) -> Job | None:
    """The job with the permutations and images of the run that the directory holds, if that was
    given a number of them: other ones would be another job."""
    found = earlier_run(RunDirectory(job.output))
    permutations = None if found is None else found.parts.get("score.permutations")
    if found is None or not isinstance(permutations, int):
        return None
    return _with(job, permutations, found.limit)


def _with(job: Job, permutations: int, limit: int | str | None) -> Job:
    """A job with a number of permutations, and of images where it leaves them open."""
    score = job.score.model_copy(update={"permutations": permutations})
    data = job.data
    if data.calibration.limit == "auto":
        calibration = data.calibration.model_copy(update={"limit": limit})
        data = data.model_copy(update={"calibration": calibration})
    return job.model_copy(update={"score": score, "data": data})


def _show(forecast: Forecast, prediction: Prediction, console: Console) -> None:
    planned, survey = forecast.planned, forecast.survey
    job, n_images = planned.setup.job, len(planned.setup.calibration)
    console.print(
        f"{job.name}: a plan; nothing is scored, nothing is written. {n_images:,} calibration and "
        f"{len(planned.setup.evaluation):,} evaluation images; {survey.precision}",
    )
    console.print(_groups(prediction))
    console.print(_prices(prediction))
    certainties = [group.price.certainty for group in prediction.groups]
    if not all(math.isnan(found.total) for found in certainties):
        n_piloted = len(pilots_on(planned))
        console.print(
            "errors: of a score, relative to the spread of the group's scores, by a look at "
            f"{n_piloted} images, so roughly; " + in_words(median(certainties), prediction.n_images)
        )
    spent = prediction.worker_seconds("score")
    exact = sum(group.exact_seconds for group in prediction.groups)
    if job.score.estimator == "hybrid" and exact > MUCH * spent:
        console.print(
            f"{exact / spent:.0%} of the scoring goes into images whose values are exact; a lower "
            f"score.exact_max_players ({job.score.exact_max_players}) samples them"
        )
    excluded = [group for group in planned.groups if group.reason is not None]
    if excluded:
        console.print("not scored:")
        for group in excluded:
            console.print(f"  {group.name} ({group.n_units} units): {group.reason}")
    console.print(_stages(prediction))
    console.print(_times(forecast, prediction))
    n_bytes = sum(group.table_bytes for group in prediction.groups)
    console.print(
        f"tables: about {size(n_bytes)} in {prediction.n_tasks:,} shards and the score tables"
    )
    n_rounds = job.prune.rounds
    if n_rounds > 1:
        console.print(
            f"prune.rounds: {n_rounds}: what is left after a round is scored again, {n_rounds} "
            f"times in all; that costs at most {n_rounds} times the scoring, in time and tables, "
            "as each network is smaller than the one before. The rows of rounds have the most it "
            "can be"
        )
    console.print(
        f"This is a prediction. Active units were counted on {len(survey.images):,} of "
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


def _prices(prediction: Prediction) -> Table:
    """What each group's images are sampled at, and how sure its scores will be."""
    table = Table(box=box.SIMPLE, padding=(0, 1), collapse_padding=True)
    table.add_column("group", overflow="fold")
    columns = ("images", "permu-\ntations", "total\nerror", "from the\nimages", "from\nsampling")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for group in prediction.groups:
        found, price = group.price.certainty, group.price.price
        table.add_row(
            group.name,
            f"{group.price.n_images:,}",
            f"{price.permutations:,}" if group.exact < 1 else "none",
            percent(found.total),
            percent(found.images),
            percent(found.sampling),
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
