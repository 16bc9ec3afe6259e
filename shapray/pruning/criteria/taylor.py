"""What the loss's derivatives say of removing a unit: expansions at the whole network.

With g the derivative of an image's loss with respect to the unit's gate (see `gates`), closing it
changes the loss by about -g + h / 2, where h is the second derivative.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from shapray.pruning.criteria.gates import Gate, loss_slopes
from shapray.pruning.criteria.inputs import Inputs


def taylor(inputs: Inputs) -> dict[str, np.ndarray]:
    """Mean over images of |g|: the loss's change either way, to first order.

    Source: Molchanov et al. 2017, "Pruning Convolutional Neural Networks for Resource Efficient
    Inference", with the sum over positions in place of the mean.
    """
    return _means(inputs, torch.abs)


def taylor_signed(inputs: Inputs) -> dict[str, np.ndarray]:
    """Mean over images of -g: how much the loss grows without the unit, to first order."""
    return _means(inputs, torch.neg)


def obd(inputs: Inputs) -> dict[str, np.ndarray]:
    """Mean over images of -g + g**2 / 2: how much the loss grows without the unit, to second order.

    The mean of g**2 is the diagonal of the (empirical) Fisher information, which stands in for
    that of the Hessian. The first order is kept: the loss of some images is not at a minimum.

    Source: LeCun et al. 1990, "Optimal Brain Damage"; Theis et al. 2018, "Faster gaze prediction
    with dense networks and Fisher pruning".
    """
    return _means(inputs, lambda slope: slope.square() / 2 - slope)


def _means(inputs: Inputs, term: Callable[[Tensor], Tensor]) -> dict[str, np.ndarray]:
    totals = [np.zeros(group.n_units) for group in inputs.groups]
    gates = [
        Gate(group.n_units, readers=group.consumers, norms=group.statistics)
        for group in inputs.groups
    ]
    for slopes in loss_slopes(inputs, gates):
        for place, slope in enumerate(slopes):
            totals[place] += term(slope).sum(0).numpy()
    return {
        group.name: total / len(inputs.images)
        for group, total in zip(inputs.groups, totals, strict=True)
    }
