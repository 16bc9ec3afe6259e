"""What a job will do and take, before it does it.

A forecast is made from counts, of the tasks that the run will have and of the active units of a
sample of the images, and from times, which `worker.survey` and `worker.group_survey` measure on the
machine that will do the work; `worker.costs` says what follows from them.
"""

import functools
import os
import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from rich.console import Console

from shapray.cluster.needs import workers_here
from shapray.cluster.ray_pool import RayPool
from shapray.cluster.start import open_pool
from shapray.config import Job
from shapray.driver.cutting_costs import CuttingCosts
from shapray.driver.explaining_costs import ExplainingCosts
from shapray.driver.inputs import open_inputs
from shapray.driver.plan import Plan, check_exact, plan
from shapray.driver.prediction import GroupForecast, Prediction
from shapray.driver.prices import (
    GroupPrice,
    decided,
    is_piloted,
    pilot_images,
    taken_at_first,
    taken_at_last,
)
from shapray.driver.progress import group_meter
from shapray.driver.tasks import inspect_tasks, slices
from shapray.errors import ClusterError, JobError
from shapray.pruning.cuts import compared_networks
from shapray.shapley.coalitions import antithetic_permutations, image_seed, repeated
from shapray.shapley.estimators import is_exact
from shapray.shapley.pairs import DrawnPairs, in_pairs
from shapray.shapley.pilot import FEWEST_IMAGES
from shapray.storage.run_directory import RunDirectory
from shapray.worker.costs import Survey
from shapray.worker.survey import Surveyor, SurveyTask

START_SECONDS = 12.0  # Ray and the workers' imports
COUNTED_STEPS = 250_000  # of permutations whose coalitions are told apart one by one
MANY_COALITIONS = 24  # players; of more, few coalitions are drawn again


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
        self.n_rankings, self.repaired = compared_networks(planned.setup.job.prune)
        check_exact(planned, survey.n_active, survey.images.tolist())

    def _at(self, permutations: int | str, n_images: int | None = None) -> Prediction:
        """The job at a price.

        Args:
            permutations: per image; "auto": what the pilots choose for each group.
            n_images: calibration images; None: all, or as many as `data.calibration.limit: auto`
                will take of each group.
        """
        survey, setup = self.survey, self.planned.setup
        groups = tuple(
            self._group(column, self._price(group.name, permutations, n_images))
            for column, group in enumerate(setup.groups)
        )
        most = max(group.price.n_images for group in groups)
        planned = self.planned.on(setup.calibration.first(most))
        of_groups = {group.name: group.price.price.permutations for group in groups}
        costs = survey.groups.values()
        look = survey.load + survey.look
        cutting = CuttingCosts(planned, survey, of_groups)
        explaining = ExplainingCosts(cutting, [float(group.tasks.sum()) for group in groups])
        pilots = [(0.0, self._pilots())] if is_piloted(setup.job.score, most) else []
        score = [(group.prepare, group.tasks) for group in groups]
        n_further = setup.job.prune.rounds - 1
        n_shards = sum(len(group.tasks) for group in groups) / len(groups)
        aggregated = n_shards * sum(cost.aggregate for cost in costs)
        inspected = [
            look * task.cost
            for name, images in (
                ("calibration", planned.setup.calibration),
                ("evaluation", setup.evaluation),
            )
            for task in inspect_tasks(name, len(images))
        ]
        return Prediction(
            groups=groups,
            driver={
                "start": (1 + 2 * n_further) * START_SECONDS,  # workers have one network at a time
                "plan": self.planning,
                "aggregate": (1 + n_further) * aggregated,
                "prune": survey.network,
            },
            work={
                "inspect": [(0.0, np.array(inspected))],
                "pilot": pilots if permutations == "auto" else [],
                "score": score,
                "criteria": cutting.criteria(),
                "losses": cutting.losses(self.n_rankings),
                **{f"round {2 + n}": [*score, *cutting.between()] for n in range(n_further)},
                "search": cutting.search(),
                "evaluate": cutting.evaluation(),
                "latency": cutting.latency(),
                "explain": explaining.parts(),
            },
        )

    def _price(self, group: str, permutations: int | str, n_images: int | None) -> GroupPrice:
        job, n_all = self.planned.setup.job, len(self.planned.setup.calibration)
        score = job.score.model_copy(update={"permutations": permutations})
        to_spare = job.data.calibration.limit == "auto" and n_images is None
        found = decided(score, self.survey.pilots.get(group), n_all, to_spare)
        return replace(found, n_images=n_images or taken_at_last(job, found, n_all))

    def _pilots(self) -> np.ndarray:
        """Seconds of each group's."""
        setup, survey = self.planned.setup, self.survey
        n_images = len(pilots_on(self.planned))
        seconds = []
        for column, group in enumerate(setup.groups):
            n_active = np.full(n_images, survey.n_active[:, column].mean())
            costs, of_group = survey.groups[group.name], survey.pilots.get(group.name)
            prices = [] if of_group is None else of_group.drawn
            seconds.append(
                sum(
                    costs.seconds(
                        np.zeros(n_images, bool),
                        n_active * price.permutations,
                        price.permutations,
                        price.by == "pairs",
                    ).sum()
                    for price in prices
                )
            )
        return np.array(seconds)

    def _group(self, column: int, priced: GroupPrice) -> GroupForecast:
        setup, survey = self.planned.setup, self.survey
        group, n_images = setup.groups[column], priced.n_images
        price, permutations = priced.price, priced.price.permutations
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
            numbers = [price.of(image) for image in survey.images[counted].tolist()]
            found = n_coalitions(n_active[counted].tolist(), numbers, price.by, seeds)
            per_unit = found.sum() / n_active[counted].sum()
            n_evaluations[sampled] = per_unit * n_active[sampled]
            n_evaluations[counted] = found
        in_pairs = price.by == "pairs"
        seconds = costs.seconds(exact, n_evaluations, permutations, in_pairs)
        every = np.full(len(setup.calibration), survey.load + seconds.mean())
        every[survey.images] = survey.load + seconds
        total = round(float(n_evaluations.mean()) * n_images)
        parts = slices(n_images, setup.job.cluster.images_per_task)
        n_labels = 0
        if setup.calibration.labels is not None:
            n_labels = len(setup.calibration.labels.unique())
        return GroupForecast(
            name=group.name,
            n_units=group.n_units,
            price=priced,
            n_active=float(n_active.mean()),
            exact=float(exact.mean()),
            n_evaluations=total,
            multiply_adds=total * self.planned.tail_macs[group.name],
            prepare=costs.prepare,
            tasks=np.array([every[first:last].sum() for first, last in parts]),
            exact_seconds=float((seconds * exact).mean()) * n_images,
            table_bytes=len(parts) * costs.shard_bytes
            + costs.scores_bytes
            + n_labels * costs.label_bytes,
        )


def pilots_on(planned: Plan) -> tuple[int, ...]:
    """Places of the images that the pilots look at."""
    calibration, job = planned.setup.calibration, planned.setup.job
    n_images = len(calibration)
    return pilot_images(calibration.labels, n_images, taken_at_first(job, n_images))


def n_coalitions(
    n_players: Sequence[int], permutations: Sequence[int], by: str, seeds: Sequence[int]
) -> np.ndarray:
    """How many different coalitions are evaluated of some sampled images: (n_images,)."""
    found = np.zeros(len(seeds), int)
    for row, (k, n, seed) in enumerate(zip(n_players, permutations, seeds, strict=True)):
        paired = by == "pairs" and in_pairs(k, n)
        if paired and k > MANY_COALITIONS:
            found[row] = n * (k - 1)  # pairs are drawn until there are as many
        elif paired:
            found[row] = DrawnPairs(k, n, seed).n_distinct(n)
        else:
            orders = antithetic_permutations(k, n, seed)
            first = repeated(orders, np.zeros(len(orders), int))
            new = first == np.arange(first.size).reshape(first.shape)
            found[row] = new[:, 1:k].sum()
    return found + 2  # the empty and the full coalition


def make_forecast(
    job: Job, permutations: Sequence[int], console: Console | None = None
) -> Forecast:
    """Check a job's inputs, count and time, and make every group's pilot; writes nothing.

    On the Ray cluster at ``RAY_ADDRESS`` one of its workers is timed, else this process.

    Args:
        permutations: numbers at which the work around the network is timed.
        console: where to show how far the plan is.
    Raises:
        JobError: the job or an input is wrong.
        ClusterError: the worker that was to be timed failed.
    """
    start = time.monotonic()
    inputs = open_inputs(job, RunDirectory(job.output))
    with group_meter(console or Console(quiet=True), len(inputs.groups)) as progress:
        planned = plan(inputs, progress)
    planning = time.monotonic() - start
    threads = torch.get_num_threads()
    n_images = len(planned.setup.calibration)
    is_told = job.score.estimator != "exact" and n_images >= FEWEST_IMAGES
    images = pilots_on(planned) if is_told else ()
    make = functools.partial(Surveyor, planned.setup)
    task = SurveyTask(tuple(permutations), taken_at_first(job, n_images), images)
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
