"""Where the summed way leads into a tail: layers whose outputs are linear in the mask."""

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from shapray.network.channel_dimension import channel_dimension
from shapray.network.group import Channels, Group

ADDITIONS = (operator.add, operator.iadd, torch.add)


@dataclass(frozen=True)
class Entry:
    """Where the contributions of the units of one consumer are summed.

    The outputs of a convolution in groups come in as many blocks, and a unit adds to those of one
    block alone; those of other layers are one block.

    Attributes:
        consumer: the module that reads the group's channels.
        channels: (n_units, channels_per_unit) int64, its input channels of each unit, in the order
            of `units`; on the consumer's device.
        units: (n_blocks, units_per_block) int64, those that add to each block of its outputs;
            on the host.
        node: name of the graph's node whose value is the sum: the consumer's output, or what
            follows it as long as only cached values are added.
        source: index of the consumer's input among the sides.
        addends: indices of the sides that are added to the consumer's output.
        shape: of the node's value, without the batch.
        macs: multiply-adds of the consumer for one image.
    """

    consumer: nn.Conv2d | nn.Linear
    channels: Tensor
    units: Tensor
    node: str
    source: int
    addends: tuple[int, ...]
    shape: tuple[int, ...]
    macs: int

    @cached_property
    def channel(self) -> int:
        """The dimension that channels lie along in the consumer's input and output."""
        return channel_dimension(self.consumer, (1, *self.shape))

    @property
    def unit_numbers(self) -> int:
        """How many of the consumer's outputs a unit adds to."""
        return math.prod(self.shape) // len(self.units)

    @property
    def product_macs(self) -> int:
        """Multiply-adds of the sum of any coalition."""
        return self.unit_numbers * self.units.numel()


def is_plain(module: nn.Module) -> bool:
    """Whether a layer does what PyTorch's Conv2d, padding with zeros, or Linear does; one of a
    class derived from these may do more."""
    kind = type(module)
    if isinstance(module, nn.Conv2d):
        return (
            kind.forward is nn.Conv2d.forward
            and kind._conv_forward is nn.Conv2d._conv_forward  # type: ignore[attr-defined]
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        )
    return isinstance(module, nn.Linear) and kind.forward is nn.Linear.forward


def find_entries(
    folded: fx.GraphModule,
    calls: Sequence[fx.Node],
    readers: dict[str, Channels],
    sides: list[fx.Node],
    group: Group,
) -> tuple[Entry, ...]:
    """The summed way into the tail; empty if what some reader puts out is not linear in the mask.

    Args:
        folded: a measured network.
        calls: of the layers that read the group.
        readers: by their names, their channels.
        sides: values that are cached of an image.
    """
    entries = []
    for call in calls:
        consumer, source = folded.get_submodule(str(call.target)), call.args[0]
        if not group.flat or not is_plain(consumer) or source not in sides:
            return ()
        assert isinstance(consumer, nn.Conv2d | nn.Linear)
        channels = _unit_channels(readers[str(call.target)], group.n_units)
        units = None if channels is None else _units_of_blocks(consumer, channels)
        if channels is None or units is None:
            return ()
        node, addends = _sum(call, sides)
        entries.append(
            Entry(
                consumer=consumer,
                channels=channels[units.flatten()].to(consumer.weight.device),
                units=units,
                node=node.name,
                source=sides.index(source),  # type: ignore[arg-type]
                addends=addends,
                shape=tuple(call.meta["tensor_meta"].shape[1:]),
                macs=call.meta["macs"],
            )
        )
    return tuple(entries)


def _unit_channels(consumer: Channels, n_units: int) -> Tensor | None:
    """(n_units, channels_per_unit), or None if the units have unequal numbers of channels."""
    unit_of_channel = torch.tensor(consumer.unit_of_channel)
    counts = torch.bincount(unit_of_channel[unit_of_channel >= 0], minlength=n_units)
    if counts.min() != counts.max():
        return None
    return unit_of_channel.argsort(stable=True)[(unit_of_channel < 0).sum() :].reshape(n_units, -1)


def _units_of_blocks(consumer: nn.Conv2d | nn.Linear, channels: Tensor) -> Tensor | None:
    """(n_blocks, units_per_block), or None if a unit adds to several blocks, or they have unequal
    numbers of units."""
    n_blocks = consumer.groups if isinstance(consumer, nn.Conv2d) else 1
    n_channels = consumer.weight.shape[1]  # of a block's inputs
    block = channels[:, 0] // n_channels
    counts = torch.bincount(block, minlength=n_blocks)
    if (channels // n_channels != block[:, None]).any() or counts.min() != counts.max():
        return None
    return block.argsort(stable=True).reshape(n_blocks, -1)


def _sum(call: fx.Node, sides: list[fx.Node]) -> tuple[fx.Node, tuple[int, ...]]:
    """A layer's output, or what follows it as long as sides of its shape are added; and these."""
    shape = call.meta["tensor_meta"].shape
    node, addends = call, []
    while len(node.users) == 1:
        (user,) = node.users
        if user.op != "call_function" or user.target not in ADDITIONS or user.kwargs:
            break
        others = [a for a in user.args if a is not node]
        other = others[0] if len(others) == 1 else None
        if other not in sides or other.meta["tensor_meta"].shape != shape:  # type: ignore[union-attr]
            break
        node = user
        addends.append(sides.index(other))  # type: ignore[arg-type]
    return node, tuple(addends)
