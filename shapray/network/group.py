"""A group of units: who puts it out, who reads it."""

from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter


@dataclass(frozen=True)
class Channels:
    """Channels of a layer that belong to a group's units."""

    module: str
    unit_of_channel: tuple[int, ...]
    """Per channel (feature) of the layer: the unit it belongs to, -1 if none. A unit has several
    features of a linear layer after a flatten, several channels of a convolution in groups."""


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer of a module that is no convolution, linear layer or norm."""

    name: str
    dim: int
    """Along which its entries belong to units."""
    unit_of_index: tuple[int, ...]
    """-1 for no unit's."""


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together. Its units are numbered as they come in the root,
    then in the layers after it: where each has one channel of the root, unit *u* is channel *u*."""

    name: str
    """Name of the root: the group's first convolution or linear layer, in the order of
    ``named_modules``."""
    n_units: int
    kind: str
    """"conv" or "linear": what the root is."""
    modules: tuple[str, ...]
    """All modules that lose channels with a unit, in the order of ``named_modules``."""
    consumers: tuple[Channels, ...]
    """Layers that read the group, a convolution or Linear each: their input channels."""
    flat: bool
    """No consumer's input depends on another consumer's output."""
    reason: str | None
    """Why the group is not scored; None if it is."""
    writers: tuple[Channels, ...] = ()
    """Layers that put the units out or pass them on, channel by channel (norms, convolutions in
    groups): their output channels."""
    parameters: tuple[Parameter, ...] = ()
    """What else loses entries with a unit."""
    statistics: tuple[Channels, ...] = ()
    """Norms over channels (see `statistics`): those that they read. What they make of a unit
    depends on all others."""
    moves: tuple[Channels, ...] = ()
    """Steps of a program that move channels (see `program`): what they read."""
    blocks: tuple[int, ...] = ()
    """Per unit its block: a cut takes equally many units of each, since a convolution in groups has
    equally many channels in all of them. Empty: any units may go."""

    @property
    def step(self) -> int:
        """How many units go at a time: one of each block."""
        return len(set(self.blocks)) or 1


Role = Callable[[Group], tuple[Channels, ...]]
"""What layers are to a group."""

CONSUMERS: Role = attrgetter("consumers")
WRITERS: Role = attrgetter("writers")
STATISTICS: Role = attrgetter("statistics")
MOVES: Role = attrgetter("moves")
