"""What a group's consumers read: masked, and where it is zero."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

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
    # (n_images, n_units + 1): how many consumer channels were read; the last for no unit's
    reads = {
        group.name: images.new_full((len(images), group.n_units + 1), 0.0 if group.flat else 1.0)
        for group in groups
    }

    def watch(group: Group, consumer: Consumer) -> Callable[..., None]:
        units = torch.tensor(consumer.unit_of_channel, device=images.device)
        units = units.where(units >= 0, group.n_units)

        def look(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            (read, *_) = inputs or (named["input"],)
            channels_last = read.movedim(1 if isinstance(module, nn.Conv2d) else -1, -1)
            nonzero = (channels_last != 0).reshape(len(images), -1, len(units)).any(1)
            reads[group.name].index_add_(1, units, nonzero.to(images.dtype))

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
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return {name: count[:, :-1] > 0 for name, count in reads.items()}
