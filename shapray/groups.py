"""A network to its groups of removable units, and the check that removing is masking."""

import copy
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.fx
import torch_pruning as tp
from torch import Tensor, nn

from shapray.config import JobError
from shapray.surgery import dependency_graph, n_root_units, prune_model, traceable_copy

TOLERANCE = 1e-4  # of the largest logit, in float32


@dataclass(frozen=True)
class Consumer:
    """A Conv2d or Linear that reads a group's channels."""

    module: str
    unit_of_channel: tuple[int, ...]
    """Per input channel (feature) of the module: the unit it belongs to, -1 if none. A unit has
    several features of a linear layer behind a flatten."""


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together. Unit *u* is output channel *u* of the root."""

    name: str
    """Name of the root: the group's first module, in the order of ``named_modules``."""
    n_units: int
    kind: str
    """"conv" or "linear": what the root is."""
    modules: tuple[str, ...]
    """All modules that lose channels with a unit, in the order of ``named_modules``."""
    consumers: tuple[Consumer, ...]
    flat: bool
    """No consumer's input depends on another consumer's output."""
    reason: str | None
    """Why the group is not scored; None if it is."""


def find_groups(model: nn.Module, example: Tensor) -> list[Group]:
    """Every coupled group rooted at a Conv2d or a Linear, in the order of ``named_modules``.

    `model` is left as it is: what is traced is a deep copy, in eval mode. A group without a
    `reason` is scorable as far as its structure goes; `check_group` tells whether it really is.
    A module of which an earlier group has some channels is not a root for the others.

    Args:
        example: one image, (1, C, H, W), on the model's device.
    Raises:
        JobError: the network cannot be traced, or its output is no tensor of logits (1, classes).
    """
    try:
        graph, output = dependency_graph(model, example)
    except Exception as error:  # whatever torch-pruning meets in a network that it cannot read
        raise JobError(
            f"model.factory: the network's dependency graph cannot be built with one image of "
            f"shape {tuple(example.shape)}: {one_line(error)}"
        ) from error
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != 1:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise JobError(
            f"model.factory: for one image the network must return a tensor of logits "
            f"(1, classes); it returns {found}"
        )
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

    flows = _data_flows(model, example)
    return [replace(group, flat=_is_flat(group, flows)) for group in groups]


class _Finder:
    """Reads groups off torch-pruning's graph."""

    def __init__(self, graph: tp.DependencyGraph, output: Tensor) -> None:
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


def one_line(error: Exception) -> str:
    """An error's class and the beginning of its message, for a group's reason."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


# --- flat or deep ---------------------------------------------------------------------------------

_Upstream = dict[str, set[str]]  # module -> modules on whose output its input depends


def _is_flat(group: Group, flows: list[_Upstream]) -> bool:
    """A consumer that is called twice is upstream of itself; one that a flow lacks is not known."""
    names = {consumer.module for consumer in group.consumers}
    return all(name in flow and not (flow[name] & names) for flow in flows for name in names)


def _data_flows(model: nn.Module, example: Tensor) -> list[_Upstream]:
    """What each Conv2d's and Linear's input depends on, read in two ways.

    The autograd graph always exists but loses data that goes through a ``detach``; the traced
    program sees that but loses in-place changes, and does not exist where control flow depends on
    data. A group is flat only if neither finds a path.
    """
    flows = [_flow_by_autograd(traceable_copy(model), example)]
    try:
        program = torch.fx.symbolic_trace(copy.deepcopy(model).eval())
    except Exception:  # torch.fx raises anything, the network's own errors among them
        return flows
    return [*flows, _flow_by_program(program)]


def _flow_by_program(program: torch.fx.GraphModule) -> _Upstream:
    upstream: _Upstream = {}
    behind: dict[torch.fx.Node, set[str]] = {}
    for node in program.graph.nodes:
        above = set().union(*(behind[source] for source in node.all_input_nodes))
        if node.op == "call_module":
            name = str(node.target)
            if name in upstream:
                above |= {name}
            upstream.setdefault(name, set()).update(above)
            above = above | {name}
        behind[node] = above
    return upstream


def _flow_by_autograd(model: nn.Module, example: Tensor) -> _Upstream:
    """By one forward pass of a copy whose parameters require grad."""
    calls: list[tuple[str, Any, Any]] = []  # module, autograd node of its input, of its output
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}

    def record(name: str) -> Any:
        # The input's node is taken before the call: an in-place layer would replace it.
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            inputs.append((args[0] if args else kwargs["input"]).grad_fn)

        def after(_: nn.Module, __: tuple[Any, ...], output: Tensor) -> None:
            calls.append((name, inputs.pop(), output.grad_fn))

        return before, after

    inputs: list[Any] = []
    handles = []
    for name, layer in layers.items():
        before, after = record(name)
        handles += [
            layer.register_forward_pre_hook(before, with_kwargs=True),
            layer.register_forward_hook(after),
        ]
    with torch.inference_mode(False), torch.enable_grad():
        result = model(example.detach().clone())  # held: the nodes live as long as their tensors
    for handle in handles:
        handle.remove()
    assert isinstance(result, Tensor)

    producer = {output: name for name, _, output in calls}
    upstream: _Upstream = {}
    for name, source, _ in calls:
        if name in upstream:
            upstream[name].add(name)
        above, stack, seen = upstream.setdefault(name, set()), [source], set()
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in producer:
                above.add(producer[node])
            stack += [before for before, _ in node.next_functions]
    return upstream


# --- masked = pruned ------------------------------------------------------------------------------


@contextmanager
def mask_consumers(model: nn.Module, group: Group, coalition: Tensor) -> Iterator[None]:
    """Within the context, every consumer of the group reads zeros for units out of the coalition.

    Args:
        coalition: bool, the units that are kept: (n_units,) for all images alike, or
            (n_images, n_units).
    """
    assert coalition.shape[-1] == group.n_units, (coalition.shape, group.n_units)
    assert coalition.dtype == torch.bool
    rows = torch.atleast_2d(coalition)

    def zeroing(consumer: Consumer) -> Any:
        unit = torch.tensor(consumer.unit_of_channel, device=rows.device)
        gone = (unit >= 0) & ~rows[:, unit.clamp(min=0)]  # (1 or n_images, n_channels)

        def zero(
            module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
        ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
            read, *rest = args or (kwargs["input"],)
            channel = 1 if isinstance(module, nn.Conv2d) else read.ndim - 1
            shape = [len(gone), *(len(unit) if d == channel else 1 for d in range(1, read.ndim))]
            # Not a product: 0 * inf would be nan.
            masked = read.masked_fill(gone.view(shape).to(read.device), 0.0)
            return (masked, *rest), {k: v for k, v in kwargs.items() if k != "input"}

        return zero

    handles = [
        model.get_submodule(consumer.module).register_forward_pre_hook(
            zeroing(consumer), with_kwargs=True
        )
        for consumer in group.consumers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_group(model: nn.Module, group: Group, images: Tensor, seed: int) -> str | None:
    """Whether the masked and the surgically pruned network agree; the reason if they do not.

    On two random coalitions: without a single unit, and without half of the units. The measure is
    max |masked - pruned| / max |masked| over the logits of all images.

    Args:
        model: in eval mode, float32.
        images: (b, C, H, W), on the model's device.
    """
    assert group.reason is None, (group.name, group.reason)
    assert not model.training
    order = torch.randperm(group.n_units, generator=torch.Generator().manual_seed(seed)).tolist()
    for units in (order[:1], order[: group.n_units // 2]):
        coalition = torch.ones(group.n_units, dtype=torch.bool)
        coalition[units] = False
        with torch.no_grad():
            with mask_consumers(model, group, coalition):
                masked = model(images)
            try:
                pruned = prune_model(model, images[:1], {group.name: units})(images)
            except Exception as error:  # a misread network fails in any way; the job goes on
                return f"pruning fails: {one_line(error)}"
        removed = f"with {len(units)} of {group.n_units} units removed"
        if pruned.shape != masked.shape:
            found, right = tuple(pruned.shape), tuple(masked.shape)
            return f"the pruned network's output is {found}, not {right}, {removed}"
        largest = masked.abs().max().item()
        if largest == 0:
            return f"cannot be checked: all logits are 0 {removed}"
        difference = (masked - pruned).abs().max().item() / largest
        if not difference <= TOLERANCE:  # nan fails too
            return f"masked and pruned network differ: relative error {difference:.2g} {removed}"
    return None
