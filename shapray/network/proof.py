"""The proof, without a tolerance, that a group's units are seen by its consumers alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shapray.network.channel_dimension import channel_dimension
from shapray.network.consumers import mask_consumers
from shapray.network.group import Channels, Group
from shapray.network.layers import Layer


def leak(model: nn.Module, group: Group, image: Tensor) -> str | None:
    """How a unit reaches the output without being read by a consumer, in words; None if none does.

    Some units' layers put out NaN where their consumers read zeros: the network's output has a NaN
    exactly if something else sees one of them. Half of the units, then the others, so that every
    unit is among them once, and what is made of all of them at once is seen.

    Args:
        model: in eval mode, with finite outputs on the image.
        image: (1, C, H, W), on the model's device.
    """
    for parity in (0, 1):
        gone = torch.arange(group.n_units) % 2 == parity
        if not gone.any():
            continue
        with torch.no_grad(), _poisoned(model, group, gone), mask_consumers(model, group, ~gone):
            try:
                output = model(image.clone())  # it may change its input
            except Exception:  # a forward that looks at its numbers
                return (
                    "the network's forward fails on NaN, by which it is proved who sees its units"
                )
        if output.isnan().any():
            readers = ", ".join(consumer.module for consumer in group.consumers)
            return f"its units reach the output by another way than through {readers}"
    return None


@contextmanager
def _poisoned(model: nn.Module, group: Group, gone: Tensor) -> Iterator[None]:
    """Within the context, the layers that make some units put out NaN for them."""

    def hook(writer: Channels) -> Any:
        units = torch.tensor(writer.unit_of_channel)
        channels = (units >= 0) & gone[units.clamp(min=0)]

        def poison(module: nn.Module, _: Any, output: Tensor) -> Tensor:
            channel = channel_dimension(module, output.shape)
            shape = [-1 if dim == channel else 1 for dim in range(output.ndim)]
            return output.masked_fill(channels.view(shape).to(output.device), torch.nan)

        return poison

    handles = [
        module.register_forward_hook(hook(writer))
        for writer in group.writers
        if isinstance(module := model.get_submodule(writer.module), Layer)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
