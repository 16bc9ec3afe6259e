"""A job cut into tasks, and the parts that come back put together."""

from collections.abc import Iterable, Sequence

import numpy as np

from shapray.driver.plan import Plan
from shapray.pruning.curve import Measurement
from shapray.pruning.cuts import Network
from shapray.pruning.evaluate import Tally
from shapray.shapley.estimators import MAX_EXACT_PLAYERS, is_exact, n_sampled
from shapray.worker.tasks import EvaluateTask, Evaluation, InspectTask, ScoreTask

INSPECT_IMAGES = 256  # per task


def inspect_tasks(plan: Plan) -> list[InspectTask]:
    """Tasks that read all images once, so that a broken one is found before anything is scored."""
    return [
        InspectTask(name, first, last, float(last - first))
        for name, images in (
            ("calibration", plan.setup.calibration),
            ("evaluation", plan.setup.evaluation),
        )
        for first, last in _slices(len(images), INSPECT_IMAGES)
    ]


def score_tasks(
    plan: Plan, n_active: np.ndarray | None, precision: str, fingerprint: str
) -> list[ScoreTask]:
    """A task per group and slice of calibration images, in that order.

    Args:
        n_active: as for `check_exact`; None if not counted, then all units are taken to be active.
    """
    job, tasks = plan.setup.job, []
    slices = list(_slices(len(plan.setup.calibration), job.cluster.images_per_task))
    for column, group in enumerate(plan.setup.groups):
        for first, last in slices:
            counts = [group.n_units] * (last - first)
            if n_active is not None:
                counts = n_active[first:last, column].tolist()
            n_evaluations = sum(
                2**k
                if k <= MAX_EXACT_PLAYERS and is_exact(k, job.score)
                else n_sampled(k, job.score.permutations)
                for k in counts
            )
            cost = float(n_evaluations) * max(1, plan.tail_macs[group.name])
            tasks.append(ScoreTask(group.name, first, last, precision, fingerprint, cost))
    return tasks


def _slices(n: int, size: int) -> Iterable[tuple[int, int]]:
    return ((first, min(first + size, n)) for first in range(0, n, size))


EVALUATE_IMAGES = 1024  # per task


def evaluate_tasks(made: Sequence[Network], n_images: int) -> list[EvaluateTask]:
    """A task per network and slice of the evaluation images; slices of a network side by side."""
    return [
        EvaluateTask(network.name, network.removed, first, last, float(last - first))
        for network in made
        for first in range(0, n_images, EVALUATE_IMAGES)
        for last in [min(first + EVALUATE_IMAGES, n_images)]
    ]


def measured(made: Sequence[Network], evaluations: Iterable[Evaluation]) -> list[Measurement]:
    """Evaluations of slices merged per network, in image order whoever was first."""
    parts: dict[str, list[Evaluation]] = {network.name: [] for network in made}
    for evaluation in evaluations:
        parts[evaluation.task.network].append(evaluation)
    results = []
    for network in made:
        total = Tally(0, 0, 0.0)
        for part in sorted(parts[network.name], key=lambda part: part.task.first):
            total += part.tally
        some = parts[network.name][0]
        results.append(Measurement(network, total, some.parameters, some.multiply_adds))
    return results
