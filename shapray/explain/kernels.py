"""Kernels of the units that look at the image itself, as pictures."""

import io
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor, nn

from shapray.network.group import Channels, Group
from shapray.network.tracker import track
from shapray.storage.explained import KERNELS


def kernels(model: nn.Module, groups: Sequence[Group], example: Tensor) -> pa.Table:
    """The kernels of all units that a convolution makes right from the image.

    That is one with no other convolution or linear layer before it, and a weight for every channel
    of the image: 3 are shown as colours, 1 as grey; of other images there is nothing to see. Of a
    group with several such convolutions, the first.

    Args:
        model: in eval mode.
        example: (1, channels, height, width).
    Returns:
        KERNELS, a row per unit, a pixel per weight.
    """
    n_channels = example.shape[1]
    rows = list[dict[str, Any]]()
    if n_channels in (1, 3):
        above = track(model, example).above
        for group in groups:
            stems = (
                (writer, module)
                for writer in group.writers
                if isinstance(module := model.get_submodule(writer.module), nn.Conv2d)
                and module.weight.shape[1] == n_channels
                and not above[writer.module]  # nothing before it
            )
            stem = next(stems, None)
            if stem is not None:
                rows += _rows(group, *stem)
    return pa.Table.from_pylist(rows, schema=KERNELS)


def _rows(group: Group, writer: Channels, stem: nn.Conv2d) -> list[dict[str, Any]]:
    weight = stem.weight.detach().float().cpu()
    height, width = weight.shape[2:]
    # of a unit with several channels the first
    channels = [(u, writer.unit_of_channel.index(u)) for u in sorted({*writer.unit_of_channel})]
    return [
        {
            "group": group.name,
            "unit": unit,
            "picture": _png(weight[channel]),
            "height": height,
            "width": width,
        }
        for unit, channel in channels
        if unit >= 0
    ]


def _png(kernel: Tensor) -> bytes:
    """(channels, height, width): 0 is a medium grey, the largest weight either way an end of the
    range."""
    largest = kernel.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    eight_bits = (127.5 + 127.5 * kernel / largest).round().byte().movedim(0, 2).numpy()
    picture = Image.fromarray(eight_bits.squeeze(2) if len(kernel) == 1 else eight_bits)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
