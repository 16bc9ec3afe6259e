"""What fits a time: as many images as there are room for, and then more permutations."""

import bisect
from dataclasses import dataclass

from shapray.driver.forecast import Forecast
from shapray.driver.prediction import Prediction, makespan
from shapray.driver.prices import FIRST_IMAGES, rounded
from shapray.errors import JobError
from shapray.text import duration
from shapray.worker.costs import MAX_PERMUTATIONS, MIN_PERMUTATIONS

TELLING_PERMUTATIONS = 4  # a single pair tells no error of the sampling


@dataclass(frozen=True)
class Choice:
    """What a budget may be spent on.

    Attributes:
        n_images: calibration images.
        permutations: of each of them that is sampled.
    """

    n_images: int
    permutations: int


def choices(forecast: Forecast) -> list[Choice]:
    """From the cheapest to the dearest. Images come first: their choice makes a larger error than
    the sampling, and another permutation lowers only the latter."""
    setup = forecast.planned.setup
    n_all, step = len(setup.calibration), setup.job.cluster.images_per_task
    fewer: list[Choice] = []
    fewest = MIN_PERMUTATIONS
    if setup.job.data.calibration.limit == "auto":
        fewest = TELLING_PERMUTATIONS
        numbers = range(rounded(FIRST_IMAGES, step), n_all, step)
        fewer = [Choice(n, fewest) for n in numbers]
    return [*fewer, *(Choice(n_all, n) for n in range(fewest, MAX_PERMUTATIONS + 1, 2))]


def fitting(forecast: Forecast, budget: float) -> tuple[Choice, Prediction, Choice | None]:
    """The dearest choice whose predicted time is within a budget in seconds, what is predicted of
    it, and the next dearer one.

    Raises:
        JobError: not even the cheapest is; says what takes how long.
    """
    asked, n_workers = choices(forecast), forecast.n_workers

    def seconds(choice: Choice) -> float:
        return forecast.at(choice.permutations, choice.n_images).seconds(n_workers)

    n_fitting = bisect.bisect_right(asked, budget, key=seconds)
    if not n_fitting:
        raise JobError(_too_short(forecast, asked[0], budget))
    chosen, dearer = asked[n_fitting - 1], asked[n_fitting : n_fitting + 1]
    prediction = forecast.at(chosen.permutations, chosen.n_images)
    return chosen, prediction, dearer[0] if dearer else None


def _too_short(forecast: Forecast, fewest: Choice, budget: float) -> str:
    job, n_workers = forecast.planned.setup.job, forecast.n_workers
    least, prune = forecast.at(fewest.permutations, fewest.n_images), job.prune
    exact = sum(group.exact_seconds for group in least.groups)
    parts = {name: makespan(tasks, n_workers) for name, tasks in least.work.items()}
    listed = {
        "start and plan": least.driver["start"] + least.driver["plan"],
        "reading all images": parts["inspect"],
        f"scoring ({exact / least.worker_seconds('score'):.0%} of it for exact images)": parts[
            "score"
        ],
        "score tables and plan": least.driver["aggregate"] + least.driver["prune"],
        "other criteria": parts["criteria"],
        "measuring what cutting each group costs": parts["losses"],
        "further rounds": sum(parts[name] for name in parts if name.startswith("round ")),
        "searching for the size": parts["search"],
        f"repairing and evaluating {len(forecast.repaired)} networks": parts["evaluate"],
        "timing networks": parts["latency"],
    }
    return (
        f"--budget: {duration(budget)} is too short; {fewest.permutations} permutations of "
        f"{fewest.n_images:,} images, the fewest, are predicted to take "
        f"{duration(least.seconds(n_workers))} with {n_workers} worker{'s' * (n_workers > 1)}: "
        + ", ".join(f"{name} {duration(seconds)}" for name, seconds in listed.items() if seconds)
        + ". Give more time, or lower "
        + "prune.rounds, " * (prune.rounds > 1)
        + f"data.calibration.limit "
        f"({len(forecast.planned.setup.calibration)} images), score.exact_max_players "
        f"({job.score.exact_max_players}), "
        + f"prune.distill.steps ({prune.distill.steps}), "
        * ("distill" in prune.repair)
        + "or what prune.criteria, prune.curve, prune.random_seeds and prune.repair have measured "
        "and done"
    )
