"""What can be read off the weights: how large those are that make a unit."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from shapray.network.group import Channels, Group
from shapray.network.layers import Layer, rows
from shapray.pruning.criteria.inputs import Inputs


def l1_norm(inputs: Inputs) -> dict[str, np.ndarray]:
    """Sum of the magnitudes of the weights that make a unit, biases left out.

    Those are its rows of every convolution and linear layer that puts it out; in a residual stream
    those of all layers that are added up.

    Source: Li et al. 2017, "Pruning Filters for Efficient ConvNets".
    """
    return _row_norms(inputs, lambda rows: rows.abs().sum(1))


def l2_norm(inputs: Inputs) -> dict[str, np.ndarray]:
    """Euclidean norm of the weights that make a unit, biases left out: that of its row of a layer,
    summed over the layers that put it out (see `l1_norm`)."""
    return _row_norms(inputs, lambda rows: rows.square().sum(1).sqrt())


def batchnorm_scale(inputs: Inputs) -> dict[str, np.ndarray]:
    """Sum of the magnitudes of a unit's scales in the BatchNorms behind it.

    Raises:
        ValueError: a group has no BatchNorm with a scale for each of its units.
    Source: Liu et al. 2017, "Learning Efficient Convolutional Networks through Network Slimming".
    """
    return {group.name: _scales(inputs.model, group) for group in inputs.groups}


def _row_norms(inputs: Inputs, norm: Callable[[Tensor], Tensor]) -> dict[str, np.ndarray]:
    return {
        group.name: _per_unit(
            group,
            {
                writer: norm(_exact(rows(module)).flatten(1))
                for writer in group.writers
                if isinstance(module := inputs.model.get_submodule(writer.module), Layer)
            },
        )
        for group in inputs.groups
    }


def _scales(model: nn.Module, group: Group) -> np.ndarray:
    scales = {
        writer: _exact(module.weight).abs()
        for writer in group.writers
        if isinstance(module := model.get_submodule(writer.module), _BatchNorm) and module.affine
    }
    scaled = {unit for writer in scales for unit in writer.unit_of_channel}
    if not scaled.issuperset(range(group.n_units)):
        raise ValueError(
            f"criterion batchnorm_scale, group {group.name}: it has no BatchNorm with a scale for "
            f"each of its {group.n_units} units; leave the group out, or rank by another "
            "criterion, such as l1_norm"
        )
    return _per_unit(group, scales)


def _exact(weight: Tensor) -> Tensor:
    return weight.detach().double().cpu()


def _per_unit(group: Group, parts: Mapping[Channels, Tensor]) -> np.ndarray:
    """(n_units,): sums over the channels, (n_channels,) of each layer, that are a unit's."""
    total = torch.zeros(group.n_units, dtype=torch.float64)
    for writer, of_channel in parts.items():
        units = torch.tensor(writer.unit_of_channel)
        total.index_add_(0, units[units >= 0], of_channel[units >= 0])
    return total.numpy()
