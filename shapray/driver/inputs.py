"""A job's network, groups and images, opened and checked against each other."""

from dataclasses import dataclass

from torch import Tensor, nn

from shapray.config import Job
from shapray.driver.prices import taken_at_first
from shapray.errors import JobError, NetworkError
from shapray.inputs.images import ImageSet, check_disjoint, check_labels, open_images
from shapray.inputs.model import read_model
from shapray.network.cuttable import cuttable
from shapray.network.group import Group
from shapray.network.probe import ForwardError, probe
from shapray.pruning.chooser import SEARCHED
from shapray.pruning.cuts import HELD_BACK, MOST_HELD_BACK
from shapray.pruning.repair.curves import shuffled
from shapray.shapley.values import WITHOUT_LABELS
from shapray.storage.run_directory import RunDirectory

CHECK_IMAGES = 4  # on which a network is probed, and masked and pruned must agree


@dataclass(frozen=True)
class Inputs:
    """What a job names, opened.

    Attributes:
        notes: what about the network is not as the user wrote it, a line each.
        groups: all of the network; those that cannot be scored say why.
        n_classes: outputs of the network.
        held_back: calibration images on which a target of the cut is measured; None if it needs
            none.
    """

    job: Job
    model: nn.Module
    notes: tuple[str, ...]
    groups: tuple[Group, ...]
    n_classes: int
    calibration: ImageSet
    evaluation: ImageSet
    held_back: ImageSet | None
    store: RunDirectory


def open_inputs(job: Job, store: RunDirectory) -> Inputs:
    """The job's network and images, and all groups of the network.

    Raises:
        JobError: something is missing or does not fit.
    """
    calibration = open_images(job.data.calibration, job.data.transform, "data.calibration")
    example = calibration.load(0, 1)
    read = read_model(job.model, example=example)
    model = read.network
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
    n_taken = taken_at_first(job, len(calibration))  # others are looked at if they are taken
    check_disjoint(calibration.first(n_taken), evaluation)
    held_back = _held_back(job, calibration)
    if held_back is not None and n_taken < len(calibration):
        check_disjoint(held_back, evaluation)
    if job.data.calibration.source == job.data.evaluation.source == "imagefolder":
        _check_classes(calibration, evaluation)
    images = calibration.load(0, min(CHECK_IMAGES, len(calibration)))
    try:
        n_classes = probe(model, images)
        model, groups = cuttable(model, images[:1], job.score.groups)
    except NetworkError as error:
        raise JobError(f"model.factory: {error}{_mode_hint(error, images)}") from error
    check_labels(calibration.labels, calibration.ids, n_classes, "data.calibration")
    check_labels(evaluation.labels, evaluation.ids, n_classes, "data.evaluation")
    if job.data.class_names is not None and len(job.data.class_names) != n_classes:
        raise JobError(
            f"data.class_names: {len(job.data.class_names)} names; the network has {n_classes} "
            "outputs, and each has one"
        )
    return Inputs(
        job, model, read.notes, tuple(groups), n_classes, calibration, evaluation, held_back, store
    )


def _held_back(job: Job, calibration: ImageSet) -> ImageSet | None:
    """A fifth of all images that there are, drawn from all: how many of them are taken for the
    scores says nothing of how many a measurement needs."""
    if job.prune.target[0] not in SEARCHED:
        return None
    n = len(calibration)
    n_held_back = n // HELD_BACK
    if job.data.calibration.limit == "auto":
        n_held_back = min(n_held_back, MOST_HELD_BACK)
    return calibration.some(shuffled(n)[n - n_held_back :].tolist())


def class_names(
    job: Job, n_classes: int, calibration: ImageSet, evaluation: ImageSet
) -> list[str] | None:
    """What the classes are called: the job's names, or their folders'; None: nobody said."""
    if job.data.class_names is not None:
        return list(job.data.class_names)
    folders: dict[int, str] = {}
    for source, images in (
        (job.data.calibration.source, calibration),
        (job.data.evaluation.source, evaluation),
    ):
        if source == "imagefolder" and images.labels is not None:
            folders |= _folder_of_label(images)
    return [folders.get(n, f"class {n}") for n in range(n_classes)] if folders else None


def _folder_of_label(images: ImageSet) -> dict[int, str]:
    assert images.labels is not None
    return dict(zip(images.labels.tolist(), (i.split("/")[0] for i in images.ids)))


def _mode_hint(error: NetworkError, images: Tensor) -> str:
    takes = error.takes_channels if isinstance(error, ForwardError) else None
    mode = {1: "L", 3: "RGB"}.get(takes or 0)
    if mode is None or images.shape[1] == takes:
        return ""
    return f"; data.transform.mode: {mode} makes images of {takes} channel{'s' * (takes != 1)}"


def _check_classes(calibration: ImageSet, evaluation: ImageSet) -> None:
    """Both image folders number the same classes alike: a folder's label is its place by name."""
    assert evaluation.labels is not None
    if calibration.labels is None:
        return
    named = [_folder_of_label(images) for images in (calibration, evaluation)]
    for label in sorted(named[0].keys() & named[1].keys()):
        if named[0][label] != named[1][label]:
            raise JobError(
                f"data: label {label} is the folder '{named[0][label]}' in data.calibration and "
                f"'{named[1][label]}' in data.evaluation; both need the same class folders, as "
                "their sorted names give the labels"
            )
