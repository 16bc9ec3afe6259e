"""Images moved, mirrored and blended by chance, so that a few go further.

Source: blends as training data are Zhang et al. 2018, mixup: Beyond Empirical Risk Minimization.
"""

import torch
from torch import Tensor, nn

SHIFT = 8  # at most this part of a side
BLENDED = 0.5  # of the images


def move(images: Tensor, random: torch.Generator, mirror: bool = True) -> Tensor:
    """Each image shifted by up to an eighth of its sides, and half of them mirrored.

    What comes in at an edge is a reflection of what is there.

    Args:
        images: (n, channels, height, width), on any device.
        random: on the CPU.
        mirror: left and right may change places.
    """
    n, channels, height, width = images.shape
    if mirror:
        chosen = torch.rand(n, generator=random) < 0.5
        chosen = chosen.to(images.device)[:, None, None, None]
        images = torch.where(chosen, images.flip(3), images)
    down, right = height // SHIFT, width // SHIFT
    padded = nn.functional.pad(images, (right, right, down, down), mode="reflect")
    rows = torch.randint(2 * down + 1, (n, 1), generator=random) + torch.arange(height)
    columns = torch.randint(2 * right + 1, (n, 1), generator=random) + torch.arange(width)
    return padded[
        torch.arange(n)[:, None, None, None],
        torch.arange(channels)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


def blend(
    images: Tensor, targets: Tensor | None, random: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Half of the images with up to as much of the image before them as of their own.

    Args:
        images: (n, channels, height, width), on any device.
        targets: (n, classes), probabilities that are blended in the same way; on the same device.
        random: on the CPU.
    """
    n = len(images)
    share = 0.5 * torch.rand(n, generator=random) * (torch.rand(n, generator=random) < BLENDED)
    share = share.to(images.device)
    blended = images.lerp(images.roll(1, 0), share[:, None, None, None])
    return blended, None if targets is None else targets.lerp(targets.roll(1, 0), share[:, None])
