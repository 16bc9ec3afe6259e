"""Which modules of a group put out its units."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from shapray.network.group import Group


def writers(model: nn.Module, group: Group) -> dict[str, nn.Module]:
    """Modules that put out one channel per unit, in the units' order, by name: the root, layers
    added to it, BatchNorms and other layers that treat every channel alone.

    A module of more channels than the group has units, as a BatchNorm behind a concatenation,
    is not among them; nor is one that reads the group, which need not be part of it by its outputs.
    """
    readers = {consumer.module for consumer in group.consumers} - {group.name}
    modules = {name: model.get_submodule(name) for name in group.modules if name not in readers}
    return {
        name: module for name, module in modules.items() if _n_channels(module) == group.n_units
    }


def _n_channels(module: nn.Module) -> int | None:
    if isinstance(module, nn.Conv2d):
        return module.out_channels
    if isinstance(module, nn.Linear):
        return module.out_features
    if isinstance(module, _BatchNorm):
        return module.num_features
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1]
    return None


def channel_dimension(module: nn.Module, ndim: int) -> int:
    """The dimension of a writer's output, of `ndim` of them, that its units lie along."""
    return ndim - 1 if isinstance(module, nn.Linear | nn.LayerNorm) else 1
