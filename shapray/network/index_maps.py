"""Which channels of the original network are left in the pruned one, layer by layer."""

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from shapray.network.surgery import prune_model

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}  # of as many bits


@dataclass(frozen=True)
class Kept:
    """What is left of a module: indices of the original network, in the pruned network's order.

    Channels of a convolution or a norm, features of a linear layer. A norm's inputs are its
    outputs.
    """

    outputs: tuple[int, ...] | None
    """None: all are kept."""
    inputs: tuple[int, ...] | None
    """None: all are kept."""


def units_left(n_units: int, removed: Iterable[int]) -> list[int]:
    """Of a group that has been cut, what its units 0, 1, ... are in the whole network.

    Args:
        n_units: of the group in the whole network.
        removed: units of the whole network.
    """
    gone = set(removed)
    return [unit for unit in range(n_units) if unit not in gone]


def kept_channels(
    model: nn.Module, example: Tensor, removed: Mapping[str, Sequence[int]]
) -> dict[str, Kept]:
    """The old channels behind the new ones, for the modules that `prune_model` changes.

    A copy of the network is pruned whose every number says in its bits where it stood in its
    tensor. As a float that is finite and almost zero: the copy runs as the network does.

    Args:
        model, example, removed: as for `prune_model`; float32 or float64.
    Returns:
        by module, those that have parameters or statistics and lose channels.
    Raises:
        ValueError: as `prune_model`.
    """
    with torch.inference_mode(False), torch.no_grad():
        marked = copy.deepcopy(model)
        for module in marked.modules():
            for _, tensor in _own_tensors(module):
                integers = _INTEGERS[tensor.dtype]
                places = torch.arange(tensor.numel(), dtype=integers, device=tensor.device)
                tensor.copy_(places.view(tensor.dtype).view(tensor.shape))
    pruned = prune_model(marked, example, removed)
    kept = {
        name: _kept(module, pruned.get_submodule(name)) for name, module in model.named_modules()
    }
    return {name: found for name, found in kept.items() if found is not None}


def _own_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, then buffers, of the module alone, that hold floats."""
    for named in (module.named_parameters(recurse=False), module.named_buffers(recurse=False)):
        yield from ((name, tensor) for name, tensor in named if tensor.is_floating_point())


def _kept(module: nn.Module, pruned: nn.Module) -> Kept | None:
    """Read off the first tensor that has become smaller; None if none has."""
    for name, whole in _own_tensors(module):
        left = getattr(pruned, name).detach()
        if left.shape == whole.shape:
            continue
        bits = left.contiguous().view(_INTEGERS[left.dtype]).cpu().numpy()
        places = np.unravel_index(bits, tuple(whole.shape))  # for every dimension, like `left`
        if name == "weight" and isinstance(module, nn.Conv2d | nn.Linear):
            return _of_filters(module, pruned, places[0], places[1])
        (dim,) = (d for d in range(whole.ndim) if left.shape[d] != whole.shape[d])
        channels = tuple(np.unique(places[dim]).tolist())
        return Kept(channels, channels)
    return None


def _of_filters(
    module: nn.Conv2d | nn.Linear, pruned: nn.Module, filters: np.ndarray, entries: np.ndarray
) -> Kept:
    """From where the pruned weights stood: (n_outputs, n_inputs of a filter, ...).

    The filters of a grouped convolution read the input channels of their own group alone.
    """
    filters, entries = (array.reshape(*array.shape[:2], -1)[..., 0] for array in (filters, entries))
    n_outputs, n_entries = module.weight.shape[:2]
    n_groups, n_left = (getattr(layer, "groups", 1) for layer in (module, pruned))
    outputs = filters[:, 0]
    inputs = filters // (n_outputs // n_groups) * n_entries + entries
    inputs = inputs[:: len(outputs) // n_left].ravel()  # a filter of each group that is left
    return Kept(_unless_all(outputs, n_outputs), _unless_all(inputs, n_entries * n_groups))


def _unless_all(kept: np.ndarray, n: int) -> tuple[int, ...] | None:
    return None if len(kept) == n else tuple(kept.tolist())
