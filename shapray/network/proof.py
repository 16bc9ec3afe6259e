"""The proof, without a tolerance, that a group's units are seen by its consumers alone."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import combinations, count, islice
from typing import Any

import torch
from torch import Tensor, nn

from shapray.network.channel_dimension import channel_dimension
from shapray.network.consumers import intercept, mask_consumers
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


def sealed(model: nn.Module, groups: Sequence[Group], image: Tensor) -> bool:
    """Whether it is proved of many groups at once that none has a `leak`; which of them has is for
    that to say.

    In a pass some groups are poisoned, half of their units and then the others, and the rest is
    whole. The masks of one group could hide what leaks into it from another, and do so in no pass
    in which it is whole: for any two groups there is one in which the other is poisoned. There a
    leak reaches a consumer's input unmasked, where it is seen, or the output. That takes a number
    of passes which grows with the logarithm of the groups'.

    Args:
        model, image: as for `leak`.
    """
    codes = _codes(len(groups))
    for number in sorted(set().union(*codes)):
        poisoned = [group for group, code in zip(groups, codes) if number in code]
        for parity in (0, 1):
            gone = [(group, torch.arange(group.n_units) % 2 == parity) for group in poisoned]
            if _is_seen(model, gone, groups, image):
                return False
    return True


def _codes(n: int) -> list[tuple[int, ...]]:
    """Different sets of numbers, none of which is a part of another, of as few numbers as can
    be (Sperner)."""
    length = next(length for length in count(1) if math.comb(length, (length + 1) // 2) >= n)
    return list(islice(combinations(range(length), (length + 1) // 2), n))


def _is_seen(
    model: nn.Module,
    gone: Sequence[tuple[Group, Tensor]],
    groups: Sequence[Group],
    image: Tensor,
) -> bool:
    """Whether a NaN of a group's units that are gone gets past the masks, into any group's
    consumer or the output; also if the forward fails on NaN."""
    seen: list[Tensor] = []

    def look(read: Tensor, _: int) -> Tensor:
        seen.append(read.isnan().any())
        return read

    readers = {reader.module: (reader, look) for group in groups for reader in group.consumers}
    with torch.no_grad(), ExitStack() as stack:
        for group, units in gone:
            stack.enter_context(_poisoned(model, group, units))
            stack.enter_context(mask_consumers(model, group, ~units))
        stack.enter_context(intercept(model, readers.values()))  # they look after the masks
        try:
            seen.append(model(image.clone()).isnan().any())  # it may change its input
        except Exception:  # a forward that looks at its numbers
            return True
    return any(bool(found) for found in seen)


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
