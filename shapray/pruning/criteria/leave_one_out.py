"""What the network loses with one unit, measured: its marginal contribution to all others."""

import numpy as np
import torch

from shapray.engine.network_game import NetworkSplit
from shapray.pruning.criteria.inputs import Inputs

VALUE = "neg_cross_entropy"


def leave_one_out(inputs: Inputs) -> dict[str, np.ndarray]:
    """Mean over images of value(all) - value(all but the unit), the value being minus the
    cross-entropy: exact, in float32; what lies before the consumers is computed once an image.

    It misses redundancy: of two units that do the same, neither is missed alone.
    """
    return {
        group.name: _losses(inputs.scorer.split(group.name, "float32"), inputs)
        for group in inputs.groups
    }


def _losses(split: NetworkSplit, inputs: Inputs) -> np.ndarray:
    n_units = split.group.n_units
    total = torch.zeros(n_units, dtype=torch.float64)
    at_once = min(inputs.batch, split.images_at_once(1))
    for images, targets in zip(
        inputs.images.split(at_once), inputs.targets.split(at_once), strict=True
    ):
        game = split.game(images, targets, VALUE)
        # A null player's loss is exactly 0.
        image, unit = game.active.nonzero(as_tuple=True)
        without = torch.ones(len(unit), n_units, dtype=torch.bool)
        without[torch.arange(len(unit)), unit] = False
        left = game.value(image, game.outputs(image, without).double())
        whole = game.value(torch.arange(len(images)), game.reference[:, 1].double())
        total.index_add_(0, unit, whole.cpu()[image] - left.cpu())
    return (total / len(inputs.images)).numpy()
