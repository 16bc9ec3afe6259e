"""What a job will do and take, before it does it; and how many permutations fit a time.

A forecast is made from counts, of the tasks that the run will have and of the active units of a
sample of the images, and from times, which `worker.survey` and `worker.group_survey` measure on the
machine that will do the work; `worker.costs` says what follows from them.
"""

import bisect
import functools
import heapq
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from shapray.cluster.needs import workers_here
from shapray.cluster.ray_pool import RayPool
from shapray.cluster.start import open_pool
from shapray.config import Job, Score
from shapray.driver.cutting_costs import CuttingCosts
from shapray.driver.inputs import open_inputs
from shapray.driver.plan import Plan, check_exact, plan
from shapray.driver.tasks import inspect_tasks, score_tasks
from shapray.errors import ClusterError, JobError
from shapray.pruning.cuts import compared_networks
from shapray.shapley.coalitions import antithetic_permutations, image_seed, repeated
from shapray.shapley.estimators import is_exact
from shapray.shapley.pairs import DrawnPairs, in_pairs
from shapray.storage.run_directory import RunDirectory
from shapray.text import duration
from shapray.worker.costs import MAX_PERMUTATIONS, MIN_PERMUTATIONS, Survey
from shapray.worker.survey import Surveyor, SurveyTask

START_SECONDS = 12.0  # Ray and the workers' imports
COUNTED_STEPS = 250_000  # of permutations whose coalitions are told apart one by one
MANY_COALITIONS = 24  # players; of more, few coalitions are drawn again


@dataclass(frozen=True)
class GroupForecast:
    """What one group will take.

    Attributes:
        name, n_units: of the group.
        n_active: active units, mean over the images counted.
        exact: share of these images whose values are exact.
        n_evaluations: coalitions, over all calibration images.
        multiply_adds: of the network's tail, for all of them.
        prepare: seconds, once per worker.
        tasks: (n_tasks,) seconds each.
        exact_seconds: the part of them that goes into exact images.
        table_bytes: shards and rows of the score tables.
    """

    name: str
    n_units: int
    n_active: float
    exact: float
    n_evaluations: int
    multiply_adds: int
    prepare: float
    tasks: np.ndarray
    exact_seconds: float
    table_bytes: int


@dataclass(frozen=True)
class Prediction:
    """A job with a certain number of permutations.

    Attributes:
        permutations: per image.
        groups: those to score.
        driver: stages of the driver, name -> seconds.
        work: stages of the workers, name -> its parts, each as `makespan` takes it: (seconds of
            preparation, once per worker, and (n_tasks,) seconds of each task).
    """

    permutations: int
    groups: tuple[GroupForecast, ...]
    driver: dict[str, float]
    work: dict[str, list[tuple[float, np.ndarray]]]

    def seconds(self, n_workers: int) -> float:
        """From the command to its end, on so many workers like the one that was timed."""
        stages = (makespan(parts, n_workers) for parts in self.work.values())
        return sum(stages) + sum(self.driver.values())

    def worker_seconds(self, stage: str) -> float:
        """On one worker."""
        return sum(prepare + float(tasks.sum()) for prepare, tasks in self.work[stage])


def makespan(parts: Sequence[tuple[float, np.ndarray]], n_workers: int) -> float:
    """Time of a stage: the longest tasks first, each to the worker that is free first.

    Args:
        parts: (preparation, seconds of each task); every worker that does tasks of a part
            prepares itself once.
    """
    if not parts:
        return 0.0
    tasks: list[np.ndarray] = []
    for prepare, seconds in parts:
        tasks.append(seconds.astype(float))
        tasks[-1][:n_workers] += prepare
    free = [0.0] * n_workers
    for seconds in np.sort(np.concatenate(tasks))[::-1].tolist():
        heapq.heapreplace(free, free[0] + seconds)
    return max(free)


class Forecast:
    """What is known about a job before it runs.

    Args:
        planned: the job, its inputs checked.
        survey: counts and times.
        n_workers: that the machine or cluster will have.
        where: it, in words.
        planning: seconds that the plan took.
    """

    def __init__(
        self, planned: Plan, survey: Survey, n_workers: int, where: str, planning: float
    ) -> None:
        self.planned, self.survey, self.planning = planned, survey, planning
        self.n_workers, self.where = n_workers, where
        self.at = functools.cache(self._at)
        job, n_images = planned.setup.job, len(planned.setup.calibration)
        self.slices = [
            (task.first, task.last)
            for task in score_tasks(planned, None, survey.precision, "")
            if task.group == planned.setup.groups[0].name
        ]
        self.n_rankings, self.repaired = compared_networks(job.prune)
        n_active = np.zeros((n_images, len(planned.setup.groups)), np.int32)
        n_active[survey.images] = survey.n_active
        check_exact(planned, n_active)

    @property
    def n_tasks(self) -> int:
        return len(self.slices) * len(self.planned.setup.groups)

    def _at(self, permutations: int) -> Prediction:
        """The job with so many permutations per image."""
        survey, setup = self.survey, self.planned.setup
        groups = tuple(self._group(column, permutations) for column in range(len(setup.groups)))
        costs = survey.groups.values()
        look = survey.load + survey.look
        cutting = CuttingCosts(self.planned, survey, permutations)
        score = [(group.prepare, group.tasks) for group in groups]
        n_further = setup.job.prune.rounds - 1
        aggregated = len(self.slices) * sum(cost.aggregate for cost in costs)
        inspected = [look * (task.last - task.first) for task in inspect_tasks(self.planned)]
        return Prediction(
            permutations=permutations,
            groups=groups,
            driver={
                "start": (1 + 2 * n_further) * START_SECONDS,  # workers have one network at a time
                "plan": self.planning,
                "aggregate": (1 + n_further) * aggregated,
                "prune": survey.network,
            },
            work={
                "inspect": [(0.0, np.array(inspected))],
                "score": score,
                "criteria": cutting.criteria(),
                "losses": cutting.losses(self.n_rankings),
                **{f"round {2 + n}": [*score, *cutting.between()] for n in range(n_further)},
                "search": cutting.search(),
                "evaluate": cutting.evaluation(),
                "latency": cutting.latency(),
            },
        )

    def _group(self, column: int, permutations: int) -> GroupForecast:
        setup, survey = self.planned.setup, self.survey
        group, n_images = setup.groups[column], len(setup.calibration)
        costs, score = survey.groups[group.name], setup.job.score
        asked = score.model_copy(update={"permutations": permutations})
        n_active = survey.n_active[:, column]
        exact = np.array([is_exact(k, asked) for k in n_active.tolist()])
        n_evaluations = np.zeros(len(n_active))
        n_evaluations[exact] = 2.0 ** n_active[exact]
        sampled = np.flatnonzero(~exact)
        if len(sampled):
            # as many images as can be counted one by one stand for the others
            some = max(1, COUNTED_STEPS // (permutations * int(n_active[sampled].max() + 1)))
            counted = sampled[np.linspace(0, len(sampled) - 1, min(some, len(sampled))).astype(int)]
            ids = [setup.calibration.ids[i] for i in survey.images[counted]]
            seeds = [image_seed(score.seed, group.name, image_id) for image_id in ids]
            found = n_coalitions(n_active[counted].tolist(), permutations, seeds)
            per_unit = found.sum() / n_active[counted].sum()
            n_evaluations[sampled] = per_unit * n_active[sampled]
            n_evaluations[counted] = found
        seconds = costs.seconds(exact, n_evaluations, permutations)
        every = np.full(n_images, survey.load + seconds.mean())
        every[survey.images] = survey.load + seconds
        total = round(float(n_evaluations.mean()) * n_images)
        n_labels = 0
        if setup.calibration.labels is not None:
            n_labels = len(setup.calibration.labels.unique())
        return GroupForecast(
            name=group.name,
            n_units=group.n_units,
            n_active=float(n_active.mean()),
            exact=float(exact.mean()),
            n_evaluations=total,
            multiply_adds=total * self.planned.tail_macs[group.name],
            prepare=costs.prepare,
            tasks=np.array([every[first:last].sum() for first, last in self.slices]),
            exact_seconds=float((seconds * exact).mean()) * n_images,
            table_bytes=len(self.slices) * costs.shard_bytes
            + costs.scores_bytes
            + n_labels * costs.label_bytes,
        )


def n_coalitions(n_players: Sequence[int], permutations: int, seeds: Sequence[int]) -> np.ndarray:
    """How many different coalitions are evaluated of some sampled images: (n_images,)."""
    found = np.zeros(len(seeds), int)
    for row, (k, seed) in enumerate(zip(n_players, seeds, strict=True)):
        if in_pairs(k, permutations) and k > MANY_COALITIONS:
            found[row] = permutations * (k - 1)  # pairs are drawn until there are as many
        elif in_pairs(k, permutations):
            found[row] = DrawnPairs(k, permutations, seed).n_distinct(permutations)
        else:
            orders = antithetic_permutations(k, permutations, seed)
            first = repeated(orders, np.zeros(len(orders), int))
            new = first == np.arange(first.size).reshape(first.shape)
            found[row] = new[:, 1:k].sum()
    return found + 2  # the empty and the full coalition


def make_forecast(job: Job, permutations: Sequence[int]) -> Forecast:
    """Check a job's inputs, count and time; writes nothing.

    On the Ray cluster at ``RAY_ADDRESS`` one of its workers is timed, else this process.

    Args:
        permutations: numbers at which the work around the network is timed.
    Raises:
        JobError: the job or an input is wrong.
        ClusterError: the worker that was to be timed failed.
    """
    start = time.monotonic()
    planned = plan(open_inputs(job, RunDirectory(job.output)))
    planning = time.monotonic() - start
    threads = torch.get_num_threads()
    make, task = functools.partial(Surveyor, planned.setup), SurveyTask(tuple(permutations))
    on_cluster = bool(os.environ.get("RAY_ADDRESS"))
    found: list[Survey] = []
    try:
        with open_pool(make, job.cluster, not on_cluster) as pool:
            for failure in pool.run("survey", [task], found.append):
                if failure.is_job_error:
                    raise JobError(failure.message)
                raise ClusterError(f"the forecast failed: {failure.message}\n{failure.traceback}")
            assert isinstance(pool, RayPool) or not on_cluster
            capacity = pool.capacity if isinstance(pool, RayPool) else workers_here(job.cluster)
    finally:
        torch.set_num_threads(threads)
    if job.cluster.workers != "auto":
        capacity = min(capacity, job.cluster.workers)
    if not planned.setup.store.shared:  # then this process does it all
        capacity = 1
    where = f"this {'cluster' if on_cluster else 'machine'} ({found[0].device})"
    return Forecast(planned, found[0], max(1, capacity), where, planning)


def fewest_permutations(score: Score) -> int:
    """The fewest that a job may have: the standard error of a single pair is unknown."""
    return MIN_PERMUTATIONS if score.target_standard_error is None else 4


def fitting(forecast: Forecast, budget: float) -> Prediction:
    """The most permutations whose predicted time is within a budget in seconds.

    Raises:
        JobError: not even the fewest are; says what takes how long.
    """
    job, n_workers = forecast.planned.setup.job, forecast.n_workers
    score, prune = job.score, job.prune
    fewest = fewest_permutations(score)
    choices = range(fewest, MAX_PERMUTATIONS + 1, 2)
    n_fitting = bisect.bisect_right(
        choices, budget, key=lambda n: forecast.at(n).seconds(n_workers)
    )
    if n_fitting:
        return forecast.at(choices[n_fitting - 1])
    least = forecast.at(fewest)
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
    raise JobError(
        f"--budget: {duration(budget)} is too short; {fewest} permutations per image, the fewest, "
        f"are predicted to take {duration(least.seconds(n_workers))} with {n_workers} "
        f"worker{'s' * (n_workers > 1)}: "
        + ", ".join(f"{name} {duration(seconds)}" for name, seconds in listed.items() if seconds)
        + ". Give more time, or lower "
        + "prune.rounds, " * (prune.rounds > 1)
        + f"data.calibration.limit "
        f"({len(forecast.planned.setup.calibration)} images), score.exact_max_players "
        f"({score.exact_max_players}), "
        + f"prune.distill.steps ({prune.distill.steps}), "
        * ("distill" in prune.repair)
        + "or what prune.criteria, prune.curve, prune.random_seeds and prune.repair have measured "
        "and done"
    )
