"""What a job will do: its groups chosen and each one checked.

Nothing is written here, so that a wrong job leaves nothing behind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from shapray.driver.inputs import CHECK_IMAGES, Inputs
from shapray.driver.prices import taken_at_first
from shapray.engine.choose import Progress, choose_groups
from shapray.errors import JobError, NetworkError
from shapray.inputs.images import ImageSet
from shapray.network.group import Group
from shapray.pruning.chooser import SEARCHED, Chooser
from shapray.pruning.criteria.inputs import AsScored
from shapray.pruning.cuts import HELD_BACK
from shapray.pruning.feasible import check_images, check_ways
from shapray.pruning.rounds import changed, check_rounds
from shapray.pruning.sizes import Sizes
from shapray.shapley.estimators import check_enumerable
from shapray.worker.tasks import Setup


@dataclass(frozen=True)
class Plan:
    """A job whose inputs are there and fit together.

    Attributes:
        setup: for the workers; its groups are those to score.
        groups: all of the network, those not scored with their reason, in network order.
        tail_macs: multiply-adds per coalition and image, of each group to score.
        example: (1, channels, height, width), the first calibration image.
        n_classes: outputs of the network.
        chooser: of the units that go; the sizes that the job asks for can be met.
    """

    setup: Setup
    groups: tuple[Group, ...]
    tail_macs: dict[str, int]
    example: Tensor
    n_classes: int
    chooser: Chooser

    def on(self, calibration: ImageSet) -> "Plan":
        """The same with other calibration images, which begin with the same one."""
        return replace(self, setup=replace(self.setup, calibration=calibration))


def plan(inputs: Inputs, progress: Progress = lambda done, total: None) -> Plan:
    """Choose the groups to score and check each one.

    Args:
        progress: told how many groups are checked.
    Raises:
        JobError: no group left to score, or a size that they cannot be cut to.
    """
    job, calibration = inputs.job, inputs.calibration
    try:
        setup, groups, tail_macs, example = _scoring(inputs, progress)
    except NetworkError as error:
        raise JobError(f"score.groups: {error}") from error
    n_units = {group.name: group.n_units for group in setup.groups}
    chooser = Chooser(job.prune, n_units, Sizes(inputs.model, groups, example))
    key, value = job.prune.target
    if key in SEARCHED and (len(calibration) < HELD_BACK or calibration.labels is None):
        raise JobError(
            f"prune.{key}: {value} is measured on a fifth of the calibration images, by their "
            f"labels; there are {len(calibration)} images"
            + ", without labels"
            * (calibration.labels is None)
        )
    try:
        chooser.check()
        check_rounds(job.prune, chooser)
        held_back = set() if inputs.held_back is None else set(inputs.held_back.ids)
        taken = calibration.ids[: taken_at_first(job, len(calibration))]
        n_held_back = len(held_back.intersection(taken))
        check_images(job.prune, len(taken), n_held_back, calibration.labels is not None)
        check_ways(
            job.prune,
            setup.model,
            setup.groups,
            example,
            AsScored(job.score, {}, calibration.ids, range(len(calibration))),
        )
    except ValueError as error:
        raise JobError(f"prune.{error}") from error
    return Plan(setup, groups, tail_macs, example, inputs.n_classes, chooser)


def plan_further(
    whole: Plan, inputs: Inputs, removed: Mapping[str, Sequence[int]], progress: Progress
) -> Plan:
    """A further round of a job: what is left of its network scored once more.

    Args:
        whole: the job's plan.
        inputs: the job's, with the smaller network and the folder of the round.
        removed: what the network lacks: group -> units of the whole network.
        progress: told how many groups are checked.
    Raises:
        NetworkError: no group left to score.
    """
    n_left = {group.name: group.n_units - len(removed[group.name]) for group in whole.setup.groups}
    groups = tuple(
        replace(group, reason=group.reason or changed(group.name, group.n_units, n_left))
        for group in inputs.groups
    )
    setup, groups, tail_macs, example = _scoring(replace(inputs, groups=groups), progress)
    chooser = whole.chooser.after(removed, [group.name for group in setup.groups])
    return Plan(setup, groups, tail_macs, example, inputs.n_classes, chooser)


def _scoring(
    inputs: Inputs, progress: Progress
) -> tuple[Setup, tuple[Group, ...], dict[str, int], Tensor]:
    """What workers are given; all groups; multiply-adds of those to score; the first image.

    Raises:
        NetworkError: no group left to score.
    """
    job, calibration = inputs.job, inputs.calibration
    images = calibration.load(0, min(CHECK_IMAGES, len(calibration)))
    groups, tail_macs = choose_groups(
        inputs.model, inputs.groups, images, job.score.groups, job.score.seed, progress
    )
    setup = Setup(
        job=job,
        model=inputs.model,
        groups=tuple(group for group in groups if group.reason is None),
        calibration=calibration,
        evaluation=inputs.evaluation,
        held_back=inputs.held_back,
        store=inputs.store,
    )
    return setup, groups, tail_macs, images[:1]


def check_exact(plan: Plan, n_active: np.ndarray, places: Sequence[int]) -> None:
    """If all values are asked to be exact, they can be.

    Args:
        n_active: (n_images, n_groups), of some calibration images and the groups to score.
        places: (n_images,), which images they are.
    Raises:
        JobError: names the image with the most active units.
    """
    if plan.setup.job.score.estimator == "exact":
        groups = [group.name for group in plan.setup.groups]
        try:
            ids = [plan.setup.calibration.ids[place] for place in places]
            check_enumerable(n_active, ids, groups)
        except ValueError as error:
            raise JobError(f"score.estimator: {error}") from error
