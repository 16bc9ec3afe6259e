"""What a job will do: its groups chosen and each one checked.

Nothing is written here, so that a wrong job leaves nothing behind."""

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from shapray.engine.check import check_split
from shapray.engine.fold import fold
from shapray.engine.network_game import NetworkSplit
from shapray.errors import JobError
from shapray.inputs.images import check_labels
from shapray.network.check import check_group
from shapray.network.group import Group
from shapray.shapley.estimators import MAX_EXACT_PLAYERS
from shapray.storage.schemas import GROUPS
from shapray.text import one_line
from shapray.worker.tasks import Setup

CHECK_IMAGES = 4  # on which masked and pruned network must agree


@dataclass(frozen=True)
class Plan:
    """A job whose inputs are there and fit together.

    Attributes:
        setup: for the workers; its groups are those to score.
        groups: all of the network, those not scored with their reason, in network order.
        tail_macs: multiply-adds per coalition and image, of each group to score.
        example: (1, channels, height, width), the first calibration image.
        n_classes: outputs of the network.
    """

    setup: Setup
    groups: tuple[Group, ...]
    tail_macs: dict[str, int]
    example: Tensor
    n_classes: int


def plan(inputs: Setup) -> Plan:
    """Choose the groups to score and check each one.

    Raises:
        JobError: labels out of the network's range, no group left to score.
    """
    job, model, calibration = inputs.job, inputs.model, inputs.calibration
    images = calibration.load(0, min(CHECK_IMAGES, len(calibration)))
    with torch.inference_mode():
        n_classes = model(images[:1]).shape[1]
    if n_classes == 1 and job.score.value == "logit_margin":
        raise JobError("score.value: logit_margin needs two outputs to compare; the network has 1")
    check_labels(calibration, n_classes, "data.calibration")
    check_labels(inputs.evaluation, n_classes, "data.evaluation")

    groups, tail_macs = [], {}
    folded = fold(model, images[:1])
    for group in inputs.groups:
        reason = group.reason
        if not any(fnmatchcase(group.name, pattern) for pattern in job.score.groups):
            reason = "not among score.groups"
        elif reason is None:
            reason = check_group(model, group, images, job.score.seed)
        if reason is None:
            try:
                split = NetworkSplit(folded, group, images[:1])
                tail_macs[group.name] = split.tail_macs
                reason = check_split(split, model, images, job.score.seed)
            except Exception as error:  # an operation that the tail cannot have; the job goes on
                reason = f"its tail does not run: {one_line(error)}"
        groups.append(replace(group, reason=reason))
    scored = tuple(group for group in groups if group.reason is None)
    if not scored:
        listed = "\n".join(f"  {group.name}: {group.reason}" for group in groups)
        raise JobError(
            f"score.groups: {list(job.score.groups)} leaves no group to score; "
            f"the network's groups:\n{listed or '  (none)'}"
        )
    setup = replace(inputs, groups=scored)
    return Plan(setup, tuple(groups), tail_macs, images[:1], n_classes)


def check_exact(plan: Plan, n_active: np.ndarray) -> None:
    """If all values are asked to be exact, they can be.

    Args:
        n_active: (n_images, n_groups), of the calibration images and the groups to score.
    Raises:
        JobError: names the image with the most active units.
    """
    if plan.setup.job.score.estimator != "exact" or n_active.max() <= MAX_EXACT_PLAYERS:
        return
    image, group = np.unravel_index(n_active.argmax(), n_active.shape)
    most = int(n_active.max())
    raise JobError(
        f"score.estimator: exact, but group {plan.setup.groups[group].name} has {most} active "
        f"units on image {plan.setup.calibration.ids[image]}: 2^{most} = {2**most:,} coalitions; "
        f"at most {MAX_EXACT_PLAYERS} units ({2**MAX_EXACT_PLAYERS:,} coalitions) are possible. "
        "Use hybrid, or choose smaller groups with score.groups"
    )


def groups_table(plan: Plan) -> pa.Table:
    """The rows of ``groups.parquet``."""
    rows = [
        {
            "group": group.name,
            "n_units": group.n_units,
            "modules": list(group.modules),
            "kind": group.kind,
            "flat": group.flat,
            "status": "scored" if group.reason is None else "excluded",
            "reason": group.reason,
            "tail_macs": plan.tail_macs.get(group.name),
        }
        for group in plan.groups
    ]
    return pa.Table.from_pylist(rows, schema=GROUPS)
