"""An image in any form to a tensor; encoded ones as Pillow reads them."""

import io
import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

# Pillow's name -> endings of files. Its other plugins stay shut: one of them starts a program.
FORMATS = {
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "PPM": (".ppm", ".pgm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
# How Pillow holds 16 bits of grey; its convert() would cut them off at 255.
_GREY_16 = {"I;16", "I;16B", "I;16L", "I;16N"}


def decode(image: Any, mode: str) -> Tensor:
    """An image's pixels: uint8, or float32 in [0, 1]; (channels, height, width).

    Encoded images and PIL images are converted to `mode` as Pillow does, the first frame of an
    animation; 16 bits of grey keep their precision.

    Args:
        image: encoded bytes, PIL image, array (height, width[, channels]) or tensor ([channels,]
            height, width). Floats are taken to be scaled already.
        mode: ``RGB`` or ``L``.
    Raises:
        ValueError: damaged or cut off, of an unknown format or another number of channels.
    """
    if isinstance(image, bytes | Image.Image):
        image = _with_pillow(image, mode)
    pixels = image if isinstance(image, Tensor) else _channels_first(image)
    if pixels.ndim == 2:
        pixels = pixels[None]
    n_channels = 3 if mode == "RGB" else 1
    if pixels.ndim != 3 or pixels.shape[0] != n_channels:
        raise ValueError(
            f"its shape is {tuple(pixels.shape)}; mode {mode} needs ({n_channels}, height, width)"
        )
    if pixels.is_floating_point():
        return pixels.float()
    if pixels.dtype == torch.uint16:
        return pixels.float() / 65535
    if pixels.dtype != torch.uint8:
        raise ValueError(f"its pixels are {pixels.dtype}; uint8, uint16 or floats are read")
    return pixels


def was_read_otherwise(image: bytes, mode: str) -> bool:
    """Whether version 0.1 gave this image other pixels: it converted colour to grey with another
    library, and kept 16 bits of colour and the colour under a GIF's transparency.

    Args:
        image: encoded, and sound.
        mode: that it is read in.
    """
    opened = Image.open(io.BytesIO(image), formats=tuple(FORMATS))
    if opened.format == "GIF" and "transparency" in opened.info:
        return True
    colour = opened.mode not in {"1", "L", "LA", "I", *_GREY_16}
    deep = opened.format == "PNG" and colour and image[24] == 16  # IHDR's bit depth
    return (mode == "L" and colour) or deep


def _channels_first(image: Any) -> Tensor:
    array = np.array(image)
    if array.dtype.kind not in "uif":
        raise ValueError(
            f"it is a {type(image).__name__}; encoded bytes, a PIL image, an array or a tensor of "
            "pixels is expected"
        )
    pixels = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels


def _with_pillow(image: bytes | Image.Image, mode: str) -> np.ndarray:
    """(height, width[, channels]), uint8, or uint16 where the image has 16 bits of grey."""
    if image == b"":
        raise ValueError("it has 0 bytes")
    try:
        with warnings.catch_warnings(action="ignore"):  # of tags and palettes that do not matter
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if isinstance(image, bytes):
                # Checksums are compared here only, and damaged pixels may look sound without.
                Image.open(io.BytesIO(image), formats=tuple(FORMATS)).verify()
                image = Image.open(io.BytesIO(image), formats=tuple(FORMATS))
            image.load()
            whole = image if image.mode in {*_GREY_16, "I", "F"} else image.convert(mode)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(
            f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels, or its header says so; larger "
            "images are not read"
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(
            f"it is no image, or its beginning is damaged; {', '.join(FORMATS)} are read"
        ) from error
    except Exception as error:  # each format has its own kinds
        raise ValueError(f"it is damaged or cut off: {error}") from error
    if whole.mode in _GREY_16 or (whole.mode == "I" and whole.format in {"PNG", "PPM"}):
        grey = np.asarray(whole).astype(np.uint16)
        return np.stack([grey] * 3, axis=2) if mode == "RGB" else grey
    if whole.mode in {"I", "F"}:
        raise ValueError(
            f"its pixels are 32-bit {'integers' if whole.mode == 'I' else 'floats'}, of which "
            "nothing says what is white; 8 and 16 bits are read"
        )
    return np.asarray(whole)
