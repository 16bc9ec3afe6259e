"""A job to what has to be done: its network, images and groups checked, cut into tasks.

Nothing is written here, so that a wrong job leaves nothing behind.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from shapray.calibration import ImageSet, check_disjoint, check_labels, open_images
from shapray.config import MAX_EXACT_PLAYERS, SAMPLING_VERSION, TABLE_FORMAT, Job, JobError
from shapray.credentials import without_credentials
from shapray.estimators import is_exact, n_sampled
from shapray.fold import fold
from shapray.groups import Group, check_group, find_groups, one_line
from shapray.model import build_model, weights_digest
from shapray.network_game import NetworkSplit, check_split
from shapray.store import GROUPS, RunDirectory
from shapray.values import WITHOUT_LABELS
from shapray.worker import InspectTask, ScoreTask, Setup

CHECK_IMAGES = 4  # on which masked and pruned network must agree
INSPECT_IMAGES = 256  # per task


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


def open_inputs(job: Job, store: RunDirectory) -> Setup:
    """The job's network and images, and all groups of the network.

    Raises:
        JobError: something is missing or does not fit.
    """
    model = build_model(job.model)
    calibration = open_images(job.data.calibration, job.data.transform, "data.calibration")
    evaluation = open_images(job.data.evaluation, job.data.transform, "data.evaluation")
    if calibration.labels is None and job.score.value not in WITHOUT_LABELS:
        raise JobError(
            f"score.value: {job.score.value} needs labels and the calibration images have none; "
            f"use {' or '.join(sorted(WITHOUT_LABELS))}, or set data.calibration.label_column"
        )
    if evaluation.labels is None:
        raise JobError(
            "data.evaluation: these images have no labels, and accuracy is measured on them; "
            "set data.evaluation.label_column"
        )
    check_disjoint(calibration, evaluation)
    if job.data.calibration.source == job.data.evaluation.source == "imagefolder":
        _check_classes(calibration, evaluation)
    groups = find_groups(model, calibration.load(0, 1))
    return Setup(job, model, tuple(groups), calibration, evaluation, store)


def _check_classes(calibration: ImageSet, evaluation: ImageSet) -> None:
    """Both image folders number the same classes alike: a folder's label is its place by name."""
    assert evaluation.labels is not None
    if calibration.labels is None:
        return
    named = [
        dict(zip(images.labels.tolist(), (i.split("/")[0] for i in images.ids)))
        for images in (calibration, evaluation)
        if images.labels is not None
    ]
    for label in sorted(named[0].keys() & named[1].keys()):
        if named[0][label] != named[1][label]:
            raise JobError(
                f"data: label {label} is the folder '{named[0][label]}' in data.calibration and "
                f"'{named[1][label]}' in data.evaluation; both need the same class folders, as "
                "their sorted names give the labels"
            )


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


def fingerprint_parts(inputs: Setup, precision: str) -> dict[str, Any]:
    """Everything that changes a score, by the job's key; its digest is the run's fingerprint.

    `score.groups` is not in it: a shard belongs to one group, whichever others are scored.
    """
    job = inputs.job
    score = job.score.model_dump(mode="json", exclude={"groups", "precision"})
    together = job.score.target_standard_error is not None
    return {
        "model.factory": job.model.factory,
        "model.kwargs": without_credentials(job.model.kwargs),
        "model.weights": weights_digest(inputs.model),
        "data.calibration": inputs.calibration.digest(),
        **{f"score.{key}": value for key, value in score.items()},
        "score.precision": precision,
        "cluster.images_per_task": job.cluster.images_per_task,
        # The memory decides how many images are estimated together, and where a target says how
        # many coalitions are enough, images look at each other.
        **({"cluster.memory_per_worker": job.cluster.memory_per_worker} if together else {}),
        "table_format": TABLE_FORMAT,
        "sampling_version": SAMPLING_VERSION,
    }


def check_same_job(found: Mapping[str, Any], parts: Mapping[str, Any], where: str) -> None:
    """The run directory's fingerprint parts are those of this job.

    Raises:
        JobError: names every setting that differs.
    """
    differing = [
        f"  {key}: {_short(found.get(key))} there, {_short(parts.get(key))} here"
        for key in sorted({*found, *parts})
        if found.get(key) != parts.get(key)
    ]
    if differing:
        raise JobError(
            f"output: {where} belongs to another job; these differ:\n"
            + "\n".join(differing)
            + "\nwrite to another folder, or delete that one to start over"
        )


def _short(value: Any) -> str:
    text = str(value)
    return f"digest {text[:12]}" if len(text) == 64 else text


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


def _slices(n: int, size: int) -> Iterable[tuple[int, int]]:
    return ((first, min(first + size, n)) for first in range(0, n, size))
