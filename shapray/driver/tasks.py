"""A job cut into tasks, and the parts that come back put together."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from shapray.config import Cluster, Score
from shapray.driver.plan import Plan
from shapray.driver.prices import GroupPrice
from shapray.network.group import Group
from shapray.pruning.curve import Measurement
from shapray.pruning.cuts import Compared, Cut
from shapray.pruning.evaluate import joined
from shapray.shapley.estimators import MAX_EXACT_PLAYERS, Sampling, is_exact, n_sampled
from shapray.worker.tasks import EvaluateTask, Evaluation, InspectTask, ScoreTask

INSPECT_IMAGES = 256  # per task
EVALUATE_IMAGES = 1024  # per task
REPAIR_COST = 4096  # in images evaluated, about


def inspect_tasks(images: str, n_images: int, first: int = 0) -> list[InspectTask]:
    """Tasks that read images `first` up to `n_images` of a set once, so that a broken one is found
    before anything is scored."""
    return [
        InspectTask(images, first + start, first + end, float(end - start))
        for start, end in slices(n_images - first, INSPECT_IMAGES)
    ]


def score_tasks(
    plan: Plan,
    n_active: np.ndarray | None,
    prices: Mapping[str, GroupPrice],
    precision: str,
    fingerprint: str,
) -> list[ScoreTask]:
    """A task per group and slice of the images that it is scored on, in that order.

    Args:
        n_active: (n_images, n_groups); None if not counted, then all units are taken to be active.
        prices: of the groups to score.
    """
    job, groups = plan.setup.job, plan.setup.groups
    if n_active is None:
        n_units = [group.n_units for group in groups]
        n_active = np.broadcast_to(n_units, (len(plan.setup.calibration), len(groups)))
    return group_tasks(
        groups, plan.tail_macs, n_active, prices, job.score, job.cluster, precision, fingerprint
    )


def group_tasks(
    groups: Sequence[Group],
    tail_macs: Mapping[str, int],
    n_active: np.ndarray,
    prices: Mapping[str, GroupPrice],
    score: Score,
    cluster: Cluster,
    precision: str,
    fingerprint: str = "",
) -> list[ScoreTask]:
    """The same from its parts.

    Args:
        n_active: (n_images, n_groups).
        fingerprint: of the run directory that the shards go to; none if they go nowhere.
    """
    return [
        ScoreTask(group.name, first, last, found.price, precision, fingerprint, cost)
        for column, group in enumerate(groups)
        for found in [prices[group.name]]
        for first, last in slices(found.n_images, cluster.images_per_task)
        for asked in [score.model_copy(update={"permutations": found.price.permutations})]
        for n_evaluations in [expected_evaluations(n_active[first:last, column], asked)]
        for cost in [float(n_evaluations) * max(1, tail_macs[group.name])]
    ]


def expected_evaluations(n_active: np.ndarray, sampling: Sampling) -> int:
    """Coalitions of some images, by their numbers of active units."""
    assert isinstance(sampling.permutations, int)
    return sum(
        2**k
        if k <= MAX_EXACT_PLAYERS and is_exact(k, sampling)
        else n_sampled(k, sampling.permutations)
        for k in n_active.tolist()
    )


def slices(n_images: int, size: int) -> list[tuple[int, int]]:
    """First and last (exclusive) of each task's images: the same whatever the number of workers."""
    return [(first, min(first + size, n_images)) for first in range(0, n_images, size)]


def evaluate_tasks(compared: Compared, n_images: int, folder: str) -> list[EvaluateTask]:
    """A task per cut and slice of the evaluation images; a cut that is repaired is measured on all
    of them where it is repaired, as the repair takes longer than the measurement.

    Args:
        folder: of the run directory, for the files of the kept cut.
    """
    return [
        EvaluateTask(cut, first, last, cost, folder if cut is compared.kept and not first else None)
        for cut in compared.all
        for first, last in evaluated_slices(n_images, bool(cut.repair))
        for cost in [float(last - first) + (REPAIR_COST if cut.repair else 0)]
    ]


def evaluated_slices(n_images: int, repaired: bool) -> list[tuple[int, int]]:
    """First and last (exclusive) evaluation image of a network's tasks."""
    return slices(n_images, n_images if repaired else EVALUATE_IMAGES)


def measured(compared: Sequence[Cut], evaluations: Iterable[Evaluation]) -> list[Measurement]:
    """Evaluations of slices merged per cut, in image order whoever was first."""
    parts: dict[str, list[Evaluation]] = {cut.name: [] for cut in compared}
    for evaluation in evaluations:
        parts[evaluation.task.cut.name].append(evaluation)
    results = []
    for cut in compared:
        ordered = sorted(parts[cut.name], key=lambda part: part.task.first)
        total, some = joined(part.tally for part in ordered), ordered[0]
        results.append(
            Measurement(cut, total, some.parameters, some.multiply_adds, some.file_bytes)
        )
    return results
