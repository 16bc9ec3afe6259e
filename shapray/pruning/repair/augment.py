"""Images moved, mirrored and blended by chance, so that a few go further.

Sources: faint other images are Zhang et al. 2018, mixup: Beyond Empirical Risk Minimization;
pasted ones Yun et al. 2019, CutMix.
"""

import torch
from torch import Tensor, nn

SHIFT = 8  # at most this part of a side
IMAGES_AT_ONCE = 32  # in a network
LOOKED_AT = 256  # images, to see whether they may be mirrored
SAME = 0.7  # of mirrored images, whose class stays; 0.9 on photographs, 0.3 on digits


def look_alike(network: nn.Module, images: Tensor) -> bool:
    """Whether mirrored images are of the kind that a network knows: it says the same of most.

    A mirrored dog is a dog, a mirrored 2 is nothing.

    Args:
        network: in eval mode.
        images: (n, channels, height, width), on its device.
    """
    with torch.inference_mode():
        here, there = (
            torch.cat([network(part.clone()) for part in seen.split(IMAGES_AT_ONCE)])
            for seen in (images[:LOOKED_AT], images[:LOOKED_AT].flip(3))
        )
    same = here.argmax(1) == there.argmax(1)
    return float(same.float().mean()) >= SAME


def views(images: Tensor, n: int, seed: int, mirror: bool) -> Tensor:
    """The images, and behind them each n - 1 times more, moved and blended.

    A fit to the outputs of a network needs no labels, so these are more of what it may meet.

    Args:
        images: (n_images, channels, height, width), on any device.
        mirror: left and right may change places.
    Returns:
        (n * n_images, channels, height, width), on the same device.
    """
    random = torch.Generator().manual_seed(seed)
    n_images = len(images)
    found = images.new_empty(n * n_images, *images.shape[1:])
    found[:n_images] = images
    for first in range(n_images, len(found), n_images):
        order = torch.randperm(n_images, generator=random).to(images.device)
        moved = move(images[order], random, mirror)
        found[first : first + n_images] = blend(moved, None, random)[0]
    return found


def move(images: Tensor, random: torch.Generator, mirror: bool) -> Tensor:
    """Each image shifted by up to an eighth of its sides, and half of them mirrored if they may be.

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
    """Each image with up to as much of the image before it as of its own.

    By chance that is a rectangle of the other image in its place, or a faint one all over.

    Args:
        images: (n, channels, height, width), on any device.
        targets: (n, classes), probabilities that are blended in the same way; on the same device.
        random: on the CPU.
    """
    n, _, height, width = images.shape
    share = 0.5 * torch.rand(n, 1, 1, generator=random)
    rows = _within(share.sqrt(), height, random)[:, :, None]
    columns = _within(share.sqrt(), width, random)[:, None, :]
    pasted = torch.rand(n, 1, 1, generator=random) < 0.5
    other = torch.where(pasted, (rows & columns).float(), share).to(images.device)  # (n, h, w)
    blended = images.lerp(images.roll(1, 0), other[:, None])
    if targets is None:
        return blended, None
    return blended, targets.lerp(targets.roll(1, 0), other.mean((1, 2))[:, None])


def _within(share: Tensor, length: int, random: torch.Generator) -> Tensor:
    """Which places of a side belong to a part of it, (n, length) bool; what it has beyond an end is
    lost.

    Args:
        share: (n, 1, 1), the part's of the side.
    """
    middle = torch.rand(len(share), 1, generator=random)
    places = (torch.arange(length) + 0.5) / length
    return (places - middle).abs() < share[:, :, 0] / 2
