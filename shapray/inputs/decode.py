"""An image in any form to a tensor."""

from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image


def decode(image: Any, mode: str) -> Tensor:
    """Encoded bytes, PIL image, array (H, W[, C]) or tensor ([C,] H, W) -> (C, H, W) tensor:
    uint8, or float32 in [0, 1]."""
    if isinstance(image, bytes):
        if not image:
            raise ValueError("it has 0 bytes")
        read_mode = ImageReadMode.RGB if mode == "RGB" else ImageReadMode.GRAY
        encoded = torch.frombuffer(bytearray(image), dtype=torch.uint8)
        pixels = decode_image(encoded, read_mode)
    elif isinstance(image, Tensor):
        pixels = image if image.ndim == 3 else image[None]
    else:
        array = np.array(image.convert(mode) if isinstance(image, Image) else image)
        pixels = torch.from_numpy(array if array.ndim == 3 else array[..., None]).permute(2, 0, 1)
    n_channels = 3 if mode == "RGB" else 1
    if pixels.ndim != 3 or pixels.shape[0] != n_channels:
        raise ValueError(
            f"its shape is {tuple(pixels.shape)}; mode {mode} needs ({n_channels}, height, width)"
        )
    if pixels.is_floating_point():  # scaled already
        return pixels.float()
    if pixels.dtype == torch.uint16:  # 16-bit PNG
        return pixels.float() / 65535
    if pixels.dtype != torch.uint8:
        raise ValueError(f"its pixels are {pixels.dtype}; 8-bit integers or floats are read")
    return pixels
