"""A pilot on images of a run: what they tell of the price of a group's Shapley values."""

from collections.abc import Sequence

import torch

from shapray.engine.network_game import NetworkSplit
from shapray.engine.score import try_images
from shapray.shapley.pilot import Pilot
from shapray.worker.tasks import Setup


def pilot_on(setup: Setup, split: NetworkSplit, images: Sequence[int]) -> Pilot:
    """What some images tell of a group.

    Args:
        split: the network prepared for the group.
        images: their places in the calibration set.
    Raises:
        JobError: an image cannot be read.
        ValueError: a value is not finite; names group, image and coalition.
    """
    calibration = setup.calibration
    pixels = torch.cat([calibration.load(i, i + 1) for i in images])
    labels = None if calibration.labels is None else calibration.labels[list(images)]
    ids = [calibration.ids[i] for i in images]
    to_spare = setup.job.data.calibration.limit == "auto"
    return try_images(split, pixels, labels, ids, setup.job.score, to_spare=to_spare)
