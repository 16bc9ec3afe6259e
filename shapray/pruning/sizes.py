"""How big a network is with so many units of its groups gone, without cutting it."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from shapray.network.along_channels import AlongChannels
from shapray.network.group import Group
from shapray.network.layers import Layer, dimensions
from shapray.pruning.evaluate import count_macs


@dataclass
class _Layer:
    """What of a module's size goes with its input channels, its output channels, or both."""

    macs: int
    weights: int  # parameters that go with both
    others: int  # that go with the output channels alone
    # group -> share of the channels that go with each of its units
    inputs: dict[str, np.ndarray] = field(default_factory=dict)
    outputs: dict[str, np.ndarray] = field(default_factory=dict)


class Sizes:
    """Multiply-adds and parameters of a network by how many units of each group are removed.

    Exact where a group's units are all of one size, or go in a known order (see `in_order`); of
    others the mean is taken.

    Args:
        model: in eval mode.
        groups: all of the network, those that are not scored among them.
        example: (1, channels, height, width), on the model's device.
    """

    def __init__(self, model: nn.Module, groups: Sequence[Group], example: Tensor) -> None:
        self.all_parameters, self.all_macs = count_macs(model, example)
        self.groups = {group.name: group for group in groups}
        self._orders: dict[str, np.ndarray] = {}
        macs = _macs_by_module(model, example)
        self._layers: dict[str, _Layer] = {}
        for name, module in model.named_modules():
            own = sum(p.numel() for p in module.parameters(recurse=False))
            weights = 0
            if isinstance(module, Layer):  # its weight may be made of other ones
                weights = module.weight.numel()
                own = weights + (0 if module.bias is None else module.bias.numel())
            if own and not isinstance(module, AlongChannels):  # its own stay
                self._layers[name] = _Layer(macs.get(name, 0), weights, own - weights)
        for group in groups:
            self._connect(group)

    def _connect(self, group: Group) -> None:
        def share(units: Sequence[int]) -> np.ndarray:
            of_units = np.array(units)
            counts = np.bincount(of_units[of_units >= 0], minlength=group.n_units)
            return counts / len(units)

        for consumer in group.consumers:
            inputs = self._layers[consumer.module].inputs
            inputs[group.name] = share(consumer.unit_of_channel)
        for writer in group.writers:
            if writer.module in self._layers:
                outputs = self._layers[writer.module].outputs
                outputs[group.name] = share(writer.unit_of_channel)
        for parameter in group.parameters:
            owner = parameter.name.rpartition(".")[0]
            if owner in self._layers:
                self._layers[owner].outputs[group.name] = share(parameter.unit_of_index)

    def in_order(self, orders: Mapping[str, Sequence[int]]) -> "Sizes":
        """The same where units go in these orders: group -> its units, or the first of them."""
        known = copy.copy(self)
        known._orders = self._orders | {name: np.array(o, int) for name, o in orders.items()}
        return known

    def macs_without(self, removed: Mapping[str, Sequence[int]]) -> float:
        """Multiply-adds for one image without these units: group -> units."""
        counts = {name: len(units) for name, units in removed.items()}
        return self.in_order(removed).macs(counts)

    def macs(self, removed: Mapping[str, int]) -> float:
        """Multiply-adds for one image.

        Args:
            removed: group -> how many of its units.
        """
        gone = sum(
            layer.macs
            * (1 - self._left(layer.inputs, removed) * self._left(layer.outputs, removed))
            for layer in self._layers.values()
        )
        return self.all_macs - gone

    def macs_of_a_unit(self, group: str, gone: Mapping[str, int] | None = None) -> float:
        """That go with one more unit of a group; at least one.

        Args:
            gone: group -> how many of its units are gone already.
        """
        before = dict(gone or {})
        after = before | {group: before.get(group, 0) + 1}
        return max(1.0, self.macs(before) - self.macs(after))

    def parameters(self, removed: Mapping[str, int]) -> float:
        gone = 0.0
        for layer in self._layers.values():
            out = self._left(layer.outputs, removed)
            gone += layer.weights * (1 - self._left(layer.inputs, removed) * out)
            gone += layer.others * (1 - out)
        return self.all_parameters - gone

    def _left(self, shares: Mapping[str, np.ndarray], removed: Mapping[str, int]) -> float:
        """What is left of a layer's channels."""
        left = 1.0
        for name, share in shares.items():
            count, order = removed.get(name, 0), self._orders.get(name)
            if order is None:
                left -= float(share.mean()) * count
            else:
                left -= float(share[order[:count]].sum())
        return left


def _macs_by_module(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Of convolutions and linear layers, all calls together."""
    found: dict[str, int] = {}

    def watch(name: str, module: Layer) -> torch.utils.hooks.RemovableHandle:
        def add(
            _: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Tensor
        ) -> None:
            # every position of what a transposed one reads meets every weight
            numbers = (args or [kwargs["input"]])[0] if dimensions(module) == (1, 0) else output
            n_positions = numbers.numel() // module.weight.shape[0]
            found[name] = found.get(name, 0) + n_positions * module.weight.numel()

        return module.register_forward_hook(add, with_kwargs=True)

    handles = [
        watch(name, module) for name, module in model.named_modules() if isinstance(module, Layer)
    ]
    try:
        with torch.inference_mode():
            model(example.clone())
    finally:
        for handle in handles:
            handle.remove()
    return found
