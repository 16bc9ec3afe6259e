"""A job's network, groups and images, opened and checked against each other."""

from shapray.config import Job
from shapray.errors import JobError
from shapray.inputs.images import ImageSet, check_disjoint, open_images
from shapray.inputs.model import build_model
from shapray.network.find import find_groups
from shapray.shapley.values import WITHOUT_LABELS
from shapray.storage.run_directory import RunDirectory
from shapray.worker.tasks import Setup


def open_inputs(job: Job, store: RunDirectory) -> Setup:
    """The job's network and images, and all groups of the network.

    Raises:
        JobError: something is missing or does not fit.
    """
    calibration = open_images(job.data.calibration, job.data.transform, "data.calibration")
    example = calibration.load(0, 1)
    model = build_model(job.model, example=example)
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
    groups = find_groups(model, example)
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
