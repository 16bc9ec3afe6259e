"""A small picture of an image as the network sees it."""

import io

import torch
from PIL import Image
from torch import Tensor

from shapray.config import Transform

SIDE = 48  # pixels, of the longer side
QUALITY = 60


def thumbnail(image: Tensor, transform: Transform) -> bytes:
    """JPEG of an image whose `mean` and `std` are undone; its longer side is at most `SIDE`.

    Pixels that then do not lie within 0 and 1, as those that came scaled in another way, are
    stretched to fill that range. Of other numbers of channels than 1 and 3 the mean is shown, in
    grey: no three of them are known to be colours.

    Args:
        image: (channels, height, width) float32, as the network gets it.
        transform: the job's.
    """
    pixels = image.detach().cpu()
    if transform.std is not None:
        pixels = pixels * torch.tensor(transform.std).view(-1, 1, 1)
    if transform.mean is not None:
        pixels = pixels + torch.tensor(transform.mean).view(-1, 1, 1)
    if len(pixels) not in (1, 3):
        pixels = pixels.mean(0, keepdim=True)
    low, high = pixels.min(), pixels.max()
    if low < -0.01 or high > 1.01:
        pixels = (pixels - low) / (high - low).clamp(min=1e-12)
    eight_bits = (pixels.clamp(0, 1) * 255).round().byte().movedim(0, 2).numpy()
    picture = Image.fromarray(eight_bits.squeeze(2) if len(pixels) == 1 else eight_bits)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)  # never larger than it is
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()
