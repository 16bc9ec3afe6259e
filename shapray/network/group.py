"""A group of units, and who reads it."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Consumer:
    """A Conv2d or Linear that reads a group's channels."""

    module: str
    unit_of_channel: tuple[int, ...]
    """Per input channel (feature) of the module: the unit it belongs to, -1 if none. A unit has
    several features of a linear layer after a flatten."""


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


def n_root_units(root: nn.Module) -> int:
    """Output channels of a convolution, output features of a linear layer."""
    if isinstance(root, nn.Conv2d):
        return root.out_channels
    if isinstance(root, nn.Linear):
        return root.out_features
    raise ValueError(f"a {type(root).__name__} is no root of a group")
