"""What a group's consumers read: masked, and where it is zero."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.fx
from torch import Tensor, nn

from shapray.network.group import Consumer, Group


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

    def watch(group: Group, consumer: Consumer) -> Callable[..., None]:
        units = torch.tensor(consumer.unit_of_channel, device=images.device)

        def look(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            (read, *_) = inputs or (named["input"],)
            channel = 1 if isinstance(module, nn.Conv2d) else read.ndim - 1
            active[group.name] |= units_read(read, channel, units, group.n_units)

        return look

    handles = [
        model.get_submodule(consumer.module).register_forward_pre_hook(
            watch(group, consumer), with_kwargs=True
        )
        for group in groups
        if group.flat
        for consumer in group.consumers
    ]
    try:
        with torch.inference_mode():
            model(images.clone())  # it may change its input
    finally:
        for handle in handles:
            handle.remove()
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
