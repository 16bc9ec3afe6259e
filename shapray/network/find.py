"""A network to its groups of removable units."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from shapray.errors import NetworkError
from shapray.network.dataflow import data_flows, is_flat
from shapray.network.graph import DependencyGraph, dependency_graph
from shapray.network.group import Consumer, Group, n_root_units
from shapray.text import one_line


def find_groups(model: nn.Module, example: Tensor) -> list[Group]:
    """Every coupled group rooted at a Conv2d or a Linear, in the order of ``named_modules``.

    `model` is left as it is: what is traced is a deep copy, in eval mode. A group without a
    `reason` is scorable as far as its structure goes; `check_group` tells whether it really is.
    A module of which an earlier group has some channels is not a root for the others.

    Args:
        example: one image, (1, C, H, W), on the model's device, of which the network makes logits
            (see `probe`).
    Raises:
        NetworkError: the network cannot be traced.
    """
    try:
        graph, output = dependency_graph(model, example)
    except Exception as error:  # whatever torch-pruning meets in a network that it cannot read
        raise NetworkError(
            "the network runs, but how its channels depend on each other cannot be read with one "
            f"image of shape {tuple(example.shape)}: {one_line(error)}"
        ) from error
    finder = _Finder(graph, output)
    groups: list[Group] = []
    claimed: dict[str, dict[int, str]] = defaultdict(dict)  # module -> output channel -> group
    for name, root in graph.model.named_modules():
        if not isinstance(root, nn.Conv2d | nn.Linear) or len(claimed[name]) > 0:
            continue
        group, out_channels = finder.find(name, root)
        shared = {
            claimed[m][i] for m, idxs in out_channels.items() for i in idxs if i in claimed[m]
        }
        if shared and group.reason is None:
            group = replace(group, reason=f"shares channels with group {sorted(shared)[0]}")
        for module, idxs in out_channels.items():
            claimed[module].update((i, name) for i in idxs if i not in claimed[module])
        groups.append(group)

    flows = data_flows(model, example)
    return [replace(group, flat=is_flat(group, flows)) for group in groups]


class _Finder:
    """Reads groups off torch-pruning's graph."""

    def __init__(self, graph: DependencyGraph, output: Tensor) -> None:
        self.graph = graph
        self.output_nodes = {
            id(node) for node in graph.module2node.values() if node.grad_fn is output.grad_fn
        }
        self.names: dict[int, list[str]] = defaultdict(list)  # more than one if shared
        for name, module in graph.model.named_modules(remove_duplicate=False):
            self.names[id(module)].append(name)
        self.position = {names[0]: i for i, names in enumerate(self.names.values())}

    def find(self, name: str, root: nn.Conv2d | nn.Linear) -> tuple[Group, dict[str, list[int]]]:
        """The group rooted at `root`, and the output channels of modules that belong to it."""
        n_units = n_root_units(root)
        kind = "conv" if isinstance(root, nn.Conv2d) else "linear"
        group = Group(name, n_units, kind, (name,), (), False, None)
        if root not in self.graph.module2node:
            return replace(
                group, reason="never called, or the network's output does not depend on it"
            ), {}
        prune_root = self.graph.get_pruner_of_module(root).prune_out_channels
        try:
            items = self.graph.get_pruning_group(root, prune_root, list(range(n_units))).items
            named = self._named(items)
            consumers = self._consumers(named)
        except Exception as error:  # whatever torch-pruning meets in a layer that it misreads
            return replace(group, reason=f"no dependency graph: {one_line(error)}"), {}

        group = replace(
            group,
            modules=tuple(sorted({member for member, _ in named}, key=self._position)),
            consumers=tuple(sorted(consumers, key=lambda c: self._position(c.module))),
        )
        obstacle = next(self._obstacles(group, items), None)
        out_channels = {m: list(item.idxs) for m, item in named if not self._is_reader(item)}
        return replace(group, reason=obstacle), out_channels

    def _named(self, items: Sequence[Any]) -> list[tuple[str, Any]]:
        return [
            (self.names[id(item.dep.target.module)][0], item)
            for item in items
            if id(item.dep.target.module) in self.names  # else an operation or a bare parameter
        ]

    def _consumers(self, named: Sequence[tuple[str, Any]]) -> list[Consumer]:
        return [
            _consumer(reader, item.dep.target.module, item.idxs, item.root_idxs)
            for reader, item in named
            if self._is_reader(item) and isinstance(item.dep.target.module, nn.Conv2d | nn.Linear)
        ]

    def _position(self, name: str) -> int:
        return self.position[name]

    def _is_reader(self, item: Any) -> bool:
        """Loses input channels only; a BatchNorm or a depthwise convolution loses both at once."""
        return not self.graph.is_out_channel_pruning_fn(item.dep.handler)

    def _obstacles(self, group: Group, items: Sequence[Any]) -> Iterator[str]:
        """Why the group cannot be scored."""
        if any(id(i.dep.target) in self.output_nodes and not self._is_reader(i) for i in items):
            yield "its units are the network's outputs"
        if _is_depthwise(self.graph.model.get_submodule(group.name)):
            yield "a depthwise convolution of channels that belong to no group"
        for item in items:
            module = item.dep.target.module
            name, *other_names = self.names.get(id(module), [""])
            if other_names:
                yield f"{name} and {other_names[0]} are one module"
            if isinstance(module, nn.Conv2d) and module.groups > 1 and not _is_depthwise(module):
                yield f"{name} is a grouped convolution ({module.groups} groups)"
            if name and self._is_reader(item) and not isinstance(module, nn.Conv2d | nn.Linear):
                yield f"{name} reads it, a {type(module).__name__}"
        if group.n_units == 1:
            yield "it has a single unit"
        if not group.consumers:
            yield "no convolution or linear layer reads it"


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and 1 < module.groups == module.out_channels


def _consumer(
    name: str, module: nn.Conv2d | nn.Linear, channels: Sequence[int], units: Sequence[int]
) -> Consumer:
    unit_of_channel = [-1] * (
        module.in_channels if isinstance(module, nn.Conv2d) else module.in_features
    )
    for channel, unit in zip(channels, units, strict=True):
        unit_of_channel[channel] = unit
    return Consumer(name, tuple(unit_of_channel))
