"""A network without some of its units."""

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from shapray.network.group import MOVES, Group
from shapray.network.index_maps import Kept, channels_left, kept_channels
from shapray.network.layers import dimensions, rows
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
    elif isinstance(module, _ConvNd):
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


def _cut_convolution(module: _ConvNd, kept: Kept) -> None:
    _keep(module, "bias", 0, kept.outputs)
    if module.groups > 1:
        _cut_groups(module, kept)
    else:
        of_outputs, of_inputs = dimensions(module)
        _keep(module, "weight", of_outputs, kept.outputs)
        _keep(module, "weight", of_inputs, kept.inputs)
    module.out_channels, module.in_channels = (
        rows(module).shape[0],
        rows(module).shape[1] * module.groups,
    )


def _cut_groups(module: _ConvNd, kept: Kept) -> None:
    """Of a convolution group every output reads the same inputs, as many as those of the others; a
    group without outputs is gone."""
    outputs = _index(kept.outputs, module.out_channels, module.weight)
    inputs = _index(kept.inputs, module.in_channels, module.weight)
    of_output = outputs // (module.out_channels // module.groups)
    in_group = module.in_channels // module.groups
    alive, place = of_output.unique(return_inverse=True)
    read = inputs[torch.isin(inputs // in_group, alive)].view(len(alive), -1) % in_group
    _put(module, "weight", module.weight.detach()[outputs[:, None], read[place]])
    module.groups = len(alive)


def _keep(module: nn.Module, name: str, dim: int, kept: tuple[int, ...] | None) -> None:
    """Leave a tensor of a module only some indices along a dimension, if it has that many."""
    tensor: Tensor | None = getattr(module, name)
    if kept is None or tensor is None or tensor.ndim <= dim or tensor.shape[dim] == 1:
        return
    index = _index(kept, tensor.shape[dim], tensor)
    _put(module, name, tensor.detach().index_select(dim, index))


def _index(kept: tuple[int, ...] | None, n: int, beside: Tensor) -> Tensor:
    """(n_kept,) int64 on a tensor's device; all of `n` for None."""
    return torch.tensor(range(n) if kept is None else kept, device=beside.device)


def _put(module: nn.Module, name: str, left: Tensor) -> None:
    if (parameter := module._parameters.get(name)) is not None:
        module._parameters[name] = nn.Parameter(left, requires_grad=parameter.requires_grad)
    else:
        module._buffers[name] = left
