"""The Jacobian criterion: a unit's parameters taken together, layer by layer."""

import numpy as np

from shapray.network.group import Group
from shapray.pruning.criteria.gates import Gate, loss_slopes
from shapray.pruning.criteria.inputs import Inputs


def jacobian(inputs: Inputs) -> dict[str, np.ndarray]:
    """Sum over a group's layers m of |J_m w_m|**2, over the number of images.

    w_m are the unit's parameters in layer m: its weights and bias where m puts it out (also its
    scale and bias in a BatchNorm), the weights that read it where m is a consumer. J_m has a row
    per image, the gradient of its loss with respect to w_m. So J_m w_m is the loss's derivative
    with respect to one factor on all of w_m, that is a gate on what the layer puts out, or reads.

    As it is squared layer by layer and image by image, it is large also where layers' or images'
    derivatives cancel, and differs from `obd` in that.

    Source: Chen et al. 2025, "Optimal Brain Connection: Towards Efficient Structural Pruning".
    Their rows are gradients of mini-batches; these are of single images, so that the batch size
    does not matter.
    """
    gates = {group.name: _gates(inputs, group) for group in inputs.groups}
    owners = [name for name, of_group in gates.items() for _ in of_group]
    scores = {group.name: np.zeros(group.n_units) for group in inputs.groups}
    for slopes in loss_slopes(inputs, [gate for of_group in gates.values() for gate in of_group]):
        for name, slope in zip(owners, slopes, strict=True):
            scores[name] += slope.square().sum(0).numpy() / len(inputs.images)
    return scores


def _gates(inputs: Inputs, group: Group) -> list[Gate]:
    """One for every layer's part of a unit's parameters."""
    with_parameters = [
        writer
        for writer in group.writers
        if any(True for _ in inputs.model.get_submodule(writer.module).parameters(recurse=False))
    ]
    return [
        *(Gate(group.n_units, writers=(writer,)) for writer in with_parameters),
        *(Gate(group.n_units, readers=(consumer,)) for consumer in group.consumers),
    ]
