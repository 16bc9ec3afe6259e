"""Small images for the tests of sources and decoding."""

import io

import numpy as np
import torch
from PIL import Image


def pixels(number, height=6, width=5, channels=3):
    random = np.random.default_rng(number)
    return random.integers(0, 256, (height, width, channels), dtype=np.uint8).squeeze()


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def scaled(number, **size):
    """What `pixels(number)` becomes without a transform."""
    return torch.from_numpy(pixels(number, **size)).permute(2, 0, 1).float() / 255
