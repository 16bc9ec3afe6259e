"""A network without some of its units."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from shapray.network.group import MOVES, Group
from shapray.network.index_maps import Kept, channels_left, kept_channels
from shapray.network.moved import Moved
from shapray.network.statistics import AlwaysKept


def prune_model(
    model: nn.Module,
    groups: Sequence[Group],
    removed: Mapping[str, Sequence[int]],
    *,
    share: bool = False,
) -> nn.Module:
    """A deep copy of `model` without some units; `model` itself is left alone.

    Args:
        groups: of the network, from `find_groups`.
        removed: name of a group -> its units to remove, as numbered there.
        share: parameters and buffers that lose nothing are the model's own, for a quick look.
    Raises:
        ValueError: as `kept_channels`.
    """
    with torch.inference_mode(False):  # what is copied in inference mode can never require grad
        shared = (*model.parameters(), *model.buffers()) if share else ()
        pruned = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
        for name, module in list(pruned.named_modules()):
            if isinstance(module, AlwaysKept):  # of a silenced network: now it is really cut
                pruned.set_submodule(name, module.norm)
        modules = dict(pruned.named_modules())
        for name, kept in kept_channels(model, groups, removed).items():
            if name in modules:
                _cut_module(modules[name], kept)
            else:
                dims = {p.name: p.dim for group in groups for p in group.parameters}
                owner, _, parameter = name.rpartition(".")
                _keep(modules[owner], parameter, dims[name], kept.outputs)
        for name, stays in channels_left(groups, removed, MOVES).items():
            step = modules[name]
            assert isinstance(step, Moved)
            step.cut(stays)
    return pruned


def _cut_module(module: nn.Module, kept: Kept) -> None:
    """Take channels from a layer, and tell it how many it has left."""
    if isinstance(module, nn.Linear):
        _keep(module, "weight", 0, kept.outputs)
        _keep(module, "weight", 1, kept.inputs)
        _keep(module, "bias", 0, kept.outputs)
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.Conv2d):
        _cut_convolution(module, kept)
    else:
        assert kept.outputs is not None
        n_left = len(kept.outputs)
        n_channels = _n_channels(module)
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None and tensor.shape[:1] == (n_channels,):
                _keep(module, name, 0, kept.outputs)
        if isinstance(module, _NormBase):
            module.num_features = n_left
        elif isinstance(module, nn.GroupNorm):
            in_group = module.num_channels // module.num_groups
            module.num_groups = max(1, n_left // in_group)  # the only one has what is left
            module.num_channels = n_left
        elif isinstance(module, nn.LayerNorm):
            module.normalized_shape = (n_left,)
        elif isinstance(module, nn.PReLU):
            module.num_parameters = module.weight.numel()


def _n_channels(module: nn.Module) -> int:
    """Of a norm, or an activation with a parameter for each."""
    if isinstance(module, nn.LayerNorm):
        return module.normalized_shape[-1]
    if isinstance(module, nn.PReLU):
        return module.num_parameters
    count = module.num_channels if isinstance(module, nn.GroupNorm) else module.num_features
    assert isinstance(count, int)
    return count


def _cut_convolution(module: nn.Conv2d, kept: Kept) -> None:
    _keep(module, "weight", 0, kept.outputs)
    _keep(module, "bias", 0, kept.outputs)
    if module.groups == 1:
        _keep(module, "weight", 1, kept.inputs)
    elif kept.outputs is not None:  # whole convolution groups are left
        module.groups = len(kept.outputs) * module.groups // module.out_channels
    module.out_channels, module.in_channels = (
        module.weight.shape[0],
        module.weight.shape[1] * module.groups,
    )


def _keep(module: nn.Module, name: str, dim: int, kept: tuple[int, ...] | None) -> None:
    """Leave a tensor of a module only some indices along a dimension, if it has that many."""
    tensor: Tensor | None = getattr(module, name)
    if kept is None or tensor is None or tensor.ndim <= dim or tensor.shape[dim] == 1:
        return
    index = torch.tensor(kept, dtype=torch.int64, device=tensor.device)
    left = tensor.detach().index_select(dim, index)
    if name in module._parameters:
        module._parameters[name] = nn.Parameter(left, requires_grad=tensor.requires_grad)
    else:
        module._buffers[name] = left
