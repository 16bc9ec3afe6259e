"""A network's forward as a program of layers, in which channels are moved by index, or counted.

A forward that chunks, shuffles or reshapes channels is written for all of them: with some gone the
halves are unequal, and what it does with sizes no longer does the same. In the program such steps
are modules, `Moved`, which pick channels by their indices and are cut like any other layer. So are
channels of zeros, `Padded`, means over channels, `Reduced`, which a mask has to tell which channels
count, and convolutions along the channels, `AlongChannels`. Where a size says how many channels
there are, `Reshaped` leaves it open.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from shapray.network.along_channels import AlongChannels
from shapray.network.labels import LabelledTensors
from shapray.network.moved import Moved
from shapray.network.operations import by_name, is_view, moved_labels
from shapray.network.padded import Padded
from shapray.network.reduced import Reduced
from shapray.network.reductions import reduction
from shapray.network.reshaped import Reshaped, free_sizes
from shapray.network.tracing import STEPS, traced
from shapray.network.watching import Watching

TOLERANCE = 1e-5  # of the largest output, between a network and its program


def program(model: nn.Module, example: Tensor) -> fx.GraphModule | None:
    """A network as a program whose steps that move or count channels are modules, `STEPS`.

    Args:
        model: in eval mode; left as it is. Its layers keep their names in the program, whose
            ``state_dict`` is the network's.
        example: (1, C, H, W), on the model's device.
    Returns:
        None if it cannot be traced, or the program would not compute the same.
    """
    try:
        found = traced(copy.deepcopy(model), example)
        for step in _steps(found, example):
            _replace(found, step)
        found.to(example.device)
        found.graph.eliminate_dead_code()
        found.recompile()
        for name, module in model.named_modules():  # heads that only training uses, and their like
            if not list(module.children()) and name and name not in _names(found):
                found.add_submodule(name, copy.deepcopy(module))
        with torch.no_grad():
            random = torch.randn(example.shape, generator=torch.Generator().manual_seed(0))
            random = random.to(example)
            for images in (example, random, torch.cat([random, example])):
                right, its = model(images.clone()), found(images.clone())
                if not torch.allclose(its, right, atol=TOLERANCE * right.abs().max().item()):
                    return None
    except Exception:  # tracing runs the network's forward with what is no tensor
        return None
    missing = model.state_dict().keys() - found.state_dict().keys()
    return None if missing else found


def _names(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_modules(remove_duplicate=False)}


@dataclass(frozen=True)
class _Step:
    """A node whose value is that of a module on another's, and perhaps some sizes."""

    node: fx.Node
    sources: Sequence[Any]
    module: AlongChannels | Moved | Padded | Reduced | Reshaped


def is_program(network: nn.Module) -> bool:
    """Whether a network is a program with steps in place of what its class does with channels."""
    return any(isinstance(module, STEPS) for module in network.modules())


def _steps(traced: fx.GraphModule, example: Tensor) -> list[_Step]:
    """The nodes whose values are channels of one other's, in another order, not all or with zeros
    beside them, or reduced over them, or convolved along them."""
    follower = _Follower(traced)
    with torch.inference_mode(False), torch.no_grad():
        follower.run(example.detach().clone())
    sized = free_sizes(traced.graph, follower.channels)
    reshapes = [_Step(node, sources, Reshaped()) for node, sources in sized.items()]
    return follower.found + reshapes  # those that a step is in place of have no users then


class _Follower(fx.Interpreter):
    """Runs a program and labels channels by the node that has made them.

    What a node has made of its inputs by views and by moving entries has their labels; all else
    begins new ones.
    """

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced)
        self.found: list[_Step] = []
        self.tensors = LabelledTensors()
        self.dims: list[int] = []  # along which the channels of every numbering lie
        self.starts: list[int] = [1]
        # all channels of a numbering in their places: which, and the value's shape
        self.whole: dict[fx.Node, tuple[int, tuple[int, ...]]] = {}
        self.channels: dict[fx.Node, list[int]] = {}  # dimensions along which there are different

    def run_node(self, n: fx.Node) -> Any:
        dim = self._channel_dimension(n)
        if n.op in ("call_function", "call_method"):
            self._look_for_reduction(n, dim)
        watch = _Watch(self.tensors)
        with watch:
            value = super().run_node(n)
        if not isinstance(value, Tensor):
            return value
        if n.op == "call_module":
            self._look_for_convolution(n, value)
        labels = self.tensors.labels(value)
        new = n.op == "placeholder" or watch.computes
        if new or labels is None or _is_padded_in_space(labels, dim):
            self._begin(n, value, _dimension_after(n, dim, value.ndim))
        elif n.op in ("call_function", "call_method") and value.ndim > 1:
            self._look(n, value, labels)
        self.channels[n] = _dimensions(self.tensors.of(value))
        return value

    def _channel_dimension(self, node: fx.Node) -> int:
        """Along which what a node makes has channels: that of what it reads, of linear layers the
        last."""
        if node.op == "call_module" and isinstance(self.fetch_attr(str(node.target)), nn.Linear):
            return -1
        for leaf in tree_leaves(self.fetch_args_kwargs_from_env(node)):
            labels = self.tensors.labels(leaf) if isinstance(leaf, Tensor) else None
            if labels is not None and (dims := _dimensions(labels)):
                return dims[0]
        return 1

    def _begin(self, node: fx.Node, value: Tensor, dim: int) -> None:
        """Number a value's channels."""
        if not -value.ndim <= dim < value.ndim or not value.is_floating_point():
            return
        dim %= value.ndim
        start, n = self.starts[-1], value.shape[dim]
        self.whole[node] = len(self.dims), tuple(value.shape)
        self.dims.append(dim)
        self.starts.append(start + n)
        shape = [n if d == dim else 1 for d in range(value.ndim)]
        self.tensors.put(value, torch.arange(start, start + n).float().view(shape))

    def _look(self, node: fx.Node, value: Tensor, labels: Tensor) -> None:
        number = int(torch.bucketize(labels.amax(), torch.tensor(self.starts), right=True)) - 1
        if number < 0:
            return
        source, shape = self._nearest(node, number)
        if value.ndim != len(shape):
            return
        dim, n = self.dims[number], self.starts[number + 1] - self.starts[number]
        along = labels.movedim(dim, 0).flatten(1)
        index = along[:, 0].long() - self.starts[number]
        if (along != along[:, :1]).any() or ((index < 0) & (along[:, 0] > 0)).any():
            return
        if torch.equal(index, torch.arange(n)):  # all the same, or less of space
            self.whole[node] = number, tuple(value.shape)
            return
        module = _step(index, dim, n)
        if module and all(value.shape[d] == shape[d] for d in range(value.ndim) if d != dim):
            self.found.append(_Step(node, [source], module))

    def _nearest(self, node: fx.Node, number: int) -> tuple[fx.Node, tuple[int, ...]]:
        """Of what leads to a node, the last that has all channels in their places."""
        pending = list(node.all_input_nodes)
        for source in pending:  # grows while it is gone through, nearer ones first
            if self.whole.get(source, (None,))[0] == number:
                return source, self.whole[source][1]
            pending += [n for n in source.all_input_nodes if n not in pending]
        raise AssertionError(f"{node} has labels that nothing leads to")

    def _look_for_reduction(self, node: fx.Node, channel: int) -> None:
        found = reduction(node)
        read = None if found is None else self.env[found.source]
        labels = self.tensors.labels(read) if isinstance(read, Tensor) else None
        if found is None or labels is None:
            return
        dims = tuple(d % labels.ndim for d in found.dims)
        left = labels.amax(dims)
        if (left != left.amax()).any():
            return  # over branches, channel for channel
        if channel in dims and labels.select(channel, 0).amax() != labels.amax():
            module = Reduced(found.kind, dims, channel, found.keepdim, found.correction)
            self.found.append(_Step(node, [found.source], module))

    def _look_for_convolution(self, node: fx.Node, value: Tensor) -> None:
        """A convolution along the channels."""
        layer = self.fetch_attr(str(node.target))
        if type(layer) is not nn.Conv1d or layer.padding_mode != "zeros" or node.kwargs:
            return
        (source,) = node.all_input_nodes
        labels = self.tensors.labels(self.env[source])
        if labels is None or layer.stride != (1,) or labels.shape[-1] != value.shape[-1]:
            return
        if (labels == labels[:1, :1]).all() and (labels[..., :1] != labels[..., -1:]).all():
            module = AlongChannels(layer, labels.shape[-1])
            self.found.append(_Step(node, [source], module))


def _dimensions(labels: Tensor) -> list[int]:
    """Those along which there are different channels."""
    return [
        dim
        for dim in range(labels.ndim)
        if labels.shape[dim] and (labels.select(dim, 0) != labels.select(dim, -1)).any()
    ]


def _dimension_after(node: fx.Node, dim: int, n_dims: int) -> int:
    """Where a dimension of what a node reads lies in what it makes, which has `n_dims`."""
    along = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    if node.target is torch.stack and isinstance(along, int):
        return dim + (along % n_dims <= dim)
    found = reduction(node)
    if found is None or found.keepdim:
        return dim
    return dim - sum(d % (n_dims + len(found.dims)) < dim for d in found.dims)


def _is_padded_in_space(labels: Tensor, dim: int) -> bool:
    """Whether some channel has entries that are nobody's."""
    if not -labels.ndim <= dim < labels.ndim:  # a list of positions, and their like
        return False
    nobodys = (labels == 0).movedim(dim, 0).flatten(1)
    return bool((nobodys != nobodys[:, :1]).any())


def _step(index: Tensor, dim: int, n_channels: int) -> Moved | Padded | None:
    """What makes channels by their indices, of which a negative one is a channel of zeros; None if
    nothing here does."""
    theirs = (index >= 0).nonzero().flatten()
    before, end = int(theirs[0]), int(theirs[-1]) + 1
    if end - before == len(index):
        return Moved(index, dim, n_channels)
    if torch.equal(index[before:end], torch.arange(n_channels)):
        return Padded(before, len(index) - end, dim)
    return None


class _Watch(Watching):
    """Follows labels through what moves entries, and tells whether anything else was done."""

    def __init__(self, tensors: LabelledTensors) -> None:
        super().__init__()
        self.tensors, self.computes = tensors, False

    def ran(self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        result = operation(*args, **kwargs)
        if is_view(operation):
            return result
        labels = moved_labels(operation, by_name(operation, args, kwargs), self.tensors.of)
        if labels is None:
            self.computes = True
            return result
        for tensor, of_tensor in zip(tree_leaves(result), labels, strict=True):
            self.tensors.put(tensor, of_tensor)
        return result


def _replace(traced: fx.GraphModule, step: _Step) -> None:
    if isinstance(step.module, AlongChannels):
        traced.set_submodule(str(step.node.target), step.module)
        return
    name = f"{type(step.module).__name__.lower()}_{step.node.name}"
    traced.add_submodule(name, step.module)
    with traced.graph.inserting_before(step.node):
        call = traced.graph.call_module(name, tuple(step.sources))
    step.node.replace_all_uses_with(call)
