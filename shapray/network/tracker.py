"""Channels followed through one forward pass of a network.

Layers with weights (see `layers`) read channels and put out new ones; everything between them
is followed operation by operation, as PyTorch runs them (see `operations`), so that it does not
matter how a forward is written, nor whether it could be traced.
"""

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.utils._pytree import tree_leaves

from shapray.network.along_channels import AlongChannels
from shapray.network.channel_dimension import channel_dimension
from shapray.network.coupling import MIXED, Coupling
from shapray.network.labels import LabelledTensors
from shapray.network.layers import Layer, is_scored
from shapray.network.moved import Moved
from shapray.network.operations import Call, by_name, is_view, rule_for
from shapray.network.reduced import Reduced
from shapray.network.statistics import is_over_channels
from shapray.network.watching import Watching

Norm = _NormBase | nn.GroupNorm | nn.LayerNorm | nn.PReLU
"""Layers that know how many channels they read, and put out the same."""

MOST_ENTRIES = 2**16  # of a parameter with several dimensions that is followed


@dataclass
class Tracked:
    """What one forward pass tells of a network's channels. Labels are classes, see `labels`.

    Attributes:
        coupling: of all labels.
        outputs: layer -> its output channels, (n_channels,).
        inputs: layer -> its input channels, (n_channels,); 0 for what is no layer's channel.
        norms: layer -> the channels it reads and puts out, (n_channels,).
        statistics: layer that is a statistic over channels (see `statistics`) -> those it reads.
        moves: step of a program that moves channels -> those it reads, (n_channels,).
        in_groups: convolution whose groups have several inputs and outputs each -> how many groups;
            a cut may take equally many channels of each.
        parameters: name -> the channels of its entries, in its shape; those of no layer above.
        above: layer -> the layers that were run on the way to what it reads.
        of_network: labels of what the network puts out, or makes of it at its very end.
    """

    coupling: Coupling = field(default_factory=Coupling)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    inputs: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, Tensor] = field(default_factory=dict)
    statistics: dict[str, Tensor] = field(default_factory=dict)
    moves: dict[str, Tensor] = field(default_factory=dict)
    in_groups: dict[str, int] = field(default_factory=dict)
    parameters: dict[str, Tensor] = field(default_factory=dict)
    above: dict[str, set[str]] = field(default_factory=dict)
    of_network: set[int] = field(default_factory=set)

    def keep_whole(self, name: str) -> None:
        """Of a convolution in groups a group's inputs and outputs go together from now on."""
        n_groups = self.in_groups.pop(name)
        read = self.inputs[name].view(n_groups, -1)
        outputs = self.outputs[name].view(n_groups, -1)
        reason = "a convolution in groups, of channels that belong to no group"
        self.coupling.exclude(outputs[~read.any(1)], reason)
        self.coupling.one_along(torch.cat([read, outputs], 1), [1])


def track(model: nn.Module, example: Tensor) -> Tracked:
    """Follow the channels of a network, in eval mode.

    Args:
        model: left as it is; it is run on `example`.
        example: one image, (1, C, H, W), on the model's device.
    """
    with torch.inference_mode(False), torch.no_grad():  # outside of it all operations are basic
        tracked = copy.deepcopy(model).eval()
        tracker = _Tracker(tracked)
        image = example.detach().clone()
        tracker.begin(image)
        with tracker.watching(), tracker:
            output = tracked(image)
        return tracker.end(output)


class _Tracker(Watching):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.found = Tracked()
        self.coupling = self.found.coupling
        self.tensors = LabelledTensors()
        self.names: dict[nn.Module, str] = {}
        for name, module in model.named_modules():  # the first of a shared module's names
            self.names.setdefault(module, name)
        self.numbers = {name: i for i, name in enumerate(self.names.values())}
        self.stack: list[str] = []
        self.layer: str | None = None  # at work, or looked at: its operations are not followed
        self.reading: Tensor | None = None
        self.reading_above = 0
        self.tied = _tied_weights(model)
        self._label_parameters(model)

    def begin(self, image: Tensor) -> None:
        labels = self.coupling.classes.fresh(image.shape[1])
        self.coupling.exclude(labels, "its channels meet those of the network's input")
        self.tensors.put(image, labels[:, None, None])

    def end(self, output: Any) -> Tracked:
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and (labels := self.tensors.labels(leaf)) is not None:
                self.found.of_network |= self.coupling.made_of(labels)
        return self.found

    def _label_parameters(self, model: nn.Module) -> None:
        """Entries of parameters and buffers that are no layer's weights."""
        for module, name in self.names.items():
            if isinstance(module, _ConvNd | nn.Linear):
                continue
            own = [*module.named_parameters(name, False), *module.named_buffers(name, False)]
            for full_name, tensor in own:
                if tensor.numel() > 1 and (
                    max(tensor.shape) == tensor.numel() or tensor.numel() <= MOST_ENTRIES
                ):
                    labels = self.coupling.fresh_parameter(tensor.numel()).view(tensor.shape)
                    self.found.parameters[full_name] = labels
                    self.tensors.put(tensor, labels)

    # layers

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        handles = []
        for module in self.names:
            handles += [
                module.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True),
                module.register_forward_hook(self._leave, always_call=True),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        name = self.names[module]
        self.stack.append(name)
        if self.layer is not None:
            return
        given = [leaf for leaf in tree_leaves((args, dict(kwargs))) if isinstance(leaf, Tensor)]
        if given and (isinstance(module, _ConvNd | nn.Linear) or is_over_channels(module)):
            self.layer = name
            self.reading = self.tensors.of(given[0])
            self.reading_above = self._above(given)
        elif given and isinstance(module, Norm):
            channel = channel_dimension(module, given[0].shape)
            self.found.norms[name] = self._channels(name, given[0], channel)
        elif given and isinstance(module, Moved):
            self.found.moves[name] = self._channels(name, given[0], module.dim)

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        name = self.names[module]
        while self.stack and self.stack.pop() != name:  # one that failed, and was caught further up
            pass
        if self.layer != name:
            return
        try:
            if isinstance(output, Tensor):
                self._label_outputs(name, module, output)
        finally:
            self.layer = None

    def _label_outputs(self, name: str, module: nn.Module, output: Tensor) -> None:
        assert self.reading is not None
        above = self.reading_above
        self.found.above.setdefault(name, set()).update(self._names(above))
        self.tensors.put_above(output, above | 1 << self.numbers[name])
        if is_over_channels(module):
            self._pass_norm(name, module, self.reading, output)
            return
        assert isinstance(module, Layer)
        labels = self._pass_layer(name, module, self.reading)
        dims = [1] * (0 if isinstance(module, nn.Linear) else len(module.kernel_size))
        if output.shape[-1 - len(dims)] != len(labels):  # of a class derived from PyTorch's
            reason = f"{name}, a {type(module).__name__}, puts out other channels than its weights'"
            self.coupling.exclude(torch.cat([labels, self.found.inputs[name]]), reason)
            return
        self.tensors.put(output, labels.view(-1, *dims))

    def _pass_norm(self, name: str, module: nn.Module, reading: Tensor, output: Tensor) -> None:
        """A norm over channels: an output goes with its input, and depends on all."""
        channel = channel_dimension(module, reading.shape)
        dims = [d for d in range(reading.ndim) if d != channel]
        read = self.coupling.one_along(reading, dims)
        if name in self.found.statistics:
            self._unite_calls(name, self.found.statistics[name], read)
        self.found.statistics[name] = read
        if isinstance(module, Reduced):
            return  # what it puts out is no channel's
        if isinstance(module, AlongChannels):  # its parameters are no channel's, its places are
            self.coupling.together([read, self.tensors.of(module.places)], "")
        else:
            self.found.norms[name] = read
        shape = [-1 if d == channel else 1 for d in range(reading.ndim)]
        self.tensors.put(output, read.view(shape))

    def _pass_layer(self, name: str, module: Layer, reading: Tensor) -> Tensor:
        """Labels of a layer's outputs, (n_channels,), from those of what it reads."""
        channel = -1 if isinstance(module, nn.Linear) else -1 - len(module.kernel_size)
        dims = [d for d in range(reading.ndim) if d != reading.ndim + channel]
        if reading.shape[channel] == 1 and self.coupling.same_along(reading, dims) is None:
            kind = type(module).__name__
            self.coupling.exclude(reading, f"{MIXED} by {name}, a {kind} along them")
            read = torch.zeros(1)
        elif is_scored(module):
            read = self.coupling.one_along(reading, dims)
        else:
            kind = type(module).__name__
            self.coupling.exclude(reading, f"{name} reads it, a {kind} in groups")
            read = torch.zeros(reading.shape[channel])
        if name in self.found.inputs:  # called again: its weights are for both
            self._unite_calls(name, self.found.inputs[name], read)
            read = torch.maximum(read, self.found.inputs[name])
        self.found.inputs[name] = read
        n_outputs = module.out_features if isinstance(module, nn.Linear) else module.out_channels
        if name not in self.found.outputs:
            self.found.outputs[name] = self.coupling.classes.fresh(n_outputs)
        outputs = self.found.outputs[name]
        if not is_scored(module):
            self.coupling.exclude(outputs, f"{name} is a {type(module).__name__} in groups")
        elif name in self.tied:
            reason = f"{name} and {self.tied[name]} share their weights"
            self.coupling.exclude(torch.cat([read, outputs]), reason)
        elif getattr(module, "groups", 1) > 1:
            n_groups = self.found.in_groups[name] = int(module.groups)  # type: ignore[arg-type]
            if n_groups in (len(read), len(outputs)):  # a depthwise one: an output with its input
                self.found.keep_whole(name)
        return outputs

    def _unite_calls(self, name: str, before: Tensor, now: Tensor) -> None:
        once = (before > 0) != (now > 0)
        reason = f"{name} is called again, with something else in its channels' places"
        self.coupling.exclude(torch.maximum(before, now)[once], reason)
        self.coupling.together([before, now], "")

    def _channels(self, name: str, read: Tensor, channel: int) -> Tensor:
        """The classes along a dimension of what a layer reads, (n_channels,)."""
        self.layer = name
        labels = self.tensors.of(read)
        found = self.coupling.one_along(labels, [d for d in range(labels.ndim) if d != channel])
        self.layer = None
        return found

    # operations

    def ran(self, operation: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if self.layer is not None:
            return operation(*args, **kwargs)
        if rule_for(operation) is None and not is_view(operation):
            result = self.decomposed(operation, args, kwargs)  # what may be known
            if result is not NotImplemented:
                return result
        result = operation(*args, **kwargs)
        self._follow(operation, args, kwargs, result)
        return result

    def _follow(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any
    ) -> None:
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not results:
            return
        arguments = by_name(func, args, kwargs)
        given = [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, Tensor)]
        above = self._above(given)
        for tensor in results:
            self.tensors.put_above(tensor, above)
        labelled = [labels for t in given if (labels := self.tensors.labels(t)) is not None]
        if is_view(func) or not any(labels.any() for labels in labelled):
            return
        place = f" in {self.stack[-1]}" if self.stack and self.stack[-1] else ""
        call = Call(func, arguments, results, place, self.tensors.of, self.coupling)
        rule = rule_for(func)
        found = call.mixed() if rule is None else rule(call)
        for tensor, labels in zip(results, found, strict=True):
            self.tensors.put(tensor, labels)

    def _above(self, tensors: Sequence[Tensor]) -> int:
        above = 0
        for tensor in tensors:
            above |= self.tensors.above(tensor)
        return above

    def _names(self, above: int) -> set[str]:
        return {name for name, number in self.numbers.items() if above >> number & 1}


def _tied_weights(model: nn.Module) -> dict[str, str]:
    """Layers whose weight is another layer's too, and that layer."""
    owners: dict[nn.Parameter, str] = {}
    tied: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, _ConvNd | nn.Linear):
            other = owners.setdefault(module.weight, name)  # type: ignore[arg-type]
            if other != name:
                tied[name], tied[other] = other, name
    return tied
