"""Which units could matter for an image: the others are null players."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from shapray.groups import Consumer, Group


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
