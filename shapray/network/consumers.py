"""What a group's consumers read: masked, and where it is zero."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.fx
from torch import Tensor, nn

from shapray.network.channel_dimension import channel_dimension
from shapray.network.group import Channels, Group
from shapray.network.statistics import KeptNorm

Reader = Callable[[Tensor, int], Tensor]
"""What a consumer would read, and the dimension its channels lie along -> what it reads."""


@contextmanager
def intercept(model: nn.Module, readers: Iterable[tuple[Channels, Reader]]) -> Iterator[None]:
    """Within the context, consumers read what their readers make of their inputs; a consumer with
    several passes its input from one to the next."""

    def hook(reader: Reader) -> Any:
        def replace(
            module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
        ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
            read, *rest = args or (kwargs["input"],)
            channel = channel_dimension(module, read.shape)
            others = {k: v for k, v in kwargs.items() if k != "input"}
            return (reader(read, channel), *rest), others

        return replace

    handles = [
        model.get_submodule(consumer.module).register_forward_pre_hook(
            hook(reader), with_kwargs=True
        )
        for consumer, reader in readers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def weigh(model: nn.Module, norms: Iterable[tuple[Channels, Reader]]) -> Iterator[None]:
    """Within the context, statistics over channels give each the weight that their readers say for
    what they read (see `statistics.KeptNorm`); one with several has the product of the weights."""
    weights: dict[str, list[Reader]] = {}
    for norm, reader in norms:
        weights.setdefault(norm.module, []).append(reader)

    def hook(readers: list[Reader]) -> Any:
        def norm_again(
            module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], _: Tensor
        ) -> Tensor:
            (read,) = args or kwargs.values()
            channel = channel_dimension(module, read.shape)
            weight = torch.ones((), device=read.device)
            for reader in readers:
                weight = weight * reader(read, channel)
            return KeptNorm(module)(read, weight)

        return norm_again

    handles = [
        model.get_submodule(name).register_forward_hook(hook(readers), with_kwargs=True)
        for name, readers in weights.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def mask_consumers(model: nn.Module, group: Group, coalition: Tensor) -> Iterator[None]:
    """Within the context, every consumer of the group reads zeros for units out of the coalition,
    and norms over channels take the others alone.

    Args:
        coalition: bool, the units that are kept: (n_units,) for all images alike, or
            (n_images, n_units).
    """
    assert coalition.shape[-1] == group.n_units, (coalition.shape, group.n_units)
    assert coalition.dtype == torch.bool
    rows = torch.atleast_2d(coalition)

    def zeroing(consumer: Channels) -> Reader:
        unit = torch.tensor(consumer.unit_of_channel, device=rows.device)
        gone = (unit >= 0) & ~rows[:, unit.clamp(min=0)]  # (1 or n_images, n_channels)

        def zero(read: Tensor, channel: int) -> Tensor:
            # Not a product: 0 * inf would be nan.
            return read.masked_fill(along(gone, channel, read.ndim).to(read.device), 0.0)

        return zero

    def without(norm: Channels) -> Reader:
        unit = torch.tensor(norm.unit_of_channel, device=rows.device)
        kept = (unit < 0) | rows[:, unit.clamp(min=0)]  # (1 or n_images, n_channels)
        return lambda read, channel: along(kept, channel, read.ndim).to(read.device)

    consumers = [(consumer, zeroing(consumer)) for consumer in group.consumers]
    norms = [(norm, without(norm)) for norm in group.statistics]
    with intercept(model, consumers), weigh(model, norms):
        yield


def along(rows: Tensor, channel: int, ndim: int) -> Tensor:
    """(n_images, n_channels) for a product with a tensor whose channels lie along `channel`."""
    return rows.view(len(rows), *(rows.shape[1] if d == channel else 1 for d in range(1, ndim)))


def active_units(model: nn.Module, groups: Sequence[Group], images: Tensor) -> dict[str, Tensor]:
    """In a flat group the units that some consumer reads as something else than zero, in a deep
    group all.

    Args:
        model: the whole network, on the images' device.
        images: (n_images, channels, height, width).
    Returns:
        by the group's name, (n_images, n_units) bool.
    """
    active = {
        group.name: torch.full((len(images), group.n_units), not group.flat, device=images.device)
        for group in groups
    }

    def watch(group: Group, consumer: Channels) -> Reader:
        units = torch.tensor(consumer.unit_of_channel, device=images.device)

        def look(read: Tensor, channel: int) -> Tensor:
            active[group.name] |= units_read(read, channel, units, group.n_units)
            return read

        return look

    flat = [group for group in groups if group.flat]
    watched = [(consumer, watch(group, consumer)) for group in flat for consumer in group.consumers]
    with intercept(model, watched), torch.inference_mode():
        model(images.clone())  # it may change its input
    return active


def count_active(model: nn.Module, groups: Sequence[Group], images: Tensor) -> np.ndarray:
    """How many units of each group are active for each image: (n_images, n_groups) int32."""
    active = active_units(model, groups, images)
    counts = [active[group.name].sum(1).cpu().numpy() for group in groups]
    return np.array(counts, dtype=np.int32).reshape(len(groups), len(images)).T


def units_read(read: Tensor, channel: int, units: Tensor, n_units: int) -> Tensor:
    """Which units a consumer reads as something else than zero.

    Args:
        read: (n_images, ...), the consumer's input.
        channel: dimension of `read` along which the units lie.
        units: (n_channels,) int64, the unit of each channel, -1 for none.
    Returns:
        (n_images, n_units) bool.
    """
    nonzero = (read != 0).movedim(channel, 1).reshape(len(read), len(units), -1).any(2)
    counts = torch.zeros(len(read), n_units + 1, device=read.device)  # the last for no unit's
    counts.index_add_(1, units.where(units >= 0, n_units), nonzero.float())
    return counts[:, :n_units] > 0
