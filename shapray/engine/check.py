"""The check that the two halves of a network compute what the whole does."""

import torch
from torch import Tensor, nn

from shapray.engine.network_game import NetworkSplit
from shapray.network.check import TOLERANCE
from shapray.network.consumers import mask_consumers


def check_split(split: NetworkSplit, model: nn.Module, images: Tensor, seed: int) -> str | None:
    """Whether the two halves of a network compute what the whole does; the reason if they do not.

    On a random coalition of half of the units, by both ways into the tail. The measure is that of
    `groups.check_group`.

    Args:
        split: in float32.
        model: the network itself, on the device of `images`.
        images: (n_images, channels, height, width).
    """
    game = split.game(images, None, "neg_kl_divergence")
    order = torch.randperm(game.n_players, generator=torch.Generator().manual_seed(seed))
    joined = order[: (game.n_players + 1) // 2]
    coalition = torch.zeros(game.n_players, dtype=torch.bool)
    coalition[joined] = True
    with torch.inference_mode(), mask_consumers(model, split.group, coalition):
        right = model(images)
    for n in sorted({len(images), 1}):  # an image by itself goes another way into the tail
        alone = game if n == len(images) else split.game(images[:n], None, "neg_kl_divergence")
        every = torch.arange(n)
        wanted = torch.zeros(n, len(joined) + 1, dtype=torch.bool)
        wanted[:, -1] = True
        found = {
            "masked": alone.masked_outputs(every, coalition.expand(n, -1)),
            "multiplied": alone.outputs(every, coalition.expand(n, -1)),
            "summed": alone.along(every, joined.expand(n, -1), wanted),
        }
        for way, outputs in found.items():
            apart = (outputs.to(right.device) - right[:n]).abs().max()
            difference = (apart / right[:n].abs().max()).item()
            if not difference <= TOLERANCE:
                return f"the {way} tail differs from the network: relative error {difference:.2g}"
    return None
